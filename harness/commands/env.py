"""`harness env`: list the environments, write a new one, check one."""

from __future__ import annotations

from typing import Literal

import typer

from harness.commands.output import emit


def list_(as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout.")) -> None:
    """The environments that are installed: name, class, tools, what it is."""
    import inspect
    from importlib.metadata import entry_points

    from harness.env import GROUP, load_env
    from harness_trajectories.errors import UserError

    rows: list[dict[str, object]] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda found: found.name):
        try:
            env = load_env(entry.name)
            doc = (inspect.getdoc(env) or "").split("\n")[0]
            rows.append({"name": entry.name, "class": entry.value, "tools": env.tool_names(), "doc": doc})
        except UserError as error:
            rows.append({"name": entry.name, "class": entry.value, "tools": [], "doc": f"cannot be loaded: {error}"})
    text = "\n".join(f"{row['name']:10} {row['class']}\n{'':10} {row['doc']}\n{'':10} tools: {', '.join(row['tools'])}" for row in rows)  # type: ignore[arg-type]
    emit({"environments": rows}, as_json, text)


def new(
    name: str = typer.Argument(help="The package's name: lower-case letters, digits and underscores."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Write a working environment as a package, with its test, into the folder NAME."""
    from pathlib import Path

    from harness.skeleton import write_package

    target, files = write_package(name, Path())
    written = [str(path) for path in files]
    text = f"wrote {', '.join(written)}\ncheck it: harness env check {name}"
    emit({"domain": name, "class": target, "files": written}, as_json, text)


def check(
    context: typer.Context,
    name: str = typer.Argument(help="A name of `harness env list`, or package.module:Class."),
    limit: int = typer.Option(3, min=1, help="Tasks of each split that are played."),
    sandbox: Literal["docker", "local"] = typer.Option("docker", help="Where commands run; local is this machine, unprotected."),
    base_image: str | None = typer.Option(None, help="Image of tasks that name none."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Check an environment: ids, tools, gold grades 1.0 and nothing 0.0, twice alike, odd arguments, close() twice. Options: --env.x=y."""
    from harness.check import check as run_checks
    from harness.config import resolve
    from harness.env import load_env
    from harness.plan import EnvOptions, env_config
    from harness.sandbox_open import Sandboxes

    env = load_env(name)
    options = env_config(env, resolve(EnvOptions, None, context.args).env)
    sandboxes = Sandboxes(sandbox, base_image)
    try:
        found = run_checks(env, options, sandboxes, limit)
    finally:
        sandboxes.close()
    text = "\n".join(f"{'ok    ' if one.ok else 'FAILED'} {one.name}: {one.detail}" for one in found)
    emit({"name": name, "ok": all(one.ok for one in found), "checks": [one._asdict() for one in found]}, as_json, text)
    if not all(one.ok for one in found):
        raise typer.Exit(1)
