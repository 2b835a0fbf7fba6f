"""The package that `harness env new` writes: an environment that works, with its test."""

from __future__ import annotations

import keyword
import re
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from harness.env import GROUP, PROJECT
from harness_trajectories.errors import UserError

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "@NAME@"
version = "0.1.0"
description = "An environment for srl-harness"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["srl-harness"]

[project.entry-points."harness.envs"]
@NAME@ = "@NAME@:@CLASS@"

[tool.hatch.build.targets.wheel]
only-include = ["@NAME@.py"]
"""
MODULE = '''\
"""An environment of your own: tasks, tools, a grade."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from harness import Env, Task, tool
from harness.env import Split, ToolError
from harness_trajectories import Action


class @CLASS@Task(Task):
    secret: int


class @CLASS@(Env):
    """Find a secret number by asking."""

    system = "You are to find a whole number from 1 to 100."

    @classmethod
    def tasks(cls, config: Any, split: Split) -> Iterable[@CLASS@Task]:
        for index in range(10):
            secret = random.Random(f"{split}-{index}").randint(1, 100)
            yield @CLASS@Task(id=f"@NAME@-{split}-{index}", prompt="Find the number, then answer with it.", secret=secret)

    def reset(self, task: @CLASS@Task) -> str:
        self.task = task
        return task.prompt

    @tool
    def compare(self, number: int) -> str:
        """Say whether the secret is smaller, equal or greater.

        number: what to compare it with
        """
        if not 1 <= number <= 100:
            raise ToolError("the number is from 1 to 100")
        return "smaller" if self.task.secret < number else "greater" if self.task.secret > number else "equal"

    def grade(self) -> float:
        return float((self.answered or "").strip() == str(self.task.secret))

    def gold(self) -> list[Action]:
        secret = self.task.secret
        return [Action(tool="compare", arguments={"number": secret}), Action(tool="answer", arguments={"text": str(secret)})]
'''
TEST = '''\
"""What `harness env check` checks; add what your environment promises."""

from __future__ import annotations

from typing import Any

from @NAME@ import @CLASS@
from harness.check import check


def no_sandbox(*_: Any) -> Any:
    raise AssertionError("@CLASS@ needs no sandbox")


def test_@NAME@() -> None:
    assert [found for found in check(@CLASS@, @CLASS@.Config(), no_sandbox) if not found.ok] == []
'''
README = """\
# @NAME@

An environment for srl-harness: `@NAME@.py` holds its tasks, tools and grade, `test_@NAME@.py` what must hold of it, `pyproject.toml`
the name that it has for the command.

```sh
python -m pytest @NAME@
harness env check @NAME@
harness data synth --domain @NAME@ -n 10 --out data/@NAME@       # gold() replayed into expert runs
harness train --domain @NAME@ --data data/@NAME@ --out runs/@NAME@
harness eval --domain @NAME@ --model runs/@NAME@/checkpoints/best
```

This works where this folder lies. After `pip install -e @NAME@` the name serves everywhere.
"""
FILES = {PROJECT: PYPROJECT, "@NAME@.py": MODULE, "test_@NAME@.py": TEST, "README.md": README}
IMPORTED = ("Any", "Iterable", "Env", "Task", "Split", "Action")
"""What the module imports; a class of such a name would hide it."""


def write_package(name: str, parent: Path) -> tuple[str, list[Path]]:
    """Write the package `parent`/`name`.

    Returns:
        the class as `module:Class`, and the files.

    Raises:
        UserError: the name cannot be used; nothing is written.
    """
    class_name = "".join(part.capitalize() for part in name.split("_"))
    folder = parent / name
    if not re.fullmatch(r"[a-z](_?[a-z0-9])*", name) or keyword.iskeyword(name):
        raise UserError(
            f"{name!r} cannot be a package's name; use lower-case letters, digits and single underscores between them, "
            "as in: harness env new dice"
        )
    if class_name in IMPORTED or keyword.iskeyword(class_name):
        raise UserError(f"{name!r} would make a class {class_name}, which is taken; take another name, as {name}_game")
    if folder.exists():
        raise UserError(f"{folder} exists already and is not overwritten; take another name")
    if entry_points(group=GROUP, name=name):
        raise UserError(f"a domain {name!r} is installed already (harness env list); take another name")
    if find_spec(name) is not None:
        raise UserError(f"a module {name!r} is installed already and would be hidden; take another name")
    folder.mkdir()
    written = []
    for file, text in FILES.items():
        path = folder / file.replace("@NAME@", name)
        path.write_text(text.replace("@CLASS@", class_name).replace("@NAME@", name), encoding="utf-8")
        written.append(path)
    return f"{name}:{class_name}", written
