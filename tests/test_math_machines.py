"""Generated digit machines. Reference: an interpreter of programmes on strings, written here without the generator's own operations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from harness.commands.synth import generate
from harness.env import load_env
from harness.evaluate import evaluate
from harness.plan import EvalConfig, prepare
from harness.runs import read_jsonl
from harness_envs.math_machines import PROFILES
from harness_trajectories import read

NEXT = dict(zip("123456789", "234567891", strict=True))


def performed(value: str, told: str) -> str:
    name, *operands = told.split()
    numbers = [int(operand) for operand in operands]
    if name == "reverse":
        return "".join(reversed(value))
    if name == "rotate":
        for _ in range(numbers[0]):
            value = value[1:] + value[0]
        return value
    if name == "swap":
        first, second = value[numbers[0] - 1], value[numbers[1] - 1]
        return "".join({numbers[0]: second, numbers[1]: first}.get(place, digit) for place, digit in enumerate(value, 1))
    if name == "add":
        for _ in range(numbers[0]):
            value = "".join(NEXT[digit] for digit in value)
        return value
    table = {"double": "246813579", "mirror": "987654321"}[name]
    return value.translate(str.maketrans("123456789", table))


def generated(folder: Path, profile: str, n: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    generate("math", load_env("math"), n, folder, seed, profile)
    return [row for split in ("train", "val", "test") for row in read_jsonl(folder / "tasks" / f"{split}.jsonl")]


@pytest.mark.parametrize("profile", PROFILES)
def test_solutions_are_what_the_programmes_do(tmp_path: Path, profile: str) -> None:
    answers = {row["instance_id"]: row["answer"] for row in generated(tmp_path, profile)}
    thoughts = []
    for trajectory in read(tmp_path / "trajectories.jsonl"):
        first = next(step for step in trajectory.steps if step.source == "user")
        *programme, start = str(first.message).split("\n")
        value = start.removeprefix("0. ")
        steps = [step for step in trajectory.steps if step.source == "agent"]
        assert len(steps) == len(programme)
        for number, (line, step) in enumerate(zip(programme, steps, strict=True), 1):
            before, worked = value, []
            for told in line.removeprefix(f"{number}: ").split(" , "):
                value = performed(value, told)
                worked.append((told, value))
            said = str(step.actions[0].arguments["text"])
            assert said == (f"{number}. {value}" if number < len(programme) else f"{number}. \\boxed{{{value}}}")
            careful = " ".join([before, *(f"{told} {result}" for told, result in worked)])
            hasty = " ".join([before, *(told for told, _ in worked), value])
            assert step.reasoning in ("", careful, hasty)
            thoughts.append((step.reasoning or "", careful, hasty))
        assert value == answers[trajectory.instance_id]
        assert re.fullmatch("[1-9]{3}", value)
    long = [(said, careful, hasty) for said, careful, hasty in thoughts if careful != hasty]
    shares = [sum(said == one[place] for said, *one in long) / len(long) for place in (0, 1)]
    assert shares == pytest.approx([PROFILES[profile].careful, PROFILES[profile].hasty], abs=0.2)


def test_profiles_of_the_family_share_tasks_and_splits(tmp_path: Path) -> None:
    silent, told = (generated(tmp_path / name, name) for name in ("machines", "machines-told"))
    assert silent == told
    splits: dict[str, set[str]] = {}
    for seed in range(3):
        for profile in ("machines", "machines-new"):
            generated(tmp_path / "x", profile, 100, seed)
            for split in ("train", "val", "test"):
                for row in read_jsonl(tmp_path / "x" / "tasks" / f"{split}.jsonl"):
                    splits.setdefault(row["question"], set()).add(split)
    assert {len(found) for found in splits.values()} == {1}


def test_a_machine_is_played_and_graded_like_any_problem(tmp_path: Path) -> None:
    generated(tmp_path, "machines-long")
    plan = prepare(EvalConfig(domain="math", mode="gold", dataset=str(tmp_path)), None)
    report = evaluate(plan, tmp_path / "run")
    assert report["resolved"] == report["n"] == 6
