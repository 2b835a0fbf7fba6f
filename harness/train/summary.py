"""What a finished run comes to: the figures of report.json by stage, the table that is printed, and the page RUN/report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.runs import Run, read_jsonl

LAST = {
    "loss": "loss",
    "grad_norm": "norm of the gradient",
    "reward": "reward",
    "format_ok": "format good",
    "exact": "the expert's action",
    "solved": "tasks solved",
    "turns": "turns an episode",
    "clipped": "cut at the limit of tokens",
    "zero_variance": "groups whose rewards are all equal",
    "tried_per_kept": "prompts tried for each that was kept",
    "completion_tokens": "tokens a completion",
    "entropy": "entropy a token (nats)",
    "tokens_per_second": "tokens sampled a second",
    "update_tokens_per_second": "tokens updated a second",
}
"""Figures of metrics.jsonl that the end of a stage is described by."""


def stage_reports(run: Run) -> dict[str, dict[str, Any]]:
    """By stage: steps, seconds of training and of validation, the facts of its beginning, and the validations before and after.

    `phases` holds the seconds and the share of each phase, validation among them; `last` the means of `LAST` over the last tenth of the
    steps.
    """
    reports: dict[str, dict[str, Any]] = {}
    steps: dict[str, list[dict[str, Any]]] = {}
    for row in read_jsonl(run.path / "metrics.jsonl"):
        report = reports.setdefault(row["stage"], {"steps": 0, "seconds": 0.0, "validation_seconds": 0.0, "phases": {}})
        figures = {name.removeprefix("val_"): value for name, value in row.items() if name.startswith("val_")}
        if figures:
            report["validation_seconds"] += row["seconds"]
            report["after" if "before" in report else "before"] = figures
        elif row["step"] == 0:
            report |= {name: value for name, value in row.items() if name not in ("stage", "step")}
        else:
            report["steps"] = row["step"]
            report["seconds"] += row["seconds"]
            for name in (name for name in row if name.startswith("seconds_")):
                phase = report["phases"].setdefault(name.removeprefix("seconds_"), {"seconds": 0.0})
                phase["seconds"] += row[name]
            if "loss" in row:
                steps.setdefault(row["stage"], []).append(row)
    for stage, report in reports.items():
        if report["validation_seconds"]:
            report["phases"]["validation"] = {"seconds": report["validation_seconds"]}
        whole = report["seconds"] + report["validation_seconds"]
        for phase in report["phases"].values():
            phase |= {"seconds": round(phase["seconds"], 3), "share": round(phase["seconds"] / whole, 4)}
        done = steps.get(stage, [])
        report["last"] = _means(done[-max(1, len(done) // 10) :])
    return reports


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {name: [float(row[name]) for row in rows if isinstance(row.get(name), int | float)] for name in LAST}
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def spent_tokens(row: Mapping[str, Any]) -> float:
    """What a step, by its row of metrics.jsonl, sampled and updated."""
    return sum(row.get(name, 0.0) for name in ("prompt_tokens", "sampled_tokens", "update_tokens"))


def table(report: Mapping[str, Any]) -> str:
    """What was held out, before and after each stage: steps beside what needs no model, and tasks."""
    rows = _rows(report)
    lines = [f"{report['method']} on {_counts(report)}, {report['parameters'] / 1e6:.2f}M parameters"]
    steps = {name: found for name, row in rows.items() if (found := row if "exact" in row else _of_steps(row))}
    if steps:
        lines.append(f"{'held-out steps':<16}{'format':>8}{'exact':>8}{'similarity':>12}{'reward':>8}")
        for name, row in steps.items():
            lines.append(f"{name:<16}{row['format_ok']:>8.3f}{row['exact']:>8.3f}{row['similarity']:>12.3f}{row['reward']:>8.3f}")
        for name, baseline in (("constant action", "baseline_constant"), ("last action again", "baseline_copy")):
            lines.append(f"{name:<36}{report['baselines'][baseline]:>8.3f}")
    tasks = {name: row for name, row in rows.items() if "solved" in row}
    if tasks:
        lines.append(f"{'held-out tasks':<16}{'format':>8}{'solved':>8}{'turns':>12}{'reward':>8}{'of':>8}")
        for name, row in tasks.items():
            graded = row["episodes"] - row["unscorable"]
            cells = f"{row['format_ok']:>8.3f}{row['solved']:>8.3f}{row['turns']:>12.1f}{row['reward']:>8.3f}{graded:>8.0f}"
            lines.append(f"{name:<16}{cells}")
    return "\n".join(lines)


def _counts(report: Mapping[str, Any]) -> str:
    data = report["data"]
    return " and ".join(f"{data[key]} {what}" for key, what in (("train_steps", "steps"), ("train_tasks", "tasks")) if key in data)


def _rows(report: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """The validations of a run: before and after each stage, and the best of the last."""
    rows = {f"{stage}, {when}": found[when] for stage, found in report["stages"].items() for when in ("before", "after") if when in found}
    return {**rows, **({"best": report["best"]} if "best" in report else {})}


def _of_steps(row: Mapping[str, float]) -> dict[str, float]:
    """What an RLVR stage measured on steps, beside its tasks."""
    return {name.removeprefix("step_"): value for name, value in row.items() if name.startswith("step_")}


def describe(run: Run, report: Mapping[str, Any]) -> str:
    """The page, in Markdown."""
    parts = [
        f"# {report['method']} on {report['domain']}",
        f"`{report['model']}`, trained on {_counts(report)}. All options are in `config.yaml`, packages and revision in\n"
        "`versions.json`, the figures of this page in `report.json`.",
        f"```\n{table(report)}\n```",
        "What is held out is decoded greedily. *format*: a closed think span, then one well-formed action; *exact*: it is the\n"
        "expert's; *similarity*: to the expert's, of those with the format; *reward*: the same with −1 for a bad format. Two rows\n"
        "need no model: always the same action, and the action before once more. What does not beat them was not learnt. Of tasks,\n"
        "*solved* and *reward* are the environment's verdict.",
    ]
    for stage, figures in report["stages"].items():
        parts += _stage(stage, figures, [name for name in report["plots"] if name.startswith(f"plots/{stage}-")])
    parts += _completions(run)
    parts += [
        "## Files",
        "- `metrics.jsonl`: one line a step and one a validation (`val_…`), by stage\n"
        "- `completions/`: for each step of SRL, what was sampled, the model's action beside the expert's, and its reward; `episodes/`:\n"
        "  for each step of RLVR, episodes as they went\n"
        "- `checkpoints/`: each loads with `from_pretrained`, in `harness eval`; `best` by validation, `final` after the last step\n"
        f"- checkpoint to use: `{report['checkpoint']}`",
    ]
    return "\n\n".join(parts) + "\n"


def _stage(stage: str, figures: Mapping[str, Any], plots: Sequence[str]) -> list[str]:
    phases = sorted(figures["phases"].items(), key=lambda item: -item[1]["seconds"])
    shares = ", ".join(f"{name.replace('_', '-')} {phase['share']:.0%}" for name, phase in phases)
    whole = figures["seconds"] + figures["validation_seconds"]
    last = "\n".join(f"| {LAST[name]} | {_short(value)} |" for name, value in figures["last"].items())
    return [
        f"## {stage}: {figures['steps']} steps in {whole:.0f} s",
        f"Time: {shares}.",
        f"| the last tenth of the steps | mean |\n|---|---|\n{last}",
        *(f"![{name}]({name})" for name in plots),
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _completions(run: Run) -> list[str]:
    """The best and the worst of the last step's completions."""
    files = sorted((run.path / "completions").glob("step-*.jsonl"))
    rows = [row for row in (read_jsonl(files[-1]) if files else ()) if row["reward"] is not None]
    if not rows:
        return []
    ordered = sorted(rows, key=lambda row: row["reward"])
    parts = [f"## What was sampled: `{files[-1].relative_to(run.path)}`"]
    for label, row in (("best", ordered[-1]), ("worst", ordered[0])):
        parts.append(f"The {label} of {len(rows)}: reward {row['reward']:.3f}, {row['tokens']} tokens, step `{row['sample']}`.")
        parts += [_block("expert", row["expert"]), _block("model", row["completion"] if row["action"] is None else row["action"])]
    return parts


def _block(title: str, text: str) -> str:
    """An indented block: no fence could be ended by what stands in it."""
    return f"{title}:\n\n" + "\n".join(f"    {line}" for line in text[:2000].splitlines())
