"""The environment interface: the one extension point.

An environment is a class: tasks to do, tools to do them with, a grade at the end. One instance serves one episode in one thread::

    class Dice(Env):
        system = "Guess the number."

        @classmethod
        def tasks(cls, config, split):
            yield Task(id="dice-1", prompt="One to six?")

        def reset(self, task):
            self.task = task
            return task.prompt

        def grade(self):
            return 1.0 if self.answered == "4" else 0.0

        @tool
        def roll(self, sides: int = 6) -> str:
            '''Roll a die.

            sides: how many sides it has
            '''
            return "4"

`answer(text)` is built in. An environment that declares no other tool takes the model's bare text as the answer. One that asks more than
once overrides it: while `done` stays False, what it returns is the next prompt, which stands on its own; where it returns nothing, the
prompt stays, and the answers so far stand below it as the steps of a solution.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tomllib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from harness.prompt import FORMAT
from harness_trajectories import Action
from harness_trajectories.errors import UserError
from harness_trajectories.schema import ANSWER
from harness_trajectories.steps import ContextPolicy

if TYPE_CHECKING:
    from harness.sandbox import Sandbox

F = TypeVar("F", bound=Callable[..., str])
GROUP = "harness.envs"
"""The entry-point group."""
PROJECT = "pyproject.toml"
Split = Literal["train", "val", "test"]
OpenSandbox = Callable[..., "Sandbox"]
"""`open_sandbox(image=None)`: a fresh sandbox, of the default base image where none is named. `prepare` and `network`: see
`DockerSandboxes.open`."""
Status = Literal["resolved", "unresolved", "empty_patch", "patch_error", "timeout", "infra_error", "suspicious"]


class ToolError(Exception):
    """The agent's call cannot be served (no such file, `old_str` not unique …). The text goes back to it as the observation."""


class EnvError(Exception):
    """The environment itself failed (container died, image missing). Never scored as the model's."""


class Task(BaseModel):
    """One problem. Subclass it to carry gold answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    prompt: str


class SandboxTask(Task):
    """A task that is played in a sandbox of an image of its own."""

    image: str | None = None
    """The container image; None: the sandbox's default base image."""
    build: str | None = None
    """A folder with a Dockerfile, of which `image` is built where it is not here."""


class Grade(BaseModel):
    """The verdict on an episode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: float = Field(ge=0.0, le=1.0)
    status: Status
    notes: tuple[str, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)
    """What to keep beside the verdict: file name → text (`patch.diff`, `test_output.txt`)."""
    official_resolved: bool | None = None
    """The upstream grader's verdict where it was asked."""


def tool(method: F) -> F:
    """Mark a method as a tool. Its signature and its docstring are the tool's schema; parameters need type annotations."""
    method.__tool__ = True  # type: ignore[attr-defined]
    return method


