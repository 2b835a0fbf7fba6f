"""Generated math problems: several steps of whole-number arithmetic, or of a digit machine (`math_machines.py`), each solution a numbered
line a step.

OUT/tasks/{train,val,test}.jsonl   instance_id, question, answer
OUT/trajectories.jsonl             train and val, bare text, one assistant message for each line `1. **TITLE** BODY`
OUT/synth.json                     profile, seed, counts
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from pydantic import JsonValue

from harness.env import Split
from harness.runs import write_json, write_text
from harness_envs.math_machines import PROFILES as MACHINES
from harness_envs.math_machines import machine
from harness_envs.splits import digest, quotas, split_of
from harness_trajectories.errors import UserError

TEACHER = "scripted-teacher"
PROFILES = ("plain", "tiny", *MACHINES)
_PLACES = ("A shop", "A school", "A library", "A bakery", "A museum", "A workshop", "A garden", "A kitchen")
_THINGS = ("books", "pens", "plates", "boxes of tea", "candles", "tickets", "buttons", "apples", "cups", "stamps")
_EVENTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "+": (
        ("Then {n} more are brought.", "ADD", "{n} more come to {v}"),
        ("After that it buys {n} of them.", "BUY", "It has {n} more than {v}"),
    ),
    "-": (
        ("Then {n} are sold.", "SELL", "{n} of {v} are gone"),
        ("After that {n} of them get lost.", "LOSE", "{n} fewer than {v} are left"),
    ),
    "*": (
        ("A month later it has {n} times as many.", "MULTIPLY", "It is {n} times {v}"),
        ("Next year the number is {n} times as large.", "GROW", "The number {v} is taken {n} times"),
    ),
    "/": (
        ("They are put into {n} equal groups, and one group is kept.", "DIVIDE", "{v} in {n} groups"),
        ("Only one of {n} equal parts stays.", "SHARE", "One of {n} parts of {v}"),
    ),
}
_QUESTIONS = (
    "How many {things} are there in the end?",
    "How many {things} does it have now?",
    "What is the number of {things} at the end?",
)


class Problem(NamedTuple):
    """A question with its solution."""

    id: str
    question: str
    answer: str
    steps: tuple[str, ...]
    """`1. **TITLE** BODY`, the last with the answer."""
    thoughts: tuple[str, ...] = ()
    """Reasoning before each step, where the teacher shows it."""


def problems(n: int, seed: int, profile: str) -> dict[Split, list[Problem]]:
    """`n` different problems by split. A question is in one split only, whatever the seed.

    Raises:
        UserError: no such profile, or fewer problems than splits.
    """
    if profile not in PROFILES:
        raise UserError(f"unknown profile {profile!r}; the math domain has: {', '.join(PROFILES)}")
    wanted = quotas(n)
    found: dict[Split, list[Problem]] = {split: [] for split in wanted}
    seen: set[str] = set()
    index = 0
    while any(len(found[split]) < wanted[split] for split in wanted):
        one = _problem(Random(f"math {_family(profile)} {seed} {index}"), profile)
        index += 1
        split = split_of(_family(profile), one.question)
        if one.id not in seen and len(found[split]) < wanted[split]:
            found[split].append(one)
        seen.add(one.id)
    return found


def generate(n: int, seed: int, out: Path, profile: str, system: str) -> dict[str, JsonValue]:
    """Write `n` problems and the teacher's solutions of those for training and validation.

    Returns:
        what stands in synth.json.
    """
    found = problems(n, seed, profile)
    for split, some in found.items():
        rows = ({"instance_id": one.id, "question": one.question, "answer": one.answer} for one in some)
        write_text(out / "tasks" / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    splits: tuple[Split, ...] = ("train", "val")
    taught = [_trajectory(one, system, split) for split in splits for one in found[split]]
    write_text(out / "trajectories.jsonl", "".join(json.dumps(row) + "\n" for row in taught))
    document: dict[str, JsonValue] = {
        "domain": "math",
        "profile": profile,
        "seed": seed,
        "out": str(out),
        "tasks": {split: len(some) for split, some in found.items()},
        "trajectories": len(taught),
        "dropped": {},
        "steps": {str(steps): count for steps, count in sorted(Counter(len(one.steps) for some in found.values() for one in some).items())},
    }
    write_json(out / "synth.json", document)
    return document


def _family(profile: str) -> str:
    """Profiles whose problems are the same, or may be."""
    return "machines" if profile in MACHINES else profile


def _trajectory(one: Problem, system: str, split: Split) -> dict[str, Any]:
    thoughts = [f"<think>{thought}</think>\n" if thought else "" for thought in one.thoughts or [""] * len(one.steps)]
    answers = [("assistant", thought + step) for thought, step in zip(thoughts, one.steps, strict=True)]
    messages = [("system", system), ("user", one.question), *answers]
    return {
        "messages": [{"role": role, "content": content} for role, content in messages],
        "wire": "text",
        "instance_id": one.id,
        "traj_id": f"{one.id}.{TEACHER}",
        "model": TEACHER,
        "resolved": True,
        "patch": None,
        "split": split,
    }


def _problem(rng: Random, profile: str) -> Problem:
    if profile in MACHINES:
        made = machine(rng, MACHINES[profile])
        return Problem(f"math-{digest('machines', made.question)[:12]}", *made)
    value = rng.randint(3, 30)
    place, things = rng.choice(_PLACES), rng.choice(_THINGS)
    words = [f"{place} has {value} {things}."] if profile == "plain" else [str(value)]
    steps = []
    for number in range(1, rng.randint(2, 5 if profile == "plain" else 4) + 1):
        operator, n = _operation(rng, value)
        told, title, body = rng.choice(_EVENTS[operator]) if profile == "plain" else (f"{operator} {{n}}", "STEP", "")
        result = {"+": value + n, "-": value - n, "*": value * n, "/": value // n}[operator]
        words.append(told.format(n=n))
        said = f"{body.format(n=n, v=value)}: " if body else ""
        steps.append(f"{number}. **{title}** {said}{value} {operator} {n} = {result}")
        value = result
    ask = rng.choice(_QUESTIONS).format(things=things) if profile == "plain" else "= ?"
    question = " ".join([*words, ask]) if profile == "plain" else " , ".join(words) + f" {ask}"
    steps.append(f"{len(steps) + 1}. **ANSWER** \\boxed{{{value}}}")
    return Problem(f"math-{digest(profile, question)[:12]}", question, str(value), tuple(steps))


def _operation(rng: Random, value: int) -> tuple[str, int]:
    """An operation that keeps the value a whole number from 1 to some hundreds."""
    divisors = [n for n in range(2, 10) if value % n == 0 and value > n]
    choices = ["+"] + ["-"] * (value > 4) + ["*"] * (value <= 60) + ["/"] * bool(divisors)
    operator = rng.choice(choices)
    if operator == "/":
        return operator, rng.choice(divisors)
    return operator, rng.randint(2, {"+": 40, "-": min(40, value - 1), "*": 6}[operator])
