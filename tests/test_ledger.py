"""The books of an import balance for every mix of rows and every choice of filters."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_trajectories import Action, Observation, Step, Trajectory
from harness_trajectories.errors import ReadError
from harness_trajectories.ledger import Filters, Ledger
from harness_trajectories.steps import ContextPolicy, Targets, step_examples

COMMANDS = st.sampled_from(["ls", "pytest -q", "git log --all", "pip install b", "git show abcdef1"])
CALLS = st.builds(lambda command: Action(tool="bash", arguments={"command": command}), COMMANDS)
TURNS = st.builds(
    lambda calls, said, excluded: Step(source="agent", actions=tuple(calls), message=said, excluded=excluded),
    st.lists(CALLS, max_size=3),
    st.sampled_from(["", "hm", "x" * 200]),
    st.sampled_from([None, None, None, "synthetic", "malformed_call"]),
)
RUNS = st.builds(
    lambda id, task, resolved, unfit, steps: Trajectory(
        id=id, instance_id=task, format="test", resolved=resolved, unfit=unfit, steps=(Step(source="user", message="fix"), *steps)
    ),
    st.sampled_from(["one", "two"]),
    st.sampled_from(["a__b-1", "a__b-2", "a__b-3"]),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, None, None, "compacted", "side_chain"]),
    st.lists(TURNS, max_size=5),
)
ROWS = st.lists(RUNS | st.builds(ReadError, st.just("f"), st.integers(1, 9), st.just("broken")), max_size=12)
FILTERS = st.builds(
    Filters,
    only_resolved=st.booleans(),
    verdicts=st.dictionaries(st.sampled_from(["a__b-1", "a__b-2"]), st.booleans()),
    against=st.sets(st.sampled_from(["a__b-1", "a__b-3"])),
    max_turns=st.none() | st.integers(1, 3),
    max_characters=st.none() | st.integers(20, 300),
    drop_leaks=st.booleans(),
    drop_duplicates=st.booleans(),
)
REASONS = {
    *("compacted", "side_chain", "no_action", "unresolved", "unverified", "overlap"),
    *("over_max_turns", "over_max_characters", "leak", "duplicate"),
}


@given(rows=ROWS, filters=FILTERS, targets=st.sampled_from(get_args(Targets)))
@settings(max_examples=300)
def test_the_books_balance(rows: list[Trajectory | ReadError], filters: Filters, targets: Targets) -> None:
    """Both ledgers, recounted here from what went in and what came out."""
    ledger = Ledger(1, targets)
    kept = list(ledger.collect(rows, filters))
    report = ledger.document()
    errors = sum(isinstance(row, ReadError) for row in rows)
    assert (report["rows"], report["trajectories"], len(report["errors"])) == (len(rows), len(kept), errors)
    assert report["rows"] == report["trajectories"] + sum(report["dropped"].values()) + len(report["errors"])
    assert set(report["dropped"]) <= REASONS
    steps = report["steps"]
    assert report["actions"] == steps["targets"] + sum(steps["not_targets"].values())
    assert report["actions"] == sum(len(step.actions) for run in kept for step in run.steps)
    assert steps["targets"] == sum(len(list(step_examples(run, ContextPolicy(), targets))) for run in kept)
    assert len({run.id for run in kept}) == len(kept)
    silent = Counter(step.excluded or "no_call" for run in kept for step in run.steps if step.source == "agent" and not step.actions)
    assert report["turns_without_call"] == silent


def leaking(command: str, **fields: Any) -> Trajectory:
    turns = (Step(source="agent", actions=(Action(tool="bash", arguments={"command": text}),)) for text in ("ls", command, "pwd"))
    return Trajectory.model_validate({"id": command, "instance_id": "a__b-1", "format": "test", "steps": (*turns,), **fields})


@pytest.mark.parametrize(
    ("filters", "reasons"),
    [
        (Filters(), [None, None, None, None]),
        (Filters(only_resolved=True), ["unverified", "unresolved", None, None]),
        (Filters(only_resolved=True, verdicts={"a__b-1": True}), [None, "unresolved", None, None]),
        (Filters(against={"a__b-2"}), [None, None, "overlap", None]),
        (Filters(max_turns=2), ["over_max_turns", "over_max_turns", "over_max_turns", None]),
        (Filters(max_characters=200), [None, None, None, "over_max_characters"]),
        (Filters(drop_leaks=True), [None, "leak", None, None]),
        (Filters(drop_duplicates=True), [None, None, None, None, "duplicate"]),
    ],
)
def test_reasons(filters: Filters, reasons: list[str | None]) -> None:
    short = (Step(source="agent", actions=(Action(tool="submit"),), observations=(Observation(content="x" * 200),)),)
    runs = [
        leaking("ls -l"),
        leaking("git fetch", resolved=False),
        leaking("ls -a", instance_id="a__b-2", resolved=True),
        leaking("", id="short", resolved=True, steps=short),
        leaking("ls -l", id="again"),
    ][: max(4, len(reasons))]
    for run, reason in zip(runs, reasons, strict=True):
        ledger = Ledger(1)
        earlier = runs[:1] if reason == "duplicate" else []
        list(ledger.collect([*earlier, run], filters))
        assert dict(ledger.dropped) == ({reason: 1} if reason else {}), run.id


def test_a_leaking_turn_is_no_target_and_the_others_are() -> None:
    ledger = Ledger(1, "all")
    (kept,) = ledger.collect([leaking("git pull && ls")])
    assert [step.excluded for step in kept.steps] == [None, "leak", None]
    assert ledger.document()["steps"] == {"targets": 2, "not_targets": {"leak": 1}}


def test_ids_are_made_unique() -> None:
    runs = list(Ledger(1).collect([leaking("ls"), leaking("ls"), leaking("ls", id="ls#2"), leaking("ls")]))
    assert [run.id for run in runs] == ["ls", "ls#2", "ls#2#2", "ls#3"]
