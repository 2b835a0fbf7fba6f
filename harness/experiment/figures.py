"""What the runs of an experiment come to: figures by arm and seed, read from their folders, and intervals over seeds and tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.experiment.plan import BASE, Layout, Model, base_seed
from harness.report import wilson
from harness.runs import read_jsonl
from harness.train.summary import spent_tokens

STEPS = "steps"
"""The measure of step accuracy, beside the names of the tests."""
RESAMPLES = 4000
Right = npt.NDArray[np.float64]
"""Right or wrong, 1 or 0, of each seed on each task or step, the same ones for all; NaN where the infrastructure failed. (seeds, tasks)"""
UNKNOWN = "-"
"""In place of 0 or 1: an episode without a verdict, which is no failure of the model's."""


class Interval(NamedTuple):
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


def gather(layout: Layout) -> dict[str, Any]:
    """All figures so far: `bases` by seed, `arms` by name and seed. What is not finished is not in it."""
    experiment = layout.experiment
    found: dict[str, Any] = {"experiment": json.loads(experiment.model_dump_json())}
    found["bases"] = {str(base.seed): row for base in layout.bases if (row := _model(layout, base, 1))}
    found["arms"] = {
        name: {str(seed): row for seed in layout.seeds if (row := _model(layout, layout.arm(name, seed), len(arm.stages)))}
        for name, arm in experiment.arms.items()
    }
    return found


def _model(layout: Layout, model: Model, stages: int) -> dict[str, Any] | None:
    reports = {test: model.folder / f"eval-{test}" / "report.json" for test in layout.experiment.tests}
    steps, samples = model.folder / "steps.json", model.folder / "samples" / "report.json"
    if not all(file.exists() for file in (*reports.values(), steps)):
        return None
    found: dict[str, Any] = {"steps": _read(steps), "tests": {}, "stages": []}
    for test, file in reports.items():
        rows = _read(file)["instances"]
        marks = [UNKNOWN if row["status"] in (None, "infra_error") else str(int(row["status"] == "resolved")) for row in rows.values()]
        found["tests"][test] = {"right": "".join(marks)}
    if samples.exists():
        found["pass_at_k"] = _read(samples)["pass_at_k"]
    for number in range(1, stages + 1):
        found["stages"].append(_training(model.folder / f"train-{number}"))
    return found


def _training(run: Path) -> dict[str, Any]:
    """Of a training run: `curve`, rows of (tokens so far, step accuracy and reward on validation), the tokens, seconds and steps of it,
    the checkpoint that was chosen."""
    tokens, seconds = 0.0, 0.0
    curve: list[tuple[float, float, float]] = []
    steps = 0
    for row in read_jsonl(run / "metrics.jsonl"):
        tokens += spent_tokens(row)
        seconds += row.get("seconds", 0.0)
        steps = max(steps, row["step"])
        exact = row.get("val_exact", row.get("val_step_exact"))
        if exact is not None:
            curve.append((tokens, exact, row.get("val_step_reward", row["val_reward"])))
    report = _read(run / "report.json")
    return {
        "method": report["method"],
        "tokens": tokens,
        "seconds": seconds,
        "steps": steps,
        "chosen": report.get("best", {}).get("step"),
        "curve": curve,
        "last": {name: stage["last"] for name, stage in report["stages"].items()},
    }


def right(figures: Mapping[str, Any], arm: str, measure: str) -> Right:
    """Of every seed that is finished. (seeds, tasks)"""
    rows = figures["bases"] if arm == BASE else figures["arms"][arm]
    texts = [row["steps"]["greedy"]["right"] if measure == STEPS else row["tests"][measure]["right"] for row in rows.values()]
    return np.array([[np.nan if mark == UNKNOWN else float(mark) for mark in text] for text in texts])


def accuracy(figures: Mapping[str, Any], arm: str, measure: str) -> Interval:
    """Of an arm, over its finished seeds. Where all are wrong, or all right, resampling shows no spread: there it is Wilson's interval on
    the tasks."""
    values = right(figures, arm, measure)
    mean = float(np.nanmean(values))
    if mean not in (0.0, 1.0):
        return interval(values)
    known = int((~np.isnan(values)).any(0).sum())
    low, high = wilson(round(mean * known), known) or (0.0, 1.0)
    return Interval(mean, low, high)


def against(figures: Mapping[str, Any], arm: str, other: str, measure: str) -> Right | None:
    """Differences, seed by seed and task by task, over the seeds that both have finished; None where there is none. (seeds, tasks)"""
    rows, others = (figures["bases"] if name == BASE else figures["arms"][name] for name in (arm, other))
    count = figures["experiment"]["base"]["count"]
    twins = {seed: str(base_seed(int(seed), count)) if other == BASE else seed for seed in rows}
    pairs = [(place, list(others).index(twins[seed])) for place, seed in enumerate(rows) if twins[seed] in others]
    if not pairs:
        return None
    mine, theirs = right(figures, arm, measure), right(figures, other, measure)
    return mine[[place for place, _ in pairs]] - theirs[[place for _, place in pairs]]


def interval(values: Right) -> Interval:
    """The mean, and the percentile bootstrap of it over seeds and over tasks, both drawn with replacement, independently of each other:
    what another draw of experts and of tasks might have given."""
    seeds, tasks = values.shape
    rng = np.random.default_rng(0)
    means = [np.nanmean(values[rng.integers(seeds, size=seeds)][:, rng.integers(tasks, size=tasks)]) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(np.nanmean(values)), float(low), float(high))


def gate(layout: Layout, figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The gate's conditions for each base: what was wanted, what was found, and whether it holds."""
    wanted, k = layout.experiment.gate, str(layout.experiment.samples)
    found = []
    for seed, row in figures["bases"].items():
        sampled, solved = row["steps"]["sampled"], row["pass_at_k"][k]["value"]
        loud, silent = sampled["thought_exact"] or 0.0, sampled["silent_exact"] or 0.0
        low, high = wanted.with_thought
        checks = (
            ("sampled steps with a thought that are right", f"{low:g} to {high:g}", loud, low <= loud <= high),
            ("of those without a thought", f"at most {wanted.without_below:g} of that", silent, silent <= wanted.without_below * loud),
            (f"pass@{k} on the first test", f"at most {wanted.solved_at_most:g}", solved, solved <= wanted.solved_at_most),
        )
        found += [{"base": seed, "what": what, "wanted": told, "found": value, "holds": ok} for what, told, value, ok in checks]
    return found


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def curve_of(stages: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Tokens of all stages so far, and step accuracy on validation."""
    points, before = [], 0.0
    for stage in stages:
        points += [(before + tokens, exact) for tokens, exact, _ in stage["curve"]]
        before += stage["tokens"]
    return points
