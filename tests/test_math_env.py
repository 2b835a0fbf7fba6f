"""The math environment: its problems, from every kind of source, and its generated ones. Answers are graded in test_math_answer.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from harness.check import check
from harness.sandbox import Sandbox
from harness_envs.math import MathConfig, MathEnv, verify
from harness_envs.math_data import load_tasks
from harness_envs.math_synth import generate, problems
from harness_trajectories import read
from harness_trajectories.errors import ReadError, UserError

HARNESS = Path(sys.executable).with_name("harness")


def no_sandbox(image: str | None = None) -> Sandbox:
    raise AssertionError("math needs no sandbox")


@pytest.mark.parametrize(
    ("name", "count"), [("aime24", 30), ("aime25", 30), ("amc23", 40), ("gsm8k_first100", 100), ("math500_first60", 60)]
)
def test_benchmark_files(name: str, count: int, shared_data: Path) -> None:
    config = MathConfig(dataset=str(shared_data / "math" / f"{name}.jsonl"))
    tasks = list(MathEnv.tasks(config, "test"))
    assert len({task.id for task in tasks}) == count
    assert {task.benchmark for task in tasks} == {name}
    assert list(MathEnv.tasks(config, "train")) == []
    assert all(found.ok for found in check(MathEnv, config, no_sandbox))


PUBLIC: dict[str, list[dict[str, Any]]] = {
    "aime24": [{"id": 60, "problem": "q", "solution": "\\boxed{204}", "url": "u"}],
    "aime25": [{"problem": "q", "answer": "70", "id": "0"}],
    "amc23": [{"id": 0, "question": "q", "answer": "27.0", "url": "u"}],
    "minervamath": [{"question": "q", "answer": "4.5e33"}],
    "MATH-500": [{"problem": "q", "solution": "so $\\boxed{5}$", "answer": "5", "subject": "s", "level": 2, "unique_id": "test/x/1.json"}],
    "gsm8k": [{"question": "q", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"}],
    "AIME_2024": [{"ID": "2024-I-1", "Problem": "q", "Solution": "s", "Answer": 70}],
    "minerva_math": [{"idx": 0, "problem": "q", "solution": "s=\\boxed{1.6} \\mathrm{~cm}", "type": "t"}],
}
"""Rows in the public schemas: math-ai, HuggingFaceH4, openai and Maxwell-Jia on the hub; Minerva as in the Qwen2.5-Math repository."""


def test_public_schemas(tmp_path: Path) -> None:
    golds = ["204", "70", "27.0", "4.5e33", "5", "1,005", "70", "1.6"]
    files = []
    for (name, rows), kind in zip(PUBLIC.items(), ("jsonl", "json", "parquet", "jsonl.gz") * 2, strict=True):
        files.append(tmp_path / f"{name}.{kind}")
        if kind == "parquet":
            datasets.Dataset.from_list(rows).to_parquet(files[-1])
        else:
            datasets.Dataset.from_list(rows).to_json(files[-1], lines=kind != "json", compression="gzip" if kind.endswith("gz") else None)
    tasks = load_tasks(",".join(map(str, files)), "test")
    assert [task.benchmark for task in tasks] == list(PUBLIC)
    assert [task.gold_answer for task in tasks] == golds
    ids = ["aime24-60", "aime25-0", "amc23-0", "minervamath-1", "MATH-500-test/x/1.json", "gsm8k-1", "AIME_2024-2024-I-1", "minerva_math-1"]
    assert [task.id for task in tasks] == ids
    assert all(verify(f"\\boxed{{{task.gold_answer}}}", task.gold_answer) for task in tasks)


def test_a_folder_of_the_hub_is_read_from_its_test_split(tmp_path: Path) -> None:
    folder = tmp_path / "owner" / "sums"
    folder.mkdir(parents=True)
    for split, answer in (("train", "1"), ("test", "2")):
        datasets.Dataset.from_list([{"question": "q", "answer": answer}]).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    assert [(task.id, task.gold_answer) for task in load_tasks(f"{folder}/", "test")] == [("sums-1", "2")]


@pytest.mark.parametrize("name", ["aime24", "gsm8k", "owner/sums:test"])
def test_a_hub_that_cannot_be_reached(tmp_path: Path, name: str) -> None:
    """The closed port 9 stands for a hub that is down."""
    command = [HARNESS, "eval", "--domain", "math", "--mode", "gold", "--dataset", name, "--out", "run"]
    ran = subprocess.run(command, cwd=tmp_path, env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}, capture_output=True, text=True)
    full = {"aime24": "math-ai/aime24", "gsm8k": "openai/gsm8k"}.get(name, name)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert f"{full}: no such file or folder, and no data set of this name can be had from the hub" in ran.stderr
    assert "Give a local file or folder" in ran.stderr


def test_environment_holds_its_contract() -> None:
    assert [found for found in check(MathEnv, MathConfig(), no_sandbox) if not found.ok] == []
    assert MathEnv.wire() == "text"


def test_bad_files(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    for text, message in (
        ("{", "bad.jsonl:1: "),
        ('\n{"question": "x"}', "bad.jsonl:2: expected"),
        ("3", "bad.jsonl:1: expected"),
    ):
        bad.write_text(text)
        with pytest.raises(ReadError, match=re.escape(message)):
            load_tasks(str(bad), "test")
    bad.write_text('{"question": "x", "answer": 1, "id": 7}\n' * 2)
    with pytest.raises(ReadError, match=re.escape("bad.jsonl:2: id 'bad-7' occurs twice")):
        load_tasks(str(bad), "test")
    with pytest.raises(UserError, match=r"no math data set at .*none\.jsonl. Allowed: amc23, aime24, aime25, minerva, math500, gsm8k; a"):
        load_tasks(f"{bad.with_name('none.jsonl')}", "test")


@pytest.mark.parametrize("profile", ["plain", "tiny"])
def test_steps_are_right(profile: str) -> None:
    """Every line is computed again by Python's own arithmetic."""
    for some in problems(200, 0, profile).values():
        for one in some:
            for number, step in enumerate(one.steps, 1):
                assert re.fullmatch(rf"{number}\. \*\*[A-Z]+\*\* .+", step)
            for left, right in (step.rpartition(" = ")[::2] for step in one.steps[:-1]):
                assert eval(re.search(r"\d+ [-+*/] \d+$", left)[0]) == int(right)  # type: ignore[index]
            assert one.steps[-2].endswith(f"= {one.answer}")
            assert verify("\n".join(one.steps), one.answer)


