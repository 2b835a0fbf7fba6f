"""The page of an experiment, in Markdown: made of its figures, nothing of it by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from harness.experiment.config import Experiment
from harness.experiment.figures import STEPS, UNKNOWN, accuracy, against, interval, right
from harness.experiment.plan import BASE

PAPER = """## What the paper reports

These are the figures of the paper (arXiv 2510.25992 v3), of other models and other tasks. They were not measured here.

| Qwen2.5-7B-Instruct, math | AMC23 avg@32 / greedy | AIME24 | AIME25 | Minerva | mean |
|---|---|---|---|---|---|
| base | 49.3 / 50.0 | 10.5 / 13.3 | 7.5 / 6.7 | 34.9 | 24.6 |
| SFT (the teacher's reasoning) | 26.8 / 40.0 | 3.9 / 10.0 | 5.4 / 10.0 | 20.2 | 16.6 |
| RLVR | 52.0 / 47.5 | 11.1 / 10.0 | 7.4 / 10.0 | 33.8 | 24.5 |
| SRL | 51.5 / 50.0 | 13.2 / 16.7 | 7.1 / 13.3 | 36.4 | 27.6 (26.9 recomputed) |
| SRL → RLVR | 52.1 / 57.5 | 13.3 / 20.0 | 8.6 / 10.0 | 36.4 | 28.3 |
| SRL without dynamic sampling | | | | | 24.7 |
| similarity of whole solutions in place of steps | | | | | 25.9 |

| Qwen2.5-Coder-7B-Instruct, SWE-bench Verified, greedy, single turn | oracle | end to end |
|---|---|---|
| base | 5.8 | 3.2 |
| SWE-Gym-7B (SFT) | 8.4 | 4.2 |
| SRL | 14.8 | 8.6 |
"""


def page(name: str, experiment: Experiment, figures: Mapping[str, Any], plots: Sequence[str], versions: Mapping[str, Any]) -> str:
    """The page.

    Args:
        plots: pictures, as paths from where the page lies.
        versions: of the last call (`harness.runs`).
    """
    finished = {arm: len(rows) for arm, rows in figures["arms"].items()}
    least = min(finished.values(), default=0)
    parts = [
        f"# {name}",
        experiment.question,
        f"Made by `harness experiment {name}` from its run folders. Seeds finished: {_seeds(finished, experiment.seeds)}. "
        "Intervals are 95 %, bootstrapped over seeds and over tasks. All accuracies are greedy, in per cent.",
    ]
    if least < experiment.seeds:
        parts.append("**Not finished: what stands here may change.**")
    parts += [_gate(figures), _table(experiment, figures, ("method", "control"), "Methods")]
    rows = [row for part in (figures["bases"], *figures["arms"].values()) for row in part.values()]
    if unknown := sum(test["right"].count(UNKNOWN) for row in rows for test in row["tests"].values()):
        parts.append(f"{unknown} episodes have no verdict, since the infrastructure failed; they are left out.")
    parts += [_differences(experiment, figures)]
    if any(arm.kind == "ablation" for arm in experiment.arms.values()):
        parts.append(_table(experiment, figures, ("ablation",), "Ablations"))
    parts += [f"![{plot}]({plot})" for plot in plots]
    parts += [_before(figures), _effort(experiment, figures), _setting(experiment, versions), PAPER.rstrip()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _seeds(finished: Mapping[str, int], wanted: int) -> str:
    counts = set(finished.values())
    if len(counts) == 1:
        return f"{counts.pop()} of {wanted}"
    return ", ".join(f"{arm} {count}" for arm, count in finished.items()) + f" of {wanted}"


def _table(experiment: Experiment, figures: Mapping[str, Any], kinds: Sequence[str], title: str) -> str:
    tests = experiment.tests
    heads = [f"{name} (n = {_tasks(figures, name)})" for name in (STEPS, *tests)]
    lines = [f"## {title}", f"| | {' | '.join(heads)} | with a thought | what it is |", f"|---|{'---|' * len(heads)}---|---|"]
    rows = [(BASE, "what all start from")] if "method" in kinds else []
    rows += [(name, arm.about) for name, arm in experiment.arms.items() if arm.kind in kinds]
    for name, about in rows:
        found = figures["bases"] if name == BASE else figures["arms"][name]
        if not found:
            continue
        cells = [_cell(figures, name, measure) for measure in (STEPS, *tests)]
        thoughts = [row["steps"]["greedy"]["thought_share"] for row in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {100 * sum(thoughts) / len(thoughts):.0f} | {about} |")
    described = [f"*{STEPS}*: the expert's next action after the expert's own steps, on held-out solutions"]
    described += [f"*{name}*: {test.about or test.profile}, solved" for name, test in tests.items()]
    return "\n".join(lines) + "\n\n" + "; ".join(described) + ". *with a thought*: share of the outputs on held-out steps."


def _cell(figures: Mapping[str, Any], name: str, measure: str) -> str:
    mean, low, high = (100 * value for value in accuracy(figures, name, measure))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _tasks(figures: Mapping[str, Any], measure: str) -> int:
    return int(right(figures, BASE, measure).shape[1])


def _differences(experiment: Experiment, figures: Mapping[str, Any]) -> str:
    """Pairs of methods, on the same seeds and tasks."""
    names = [name for name, arm in experiment.arms.items() if arm.kind != "ablation"]
    pairs = [(name, other) for place, name in enumerate(names) for other in names[:place]]
    measures = (STEPS, *experiment.tests)
    lines = ["## Differences", f"| | {' | '.join(measures)} |", f"|---|{'---|' * len(measures)}"]
    for name, other in [*((name, BASE) for name in names), *pairs]:
        cells = []
        for measure in measures:
            difference = against(figures, name, other, measure)
            if difference is not None:
                mean, low, high = (100 * value for value in interval(difference))
                mark = "**" if low > 0 or high < 0 else ""
                cells.append(f"{mark}{mean:+.1f}{mark} [{low:+.1f}, {high:+.1f}]")
        if cells:
            lines.append(f"| {name} − {other} | {' | '.join(cells)} |")
    lines.append("\nPercentage points, seed by seed and task by task. Bold: the interval leaves out 0, as one in twenty does by chance.")
    return "\n".join(lines)


def _gate(figures: Mapping[str, Any]) -> str:
    lines = ["## The base, before anything is compared", "| base | what | wanted | found | |", "|---|---|---|---|---|"]
    for row in figures["gate"]:
        lines.append(
            f"| {row['base']} | {row['what']} | {row['wanted']} | {row['found']:.3f} | {'holds' if row['holds'] else '**does not hold**'} |"
        )
    return "\n".join(lines)


def _before(figures: Mapping[str, Any]) -> str:
    lines = ["## pass@k of the base on the first test, at temperature 1", "| base | " + " | ".join(_ks(figures)) + " | tasks |"]
    lines.append(f"|---|{'---|' * len(_ks(figures))}---|")
    for seed, row in figures["bases"].items():
        cells = [f"{100 * found['value']:.2f}" for found in row["pass_at_k"].values()]
        lines.append(f"| {seed} | {' | '.join(cells)} | {next(iter(row['pass_at_k'].values()))['instances']} |")
    lines.append("\nIn per cent: how often at least one of k attempts is right. It is what RLVR can be rewarded for at its beginning.")
    return "\n".join(lines)


def _ks(figures: Mapping[str, Any]) -> list[str]:
    first = next(iter(figures["bases"].values()))
    return [f"pass@{k}" for k in first["pass_at_k"]]


def _effort(experiment: Experiment, figures: Mapping[str, Any]) -> str:
    heads = "| arm | stage | tokens | steps | chosen after | minutes |\n|---|---|---|---|---|---|"
    lines = ["## What each arm spent, mean over the seeds", heads]
    for name, rows in figures["arms"].items():
        for number, stages in enumerate(zip(*(row["stages"] for row in rows.values()), strict=True), 1):
            chosen = ", ".join(str(stage["chosen"]) for stage in stages)
            tokens, steps, seconds = (sum(stage[key] for stage in stages) / len(stages) for key in ("tokens", "steps", "seconds"))
            lines.append(f"| {name} | {number}: {stages[0]['method']} | {tokens:,.0f} | {steps:.0f} | {chosen} | {seconds / 60:.1f} |")
    lines.append(
        f"\nThe budget is {experiment.budget_tokens:,} tokens, shared equally by the stages of an arm; a stage ends with the step that "
        "reaches it. *chosen after*: the optimizer step whose checkpoint was best on validation, for each seed."
    )
    return "\n".join(lines)


def _setting(experiment: Experiment, versions: Mapping[str, Any]) -> str:
    options = yaml.safe_dump(experiment.model_dump(mode="json", exclude={"question"}), sort_keys=False, width=110, default_flow_style=None)
    packages = ", ".join(f"{name} {version}" for name, version in versions["packages"].items())
    return (
        f"## Setting\n\n```yaml\n{options}```\n\n{versions['platform']}, {versions['cpus']} CPUs, Python {versions['python']}, revision "
        f"{versions['git']}: {packages}."
    )
