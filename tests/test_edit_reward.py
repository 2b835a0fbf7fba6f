"""Edits compared by what they do. References: the snippets that the real editor answered with, git's view of equal results, difflib."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.edit_reward import NUMBERED, UNSEEN, EditStep, _effect, edit_similarity, edit_step
from harness.reward import LONGEST, MAX_WORK, expert_text, similarity, step_reward
from harness_trajectories import Action, comparable, render
from harness_trajectories.steps import ContextPolicy, Exchange, StepExample, step_examples
from harness_trajectories.store import open_data

CODE = "def a():\n    x = 1\n    return x\n\n\ndef b():\n    x = 1\n    return x + 1\n"
REAL = ("swesmith_sft_xml_claude-3-7-sonnet", "swesmith_sweagent_claude-3-7-sonnet-20250219", "adp_swe-smith")


def editor(command: str, **arguments: object) -> Action:
    return Action(tool="str_replace_editor", arguments={"command": command, "path": "/testbed/m.py", **arguments})


def replace(old: str, new: str, **arguments: object) -> Action:
    return editor("str_replace", old_str=old, new_str=new, **arguments)


EXPERT = replace("    return x\n", "    return 2 * x\n")


def score(model: Action, expert: Action = EXPERT, text: str = CODE) -> float | None:
    files = {} if expert.arguments.get("command") == "create" else {"m.py": text}
    return edit_similarity(model, EditStep(expert, files), LONGEST, MAX_WORK)


def wording(model: Action, expert: Action) -> float:
    return similarity(comparable(model), comparable(expert))


@pytest.mark.parametrize(
    "model",
    [
        replace("x = 1\n    return x\n\n", "x = 1\n    return 2 * x\n\n"),
        replace("return x\n\n\ndef b", "return 2 * x\n\n\ndef b"),
        replace("    return x\n", "    return 2 * x\n", path="m.py"),
        replace(CODE, CODE.replace("return x\n", "return 2 * x\n")),
    ],
)
def test_the_same_result_in_other_words_earns_one(model: Action) -> None:
    assert score(model) == 1.0


def test_the_same_result_by_another_command_earns_one() -> None:
    assert score(editor("insert", insert_line=1, new_str="    y = 2"), replace("def a():\n", "def a():\n    y = 2\n")) == 1.0
    assert score(editor("insert", insert_line=9, new_str="# end"), editor("insert", insert_line=9, new_str="# end")) == 1.0


def test_another_place_earns_less_than_its_words_and_than_another_text_at_the_right_place() -> None:
    expert = replace("def b():\n    x = 1\n", "def b():\n    x = 2\n")
    wrong = replace("def a():\n    x = 1\n", "def a():\n    x = 2\n")
    near = replace("def b():\n    x = 1\n", "def b():\n    x = 3\n")
    assert score(wrong, expert) < 0.6 < wording(wrong, expert)
    assert score(wrong, expert) < score(near, expert) < 1.0


def test_the_ratio_is_that_of_tool_path_and_changed_lines() -> None:
    model = replace("    return x\n", "    return x * 20\n    # done\n")
    head = "str_replace_editor\nm.py\n"
    ours, theirs = "@2\n-    return x\n+    return x * 20\n+    # done\n", "@2\n-    return x\n+    return 2 * x\n"
    blocks = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    matched = len(head) + sum(block.size for block in blocks)
    assert score(model) == 2 * matched / (2 * len(head) + len(ours) + len(theirs))


@pytest.mark.parametrize(
    "model",
    [
        replace("return  x", "return 2 * x"),
        replace("    x = 1\n", "    x = 2\n"),
        replace("", "x"),
        replace("    return x\n", "    return x\n"),
        editor("create", file_text=CODE),
        editor("insert", new_str="x"),
        editor("insert", insert_line=99, new_str="x"),
        editor("insert", insert_line="first", new_str="x"),
        replace("    return x\n", "    return 2 * x\n", path="/testbed/other.py"),
    ],
)
def test_an_edit_that_fails_earns_tool_and_path_alone(model: Action) -> None:
    value = score(model)
    assert value is not None
    assert 0 < value < 0.65
    assert value == score(replace("never there", "x", path=model.arguments["path"]))


def test_no_edit_is_compared_by_its_words() -> None:
    for model in (editor("view"), Action(tool="bash", arguments={"command": "sed -i s/x/2x/ m.py"}), editor("undo_edit")):
        assert score(model) is None
        expert = expert_text([EXPERT])
        scored = step_reward(f"<think></think>{render(model)}", expert, "calls", EditStep(EXPERT, {"m.py": CODE}))
        assert scored == step_reward(f"<think></think>{render(model)}", expert, "calls")
        assert scored.paid("edit") == scored.paid("similarity") == wording(model, EXPERT)


def test_both_rewards_are_told_and_one_is_paid() -> None:
    model = replace("return x\n\n\ndef b", "return 2 * x\n\n\ndef b")
    step = EditStep(EXPERT, {"m.py": CODE})
    scored = step_reward(f"<think></think>{render(model)}", expert_text([EXPERT]), "calls", step)
    assert scored.paid("edit") == 1.0
    assert scored.paid("similarity") == wording(model, EXPERT) < 0.9
    assert not scored.exact
    assert step_reward("no think", expert_text([EXPERT]), "calls", step).paid("edit") == -1.0
    right = step_reward(f"<think></think>{render(EXPERT)}", expert_text([EXPERT]), "calls", step)
    assert (right.paid("edit"), right.paid("similarity"), right.exact) == (1.0, 1.0, True)


def test_what_is_out_of_bounds_is_compared_by_its_words() -> None:
    long = "x" * LONGEST
    assert score(replace("c", "d"), replace("c", "e"), f"{long}c") is None
    assert edit_similarity(replace("    return x\n", "ab"), EditStep(EXPERT, {"m.py": CODE}), LONGEST, 10.0) is None


LINES = st.lists(st.sampled_from(["a", "b", "c", "    d", ""]), min_size=1, max_size=10)


@given(LINES, st.data())
def test_only_the_same_result_earns_one_and_nothing_leaves_the_range(lines: list[str], data: st.DataObject) -> None:
    """Any two replacements of lines, quoted with any context that makes them unique; git would see the same change exactly where the texts
    after them are equal."""
    text = "\n".join(lines)
    edits, after = [], []
    for _ in range(2):
        start = data.draw(st.integers(0, len(lines)))
        end = data.draw(st.integers(start, len(lines)))
        new = data.draw(LINES)
        low, high = data.draw(st.integers(0, start)), data.draw(st.integers(end, len(lines)))
        old_str, new_str = "\n".join(lines[low:high]), "\n".join([*lines[low:start], *new, *lines[end:high]])
        if not old_str or text.count(old_str) > 1 or old_str == new_str:
            old_str, new_str = text, "\n".join([*lines[:start], *new, *lines[end:]])
        edits.append(replace(old_str, new_str))
        after.append(text.replace(old_str, new_str) if text else text)
    if text in after:
        return
    value = score(edits[0], edits[1], text)
    assert value is not None
    assert 0.0 <= value <= 1.0
    assert (value == 1.0) == (after[0] == after[1])
    whole = [replace(text, result) for result in after]
    assert score(whole[0], edits[1], text) == score(edits[0], whole[1], text) == value


BLOCKS = "m.py\n<<<<<<< SEARCH\n{0}\n=======\n{1}\n>>>>>>> REPLACE\n"


def answer(*edits: tuple[str, str]) -> Action:
    return Action(tool="answer", arguments={"text": "\n".join(BLOCKS.format(*edit) for edit in edits)})


def test_answers_of_blocks_are_compared_by_what_they_do() -> None:
    first, second = ("    return x", "    return 2 * x\n    # one"), ("    return x + 1", "    return x + 2")
    expert = answer(first, second)
    both = "\n".join(["    return x", "", "", "def b():", "    x = 1", "    return x + 1"])
    assert score(answer(second, first), expert) == 1.0
    assert score(answer((both, both.replace(first[0], first[1], 1).replace(*second))), expert) == 1.0
    assert 0.3 < score(answer(second), expert) < 1.0
    assert 0.3 < score(answer(first), expert) < 1.0
    assert score(answer(("    return y", "")), expert) == 0.0
    assert score(Action(tool="answer", arguments={"text": "no blocks"}), expert) == 0.0


def example(target: Action, *history: tuple[Action, str], prompt: str = "Fix it.") -> StepExample:
    past = tuple(Exchange(actions=(action,), observation=observation) for action, observation in history)
    return StepExample(
        trajectory_id="t", instance_id="i", index=0, wire="calls", prompt=prompt, history=past, omitted=0, thought="", target=(target,)
    )


def test_what_was_shown_of_a_file_is_known() -> None:
    numbered = "Here's the result of running `cat -n` on /testbed/m.py:\r\n     2\t    x = 1\r\n     3\t    return x\r\n     4\t\r\n"
    step = edit_step(example(EXPERT, (editor("view", view_range=[2, 4]), numbered)))
    assert step is not None
    assert step.files == {"m.py": f"{UNSEEN}\n    x = 1\n    return x\n"}
    assert edit_step(example(EXPERT, (editor("view"), CODE))) == EditStep(EXPERT, {"m.py": CODE})
    assert edit_step(example(EXPERT, (editor("create", file_text=CODE), "ok"))) == EditStep(EXPERT, {"m.py": CODE})
    assert edit_step(example(EXPERT)) is None
    assert edit_step(example(editor("view"), (editor("view"), CODE))) is None
    unseen = replace("from elsewhere", "x")
    assert edit_step(example(EXPERT, (editor("view"), CODE), (unseen, "ok"))) is None
    assert edit_step(example(EXPERT, (editor("view"), CODE), (EXPERT, "ok"), (editor("undo_edit"), "ok"))) is None
    moved = replace("def a():\n", "import os\n\n\ndef a():\n")
    assert edit_step(example(EXPERT, (editor("view"), CODE), (moved, "ok"))) == EditStep(EXPERT, {"m.py": f"import os\n\n\n{CODE}"})
    new = editor("create", file_text="x\n")
    assert edit_step(example(new)) == EditStep(new, {})
    shown = f'Solve it.\n\n<file path="m.py">\n{CODE.rstrip()}\n</file>\n\nAnswer with one or more edits'
    blocks = answer(("    return x + 1", "    return x"))
    assert edit_step(example(blocks, prompt=shown)) == EditStep(blocks, {"m.py": CODE.rstrip()})


def real_edits(shared_data: Path) -> Iterator[tuple[EditStep, str]]:
    """The edits of real runs, and what the editor answered."""
    for name in REAL:
        for trajectory in open_data(str(shared_data / "trajectories" / name))[0]:
            turns = trajectory.turns
            for step in step_examples(trajectory, ContextPolicy(kind="full"), "all"):
                known = edit_step(step)
                is_edit = step.target[0].arguments.get("command") in ("str_replace", "insert", "create")
                assert (known is not None) == (is_edit and len(step.target) == 1), step.trajectory_id
                if known is not None:
                    yield known, "\n".join(seen.content for seen in turns[step.index].observations)


def test_real_edits_do_what_the_editor_answered_and_their_words_do_not_matter(shared_data: Path) -> None:
    edits, compared = 0, 0
    for step, observation in real_edits(shared_data):
        edits += 1
        effect = _effect(step.action, step.files)
        assert effect is not None
        ((path, after),) = effect[0].items()
        lines = after.split("\n")
        for number, line in NUMBERED.findall(observation) if "cat -n" in observation else ():
            if int(number) <= len(lines) and lines[int(number) - 1] != UNSEEN:
                assert line == lines[int(number) - 1], (path, number)
                compared += 1
        assert edit_similarity(step.action, step, LONGEST, MAX_WORK) in (1.0, None)
        if path not in step.files or step.action.arguments["command"] != "str_replace":
            continue
        old, new = str(step.action.arguments["old_str"]), str(step.action.arguments.get("new_str", ""))
        before = step.files[path]
        at = before.index(old)
        head = before[:at].rpartition(UNSEEN)[2][-200:]
        wider = step.action.model_copy(update={"arguments": {**step.action.arguments, "old_str": head + old, "new_str": head + new}})
        assert edit_similarity(wider, step, LONGEST, MAX_WORK) == 1.0
        if head:
            assert wording(wider, step.action) < 1.0
    assert edits == 76
    assert compared > 400
