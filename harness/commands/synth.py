"""`harness data synth`: generated tasks, and expert trajectories that were really executed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from harness.commands.output import emit

if TYPE_CHECKING:
    from harness.env import Env


def synth(
    context: typer.Context,
    domain: str = typer.Option(..., help="swe, math, another name of `harness env list`, or package.module:Class."),
    n: int = typer.Option(..., "-n", min=1, help="Tasks in all."),
    out: Path = typer.Option(..., help="Folder to write; what it holds of an earlier call is replaced."),
    seed: int = typer.Option(0, help="The same seed gives the same files, byte by byte."),
    profile: str = typer.Option(
        "plain", help="plain, tiny (short texts for a model of a few million parameters), or another of the domain's."
    ),
    sandbox: Literal["docker", "local"] = typer.Option("docker", help="Where programs run; local is this machine, unprotected."),
    base_image: str | None = typer.Option(None, help="Image of the sandboxes."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Generate tasks with expert trajectories. Any other environment replays the gold actions of its first N training tasks.

    Options of the environment: --env.x=y.
    """
    from harness.env import load_env

    document = generate(domain, load_env(domain), n, out, seed, profile, sandbox, base_image, context.args)
    counts = ", ".join(f"{count} {split}" for split, count in document["tasks"].items())
    dropped = ", ".join(f"{count} {reason}" for reason, count in document["dropped"].items()) or "none"
    emit(document, as_json, f"{out}: tasks: {counts}; {document['trajectories']} expert trajectories; candidates dropped: {dropped}")


def generate(
    domain: str,
    env: type[Env],
    n: int,
    out: Path,
    seed: int = 0,
    profile: str = "tiny",
    sandbox: Literal["docker", "local"] = "docker",
    base_image: str | None = None,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `n` generated tasks of a domain under `out`.

    Args:
        options: the environment's own, as `--env.x=y`.

    Returns:
        what `--json` prints: counts, and candidates dropped by reason.

    Raises:
        UserError: bad options, or no sandbox can be had.
        EnvError: the environment or its sandbox failed.
    """
    from harness.config import resolve
    from harness.plan import EnvOptions, env_config
    from harness.sandbox_open import Sandboxes

    config = env_config(env, resolve(EnvOptions, None, options).env)
    sandboxes = Sandboxes(sandbox, base_image)
    try:
        return {**env.synth(config, n, seed, out, profile, sandboxes), "domain": domain}
    finally:
        sandboxes.close()
