"""Our environments for TRL's own trainer: `GRPOTrainer(environment_factory=…, train_dataset=…)` of TRL 1.16.

    env = load_env("sql")
    config = env.Config()
    trainer = GRPOTrainer(
        model,
        args=GRPOConfig(max_completion_length=512, num_generations=8, ...),
        train_dataset=Dataset.from_list(rows(env, config)),
        environment_factory=environment_factory(env, config),
    )

What TRL asks of an environment, and what it gets: `reset(**columns)` prepares the task that the row names and returns its prompt; every
public method is a tool, described by its signature and a docstring in Google's style; `get_reward()` is the grade. The model reads and
calls the tools in the form of its own chat template, not in ours. The answer is a tool too, also where our own loop takes bare text.

Nothing of TRL is imported.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from harness.agent import fault, verdict
from harness.check import schema_faults
from harness.env import Env, EnvError, OpenSandbox, Split, Task
from harness_trajectories import Action
from harness_trajectories.errors import UserError

TASK = "task"
"""The data set's column that names the task."""
OVER = "ERROR: the episode is over; write no further call."
RESERVED = ("reset", "get_reward")


def rows(env: type[Env], config: Any, split: Split = "train") -> list[dict[str, Any]]:
    """The data set's rows: a conversation that ends where `reset` goes on, and the task's id. All samples of a row play the same task."""
    system = [{"role": "system", "content": env.system}] if env.system else []
    return [{"prompt": [*system, {"role": "user", "content": ""}], TASK: task.id} for task in env.tasks(config, split)]


def environment_factory(
    env: type[Env], config: Any, open_sandbox: OpenSandbox | None = None, split: Split = "train"
) -> Callable[[], TrlEnvironment]:
    """What makes the environments that TRL plays: each call a new one, which is reset for every episode.

    Args:
        config: the environment's `Config`.
        open_sandbox: as `harness.sandbox_open.Sandboxes("docker")`, where the environment needs one.
        split: of the tasks, as given to `rows`.

    Raises:
        UserError: a tool that TRL cannot describe, or whose name it needs itself.
    """
    tools: dict[str, Callable[..., str]] = {}
    for name in env.tool_names():
        faults = schema_faults(name, getattr(env, name))
        if name in RESERVED or name.startswith("_"):
            faults.append(f"{name}: TRL gives this name a meaning of its own")
        if faults:
            raise UserError(f"{env.__name__} cannot be given to TRL: {'; '.join(faults)}")
        tools[name] = _as_method(name, getattr(env, name))
    tasks = {task.id: task for task in env.tasks(config, split)}
    kind: Any = type(env.__name__, (TrlEnvironment,), tools)
    return lambda: kind(env, config, open_sandbox or _no_sandbox, tasks)


class TrlEnvironment:
    """One environment as TRL sees it; the tools are methods of a subclass that `environment_factory` makes."""

    def __init__(self, env: type[Env], config: Any, open_sandbox: OpenSandbox, tasks: Mapping[str, Task]) -> None:
        self._make: Callable[[], Env] = lambda: env(config, open_sandbox)
        self._tasks = tasks
        self._env: Env | None = None
        self._failure: EnvError | UserError | None = None
        self._reward: float | None = None

    def reset(self, **columns: Any) -> str:
        """Begin the episode of the row's task.

        Returns:
            the prompt, which TRL puts at the end of the row's last message.

        Raises:
            UserError: the row names no task of the split, or no sandbox can be had.
        """
        name = str(columns.get(TASK))
        if name not in self._tasks:
            raise UserError(f"a row's column {TASK!r} is {name!r}, which is no task here; make the rows with harness.trl_env.rows")
        self._close()
        self._failure = self._reward = None
        self._task = self._tasks[name]
        self._env = self._make()
        try:
            with fault("reset()"):
                return self._env.reset(self._task)
        except EnvError as error:
            self._failure = error
            return self._task.prompt

    def get_reward(self) -> float | None:
        """The grade of the episode, in [0, 1]; None where the environment failed, which TRL leaves out of the baseline and the loss.

        Raises:
            UserError: no sandbox can be had.
        """
        if self._env is None:
            return self._reward
        try:
            if self._failure:
                raise self._failure
            self._reward = verdict(self._env).score
        except EnvError as error:
            print(f"{self._task.id}: the environment failed, no reward: {error}", file=sys.stderr)
        finally:
            self._close()
        return self._reward

    def _call(self, name: str, arguments: dict[str, Any]) -> str:
        """Run a tool. What it raises is kept for `get_reward`: TRL would tell it to the model, as the model's own mistake."""
        if self._env is None or self._env.done or self._failure:
            return OVER
        try:
            return self._env.step(Action(tool=name, arguments=arguments))
        except (EnvError, UserError) as error:
            self._failure = error
            return OVER

    def _close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


def _as_method(name: str, method: Callable[..., str]) -> Callable[..., str]:
    """A method of `TrlEnvironment` with the signature of a tool, and its docstring in Google's style."""

    def call(self: TrlEnvironment, **arguments: Any) -> str:
        return self._call(name, arguments)

    signature = inspect.signature(method, eval_str=True)
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    call.__name__ = name
    call.__qualname__ = f"{TrlEnvironment.__name__}.{name}"
    call.__doc__ = _google_style(inspect.getdoc(method) or "", [parameter.name for parameter in parameters])
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": str}
    call.__signature__ = signature.replace(return_annotation=str)  # type: ignore[attr-defined]
    return call


def _google_style(doc: str, names: list[str]) -> str:
    """`name: what it is` lines moved under `Args:`; a line without a name goes on with the one before it."""
    about: list[str] = []
    arguments: dict[str, list[str]] = {}
    current = about
    for line in doc.splitlines():
        found = re.match(r"\s*(\w+)\s*:\s*(\S.*)", line)
        if found and found[1] in names:
            current = arguments.setdefault(found[1], [])
            current.append(found[2])
        elif not line.strip():
            current = about
        elif line.strip() != "Args:":
            current.append(line.strip())
    described = [f"    {name}: {' '.join(words)}" for name, words in arguments.items()]
    return "\n".join([" ".join(about), *(["", "Args:", *described] if described else [])])


def _no_sandbox(*_: Any, **__: Any) -> Any:
    raise UserError('the environment needs a sandbox: environment_factory(env, config, Sandboxes("docker")), from harness.sandbox_open')
