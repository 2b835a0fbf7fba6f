"""`harness train`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from harness.commands.output import emit, note

if TYPE_CHECKING:
    from harness.env import Env
    from harness.train.config import TrainConfig

PUBLISHED: dict[str, dict[str, Any]] = {
    "swe": {
        "model": "Qwen/Qwen2.5-Coder-7B-Instruct",
        "data": ["SWE-bench/SWE-smith-trajectories:xml"],
        "only_resolved": True,
        "teacher": "claude-3-7-sonnet-20250219",
    },
    "math": {"model": "Qwen/Qwen2.5-7B-Instruct", "data": ["simplescaling/s1K-1.1"]},
}
"""What the bare command trains where there is a GPU."""
TASKS = {"swe": "SWE-bench/SWE-smith", "math": "simplescaling/s1K-1.1"}
"""Of RLVR, there: those that the expert steps are of."""
GENERATED = 2000
"""Tasks that the bare command generates where there is none."""


def train(
    context: typer.Context,
    domain: str = typer.Option(..., help="swe, math, another name of `harness env list`, or package.module:Class."),
    method: Literal["srl", "sft", "rlvr", "pipeline"] | None = typer.Option(
        None,
        help="srl: RL on the similarity of single steps. sft: supervised. rlvr: RL on the outcome of episodes. pipeline: warm-up, SRL, "
        "RLVR.  [default: srl]",
    ),
    model: str | None = typer.Option(
        None, help="Checkpoint folder, hub id, or tiny: a small model built on the spot.  [default: tiny without a GPU, else 7B]"
    ),
    tokenizer: str | None = typer.Option(None, help="With --model tiny: folder or tokenizer.json(.gz) instead of one trained on the data."),
    data: list[str] | None = typer.Option(None, help="Imported folder, files, or hub id; may be repeated.  [default: generated tasks]"),
    dataset: str | None = typer.Option(
        None, help="RLVR's tasks: as for harness eval.  [default: those of a generated --data folder, else the environment's own]"
    ),
    mode: Literal["oracle", "e2e"] | None = typer.Option(None, help="How RLVR's tasks are played, as for harness eval.  [default: e2e]"),
    scaffold: Literal["agent", "agentless"] | None = typer.Option(None, help="How e2e is played.  [default: agent]"),
    sandbox: Literal["docker", "local"] | None = typer.Option(
        None, help="Of RLVR's episodes; local runs commands on this machine, unprotected.  [default: docker]"
    ),
    exclude: list[str] | None = typer.Option(
        None, help="Evaluation set (file of rows or ids, or hub id) that must not be trained on: data with its instances is refused."
    ),
    out: Path | None = typer.Option(None, help="Run folder; the same command into it resumes it.  [default: runs/train-DOMAIN-METHOD]"),
    fresh: bool = typer.Option(False, "--fresh", help="Begin anew; the old folder is moved aside."),
    config: Path | None = typer.Option(None, help="YAML file of options, such as configs/swe-srl.yaml."),
    dry_run: bool = typer.Option(
        False,
        "--dry-run",
        help="Only say what the run would cost: memory by part, tokens and operations of a step, hours. Loads no weights.",
    ),
    device_gb: float | None = typer.Option(
        None, min=1.0, help="With --dry-run: for a GPU of so much memory.  [default: the device that would be used here]"
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Train a model. Further options: --srl.learning_rate=1e-6, --warmup.epochs=4, --episodes.workers=8, --env.x=y …"""
    import os

    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: spinning threads cost up to 9 times on a shared CPU
    from harness.config import read_yaml, resolve
    from harness.env import load_env
    from harness.train import processes
    from harness.train.config import TrainConfig, defaults, is_tiny
    from harness.train.failure import GateClosed, Stopped, TrainingFailed

    env = load_env(domain)
    given = {"domain": domain, "method": method, "model": model, "tokenizer": tokenizer, "data": data or None, "exclude": exclude or None}
    played = {"dataset": dataset, "mode": mode, "scaffold": scaffold, "sandbox": sandbox}
    words = {**given, **{f"episodes.{name}": value for name, value in played.items()}}
    overrides = [*(f"--{name}={json.dumps(value)}" for name, value in words.items() if value is not None), *context.args]
    named = {**(read_yaml(config) if config else {}), **{name: value for name, value in given.items() if value is not None}}
    if dataset is not None:
        named["episodes"] = {"dataset": dataset}
    chosen = _model_and_data(domain, named)
    if is_tiny(str(chosen["model"])):
        note("tiny preset: a model of a few million parameters on short prompts")
    base = {**defaults(env, str(chosen["model"])), **chosen}
    options = resolve(TrainConfig, config, overrides, base)
    if dry_run:
        _say_cost(options, env, device_gb, as_json)
        return
    if "data" not in named and options.data == (str(_folder(domain)),):
        with processes.first_alone():
            _generated(domain, env)
    if out is None:
        out = Path("runs") / f"train-{_slug(domain)}-{options.method}"
        note(f"--out not given: {out}")
    try:
        with redirect_stdout(sys.stderr):  # what packages print; the result stands alone
            from harness.train.run import train as run
            from harness.train.summary import table

            report = run(options, out, fresh)
    except (GateClosed, TrainingFailed) as end:
        if os.environ.get("HARNESS_DEBUG"):
            raise
        note(f"error: {end}")
        raise typer.Exit(1) from None
    except Stopped as end:
        note(str(end))
        raise typer.Exit(130) from None
    emit(report, as_json, f"{table(report)}\ncheckpoint: {report['checkpoint']}\nreport: {out / 'report.md'}")


