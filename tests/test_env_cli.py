"""`harness env`: list, new, check, as a user runs them. pytest itself says whether the written test passes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from socket import socket
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from harness import Task, tool
from harness.check import check
from harness.env import Split, ToolError
from harness_sql import SqlEnv, SqlTask
from harness_trajectories import Action

HARNESS = Path(sys.executable).with_name("harness")


def harness(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HARNESS, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def no_sandbox(*_: Any) -> Any:
    raise AssertionError("needs no sandbox")


def failing(env: type[SqlEnv]) -> dict[str, str]:
    return {found.name: found.detail for found in check(env, env.Config(), no_sandbox) if not found.ok}


def test_list(tmp_path: Path) -> None:
    done = harness("env", "list", "--json", cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads(done.stdout)["environments"]}
    assert rows["swe"] == {
        "name": "swe",
        "class": "harness_envs.swe:SweAgentEnv",
        "tools": ["bash", "str_replace_editor", "submit"],
        "doc": "The task as a tool loop. The patch is the difference between the work tree at the end and the base tree.",
    }
    assert "math" in rows
    assert "swe" in harness("env", "list", cwd=tmp_path).stdout


def test_new_writes_a_package_that_passes_check_and_its_own_test(tmp_path: Path) -> None:
    done = harness("env", "new", "guess_it", "--json", cwd=tmp_path)
    written = json.loads(done.stdout)
    assert (written["domain"], written["class"]) == ("guess_it", "guess_it:GuessIt")
    assert {Path(file) for file in written["files"]} == {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")}
    assert {Path(file).name for file in written["files"]} == {"pyproject.toml", "guess_it.py", "test_guess_it.py", "README.md"}
    done = harness("env", "check", "guess_it", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads(done.stdout)["checks"]
    assert len(checks) == 7
    assert all(one["ok"] for one in checks)
    assert len(harness("env", "check", "guess_it:GuessIt", cwd=tmp_path / "guess_it").stdout.splitlines()) == 7
    tested = subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=tmp_path / "guess_it", capture_output=True, text=True)
    assert "1 passed" in tested.stdout
    again = harness("env", "new", "guess_it", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("Dice", "'Dice' cannot be"),
        ("../x", "lower-case letters"),
        ("two__lines", "single underscores"),
        ("class", "cannot be a package's name"),
        ("none", "a class None"),
        ("task", "a class Task"),
        ("json", "module 'json' is installed already"),
        ("swe", "domain 'swe' is installed already"),
    ],
)
def test_new_refuses(tmp_path: Path, name: str, word: str) -> None:
    done = harness("env", "new", name, cwd=tmp_path)
    assert done.returncode == 2
    assert word in done.stderr
    assert not list(tmp_path.iterdir())


def test_check_exits_1(tmp_path: Path) -> None:
    (tmp_path / "bad_env.py").write_text(
        "from harness_envs.math import MathEnv\n\n\nclass Bad(MathEnv):\n    def grade(self):\n        return 1.0\n"
    )
    done = harness("env", "check", "bad_env:Bad", cwd=tmp_path)
    assert done.returncode == 1
    assert "FAILED doing nothing grades 0.0: math-78f4ee638af4: graded 1, resolved" in done.stdout
    assert harness("env", "check", "bad_env:Bad", "--env.m=2", cwd=tmp_path).returncode == 2


def test_each_fault_is_found() -> None:
    class Twice(SqlEnv):
        @classmethod
        def tasks(cls, config: Any, split: Split) -> Iterable[SqlTask]:
            return super().tasks(config, "train")

    class Undescribed(SqlEnv):
        @tool
        def peek(self, name, deep: bool = False) -> str:  # type: ignore[no-untyped-def]
            """Look.

            name: whose
            """
            return ""

        @tool
        def gather(self, *names: str) -> list[str]:  # type: ignore[type-var]
            """Gather.

            names: whose
            """
            return list(names)

        @tool
        def take(self, thing: socket) -> str:
            """Take.

            thing: what
            """
            return str(thing)

    class Wrong(SqlEnv):
        def gold(self) -> list[Action]:
            return super().gold()[:1]

    class Once(SqlEnv):
        def close(self) -> None:
            super().close()
            del self.db

        def reset(self, task: Task) -> str:  # type: ignore[override]
            return super().reset(task)  # type: ignore[arg-type]

    class Empty(SqlEnv):
        @classmethod
        def tasks(cls, config: Any, split: Split) -> Iterable[SqlTask]:
            return []

    assert "sql-train-0" in failing(Twice)["ids are unique over the splits"]
    detail = failing(Undescribed)["tools are annotated and documented"]
    assert "'name' has no annotation" in detail
    assert "'deep' is not described" in detail
    assert "gather: returns list[str]" in detail
    assert "gather: '*names: str'" in detail
    assert "take: parameter 'thing' cannot be given as JSON" in detail
    assert "graded 0" in failing(Wrong)["gold grades 1.0"]
    assert "AttributeError" in failing(Once)["close() twice is fine"]
    assert "no tasks" in failing(Empty)["gold grades 1.0"]


def test_what_differs_the_second_time_is_found() -> None:
    """Each of what is compared: the list of tasks, the prompt, an observation, the gold actions, the grade."""
    calls = count()

    class Shuffled(SqlEnv):
        @classmethod
        def tasks(cls, config: Any, split: Split) -> Iterable[SqlTask]:
            return list(super().tasks(config, split))[next(calls) % 2 :]

    class Prompted(SqlEnv):
        def reset(self, task: SqlTask) -> str:
            return f"{super().reset(task)} ({next(calls)})"

    class Observed(SqlEnv):
        @tool
        def query(self, sql: str) -> str:
            """Run SQL.

            sql: it
            """
            return f"{super().query(sql)} after {next(calls)}"

    class Undecided(SqlEnv):
        def gold(self) -> list[Action]:
            take, give, answer = super().gold()
            return [take, give, answer] if next(calls) % 2 else [give, take, answer]

    class Fickle(SqlEnv):
        def grade(self) -> float:
            return 1.0 if next(calls) % 2 else 0.5

    name = "the same again comes out the same"
    assert "lists other tasks" in failing(Shuffled)[name]
    assert "sql-train-0: prompt: 'Move" in failing(Prompted)[name]
    assert "sql-train-0: observation: 'no rows after" in failing(Observed)[name]
    assert "gold() action: Action(tool='" in failing(Undecided)[name]
    assert re.search("grade: '(1, resolved|0.5, unresolved)', and then ", failing(Fickle)[name])


class Inner(BaseModel):
    depth: int
    next: Inner | None = None


def test_what_a_tool_raises_is_found() -> None:
    """Every kind of parameter has an odd value that the tool does not foresee; a ToolError is an answer."""
    seen: list[tuple[Any, ...]] = []

    class Brittle(SqlEnv):
        @tool
        def text(self, name: str) -> str:
            """Look up.

            name: whose
            """
            return str(self.task.balances[name])

        @tool
        def number(self, index: int, exactly: float | None = None) -> str:
            """Look up.

            index: which
            exactly: how
            """
            if exactly is None:
                raise ToolError("exactly what?")
            return str([1, 2][index])

        @tool
        def choice(self, kind: Literal["a", "b"], several: list[int], names: dict[str, str], inner: Inner) -> str:
            """Choose.

            kind: a or b
            several: numbers
            names: of what
            inner: more
            """
            seen.append((kind, several, names, inner))
            return {"a": "x"}[kind]

        @tool
        def spoil(self) -> str:
            """Take the database away from whoever looks next."""
            del self.db
            return ""

    detail = failing(Brittle)["odd arguments are answered"]
    assert "text(name=''): KeyError: ''" in detail
    assert re.search(r"; and \d+ more\. What the agent", detail)
    assert {one[0] for one in seen} == {"a", "b"}
    assert {len(one[1]) for one in seen} == {0, 1, 5}
    assert all(isinstance(one[3], Inner) for one in seen)

    class Numbers(Brittle):
        text = choice = spoil = None  # type: ignore[assignment]

    assert "number(index=-1" not in failing(Numbers)["odd arguments are answered"]
    assert "number(index=1000000, exactly=1e+300): IndexError" in failing(Numbers)["odd arguments are answered"]

    class Spoilt(Brittle):
        text = number = choice = None  # type: ignore[assignment]

    assert "after odd calls of spoil: AttributeError" in failing(Spoilt)["odd arguments are answered"]


def test_check_takes_a_dataset_of_one_file(tmp_path: Path) -> None:
    class OneFile(SqlEnv):
        class Config(SqlEnv.Config):
            dataset: Path = tmp_path

        @classmethod
        def tasks(cls, config: SqlEnv.Config, split: Split) -> Iterable[SqlTask]:
            return list(super().tasks(config, "test"))

    file = tmp_path / "tasks.jsonl"
    file.touch()
    found = check(OneFile, OneFile.Config(dataset=file), no_sandbox)
    assert [one.detail for one in found if not one.ok] == []
    assert "occur more than once" in failing(OneFile)["ids are unique over the splits"]


def test_check_refuses_a_tool_that_cannot_be_reached() -> None:
    class Shadowed(SqlEnv):
        @tool
        def run(self, command: str) -> str:
            """Run a command.

            command: what to run
            """
            return command

    assert Action(tool="run", arguments={"command": "ls"}).tool == "bash"
    assert "is read as one of 'bash'" in failing(Shadowed)["tools are annotated and documented"]
