"""`harness eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import typer

from harness.commands.output import emit, note


def evaluate(
    context: typer.Context,
    domain: str | None = typer.Option(None, help="swe, math, another name of `harness env list`, or package.module:Class.  [default: swe]"),
    mode: Literal["oracle", "e2e", "gold", "null"] | None = typer.Option(
        None, help="oracle: the files to edit are given, one answer. e2e: the whole task. gold, null: controls.  [default: e2e]"
    ),
    scaffold: Literal["agent", "agentless"] | None = typer.Option(None, help="How e2e is played.  [default: agent]"),
    model: str | None = typer.Option(
        None, help="Checkpoint directory, hub id, or endpoint http://HOST:PORT/v1#MODEL.  [default: the newest local checkpoint]"
    ),
    engine: Literal["auto", "transformers", "vllm"] | None = typer.Option(
        None, help="What runs a checkpoint. auto: vllm where it is installed and a GPU is there, else transformers.  [default: auto]"
    ),
    predictions: str | None = typer.Option(None, help="Grade the patches of this file (SWE-bench schema) instead of asking a model."),
    dataset: str | None = typer.Option(
        None, help="File or hub id; for math also a benchmark's name, or several, as aime24,amc23.  [default: the held-out generated tasks]"
    ),
    instances: str | None = typer.Option(None, help="Only these instance ids, separated by commas."),
    samples: int | None = typer.Option(None, min=1, help="Episodes of each instance, for pass@k and avg@k; wants --sampling.temperature."),
    greedy: bool = typer.Option(False, "--greedy", help="Besides the samples a greedy episode of each instance, reported apart."),
    repeat: int | None = typer.Option(None, min=1, help="Grade each result so often, and report verdicts that differ."),
    out: Path | None = typer.Option(None, help="Run folder; the same command into it takes it up again.  [default: runs/eval-...]"),
    workers: int = typer.Option(1, min=1, help="Instances at a time."),
    ray: str | None = typer.Option(
        None,
        help="Address of a Ray cluster whose nodes play the instances, each with its own Docker engine: auto, HOST:PORT, ray://HOST:PORT.",
    ),
    no_grade: bool = typer.Option(False, "--no-grade", help="Only make predictions.jsonl."),
    sandbox: Literal["docker", "local"] | None = typer.Option(None, help="local runs commands on this machine, unprotected."),
    base_image: str | None = typer.Option(None, help="Image of instances that name none."),
    image_template: str | None = typer.Option(None, help="Image name of a classic row, as swebench/sweb.eval.x86_64.{id}:latest"),
    pull: bool = typer.Option(False, "--pull", help="Get images that are not here from their registry."),
    image_budget_gb: float | None = typer.Option(
        None, min=0, help="Keep the pulled images to so many GB; those used longest ago are removed.  [default: no limit]"
    ),
    force: bool = typer.Option(False, "--force", help="Let prompt options given here win over the checkpoint's own."),
    allow_overlap: bool = typer.Option(False, "--allow-overlap", help="Evaluate on training instances too; the report says so."),
    fresh: bool = typer.Option(False, "--fresh", help="Begin anew; the old folder is moved aside."),
    config: Path | None = typer.Option(None, help="YAML file of options."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Evaluate a model, a file of patches, or the controls. Further options: --limits.max_turns=9, --sampling.temperature=1, --env.x=y …"""
    import re

    from harness.config import resolve
    from harness.evaluate import evaluate as run
    from harness.images import ImagePolicy
    from harness.plan import EvalConfig, prepare
    from harness.report import summary

    given: dict[str, Any] = {
        "domain": domain,
        "mode": mode,
        "scaffold": scaffold,
        "model": model,
        "engine": engine,
        "predictions": predictions,
        "dataset": dataset,
        "instances": tuple(filter(None, instances.split(","))) if instances is not None else None,
        "samples": samples,
        "greedy": greedy or None,
        "repeat": repeat,
        "grade": False if no_grade else None,
        "sandbox": sandbox,
        "base_image": base_image,
        "image_template": image_template,
        "force": force or None,
        "allow_overlap": allow_overlap or None,
    }
    options = resolve(EvalConfig, config, context.args)
    asked = options.model_copy(update={name: value for name, value in given.items() if value is not None})
    plan = prepare(asked, images=ImagePolicy(pull, image_budget_gb))
    if out is None:
        way = "agentless" if plan.config.scaffold == "agentless" else plan.config.mode
        parts = dict.fromkeys((plan.config.domain, way, plan.label))
        name = re.sub(r"[^\w.-]+", "-", "-".join(parts)).strip("-.")
        out = Path("runs") / f"eval-{name[-100:]}"
        note(f"--out not given: {out}")
    report = run(plan, out, workers, fresh, cluster=ray)
    emit(report, as_json, summary(report))
    if plan.config.grade and not report["graded"]:
        note(f"error: no instance could be graded: the infrastructure failed. What failed stands in {out}/instances/**/report.json")
        raise typer.Exit(1)