def _say_cost(options: TrainConfig, env: type[Env], device_gb: float | None, as_json: bool) -> None:
    from harness.commands.cost import cost_text

    with redirect_stdout(sys.stderr):
        from harness.train.dry_run import dry_run

        cost = dry_run(options, env, device_gb)
    emit(cost, as_json, cost_text(cost))


def _model_and_data(domain: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """The named model and data, or what stands for them; said where something was filled in."""
    import torch

    from harness.train.config import TINY_MODEL, is_tiny

    published = PUBLISHED.get(domain) if torch.cuda.is_available() else None
    model = named.get("model")
    if model is None:
        model = published["model"] if published else TINY_MODEL
        note(f"--model not given: {model}" + ("" if published else " (no GPU here)" if domain in PUBLISHED else ""))
    if "data" in named:
        return {"model": model, "data": named["data"]}
    method, dataset = named.get("method"), (named.get("episodes") or {}).get("dataset")
    chosen: dict[str, Any] = {"model": model}
    if published and not is_tiny(str(model)):
        if method in ("rlvr", "pipeline") and not dataset:
            note(f"--dataset not given: {TASKS[domain]}")
            chosen["episodes"] = {"dataset": TASKS[domain]}
        if method != "rlvr":
            note(f"--data not given: {', '.join(published['data'])}")
            chosen = {**published, **chosen}
    elif method != "rlvr" or not dataset or model == TINY_MODEL:
        chosen["data"] = [str(_folder(domain))]
    return chosen


def _folder(domain: str) -> Path:
    return Path("runs") / "data" / f"{_slug(domain)}-tiny"


def _generated(domain: str, env: type[Env]) -> None:
    """Make the domain's generated tasks where they are missing."""
    from harness.commands.synth import generate

    folder = _folder(domain)
    if (folder / "synth.json").is_file():
        note(f"--data not given: {folder}, generated before")
    else:
        note(f"--data not given: generating {GENERATED} tasks and their expert trajectories in {folder}")
        generate(domain, env, GENERATED, folder)


def _slug(domain: str) -> str:
    return re.sub(r"[^\w.-]+", "-", domain)
