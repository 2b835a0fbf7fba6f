"""Export: reading a written file again gives what was written, but for what the docstring of `export` lists as lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness_trajectories import Action, Observation, Step, Trajectory, read
from harness_trajectories.atif import to_atif
from harness_trajectories.export import DATA_SOURCE, step_row, to_openai, to_swesmith, verl_row, write_lines, write_verl
from harness_trajectories.formats.swesmith import INVENTED
from harness_trajectories.read import find_files, read_rows
from harness_trajectories.steps import ContextPolicy, step_examples

SAMPLES = Path(__file__).resolve().parents[1] / "trajectories" / "samples"
Row = dict[str, Any]


def as_atif(trajectory: Trajectory) -> Row:
    return to_atif(trajectory, "agent", "1")


def again(rows: list[Row], folder: Path) -> list[Trajectory]:
    file = folder / "rows.jsonl"
    assert write_lines(rows, file) == len(rows)
    return list(read(file))


def through_atif(trajectory: Trajectory) -> Trajectory:
    return trajectory.model_copy(update={"format": "atif"})


def through_openai(trajectory: Trajectory) -> Trajectory:
    """What OpenAI messages keep of a run."""
    steps: list[Step] = []
    for number, step in enumerate(trajectory.steps, 1):
        ids = [action.id or f"call_{number}_{index}" for index, action in enumerate(step.actions, 1)]
        seen = tuple(
            Observation(content=o.content, call_id=o.call_id or (ids[min(index, len(ids) - 1)] if ids else None))
            for index, o in enumerate(step.observations)
        )
        actions = tuple(action.model_copy(update={"id": id_}) for action, id_ in zip(step.actions, ids, strict=True))
        steps.append(step.model_copy(update={"actions": actions, "observations": seen if ids else (), "excluded": None}))
        steps += [] if ids else [Step(source="user", message=o.content) for o in seen]
    return kept_columns(trajectory, "openai").model_copy(update={"steps": tuple(steps)})


def through_swesmith(trajectory: Trajectory) -> Trajectory:
    """What SWE-smith's XML keeps of a run."""
    following = [*trajectory.steps[1:], None]
    steps = []
    for step, after in zip(trajectory.steps, following, strict=True):
        asks_the_user = bool(step.actions) and not step.observations and after is not None and after.source == "user"
        seen = (Observation(content="\n".join(o.content for o in step.observations)),) if step.observations or asks_the_user else ()
        invented = step.message == INVENTED and [action.tool for action in step.actions] == ["submit"]
        steps.append(
            step.model_copy(
                update={
                    "actions": tuple(action.model_copy(update={"id": None}) for action in step.actions),
                    "observations": seen,
                    "excluded": "synthetic" if invented else None,
                }
            )
        )
    return kept_columns(trajectory, "swesmith").model_copy(update={"steps": tuple(steps)})


def kept_columns(trajectory: Trajectory, format: str) -> Trajectory:
    extra = {name: value for name, value in trajectory.extra.items() if name in ("tools", "exit_status")}
    return trajectory.model_copy(update={"format": format, "unfit": None, "extra": extra})


FORMATS: dict[str, tuple[Callable[[Trajectory], Row], Callable[[Trajectory], Trajectory]]] = {
    "atif": (as_atif, through_atif),
    "openai": (to_openai, through_openai),
    "swesmith": (to_swesmith, through_swesmith),
}


def named(value: str) -> st.SearchStrategy[str]:
    return st.text("abcdefgh_0123456789", min_size=1, max_size=6).map(lambda text: f"{value}{text}")


TEXTS = st.text(max_size=40).filter(lambda text: not text.startswith("OBSERVATION:"))
PROSE = TEXTS.map(str.strip).filter(lambda text: "<" not in text and "`" not in text)
WORDS = st.none() | st.text(min_size=1, max_size=10)
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
ACTIONS = st.one_of(
    st.builds(lambda command: Action(tool="bash", arguments={"command": command}), st.text(max_size=40)),
    st.builds(lambda text: Action(tool="str_replace_editor", arguments={"command": "create", "file_text": text}), st.text(max_size=40)),
    st.just(Action(tool="submit")),
    st.builds(
        lambda tool, arguments: Action(tool=tool, arguments=arguments), named("t_"), st.dictionaries(named("p_"), VALUES, max_size=3)
    ),
)


@st.composite
def turns(draw: st.DrawFn) -> Step:
    """A turn of the agent; its calls are numbered later."""
    actions = tuple(draw(st.lists(ACTIONS, min_size=1, max_size=3)))
    contents = draw(st.lists(TEXTS, max_size=len(actions)))
    return Step(
        source="agent",
        message=draw(PROSE),
        reasoning=draw(PROSE),
        actions=actions,
        observations=tuple(Observation(content=text) for text in contents),
        excluded=draw(st.sampled_from([None, "synthetic", "malformed_call"])),
    )


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    said = st.builds(lambda text: Step(source="user", message=text), TEXTS)
    silent = st.builds(lambda text: Step(source="agent", message=text), PROSE)
    steps = [Step(source="system", message=draw(TEXTS)), Step(source="user", message=draw(TEXTS)), draw(turns())]
    steps += draw(st.lists(turns() | said | silent, max_size=5))
    if draw(st.booleans()):
        steps = [with_ids(step, number, draw(st.none() | st.booleans())) for number, step in enumerate(steps)]
    return Trajectory(
        id=draw(st.text(min_size=1, max_size=10)),
        instance_id=draw(st.text(min_size=1, max_size=10)),
        format="test",
        model=draw(WORDS),
        resolved=draw(st.none() | st.booleans()),
        patch=draw(WORDS),
        split=draw(st.sampled_from([None, "train", "val", "test"])),
        unfit=draw(st.sampled_from([None, "compacted", "side_chain"])),
        steps=tuple(steps),
        extra=draw(st.dictionaries(st.sampled_from(["tools", "exit_status", "source"]), VALUES, max_size=3)),
    )