class Env(ABC):
    """Base of every environment. Subclasses define `tasks`, `reset`, `grade` and any number of `@tool` methods.

    Args:
        config: the environment's own options, `--env.x=y` on the command line.
        open_sandbox: gives a fresh sandbox; call it only if one is needed.
    """

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")

    system: ClassVar[str] = ""
    """The system prompt, without the description of the tools, which the harness adds."""
    needs_image: ClassVar[bool] = True
    """Whether an episode needs the image of a task that names one even where nothing is graded."""
    context: ClassVar[ContextPolicy] = ContextPolicy()
    """Which earlier exchanges a model sees, where neither its checkpoint nor an option says so."""
    prompts: ClassVar[tuple[str, ...]] = ()
    """The texts that `reset` and the tools put around a task. A result's prompt hash covers them."""

    def __init__(self, config: Any, open_sandbox: OpenSandbox) -> None:
        self.config = config
        self.open_sandbox = open_sandbox
        self.answered: str | None = None
        """The text of the `answer` call, once it was made."""
        self.done = False
        """Set by a tool that ends the episode."""
        self.fits: Callable[[str], bool] = lambda prompt: True
        """Whether a prompt fits into what the model may read. Whoever plays the episode sets it; an environment with much to show may ask
        and choose itself what to leave out, instead of having the middle of its prompt cut."""
        self.cuts: Counter[str] = Counter()
        """What this episode cut or left out itself, by kind; reports add it up."""
        self.invalid_calls = 0
        """Calls of no known tool, or with missing, unknown or ill-typed arguments. Each was answered with what is allowed."""

    @classmethod
    @abstractmethod
    def tasks(cls, config: Any, split: Split) -> Iterable[Task]:
        """The problems of a split, in a fixed order; ids are unique over all splits."""

    @abstractmethod
    def reset(self, task: Any) -> str:
        """Prepare `task` and return the first prompt."""

    @abstractmethod
    def grade(self) -> Grade | float:
        """The verdict on the episode as it stands; a float is a score in [0, 1], resolved at 1."""

    @classmethod
    def system_prompt(cls, config: Any) -> str:
        """The whole system prompt: `system`, the tools, the output format. Override it to say less."""
        return "\n\n".join(part for part in (cls.system, describe_tools(cls), FORMAT[cls.wire()]) if part)

    @classmethod
    def for_mode(cls, mode: str, scaffold: str) -> type[Env]:
        """The environment that plays this domain in a mode of evaluation.

        Raises:
            UserError: the domain has no such mode or scaffold.
        """
        if mode == "oracle":
            raise UserError(f"{cls.__name__} has no oracle mode; use --mode e2e, gold or null")
        if scaffold == "agentless":
            raise UserError(f"{cls.__name__} has no scaffold {scaffold!r}; leave --scaffold out")
        return cls

    @classmethod
    def synth(cls, config: Any, n: int, seed: int, out: Path, profile: str, open_sandbox: OpenSandbox) -> dict[str, JsonValue]:
        """Write generated tasks and expert trajectories under `out`; the default replays `gold()` of the first `n` training tasks.

        Returns:
            the counts that `harness data synth --json` prints.
        """
        from harness.replay import replay_gold

        return replay_gold(cls, config, n, out, open_sandbox)

    def load_prediction(self, patch: str) -> None:
        """Take a given patch as the episode's result, to be graded (`harness eval --predictions`).

        Raises:
            UserError: the domain's answers are not patches.
        """
        raise UserError(f"{type(self).__name__} takes no patches; --predictions serves domains like swe")

    def prediction(self) -> str | None:
        """The episode's result as a patch, the inverse of `load_prediction`; None where the domain's answers are not patches."""
        return None

    def gold(self) -> list[Action] | None:
        """Actions that must grade 1.0 from the state after `reset`; None where the environment knows none."""
        return None

    def close(self) -> None:  # noqa: B027 - optional to override
        """Free what `reset` took. Called once or more."""

    @tool
    def answer(self, text: str) -> str:
        """Give the final answer.

        text: the answer
        """
        self.answered = text
        self.done = True
        return ""

    @classmethod
    def tool_names(cls) -> list[str]:
        """Names of the tools in declared order, the built-in `answer` last; `answer = None` in a class takes it away."""
        declared = [name for klass in reversed(cls.__mro__) for name, member in vars(klass).items() if getattr(member, "__tool__", False)]
        names = [name for name in dict.fromkeys(declared) if getattr(getattr(cls, name), "__tool__", False)]
        return sorted(names, key=lambda name: name == ANSWER)

    @classmethod
    def wire(cls) -> Literal["calls", "text"]:
        """`text` where the answer is the only tool: the model's bare text is the action."""
        return "text" if cls.tool_names() == [ANSWER] else "calls"

    def step(self, action: Action) -> str:
        """Run one action and return the observation. A mistake of the agent's is answered, not raised.

        Raises:
            EnvError: the tool failed for a reason that is not the agent's.
        """
        names = self.tool_names()
        if action.tool not in names:
            self.invalid_calls += 1
            return f"ERROR: there is no tool {action.tool!r:.100}. Tools: {', '.join(names)}"
        method = getattr(self, action.tool)
        try:
            arguments = bind(method, action.arguments)
        except ToolError as error:
            self.invalid_calls += 1
            return f"ERROR: {error}"
        try:
            return str(method(**arguments))
        except ToolError as error:
            return f"ERROR: {error}"
        except (EnvError, UserError):
            raise
        except Exception as error:
            raise EnvError(f"tool {action.tool!r} failed: {type(error).__name__}: {error}") from error