def test_synth_is_deterministic_and_splits_share_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        document = generate(100, 3, tmp_path / name, "plain", "Solve.")
        assert document["tasks"] == {"train": 80, "val": 10, "test": 10}
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*.jsonl"))]
    assert [str(path) for path in files] == ["tasks/test.jsonl", "tasks/train.jsonl", "tasks/val.jsonl", "trajectories.jsonl"]
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)
    questions = [
        task.prompt for split in ("train", "val", "test") for task in MathEnv.tasks(MathConfig(dataset=str(tmp_path / "a")), split)
    ]  # type: ignore[arg-type]
    assert len(set(questions)) == 100
    other = problems(100, 4, "plain")
    assert not {one.question for one in other["train"]} & {
        task.prompt for task in MathEnv.tasks(MathConfig(dataset=str(tmp_path / "a")), "test")
    }


def test_trajectories_are_read_as_steps(tmp_path: Path) -> None:
    document = MathEnv.synth(MathConfig(), 20, 0, tmp_path, "plain", no_sandbox)
    trajectories = list(read(tmp_path / "trajectories.jsonl"))
    assert document["trajectories"] == len(trajectories) == 18
    for trajectory in trajectories:
        assert trajectory.wire == "text"
        assert trajectory.steps[0].message == MathEnv.system_prompt(MathConfig())
        assert [str(turn.actions[0].arguments["text"])[0] for turn in trajectory.turns] == list("123456"[: len(trajectory.turns)])
    with pytest.raises(UserError, match="plain, tiny"):
        MathEnv.synth(MathConfig(), 20, 0, tmp_path, "huge", no_sandbox)
