"""What the episodes of an evaluation come to: rates with their denominators and intervals, pass@k, counts.

`n` counts the instances, `graded` the episodes that have a verdict. With one episode an instance the rate is resolved / graded, with
Wilson's interval. With several, the rate is pass@1: the mean over the instances of the share of their episodes that resolved. Its interval
is a bootstrap over instances, for the episodes of one are no independent trials.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from math import comb
from typing import Any, NamedTuple, get_args

from harness.env import Status
from harness.plan import Plan
from harness.report import wilson

RESAMPLES = 2000
SHOWN = ("status", "official_resolved", "notes", "seconds", "turns", "tokens")
"""What the report says of each instance; the rest stands in its own report.json."""
Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""Instance → the report.json of its finished episodes, in the order of the samples."""


class Tally(NamedTuple):
    """Of one instance."""

    graded: int
    resolved: int


def summarize(plan: Plan, rows: Rows) -> dict[str, Any]:
    """The report of an evaluation.

    Args:
        rows: of every instance with a finished episode.
    """
    config = plan.config
    greedy, rows = _chosen(rows, greedy=True), _chosen(rows, greedy=False)
    episodes = [row for found in rows.values() for row in found]
    statuses = Counter(row["status"] for row in episodes if row["status"])
    tallies = [_tally(found) for found in rows.values()]
    totals: Counter[str] = Counter()
    cuts: Counter[str] = Counter()
    for row in episodes:
        totals.update({key: row.get(key, 0) for key in ("turns", "tokens", "seconds", "format_errors", "invalid_calls")})
        cuts.update(row["cuts"])
    prompt = "\n".join([plan.env.system_prompt(plan.env_config), *plan.env.prompts, plan.policy.model_dump_json()])
    return {
        "domain": config.domain,
        "mode": config.mode,
        "scaffold": None if config.mode == "oracle" else config.scaffold,
        "model": plan.label,
        "dataset": config.dataset or f"{config.domain}:test",
        "n": len(rows),
        "samples": config.samples,
        "graded": sum(tally.graded for tally in tallies),
        "resolved": sum(tally.resolved for tally in tallies),
        **_rate(tallies, config.samples),
        **({"greedy": _greedy(greedy)} if config.greedy else {}),
        "statuses": {status: statuses[status] for status in get_args(Status)},
        "official": _official(rows),
        "instances": {name: _shown(found, config.samples) for name, found in rows.items()},
        "exits": dict(Counter(row["exit"] for row in episodes).most_common()),
        "turns": totals["turns"],
        "format_errors": totals["format_errors"],
        "invalid_calls": totals["invalid_calls"],
        "cuts": dict(cuts),
        "mean": {key: round(totals[key] / len(episodes), 1) if episodes else 0 for key in ("turns", "tokens", "seconds")},
        "flaky": [name for name, found in rows.items() if any(note.startswith("flaky") for row in found for note in row["notes"])],
        "overlap": plan.overlap,
        "repeat": config.repeat,
        **plan.env_config.model_dump(include={"network"}),
        "decoding": config.sampling.model_dump(),
        "engine": None if config.engine == "auto" else config.engine,
        "limits": config.limits.model_dump(),
        "policy": plan.policy.model_dump(mode="json"),
        "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
        **_benchmarks(plan, rows, greedy),
    }


def _chosen(rows: Rows, greedy: bool) -> Rows:
    """Of each instance the greedy episode beside the samples, or the others; only instances that have some."""
    chosen = {name: [row for row in found if (row.get("sample") == 0) == greedy] for name, found in rows.items()}
    return {name: found for name, found in chosen.items() if found}


def _greedy(rows: Rows) -> dict[str, Any]:
    graded, resolved = map(sum, zip(*map(_tally, rows.values()), strict=True)) if rows else (0, 0)
    return {"graded": graded, "resolved": resolved, **_rate([Tally(graded, resolved)], 1)}


def _official(rows: Rows) -> dict[str, Any]:
    """What the SWE-bench grader says, of the episodes that it could judge: how many, how many resolved, and where our status differs."""
    judged = [(name, row) for name, found in rows.items() for row in found if row.get("official_resolved") is not None]
    return {
        "graded": len(judged),
        "resolved": sum(row["official_resolved"] for _, row in judged),
        "differs": [name for name, row in judged if row["official_resolved"] != (row["status"] == "resolved")],
    }