def bind(method: Callable[..., str], arguments: dict[str, JsonValue]) -> dict[str, Any]:
    """Arguments checked against the method's signature and converted to its types.

    Raises:
        ToolError: a parameter is missing, unknown or of the wrong type; the text names all that are allowed.
    """
    parameters = inspect.signature(method, eval_str=True).parameters
    allowed = ", ".join(parameters) or "none"
    for name in arguments:
        if name not in parameters:
            raise ToolError(f"unknown parameter {name!r:.100}. Parameters: {allowed}")
    bound: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if name in arguments:
            try:
                bound[name] = TypeAdapter(parameter.annotation).validate_python(arguments[name])
            except ValidationError as error:
                raise ToolError(f"parameter {name!r}: {error.errors()[0]['msg']}, got {arguments[name]!r:.200}") from None
        elif parameter.default is inspect.Parameter.empty:
            raise ToolError(f"parameter {name!r} is missing. Parameters: {allowed}")
    return bound


def describe_tools(cls: type[Env]) -> str:
    """The tools as the text that goes into the system prompt; empty where the bare text is the answer."""
    if cls.wire() == "text":
        return ""
    lines = ["Tools:"]
    for name in cls.tool_names():
        method = getattr(cls, name)
        parameters = [p for p in inspect.signature(method, eval_str=True).parameters.values() if p.name != "self"]
        signature = ", ".join(
            f"{p.name}: {inspect.formatannotation(p.annotation)}" + ("" if p.default is inspect.Parameter.empty else " (optional)")
            for p in parameters
        )
        lines.append(f"- {name}({signature}): {' '.join((inspect.getdoc(method) or '').split())}")
    return "\n".join(lines)


def load_env(name: str) -> type[Env]:
    """An environment class by its entry-point name, or as `pkg.mod:Class`.

    The current directory is importable, and so is a package's folder in it, as `harness env new` writes one. What such a folder's
    pyproject.toml names in the entry-point group serves before it is installed.

    Raises:
        UserError: no such environment, or what is found there is not an `Env`.
    """
    installed = entry_points(group=GROUP)
    targets = {entry.value for entry in installed if entry.name == name}
    if len(targets) > 1:
        raise UserError(f"domain {name!r} stands for {' and for '.join(sorted(targets))}; uninstall one, or name the class itself")
    target = targets.pop() if targets else _not_installed(name)
    if target is None:
        known = ", ".join(sorted({entry.name for entry in installed}))
        raise UserError(f"unknown domain {name!r}. Known: {known}; or your own class as package.module:Class")
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"domain {name!r} cannot be loaded: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, Env)):
        raise UserError(f"domain {name!r} is {found!r}, which is not a subclass of harness.Env")
    return found


def _not_installed(name: str) -> str | None:
    """The `pkg.mod:Class` that `name` is or that a package's folder declares; what it is in becomes importable."""
    here = Path.cwd()
    if ":" in name:
        package = here / re.split(r"[.:]", name)[0]
        for folder in (here, package) if (package / PROJECT).is_file() else (here,):
            _importable(folder)
        return name
    for folder in (here / name, here):
        if (folder / PROJECT).is_file():
            try:
                project = tomllib.loads((folder / PROJECT).read_text(encoding="utf-8")).get("project", {})
            except ValueError as error:
                raise UserError(f"{folder / PROJECT}: cannot be read: {error}") from None
            target = project.get("entry-points", {}).get(GROUP, {}).get(name)
            if target is not None:
                _importable(folder)
                return str(target)
    return None


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
