"""`harness env check`: what must hold of an environment before anything is trained or measured in it."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import TypeAdapter

from harness.agent import Episode, NoGold, replay, verdict
from harness.env import Env, OpenSandbox, Split, Task
from harness.probe import odd_calls
from harness_trajectories import Action
from harness_trajectories.errors import UserError
from harness_trajectories.schema import TOOL_ALIASES

SHOWN = 3
"""Faults of a kind that are named."""


class Check(NamedTuple):
    """One property, and whether it holds."""

    name: str
    ok: bool
    detail: str


class Failed(Exception):
    """The property does not hold; the text says where."""


def check(env: type[Env], config: Any, open_sandbox: OpenSandbox, limit: int = 3) -> list[Check]:
    """All checks, in order; a failing one does not stop the others.

    Args:
        config: the environment's `Config`.
        limit: how many tasks of each split are played.

    Raises:
        UserError: options that cannot be met, or no sandbox can be had.
    """
    checks = _Checks(env, config, open_sandbox, limit)
    bodies: tuple[tuple[str, Callable[[], str]], ...] = (
        ("ids are unique over the splits", checks.ids),
        ("tools are annotated and documented", checks.schemas),
        ("gold grades 1.0", checks.gold),
        ("doing nothing grades 0.0", checks.nothing),
        ("the same again comes out the same", checks.determinism),
        ("odd arguments are answered", checks.odd_arguments),
        ("close() twice is fine", checks.close),
    )
    return [_attempt(name, body) for name, body in bodies]


def _attempt(name: str, body: Callable[[], str]) -> Check:
    try:
        return Check(name, True, body())
    except NoGold:
        return Check(name, True, "gold() is not defined: optional, but expert runs cannot be generated without it")
    except UserError:
        raise
    except Failed as error:
        return Check(name, False, str(error))
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}")


def schema_faults(name: str, method: Callable[..., str]) -> list[str]:
    """What a tool's signature and docstring lack to be its schema."""
    doc = inspect.getdoc(method) or ""
    signature = inspect.signature(method, eval_str=True)
    faults = [] if doc else [f"{name}: no docstring"]
    if name in TOOL_ALIASES:
        faults.append(f"{name}: a call of this name is read as one of {TOOL_ALIASES[name]!r}; choose another name")
    if signature.return_annotation not in (str, inspect.Signature.empty):
        faults.append(f"{name}: returns {inspect.formatannotation(signature.return_annotation)}; an observation is text, `-> str`")
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            faults.append(f"{name}: {str(parameter)!r}: arguments are given by name, one parameter each")
        elif parameter.annotation is inspect.Parameter.empty:
            faults.append(f"{name}: parameter {parameter.name!r} has no annotation")
        else:
            try:
                TypeAdapter(parameter.annotation).json_schema()
            except Exception as error:
                faults.append(f"{name}: parameter {parameter.name!r} cannot be given as JSON: {str(error).splitlines()[0]}")
        if not re.search(rf"^\s*{re.escape(parameter.name)}\s*:\s*\S", doc, re.MULTILINE):
            faults.append(
                f"{name}: parameter {parameter.name!r} is not described; add a line '{parameter.name}: what it is' to the docstring"
            )
    return faults


