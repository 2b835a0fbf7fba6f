"""Reports by benchmark: greedy figures and averages of samples never mix. The reference is arithmetic on what the model is told to say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.evaluate import evaluate
from harness.generate import Completion, Sampling, ScriptedGenerator
from harness.plan import EvalConfig, Plan, prepare
from harness.prompt import Message
from harness.report import summary, wilson
from harness.score import bootstrap
from harness_trajectories.errors import UserError

SAMPLES = 4


class Unsteady(ScriptedGenerator):
    """Knows `n + n` for even n when greedy. Sampled it is right on the first n % 5 samples of `n + n`."""

    def __init__(self) -> None:
        super().__init__(lambda _: "")

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling) -> list[Completion]:
        n = int(prompts[0][-1]["content"].split()[0])
        right = n % 2 == 0 if sampling.temperature == 0 else sampling.seed < n % 5
        text = f"<think></think>\\boxed{{{2 * n if right else -1}}}"
        return [Completion(text, 1, 1, "stop")]


@pytest.fixture
def datasets(tmp_path: Path) -> str:
    files = []
    for name, numbers in (("small", range(10)), ("large", range(100, 125))):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps({"question": f"{n} + {n}", "answer": 2 * n, "id": n}) + "\n" for n in numbers))
    return ",".join(map(str, files))


def plan(datasets: str, temperature: float, **options: object) -> Plan:
    given = {"domain": "math", "dataset": datasets, "sampling": {"temperature": temperature}, **options}
    return prepare(EvalConfig.model_validate(given), "unsteady")


def test_a_greedy_run_has_no_average(datasets: str, tmp_path: Path) -> None:
    report = evaluate(plan(datasets, 0), tmp_path / "run", workers=4, generator=Unsteady())
    low, high = wilson(5, 10) or (0, 0)
    small = {"n": 10, "greedy": 0.5, "greedy_ci95": [low, high], "avg_at_k": None, "k": None, "ci95": [low, high]}
    assert report["benchmarks"]["small"] == small
    assert report["benchmarks"]["large"]["greedy"] == 13 / 25
    assert (report["n"], report["resolved"]) == (35, 18)
    assert "small, 10 problems" in summary(report)
    assert f"greedy 50.0 % [{100 * low:.1f}, {100 * high:.1f}]" in summary(report)
    assert "avg@" not in summary(report)
    assert report["instances"]["small-3"]["notes"] == ["answer: -1", "reference: 6"]
    assert json.loads((tmp_path / "run/instances/small-4/report.json").read_text())["notes"] == ["answer: 8", "reference: 8"]


def test_samples_are_averaged_over_problems_and_the_greedy_episode_stands_apart(datasets: str, tmp_path: Path) -> None:
    report = evaluate(plan(datasets, 1.0, samples=SAMPLES, greedy=True), tmp_path / "run", workers=4, generator=Unsteady())
    shares = [min(n % 5, SAMPLES) / SAMPLES for n in range(10)]
    small = report["benchmarks"]["small"]
    assert small["avg_at_k"] == pytest.approx(sum(shares) / 10)
    assert small["ci95"] == list(bootstrap(shares) or ())
    assert (small["n"], small["k"], small["greedy"], small["greedy_ci95"]) == (10, SAMPLES, 0.5, list(wilson(5, 10) or ()))
    assert report["greedy"] == {"graded": 35, "resolved": 18, "rate": 18 / 35, "ci95": list(wilson(18, 35) or ())}
    assert (report["graded"], report["rate"]) == (35 * SAMPLES, pytest.approx(0.5))
    assert report["instances"]["small-3"]["samples"] == ["resolved"] * 3 + ["unresolved"]
    assert f"avg@{SAMPLES} 50.0 %" in summary(report)
    assert "18/35 = 51.4 %" in summary(report)
    assert sorted(path.name for path in (tmp_path / "run/instances/small-3").iterdir()) == [f"sample-{n}" for n in range(5)]
    again = evaluate(
        plan(datasets, 1.0, samples=SAMPLES, greedy=True), tmp_path / "run", generator=ScriptedGenerator(lambda _: "never asked")
    )
    assert again == report


def test_one_sample_is_an_average_of_one(datasets: str, tmp_path: Path) -> None:
    small = evaluate(plan(datasets, 1.0), tmp_path / "run", workers=4, generator=Unsteady())["benchmarks"]["small"]
    assert small == {"n": 10, "greedy": None, "greedy_ci95": None, "avg_at_k": 0.8, "k": 1, "ci95": list(wilson(8, 10) or ())}


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1, "mode": "gold"}])
def test_greedy_beside_what_is_not_sampled(datasets: str, options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="--greedy stands for a greedy episode beside the sampled ones"):
        plan(datasets, **{**options, "greedy": True})  # type: ignore[arg-type]
