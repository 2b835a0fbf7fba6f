"""`harness eval --samples`: each sample played, graded and kept. Reference of pass@k: every subset of the samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from test_evaluate import Flaky, gold_model, plan
from test_generate import checkpoint, tiny  # noqa: F401 - fixtures
from test_swe_env import record

from harness.evaluate import evaluate
from harness.generate import Completion, Sampling, ScriptedGenerator
from harness.plan import EvalConfig, Plan, prepare
from harness.prompt import Message, completion
from harness_sql import SqlEnv
from harness_trajectories import Action


class Seeded(ScriptedGenerator):
    """Resolves `sql-test-N` with the seeds from N up, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self._gold = gold_model()
        self._names = {task.prompt: task.id for task in SqlEnv.tasks(SqlEnv.Config(), "test")}
        super().__init__(lambda _: "")

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling) -> list[Completion]:
        name = self._names[prompts[0][1]["content"].split("\n\n(")[0]]
        if not any(message["role"] == "assistant" for message in prompts[0]):
            self.asked.append((name, sampling.seed))
        if sampling.seed < int(name.rpartition("-")[2]):
            return [Completion(completion("", [Action(tool="answer", arguments={"text": "?"})], "calls"), 1, 1, "stop")]
        return self._gold.generate(prompts, sampling)


def sampled(**options: Any) -> Plan:
    return plan(env={"n": 4}, samples=5, sampling=Sampling(temperature=0.8, seed=1), **options)


def test_each_sample_is_played_graded_and_kept(tmp_path: Path) -> None:
    model = Seeded()
    report = evaluate(sampled(), tmp_path / "run", workers=3, generator=model)
    assert Counter(model.asked) == {(f"sql-test-{n}", seed): 1 for n in range(4) for seed in range(1, 6)}
    right = [5, 5, 4, 3]  # seeds 1 to 5, of which instance n wants n or more
    assert (report["n"], report["samples"], report["graded"], report["resolved"]) == (4, 5, 20, sum(right))
    assert report["statuses"]["resolved"] == sum(right)
    assert list(report["pass_at_k"]) == ["1", "2", "4", "5"]
    for k, figures in report["pass_at_k"].items():
        draws = [any(draw) for c in right for draw in combinations([True] * c + [False] * (5 - c), int(k))]
        assert figures["value"] == pytest.approx(sum(draws) / len(draws))
        assert figures["instances"] == 4
        assert figures["ci95"][0] <= figures["value"] <= figures["ci95"][1]
    assert (report["rate"], report["ci95"]) == (report["pass_at_k"]["1"]["value"], report["pass_at_k"]["1"]["ci95"])
    assert report["instances"]["sql-test-2"]["samples"] == ["unresolved", *["resolved"] * 4]
    assert report["instances"]["sql-test-2"]["status"] == "unresolved"
    assert sorted(path.name for path in (tmp_path / "run/instances/sql-test-2").iterdir()) == [f"sample-{n}" for n in range(1, 6)]
    third = json.loads((tmp_path / "run/instances/sql-test-2/sample-3/report.json").read_text())
    assert (third["instance_id"], third["sample"], third["status"]) == ("sql-test-2", 3, "resolved")
    episode = json.loads((tmp_path / "run/episodes/sql-test-2.sample-3.json").read_text())
    assert (episode["session_id"], episode["extra"]["instance_id"]) == ("sql-test-2.sample-3", "sql-test-2")
    for name in ("predictions.jsonl", *(f"predictions-{n}.jsonl" for n in range(2, 6))):
        rows = [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
        assert [row["instance_id"] for row in rows] == [f"sql-test-{n}" for n in range(4)]
        assert {frozenset(row) for row in rows} == {frozenset({"instance_id", "model_name_or_path", "model_patch"})}


def test_sampling_is_resumed_sample_by_sample(tmp_path: Path) -> None:
    before = evaluate(sampled(), tmp_path / "run", generator=Seeded())
    for name in ("sql-test-1/sample-2", "sql-test-3/sample-5"):
        (tmp_path / "run/instances" / name / "report.json").unlink()
    model = Seeded()
    after = evaluate(sampled(), tmp_path / "run", generator=model)
    assert sorted(model.asked) == [("sql-test-1", 2), ("sql-test-3", 5)]
    for report in (before, after):
        del report["mean"]
        for row in report["instances"].values():
            del row["seconds"]
    assert before == after


def test_a_sample_without_a_verdict_is_in_no_denominator(tmp_path: Path) -> None:
    """`Flaky` resolves each; the first sample of the odd instances uses up its three tries."""
    Flaky.begun.clear()
    options = {"env": {"n": 4, "breaks": 3}, "samples": 2, "sampling": Sampling(temperature=1)}
    acting = ScriptedGenerator(lambda _: completion("", [Action(tool="act")], "calls"))
    report = evaluate(plan(domain="test_evaluate:Flaky", **options), tmp_path / "run", generator=acting)
    assert (report["n"], report["graded"], report["statuses"]["infra_error"]) == (4, 6, 2)
    assert [(k, figures["value"], figures["instances"]) for k, figures in report["pass_at_k"].items()] == [("1", 1.0, 4), ("2", 1.0, 2)]
    again = evaluate(plan(domain="test_evaluate:Flaky", **options), tmp_path / "run", generator=acting)
    assert (again["graded"], again["pass_at_k"]["2"]["instances"]) == (8, 4)


@pytest.mark.parametrize("way", [{"scaffold": "agentless"}, {}])
def test_a_local_checkpoint_is_sampled(tmp_path: Path, checkpoint: Path, way: dict[str, str]) -> None:  # noqa: F811
    """A random model: its samples differ from each other, and are the same again whatever else is decoded beside them."""
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(record(f"one-{n}", {}, {})) + "\n" for n in range(2)))
    sampling = Sampling(temperature=1.0, max_tokens=24)
    options = {"model": str(checkpoint), "dataset": str(tmp_path / "tasks.jsonl"), "sandbox": "local", "sampling": sampling, "samples": 3}
    found: list[dict[str, list[str]]] = []
    for workers in (1, 4):
        report = evaluate(prepare(EvalConfig.model_validate({**options, **way})), tmp_path / f"run{workers}", workers)
        assert (report["n"], report["graded"], report["exits"]) == (2, 6, {"format_errors": 6})
        episodes = sorted((tmp_path / f"run{workers}/episodes").iterdir())
        assert len(episodes) == 6
        texts = {}
        for path in episodes:
            steps = json.loads(path.read_text())["steps"]
            texts[path.name] = str([step["message"] for step in steps if step["source"] == "agent"])
        found.append(texts)
    assert found[0] == found[1]
    assert len({found[0][f"demo__one-0.sample-{n}.json"] for n in (1, 2, 3)}) == 3