def with_ids(step: Step, number: int, is_error: bool | None) -> Step:
    ids = [f"id-{number}-{index}" for index in range(len(step.actions))]
    return step.model_copy(
        update={
            "actions": tuple(a.model_copy(update={"id": id_}) for a, id_ in zip(step.actions, ids, strict=True)),
            "observations": tuple(
                Observation(content=o.content, call_id=id_, is_error=is_error) for o, id_ in zip(step.observations, ids, strict=False)
            ),
        }
    )


@pytest.mark.parametrize("name", FORMATS)
@given(trajectory=trajectories())
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_again(name: str, tmp_path: Path, trajectory: Trajectory) -> None:
    write, through = FORMATS[name]
    assert again([write(trajectory)], tmp_path) == [through(trajectory)]


@pytest.mark.parametrize("name", FORMATS)
def test_real_runs_are_read_again(name: str, shared_data: Path, tmp_path: Path) -> None:
    files = [file for file in find_files([shared_data / "trajectories"]) if "_std" not in file.name and "_sft_" not in file.name]
    runs = [row for row in read_rows(files) if isinstance(row, Trajectory) and row.turns]
    assert len(runs) > 80
    write, through = FORMATS[name]
    for run, found in zip(runs, again([write(run) for run in runs], tmp_path), strict=True):
        assert found.format in (name, "openhands"), "the schema of OpenHands' tools goes along and says so"
        assert found.model_copy(update={"format": name}) == through(run), run.id


@pytest.mark.parametrize("name", FORMATS)
def test_bare_text_is_read_again(name: str, tmp_path: Path) -> None:
    steps = [Step(source="user", message="2 + 2?")]
    steps += [
        Step(source="agent", reasoning=thought, actions=(Action(tool="answer", arguments={"text": text}),))
        for thought, text in (("Hm.", "1. **ADD** 2 + 2 = 4"), ("", "2. **ANSWER** 4"))
    ]
    run = Trajectory(id="sum", instance_id="sum-1", format="test", wire="text", resolved=True, steps=tuple(steps))
    write, _ = FORMATS[name]
    (found,) = again([write(run)], tmp_path)
    assert found.model_copy(update={"format": "test"}) == run


def test_atif_documents_are_valid(shared_data: Path) -> None:
    """The reference: Harbor's own models of the format."""
    harbor = pytest.importorskip("harbor.models.trajectories.trajectory", reason="Harbor's own models are not installed")
    rows = read_rows(find_files([shared_data / "trajectories"]))
    for run in [row for row in rows if isinstance(row, Trajectory)]:
        harbor.Trajectory.model_validate(as_atif(run))


def test_openai_links_every_result_to_a_call_of_its_turn() -> None:
    """What OpenAI's interface asks of messages: a result follows the turn that asked for it and names one of its calls; ids differ."""
    call = Action(tool="bash", arguments={"command": "ls"})
    twice = tuple(call.model_copy(update={"id": "same"}) for _ in range(2))
    seen = tuple(Observation(content=text, call_id="same") for text in "ab")
    steps = (
        Step(source="agent", actions=(call, call), observations=(Observation(content="1"), Observation(content="2"))),
        Step(source="agent", actions=twice, observations=seen),
        Step(source="agent", message="nothing", observations=(Observation(content="3"),)),
    )
    messages = to_openai(Trajectory(id="r", instance_id="i", format="test", steps=steps))["messages"]
    assert [message["role"] for message in messages] == [*["assistant", "tool", "tool"] * 2, "assistant", "user"]
    for start in (0, 3):
        ids = [item["id"] for item in messages[start]["tool_calls"]]
        assert len(set(ids)) == 2
        assert {message["tool_call_id"] for message in messages[start + 1 : start + 3]} <= set(ids)
        assert all(isinstance(json.loads(item["function"]["arguments"]), dict) for item in messages[start]["tool_calls"])


def test_records_of_steps(tmp_path: Path) -> None:
    (run,) = read(SAMPLES / "openai.jsonl")
    first, second, *_ = step_examples(run, ContextPolicy(), "all")
    prompt = [{"role": "user", "content": "fix it"}]
    assert step_row(second, prompt, "done", "cmp") == {
        "trajectory_id": run.id,
        "instance_id": run.instance_id,
        "step": 1,
        "wire": "calls",
        "omitted": 0,
        "prompt": prompt,
        "completion": "done",
        "thought": second.thought,
        "target": [action.model_dump() for action in second.target],
        "compared": "cmp",
    }
    rows = [verl_row(example, prompt, "done", "cmp", index, "train") for index, example in enumerate((first, second))]
    assert write_verl(rows, tmp_path / "rows.parquet") == 2
    assert pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist() == rows
    assert {row["data_source"] for row in rows} == {DATA_SOURCE}
