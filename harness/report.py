"""What is printed of an evaluation: a table, a comparison of several, one episode. Figures of different modes never share a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from harness_trajectories.errors import UserError

Z95 = 1.959963984540054
"""The 0.975 quantile of the normal distribution."""
CONTROLS = ("gold", "null")
_SHOWN = 1500
"""Characters of a message that `episode` prints."""


def wilson(k: int, n: int) -> tuple[float, float] | None:
    """Wilson's 95 % score interval for `k` successes in `n` trials (Wilson 1927, eq. without continuity correction); None for no trial."""
    if n == 0:
        return None
    if not 0 <= k <= n:
        raise ValueError(f"expected 0 <= k <= n, got k={k}, n={n}")
    p, z2 = k / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)


def rate_text(report: Mapping[str, Any]) -> str:
    """Solve rate with its denominator and interval: `3/20 = 15.0 % [5.2, 36.0]`; of several samples pass@1, and the instances."""
    if report["rate"] is None:
        return f"not graded (0 of {report['n']})"
    if report["samples"] > 1:
        return pass_text("1", report["pass_at_k"]["1"])
    return f"{report['resolved']}/{report['graded']} = {_percent(report['rate'], report['ci95'])}"


def pass_text(k: str, figures: Mapping[str, Any]) -> str:
    """`pass@4 31.5 % [20.1, 44.0] of 20 instances`."""
    if figures["value"] is None:
        return f"pass@{k}: no instance has {k} graded episodes"
    return f"pass@{k} {_percent(figures['value'], figures['ci95'])} of {figures['instances']} instances"


def _percent(rate: float, ci95: Sequence[float]) -> str:
    return f"{100 * rate:.1f} % [{100 * ci95[0]:.1f}, {100 * ci95[1]:.1f}]"


def summary(report: Mapping[str, Any]) -> str:
    """The printed table of one evaluation."""
    title = " · ".join(filter(None, (report["domain"], report["mode"], report["scaffold"], report["model"])))
    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("dataset", f"{report['dataset']} ({report['n']} instances)")
    if report["samples"] > 1:
        figures = report["pass_at_k"]
        table.add_row("95 % bootstrap over instances", "\n".join(pass_text(k, figures[k]) for k in figures))
        table.add_row("episodes", f"{report['resolved']} of {report['graded']} graded are resolved, {report['samples']} an instance")
    else:
        table.add_row("resolved (95 % Wilson)", rate_text(report))
    if (greedy := report.get("greedy")) and greedy["graded"]:
        share = f"{greedy['resolved']}/{greedy['graded']} = {_percent(greedy['rate'], greedy['ci95'])}"
        table.add_row("greedy episodes beside them", share)
    for name, figures in report.get("benchmarks", {}).items():
        kinds = (("greedy", "greedy", "greedy_ci95"), (f"avg@{figures['k']}", "avg_at_k", "ci95"))
        shown = [f"{label} {_percent(figures[key], figures[ci95])}" for label, key, ci95 in kinds if figures[key] is not None]
        table.add_row(f"{name}, {figures['n']} problems", "\n".join(shown) or "not graded")
    table.add_row("statuses", ", ".join(f"{name} {count}" for name, count in report["statuses"].items() if count) or "none graded")
    if (official := report["official"])["graded"]:
        differs = f"; it differs on {', '.join(official['differs'])}" if official["differs"] else ", as here"
        table.add_row("the SWE-bench grader", f"{official['resolved']} of {official['graded']} resolved{differs}")
    if report["statuses"]["infra_error"]:
        table.add_row("", f"{report['statuses']['infra_error']} infra errors are not in the denominator; the same command tries them again")
    table.add_row("ended by", ", ".join(f"{name} {count}" for name, count in report["exits"].items()))
    table.add_row("per episode", "{turns} turns, {tokens} tokens, {seconds} s".format(**report["mean"]))
    table.add_row("format", "{format_errors} invalid outputs and {invalid_calls} invalid calls in {turns} turns".format(**report))
    for label, key in (("cut or left out", "cuts"), ("flaky", "flaky"), ("TRAINED ON", "overlap")):
        if report[key]:
            table.add_row(label, ", ".join(report[key] if isinstance(report[key], list) else (f"{k} {v}" for k, v in report[key].items())))
    if report["mode"] in CONTROLS:
        return _text(table)
    heat, seed = report["decoding"]["temperature"], report["decoding"]["seed"]
    table.add_row(
        "decoding",
        ("greedy" if heat == 0 else f"temperature {heat}, seed {seed}") + (f", by {report['engine']}" if report["engine"] else ""),
    )
    context = report["policy"]["context"]
    kept = "all" if context["kind"] == "full" else f"the last {context['k']}"
    table.add_row("prompt", f"{report['prompt_sha256'][:12]}, {kept} exchanges, at most {report['policy']['max_prompt_tokens']} tokens")
    return _text(table)