def pass_at(k: int, n: int, c: int) -> float:
    """Chance that of `k` episodes drawn from `n`, of which `c` resolved, at least one did: the unbiased estimator of Chen et al. (2021)."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"expected 0 <= c <= n and 1 <= k <= n, got k={k}, n={n}, c={c}")
    return 1 - comb(n - c, k) / comb(n, k)


def pass_at_k(tallies: Sequence[Tally], samples: int) -> dict[str, dict[str, Any]]:
    """pass@k' for k' = 1, 2, 4, … `samples`: mean over the instances with as many graded episodes, of which there are `instances`."""
    powers = [2**power for power in range(samples.bit_length()) if 2**power < samples]
    found = {}
    for k in (*powers, samples):
        values = [pass_at(k, tally.graded, tally.resolved) for tally in tallies if tally.graded >= k]
        value = sum(values) / len(values) if values else None
        found[str(k)] = {"value": value, "ci95": list(bootstrap(values) or ()) or None, "instances": len(values)}
    return found


def bootstrap(values: Sequence[float]) -> tuple[float, float] | None:
    """The percentile bootstrap's 95 % interval of the mean, with a fixed seed; None for no value.

    Where all values are 0, or all 1, resampling shows no spread at all: there it is Wilson's interval.
    """
    n = len(values)
    if n and set(values) in ({0.0}, {1.0}):
        return wilson(int(sum(values)), n)
    draw = random.Random(0).choices
    means = sorted(sum(draw(values, k=n)) / n for _ in range(RESAMPLES)) if n else []
    return (means[RESAMPLES // 40], means[-1 - RESAMPLES // 40]) if means else None


def _tally(rows: Sequence[Mapping[str, Any]]) -> Tally:
    graded = [row["status"] for row in rows if row["status"] not in (None, "infra_error")]
    return Tally(len(graded), graded.count("resolved"))


def _rate(tallies: Sequence[Tally], samples: int) -> dict[str, Any]:
    if samples > 1:
        found = pass_at_k(tallies, samples)
        return {"rate": found["1"]["value"], "ci95": found["1"]["ci95"], "pass_at_k": found}
    graded, resolved = (sum(column) for column in zip(*tallies, strict=True)) if tallies else (0, 0)
    return {"rate": resolved / graded if graded else None, "ci95": list(wilson(resolved, graded) or ()) or None}


def _shown(rows: Sequence[Mapping[str, Any]], samples: int) -> dict[str, Any]:
    """An instance in the report: its first episode, and the statuses of all where there are several."""
    first = {key: rows[0][key] for key in SHOWN}
    return {**first, "samples": [row["status"] for row in rows]} if samples > 1 else first


def _benchmarks(plan: Plan, rows: Rows, greedy: Rows) -> dict[str, Any]:
    """Accuracy by benchmark, where the tasks name one. Greedy episodes are never counted among sampled ones: a run at temperature 0 has no
    avg@k. Of avg@k, `ci95` is the interval; without one, that of the greedy accuracy.
    """
    sampled, greedy = (rows, greedy) if plan.config.sampling.temperature else ({}, rows)
    report: dict[str, Any] = {}
    for benchmark in dict.fromkeys(getattr(task, "benchmark", None) for task in plan.tasks.values()):
        names = [name for name, task in plan.tasks.items() if getattr(task, "benchmark", None) == benchmark]
        tallies = [[tally for name in names if (tally := _tally(some.get(name, ()))).graded] for some in (sampled, greedy)]
        average, one = _rate(tallies[0], plan.config.samples), _rate(tallies[1], 1)
        if benchmark is not None:
            report[benchmark] = {
                "n": max(map(len, tallies)),
                "greedy": one["rate"],
                "greedy_ci95": one["ci95"],
                "avg_at_k": average["rate"],
                "k": plan.config.samples if tallies[0] else None,
                "ci95": average["ci95"] if tallies[0] else one["ci95"],
            }
    return {"benchmarks": report} if report else {}