class _Checks:
    """The checks of one environment. Each returns what was looked at.

    Raises:
        Failed: it does not hold.
    """

    def __init__(self, env: type[Env], config: Any, open_sandbox: OpenSandbox, limit: int) -> None:
        self.env = env
        self.config = config
        self.open_sandbox = open_sandbox
        self.limit = limit
        self.listed: dict[str, list[Task]] = {}
        self.tasks: list[Task] = []
        """Those that are played."""
        self.played: dict[str, Episode] = {}
        """Gold by task id."""

    def ids(self) -> str:
        self.listed = self._list()
        ids = {split: [task.id for task in of_split] for split, of_split in self.listed.items()}
        undivided = Path(getattr(self.config, "dataset", None) or "").is_file()  # every split is that file; the user divides it
        counts = Counter(ids["test"]) if undivided else Counter(chain.from_iterable(ids.values()))
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise Failed(f"{len(twice)} ids occur more than once: {', '.join(twice[:SHOWN])}")
        for of_split in [self.listed["test"]] if undivided else self.listed.values():
            self.tasks += of_split[: self.limit]
        if undivided:
            return f"{len(counts)} tasks in one file, not divided into splits"
        return ", ".join(f"{split} {len(of_split)}" for split, of_split in self.listed.items())

    def schemas(self) -> str:
        faults = [fault for name in self.env.tool_names() for fault in schema_faults(name, getattr(self.env, name))]
        if faults:
            raise Failed("; ".join(faults))
        return ", ".join(self.env.tool_names())

    def gold(self) -> str:
        for task in self._some_tasks():
            self.played[task.id] = self._play(task, None)
            _graded(task, self.played[task.id], 1.0)
        return f"{len(self.tasks)} tasks"

    def nothing(self) -> str:
        graded_anyway = "grade_empty_patch" in self.env.Config.model_fields
        config = self.config.model_copy(update={"grade_empty_patch": True}) if graded_anyway else self.config
        for task in self._some_tasks():
            _graded(task, self._play(task, (), config), 0.0)
        return f"{len(self.tasks)} tasks"

    def determinism(self) -> str:
        if self._list() != self.listed:
            raise Failed("tasks() lists other tasks, or in another order, when called again")
        for task in self._some_tasks():
            if task.id in self.played:
                first, second = self.played[task.id], self._play(task, None)
            else:
                first, second = self._play(task, ()), self._play(task, ())
            for (what, one), (_, other) in zip_longest(_course(first), _course(second), fillvalue=("end", None)):
                if one != other:
                    raise Failed(f"{task.id}: {what}: {one!r:.200}, and then {other!r:.200}")
        what = "gold" if self.played else "prompt and grade, as gold() is not defined,"
        return f"{what} of {len(self.tasks)} tasks, and the list of tasks"

    def odd_arguments(self) -> str:
        (task, *_) = self._some_tasks()
        faults: list[str] = []
        count = 0
        for name in self.env.tool_names():
            if schema_faults(name, getattr(self.env, name)):
                continue
            instance = self._fresh(task)
            try:
                for arguments in odd_calls(getattr(self.env, name)):
                    if instance.done:
                        instance.close()
                        instance = self._fresh(task)
                    count += 1
                    try:
                        instance.step(Action(tool=name, arguments=arguments))
                    except Exception as error:
                        faults.append(f"{name}({_shown(arguments)}): {_reason(error)}")
                verdict(instance)
            except Exception as error:
                faults.append(f"after odd calls of {name}: {_reason(error)}")
            finally:
                instance.close()
        if faults:
            more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            raise Failed(f"{'; '.join(faults[:SHOWN])}{more}. What the agent can do wrong is a ToolError, which it is told")
        return f"{count} calls, each answered, and graded after them"

    def close(self) -> str:
        for task in (None, *self.tasks[:1]):
            instance = self.env(self.config, self.open_sandbox)
            try:
                if task is not None:
                    instance.reset(task)
            finally:
                instance.close()
            instance.close()
        return "before and after reset" if self.tasks else "before reset"

    def _list(self) -> dict[str, list[Task]]:
        return {split: list(self.env.tasks(self.config, split)) for split in get_args(Split)}

    def _some_tasks(self) -> Sequence[Task]:
        if not self.tasks:
            raise Failed("there are no tasks")
        return self.tasks

    def _play(self, task: Task, actions: Sequence[Action] | None, config: Any = None) -> Episode:
        with closing(self.env(config or self.config, self.open_sandbox)) as instance:
            return replay(instance, task, actions)

    def _fresh(self, task: Task) -> Env:
        instance = self.env(self.config, self.open_sandbox)
        try:
            instance.reset(task)
        except BaseException:
            instance.close()
            raise
        return instance


def _graded(task: Task, episode: Episode, wanted: float) -> None:
    if episode.grade is None:
        raise Failed(f"{task.id}: {episode.error}")
    if episode.grade.score != wanted:
        raise Failed(f"{task.id}: graded {episode.grade.score:g}, {episode.grade.status}")


def _course(episode: Episode) -> list[tuple[str, object]]:
    """What happened, in order: prompts, actions, observations, the grade."""
    course: list[tuple[str, object]] = []
    for step in episode.trajectory.steps:
        course += [("prompt", step.message)] if step.source == "user" else []
        course += [("gold() action", action) for action in step.actions]
        course += [("observation", observation.content) for observation in step.observations]
    grade = episode.grade
    return [*course, ("grade", f"{grade.score:g}, {grade.status}" if grade else f"none, {episode.error}")]


def _shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.60}" for name, value in arguments.items())


def _reason(error: Exception) -> str:
    """The exception that the environment's own code raised; `step` and `verdict` wrap it."""
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return f"{type(cause).__name__}: {cause}"
