"""The environment interface: what a tool's signature and docstring come to, and whose fault a failure is."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytest

from harness import Env, Task, tool
from harness.env import EnvError, Split, ToolError, describe_tools, load_env
from harness.skeleton import write_package
from harness_envs.math import MathEnv
from harness_trajectories import Action
from harness_trajectories.errors import UserError


class Kitchen(Env):
    """Cook."""

    system = "You cook."

    @classmethod
    def tasks(cls, config: Any, split: Split) -> Iterable[Task]:
        yield Task(id=f"egg-{split}", prompt="Boil an egg.")

    def reset(self, task: Task) -> str:
        return task.prompt

    def grade(self) -> float:
        return 0.0

    @tool
    def boil(self, minutes: int, what: Literal["egg", "rice"] = "egg") -> str:
        """Boil it.

        minutes: how long
        what: what to boil
        """
        if minutes > 60:
            raise ToolError("it would burn")
        if minutes < 0:
            raise ZeroDivisionError("the clock broke")
        return f"{what} after {minutes}"


class Quiet(Kitchen):
    answer = None  # type: ignore[assignment]


@pytest.fixture
def kitchen() -> Kitchen:
    return Kitchen(Kitchen.Config(), lambda: None)  # type: ignore[arg-type,return-value]


def test_tools_are_listed_in_declared_order_and_answer_last() -> None:
    assert Kitchen.tool_names() == ["boil", "answer"]
    assert Quiet.tool_names() == ["boil"]
    assert Kitchen.wire() == "calls"
    text = describe_tools(Kitchen)
    assert "- boil(minutes: int, what: Literal['egg', 'rice'] (optional)): Boil it. minutes: how long" in text.replace("typing.", "")
    assert Kitchen.system_prompt(Kitchen.Config()).startswith("You cook.\n\nTools:")


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (Action(tool="boil", arguments={"minutes": 4}), ["egg after 4"]),
        (Action(tool="boil", arguments={"minutes": "4"}), ["egg after 4"]),
        (Action(tool="fry", arguments={}), ["ERROR", "fry", "boil, answer"]),
        (Action(tool="reset", arguments={}), ["ERROR", "reset"]),
        (Action(tool="boil", arguments={}), ["ERROR", "minutes", "missing"]),
        (Action(tool="boil", arguments={"minutes": "long"}), ["ERROR", "minutes", "long"]),
        (Action(tool="boil", arguments={"minutes": 4, "what": "shoe"}), ["ERROR", "what", "shoe"]),
        (Action(tool="boil", arguments={"minutes": 4, "salt": 1}), ["ERROR", "salt", "minutes, what"]),
        (Action(tool="boil", arguments={"minutes": 90}), ["ERROR: it would burn"]),
    ],
)
def test_an_agents_mistake_is_answered(kitchen: Kitchen, action: Action, words: list[str]) -> None:
    observation = kitchen.step(action)
    for word in words:
        assert word in observation


def test_a_failing_tool_is_the_environments_fault(kitchen: Kitchen) -> None:
    with pytest.raises(EnvError, match=r"boil.*clock broke"):
        kitchen.step(Action(tool="boil", arguments={"minutes": -1}))


def test_answer_ends_the_episode(kitchen: Kitchen) -> None:
    assert kitchen.step(Action(tool="answer", arguments={"text": "done"})) == ""
    assert (kitchen.answered, kitchen.done) == ("done", True)


def test_load_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_env("harness_envs.math:MathEnv") is load_env("math") is MathEnv
    (tmp_path / "mine_env.py").write_text("from harness_envs.math import MathEnv\n\n\nclass Mine(MathEnv):\n    '''Mine.'''\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert load_env("mine_env:Mine").__name__ == "Mine"
    for name, word in (
        ("cooking", "cooking"),
        ("mine_env:Yours", "Yours"),
        ("nowhere_at_all:X", "nowhere_at_all"),
        ("json:loads", "not a"),
    ):
        with pytest.raises(UserError, match=word):
            load_env(name)


def test_a_packages_folder_serves_before_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, files = write_package("loose_dice", tmp_path)
    (folder,) = {file.parent for file in files}
    monkeypatch.setattr(sys, "path", [*sys.path])
    for place in (tmp_path, folder):
        monkeypatch.chdir(place)
        assert load_env("loose_dice") is load_env("loose_dice:LooseDice")
    with pytest.raises(UserError, match="unknown domain 'loose_card'"):
        load_env("loose_card")
    (folder / "pyproject.toml").write_text("[project")
    with pytest.raises(UserError, match=r"pyproject\.toml: cannot be read"):
        load_env("loose_dice")


def test_a_name_that_two_packages_claim_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = tmp_path / "other_math-1.dist-info"
    claim.mkdir()
    (claim / "METADATA").write_text("Metadata-Version: 2.1\nName: other-math\nVersion: 1\n")
    (claim / "entry_points.txt").write_text("[harness.envs]\nmath = other_math:OtherMath\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(UserError, match=r"'math' stands for harness_envs\.math:MathEnv and for other_math:OtherMath"):
        load_env("math")
