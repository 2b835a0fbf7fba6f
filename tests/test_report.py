"""Intervals and printed tables. Reference of the intervals: statsmodels 0.15.0, `proportion_confint(k, n, method="wilson")`."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from harness.agent import replay
from harness.report import Row, comparison, episode, rate_text, summary, wilson
from harness_sql import SqlEnv
from harness_trajectories.errors import UserError

STATSMODELS = {
    (0, 10): (0.0, 0.27753279986288926),
    (10, 10): (0.7224672001371106, 1.0),
    (1, 10): (0.017876213095072924, 0.40415002679523854),
    (5, 10): (0.23659309051256394, 0.7634069094874361),
    (29, 500): (0.0406837291117572, 0.082056187856255),
    (74, 500): (0.1195614053892054, 0.18180613029572734),
    (43, 500): (0.06447314240360771, 0.11383981149855754),
    (0, 1): (0.0, 0.7934506856227627),
    (1, 1): (0.2065493143772374, 1.0),
    (17, 60): (0.18506828428432712, 0.40767285164391187),
    (50, 50): (0.9286524008666412, 1.0),
}


@pytest.mark.parametrize(("k", "n"), STATSMODELS)
def test_wilson_is_what_statsmodels_gives(k: int, n: int) -> None:
    assert wilson(k, n) == pytest.approx(STATSMODELS[k, n], abs=1e-12)


def test_wilson_of_nothing() -> None:
    assert wilson(0, 0) is None
    with pytest.raises(ValueError, match="k=3"):
        wilson(3, 2)


def report(mode: str, resolved: int, graded: int, n: int | None = None) -> dict[str, Any]:
    n = graded if n is None else n
    return {
        "domain": "swe",
        "mode": mode,
        "scaffold": "agent",
        "model": "m[1]",
        "dataset": "d.jsonl",
        "n": n,
        "samples": 1,
        "graded": graded,
        "resolved": resolved,
        "rate": resolved / graded if graded else None,
        "ci95": wilson(resolved, graded),
        "statuses": {"resolved": resolved, "unresolved": graded - resolved, "infra_error": n - graded},
        "official": {"graded": graded, "resolved": resolved + 1, "differs": ["i-0"]},
        "instances": {f"i-{index}": {} for index in range(n)},
        "exits": {"done": n},
        "turns": 5 * n,
        "format_errors": 2,
        "invalid_calls": 1,
        "cuts": {"observation": 3},
        "mean": {"turns": 5.0, "tokens": 100.0, "seconds": 1.0},
        "flaky": [],
        "overlap": ["i-0"],
        "decoding": {"temperature": 0.0, "seed": 0},
        "engine": None,
        "policy": {"context": {"kind": "last_k", "k": 2}, "max_prompt_tokens": 8192},
        "prompt_sha256": "0123456789abcdef",
    }


def test_summary_says_what_was_measured() -> None:
    text = summary(report("oracle", 1, 10, 12))
    for word in ("oracle", "m[1]", "1/10 = 10.0 % [1.8, 40.4]", "12 instances", "2 infra errors are not in the denominator", "TRAINED ON"):
        assert word in text
    for word in ("2 invalid outputs and 1 invalid calls in 60 turns", "observation 3", "2 of 10 resolved; it differs on i-0"):
        assert word in text
    assert rate_text(report("oracle", 0, 0, 4)) == "not graded (0 of 4)"


def test_summary_of_several_samples() -> None:
    figures = {"1": {"value": 0.3, "ci95": [0.2, 0.4], "instances": 12}, "4": {"value": None, "ci95": None, "instances": 0}}
    several = report("e2e", 14, 46, 12) | {"samples": 4, "pass_at_k": figures, "rate": 0.3, "ci95": [0.2, 0.4]}
    text = summary(several)
    for word in (
        "pass@1 30.0 % [20.0, 40.0] of 12 instances",
        "pass@4: no instance has 4 graded",
        "14 of 46 graded are resolved, 4 an instance",
    ):
        assert word in text
    assert rate_text(several) == "pass@1 30.0 % [20.0, 40.0] of 12 instances"


def test_comparison_is_one_table() -> None:
    steps = {"format_ok": 0.5, "exact": 0.25, "similarity": 0.75, "constant": 0.4}
    rows = [
        Row("base", steps, report("oracle", 0, 10), report("e2e", 0, 10)),
        Row("SRL", steps, report("oracle", 5, 10), report("e2e", 1, 10)),
        Row("gold", control=report("gold", 10, 10)),
        Row("null", control=report("null", 0, 10)),
    ]
    lines = comparison(rows, "held out").splitlines()
    assert max(map(len, lines)) <= 110
    at = next(n for n, line in enumerate(lines) if "SRL" in line)
    for word in ("0.500", "0.250", "0.750", "5/10 = 50.0 %", "1/10 = 10.0 %"):
        assert word in lines[at]
    for word in ("(0.400)", "[23.7, 76.3]", "[1.8, 40.4]"):
        assert word in lines[at + 1]
    assert "10/10 = 100.0 %" in next(line for line in lines if "gold" in line)


def test_modes_and_data_sets_are_never_mixed() -> None:
    with pytest.raises(UserError, match="mode 'e2e' cannot stand in column 'oracle'"):
        comparison([Row("base", oracle=report("e2e", 1, 2))])
    with pytest.raises(UserError, match="e2e report is of scaffold 'agentless', the rows above of 'agent'"):
        comparison([Row("base", e2e=report("e2e", 1, 2)), Row("SRL", e2e=report("e2e", 1, 2) | {"scaffold": "agentless"})])
    with pytest.raises(UserError, match="other instances"):
        comparison([Row("base", e2e=report("e2e", 1, 2)), Row("SRL", e2e=report("e2e", 1, 3))])


def test_episode_is_readable() -> None:
    document = {
        "steps": [
            {"step_id": 1, "source": "user", "message": "Fix it."},
            {"step_id": 2, "source": "agent", "message": "what?", "extra": {"excluded": "format_error"}},
            {
                "step_id": 3,
                "source": "agent",
                "message": "",
                "reasoning_content": "look first",
                "tool_calls": [{"function_name": "bash", "arguments": {"command": "ls\npwd"}}],
                "observation": {"results": [{"content": "x" * 9000}]},
            },
        ],
        "extra": {"exit": "done", "grade": {"status": "resolved", "score": 1.0}},
    }
    text = episode(document)
    for words in (
        "Fix it.",
        "(format_error)",
        "think: look first",
        "→ bash",
        "    command: ls\n    pwd",
        "ended by done: resolved, score 1",
    ):
        assert words in text
    assert len(text) < 3000


def test_an_episode_is_printed_turn_by_turn() -> None:
    """Every action and observation of a real episode, as the environment saw them."""
    task = next(iter(SqlEnv.tasks(SqlEnv.Config(), "test")))
    with closing(SqlEnv(SqlEnv.Config(), lambda: None)) as env:  # type: ignore[arg-type, return-value]
        played = replay(env, task)
    text = episode(played.atif())
    for step in played.trajectory.turns:
        assert f"→ {step.actions[0].tool}" in text
        assert all(observation.content in text for observation in step.observations)
    assert text.endswith("ended by done: resolved, score 1")
