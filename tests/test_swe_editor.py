"""The agent's tools. Reference for line numbers: `cat -n`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from harness.sandbox_local import LocalSandbox
from harness_envs.swe import SweAgentEnv
from harness_envs.swe.env import SweConfig
from harness_envs.swe.task import SweTask, base_commit
from harness_trajectories import Action

TEXT = "".join(f"line {number}\n" for number in range(1, 13))
FILES = {"f.py": TEXT, "d/g.py": "one\none\n", "d/.hidden": "", "crlf.txt": "a\r\nb\r\n"}
TASK = SweTask(id="demo__1", prompt="Fix.", patch="", files=FILES, base_commit=base_commit(FILES))


@pytest.fixture
def env() -> Iterator[SweAgentEnv]:
    with closing(SweAgentEnv(SweConfig(), LocalSandbox)) as env:
        env.reset(TASK)
        yield env


@pytest.fixture
def brief() -> Iterator[SweAgentEnv]:
    with closing(SweAgentEnv(SweConfig(brief=True), LocalSandbox)) as env:
        env.reset(TASK)
        yield env


def call(env: SweAgentEnv, command: str, path: str = "f.py", **more: object) -> str:
    return env.step(Action.model_validate({"tool": "str_replace_editor", "arguments": {"command": command, "path": path, **more}}))


def bash(env: SweAgentEnv, command: str) -> str:
    return env.step(Action(tool="bash", arguments={"command": command}))


def test_view_numbers_lines_as_cat_does(env: SweAgentEnv) -> None:
    shown = call(env, "view").split("\n")
    assert shown[1:13] == bash(env, "cat -n f.py").split("\n")
    assert call(env, "view", view_range=[3, 4]).split("\n")[1:] == ["     3\tline 3", "     4\tline 4"]
    assert call(env, "view", view_range="[12, -1]").split("\n")[1] == "    12\tline 12"
    listing = call(env, "view", path=".")
    assert "/f.py" in listing
    assert "/d/g.py" in listing
    assert ".hidden" not in listing
    assert ".git" not in listing


def test_edits_and_their_undoing(env: SweAgentEnv) -> None:
    answer = call(env, "str_replace", old_str="line 6\n", new_str="six\nand more\n")
    assert "     6\tsix\n     7\tand more\n     8\tline 7" in answer
    assert "     1\t" not in answer
    assert "     3\tmiddle\n" in call(env, "insert", insert_line=2, new_str="middle")
    assert call(env, "view", path="/testbed/f.py", view_range=[3, 3]).endswith("     3\tmiddle")
    assert bash(env, "head -3 f.py") == "line 1\nline 2\nmiddle"
    assert "     3\tline 3" in call(env, "undo_edit")
    assert "     6\tline 6" in call(env, "undo_edit")
    assert call(env, "undo_edit").startswith("ERROR: no edit of f.py")
    assert "new/h.py" in call(env, "create", path="new/h.py", file_text="x = 1\n")
    assert bash(env, "cat new/h.py") == "x = 1"
    call(env, "undo_edit", path="new/h.py")
    assert bash(env, "git status --porcelain") == "(no output)"
    call(env, "str_replace", path="crlf.txt", old_str="a\nb\n", new_str="c\nd\nb\n")
    assert env.repository is not None
    assert env.repository.text("crlf.txt") == "c\r\nd\r\nb\r\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"command": "view", "path": "no.py"}, "there is no file"),
        ({"command": "view", "view_range": [5, 2]}, r"view_range \[5, 2\] is not within the file's lines 1 to 13"),
        ({"command": "view", "view_range": [0, 2]}, "is not within"),
        ({"command": "view", "view_range": [1]}, "two line numbers"),
        ({"command": "view", "path": "d", "view_range": [1, 2]}, "is a directory"),
        ({"command": "create", "file_text": "x"}, "exists already"),
        ({"command": "create", "path": "f.py/x", "file_text": ""}, "cannot be written"),
        ({"command": "create", "path": "n.py"}, "create needs file_text"),
        ({"command": "str_replace", "old_str": "line 99", "new_str": ""}, "does not occur in f.py"),
        ({"command": "str_replace", "path": "d/g.py", "old_str": "one", "new_str": "two"}, r"occurs 2 times in d/g.py, at lines \[1, 2\]"),
        ({"command": "str_replace", "old_str": "", "new_str": "two"}, "old_str is empty"),
        ({"command": "str_replace", "old_str": "line 2", "new_str": "line 2"}, "are equal"),
        ({"command": "str_replace", "path": "d", "old_str": "a", "new_str": "b"}, "there is no file"),
        ({"command": "insert", "insert_line": 99, "new_str": "x"}, "within 0 to 13"),
        ({"command": "insert", "new_str": "x"}, "insert needs insert_line"),
        ({"command": "delete"}, "command must be one of view, create"),
        ({"command": "view", "path": ""}, "path is empty"),
        ({"command": "view", "lines": 3}, "unknown parameter 'lines'"),
    ],
)
def test_mistakes_are_answered(env: SweAgentEnv, arguments: dict[str, object], message: str) -> None:
    answer = env.step(Action.model_validate({"tool": "str_replace_editor", "arguments": {"path": "f.py", **arguments}}))
    assert answer.startswith("ERROR: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(answer)
    assert bash(env, "git status --porcelain") == "(no output)"


def test_brief_answers(brief: SweAgentEnv) -> None:
    assert call(brief, "view", view_range=[1, 2]) == "line 1\nline 2"
    assert call(brief, "view") == TEXT
    assert call(brief, "str_replace", old_str="line 2\n", new_str="") == "ok"
    assert call(brief, "undo_edit") == "ok"


def test_bash_says_how_it_ended(env: SweAgentEnv) -> None:
    assert bash(env, "echo out; echo err >&2") == "out\nerr"
    assert bash(env, "true") == "(no output)"
    assert bash(env, "exit 3") == "(no output, exit code 3)"
    env.config = SweConfig(command_timeout=1.5, max_observation=300)
    assert bash(env, "echo before; sleep 100") == "before\nERROR: stopped after 1.5 seconds; run it in a way that ends sooner."
    assert "characters cut" in bash(env, "seq 1000")
    assert len(bash(env, "seq 1000")) <= 300
    assert env.step(Action(tool="submit")) == ""
    assert env.done