class Row(NamedTuple):
    """One model, or one control, of a comparison."""

    label: str
    steps: Mapping[str, float] | None = None
    """Held-out single steps: `format_ok`, `exact`, `similarity`, `constant` (similarity of the constant action)."""
    oracle: Mapping[str, Any] | None = None
    """The report.json of an oracle evaluation."""
    e2e: Mapping[str, Any] | None = None
    control: Mapping[str, Any] | None = None
    """Of a gold or null row."""


def comparison(rows: Sequence[Row], title: str = "") -> str:
    """One table over several runs; each column of solve rates holds one mode and scaffold only.

    Raises:
        UserError: a report of another mode or scaffold or of other instances than its column's.
    """
    instances: dict[str, frozenset[str]] = {}
    scaffolds: dict[str, str | None] = {}
    for row in rows:
        for column, report in (("oracle", row.oracle), ("e2e", row.e2e), ("control", row.control)):
            if report is None:
                continue
            if report["mode"] not in (CONTROLS if column == "control" else (column,)):
                raise UserError(f"row {row.label!r}: a report of mode {report['mode']!r} cannot stand in column {column!r}")
            if scaffolds.setdefault(column, report["scaffold"]) != report["scaffold"]:
                raise UserError(
                    f"row {row.label!r}: its {column} report is of scaffold {report['scaffold']!r}, the rows above of {scaffolds[column]!r}"
                )
            ids = frozenset(report["instances"])
            if instances.setdefault(column, ids) != ids:
                raise UserError(f"row {row.label!r}: its {column} report is on other instances than the rows above; no comparison")
    table = Table(title=title or None)
    table.add_column("")
    for name in ("format\nok", "exact\naction", "similarity\n(constant\naction)", "oracle\nsolved", "e2e\nsolved", "control\nsolved"):
        table.add_column(name, justify="right")
    for row in rows:
        shown = ["{format_ok:.3f}", "{exact:.3f}", "{similarity:.3f}\n({constant:.3f})"]
        table.add_row(
            row.label,
            *(text.format(**row.steps) if row.steps else "-" for text in shown),
            *(rate_text(report).replace(" [", "\n[") if report else "-" for report in (row.oracle, row.e2e, row.control)),
        )
    return _text(table)


def episode(document: Mapping[str, Any]) -> str:
    """An ATIF episode as a person reads it: task, then each turn with thought, action and observation."""
    lines: list[str] = []
    for step in document["steps"]:
        if step["source"] != "agent":
            lines.append(f"━━ {step['source']}\n{_shown(step['message'])}")
            continue
        excluded = step.get("extra", {}).get("excluded")
        lines.append(f"━━ agent, step {step['step_id']}" + (f" ({excluded})" if excluded else ""))
        if step.get("reasoning_content"):
            lines.append(f"think: {_shown(step['reasoning_content'])}")
        if step["message"]:
            lines.append(_shown(step["message"]))
        for call in step.get("tool_calls", ()):
            lines.append(f"→ {call['function_name']}")
            lines += [f"    {name}: {_shown(str(value)).replace(chr(10), chr(10) + '    ')}" for name, value in call["arguments"].items()]
        lines += [f"← {_shown(result['content'])}" for result in step.get("observation", {}).get("results", ())]
    extra = document["extra"]
    grade = extra.get("grade")
    verdict = f"{grade['status']}, score {grade['score']:g}" if grade else extra.get("error") or "not graded"
    lines.append(f"━━ ended by {extra['exit']}: {verdict}")
    return "\n".join(lines)


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}\n[… {len(text) - _SHOWN} characters …]\n{text[-_SHOWN // 2 :]}"


def _text(table: Table, width: int = 110) -> str:
    out = StringIO()
    Console(file=out, width=width, markup=False, highlight=False).print(table)
    return out.getvalue().rstrip()
