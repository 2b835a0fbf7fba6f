"""The agent loop. Evaluation, generated expert runs and training rollouts all play episodes through here.

What the model reads has, turn after turn, the shape it was trained on: system prompt, task, then the (action, observation) pairs that
the context policy keeps. An output that is not `<think>…</think>` and one action takes no place among them: what was wrong with it is
said at the end of the last user message, and goes away with the next valid action.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness import __version__
from harness.env import Env, EnvError, Grade, Task
from harness.generate import Completion, Generator, Sampling
from harness.prompt import FormatError, Message, Output, PromptPolicy, Wire, fit, messages, parse_output
from harness_trajectories import Action, Observation, Step, Trajectory, split
from harness_trajectories.atif import to_atif
from harness_trajectories.errors import UserError
from harness_trajectories.schema import Frozen
from harness_trajectories.steps import Exchange

AGENT = "srl-harness"
ALLOWED = {
    "calls": "<think>...</think> and then exactly one <function=NAME>...</function> call",
    "text": "<think>...</think> and then the answer",
}
TURN = 7919
"""What a turn adds to the seed: a prompt that comes again is answered anew, and a few thousand samples share no seed."""
Exit = Literal["done", "turn_limit", "token_limit", "time_limit", "format_errors", "infra_error", "unfinished"]
"""Why an episode ended; `unfinished`: it has not."""


class Limits(BaseModel):
    """When an episode is ended. It is graded as it then stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_turns: int = Field(default=50, ge=1)
    max_tokens: int = Field(default=100_000, ge=1)
    """Generated tokens of the whole episode."""
    max_seconds: float = Field(default=1800.0, gt=0)
    """Wall clock, looked at between turns."""
    max_format_errors: int = Field(default=3, ge=1)
    """Invalid outputs in a row."""


class Episode(Frozen):
    """One run of a policy in an environment, and what came of it."""

    trajectory: Trajectory
    exit: Exit
    error: str | None = None
    """What failed, where `exit` is `infra_error`."""
    grade: Grade | None = None
    """None: not graded, or not gradable (`infra_error`)."""
    usage: tuple[tuple[int, int], ...] = ()
    """(prompt tokens, generated tokens) of each turn."""
    seconds: float
    format_errors: int = 0
    """Outputs that hold no action."""
    invalid_calls: int = 0
    """Actions that no tool could take."""
    cuts: dict[str, int] = Field(default_factory=dict)
    """What was cut or left out, by kind: from prompts to fit their limit (`observation`, `exchange`, `task`), and by the environment."""

    @property
    def turns(self) -> int:
        """Turns of the agent, the invalid ones included."""
        return sum(step.source == "agent" for step in self.trajectory.steps)

    @property
    def tokens(self) -> int:
        """Generated tokens."""
        return sum(generated for _, generated in self.usage)

    def atif(self) -> dict[str, Any]:
        """The episode as an ATIF document; what ATIF has no field for stands in its `extra`."""
        extra = self.model_dump(mode="json", exclude={"trajectory": True, "usage": True, "grade": {"files"}})
        return to_atif(self.trajectory, AGENT, __version__, self.usage, extra)


class NoGold(UserError):
    """The environment knows no gold actions."""


Save = Callable[[Episode], None]
"""Called with the episode as it stands after the reset and after every turn; what it raises ends the run."""


class Stop(Exception):
    """Ends the loop; the episode is graded as it stands.

    Args:
        exit: the reason.
    """

    def __init__(self, exit: Exit) -> None:
        super().__init__(exit)
        self.exit: Exit = exit


def run(
    env: Env,
    task: Task,
    generator: Generator,
    limits: Limits,
    policy: PromptPolicy,
    sampling: Sampling,
    save: Save | None = None,
    grade: bool = True,
) -> Episode:
    """Play one episode. The caller closes the environment.

    With the wire format `text` a prompt has one turn: the answer, right or wrong in form. An environment that is not done with it has asked
    again, and that prompt stands on its own; where it said nothing, the answer was a step, and the next prompt shows it below the task.

    Args:
        save: called after every step.
        grade: whether to have it graded at the end.

    Raises:
        UserError: the prompt does not fit into the policy's limit even without any history.
    """
    record = Record(env, task, generator.name, save)
    wire = env.wire()
    complaint, in_a_row = "", 0
    env.fits = lambda prompt: generator.count(messages(record.system, readable(prompt), (), wire)) <= policy.max_prompt_tokens
    try:
        record.reset()
        while not env.done:
            record.check(limits)
            conversation = fitted(record, complaint, policy, generator)
            allowance = min(sampling.max_tokens, limits.max_tokens - record.tokens)
            seed = sampling.seed + TURN * len(record.usage)
            completion = generator.generate([conversation], sampling.model_copy(update={"max_tokens": allowance, "seed": seed}))[0]
            completion = completion._replace(text=readable(completion.text))
            try:
                output = parse_output(completion.text, wire)
            except FormatError as error:
                complaint, in_a_row = explain(error, completion, wire), in_a_row + 1
                record.invalid(completion, complaint)
                if in_a_row >= limits.max_format_errors or wire == "text":
                    raise Stop("format_errors") from None
                continue
            complaint, in_a_row = "", 0
            record.act(output.action, output, completion)
    except Stop as stop:
        return record.end(stop.exit, grade)
    except EnvError as error:
        return record.failed(error)
    return record.end("done", grade)


def replay(
    env: Env, task: Task, actions: Sequence[Action] | None = None, save: Save | None = None, grade: bool = True, name: str = "gold"
) -> Episode:
    """Play given actions, or the environment's own `gold()`; no actions at all leave the task untouched.

    Raises:
        NoGold: no actions are given and the environment knows none.
    """
    record = Record(env, task, name, save)
    try:
        record.reset()
        with fault("gold()"):
            chosen = env.gold() if actions is None else actions
        if chosen is None:
            raise NoGold(f"{type(env).__name__} knows no gold actions for task {task.id!r}; define gold()")
        for action in chosen:
            if env.done:
                break
            record.act(action)
    except EnvError as error:
        return record.failed(error)
    return record.end("done" if env.done or not chosen else "unfinished", grade)


def submit(env: Env, task: Task, patch: str, name: str) -> Episode:
    """Have a given patch graded as the result of the task."""
    record = Record(env, task, name, None)
    try:
        record.reset()
        with fault("load_prediction()"):
            env.load_prediction(patch)
    except EnvError as error:
        return record.failed(error)
    return record.end("done", True)


def verdict(env: Env) -> Grade:
    """The environment's grade; a bare score is resolved at 1.

    Raises:
        EnvError: grading failed.
    """
    with fault("grade()"):
        found = env.grade()
        return found if isinstance(found, Grade) else Grade(score=found, status="resolved" if found >= 1 else "unresolved")


@contextmanager
def fault(what: str) -> Iterator[None]:
    """Whatever the environment's own code raises is a fault of the environment, never the model's."""
    try:
        yield
    except (EnvError, UserError):
        raise
    except Exception as error:
        raise EnvError(f"{what} failed: {type(error).__name__}: {error}") from error


def fitted(record: Record, complaint: str, policy: PromptPolicy, generator: Generator) -> list[Message]:
    """The conversation before the next action, within the policy's limit; cuts are counted."""
    prompt = record.prompt
    kept = list(policy.context.select(record.history))
    omitted = len(record.history) - len(kept)
    if complaint and kept:
        kept[-1] = kept[-1].model_copy(update={"observation": f"{kept[-1].observation}\n\n{complaint}"})
    elif complaint:
        prompt = f"{prompt}\n\n{complaint}"
    try:
        found = fit(record.system, prompt, kept, record.wire, omitted, policy.max_prompt_tokens, generator.count)
    except ValueError as error:
        raise UserError(f"max_prompt_tokens is too small: {error}") from None
    record.cuts += found.cuts
    return found.messages


def explain(error: FormatError, completion: Completion, wire: Wire) -> str:
    """What is said to the model about an invalid output: what was wrong, and what is allowed."""
    cut = f" (the output was cut off after {completion.tokens} tokens)" if completion.finish == "length" else ""
    return f"ERROR: your last output was not valid and nothing was done: {error}{cut}. Write {ALLOWED[wire]}."


def readable(text: str) -> str:
    """`text` with U+FFFD for lone surrogates, which files that are not UTF-8 come as: no tokenizer and no server takes them."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class Record:
    """What has happened so far in an episode."""

    def __init__(self, env: Env, task: Task, name: str, save: Save | None) -> None:
        self.env = env
        self.task = task
        self.name = name
        self.wire = env.wire()
        self.system = type(env).system_prompt(env.config)
        self.steps: list[Step] = []
        self.prompt = ""
        self.history: list[Exchange] = []
        """Since `prompt`."""
        self.usage: list[tuple[int, int]] = []
        self.cuts: Counter[str] = Counter()
        self.format_errors = 0
        self._save = save
        self._start = time.monotonic()

    @property
    def tokens(self) -> int:
        return sum(generated for _, generated in self.usage)

    def check(self, limits: Limits) -> None:
        """Raises: Stop: a limit is reached."""
        if len(self.usage) >= limits.max_turns:
            raise Stop("turn_limit")
        if self.tokens >= limits.max_tokens:
            raise Stop("token_limit")
        if time.monotonic() - self._start >= limits.max_seconds:
            raise Stop("time_limit")

    def reset(self) -> None:
        with fault("reset()"):
            prompt = self.env.reset(self.task)
        self.steps += [Step(source="system", message=self.system)] if self.system else []
        self._ask(prompt)

    def act(self, action: Action, output: Output | None = None, completion: Completion | None = None) -> None:
        """Run a valid action. What a bare answer that does not end the episode gets back is the next prompt."""
        prose = split(completion.text.partition("</think>")[2]).prose if completion and self.wire == "calls" else ""
        observation = readable(self.env.step(action))
        self.history.append(Exchange(actions=(action,), observation=observation))
        thought = output.thought.strip() if output else ""
        asked_again = observation and self.wire == "text" and not self.env.done
        told = observation and not asked_again  # an answer in bare text is told nothing
        observations = (Observation(content=observation),) if told or self.wire == "calls" else ()
        self._add(Step(source="agent", message=prose, reasoning=thought, actions=(action,), observations=observations), completion)
        if asked_again:
            self._ask(observation)

    def invalid(self, completion: Completion, complaint: str) -> None:
        """Keep an output that holds no action. It is never a training target and never in a later context."""
        self.format_errors += 1
        complaint_step = Step(
            source="agent", message=completion.text, observations=(Observation(content=complaint, is_error=True),), excluded="format_error"
        )
        self._add(complaint_step, completion)

    def end(self, exit: Exit, grade: bool) -> Episode:
        """The finished episode, graded if asked for."""
        try:
            if grade:
                found = verdict(self.env)
                return self.episode(exit, found.files.get("patch.diff"), found)
            with fault("prediction()"):
                return self.episode(exit, self.env.prediction())
        except EnvError as error:
            return self.failed(error)

    def failed(self, error: EnvError) -> Episode:
        return self.episode("infra_error", error=f"{type(error).__name__}: {error}")

    def episode(self, exit: Exit, patch: str | None = None, grade: Grade | None = None, error: str | None = None) -> Episode:
        """The episode as it stands."""
        trajectory = Trajectory(
            id=self.task.id,
            instance_id=self.task.id,
            format=AGENT,
            model=self.name,
            resolved=grade.status == "resolved" if grade else None,
            patch=patch,
            wire=self.wire,
            steps=tuple(self.steps),
        )
        return Episode(
            trajectory=trajectory,
            exit=exit,
            error=error,
            grade=grade,
            usage=tuple(self.usage),
            seconds=round(time.monotonic() - self._start, 3),
            format_errors=self.format_errors,
            invalid_calls=self.env.invalid_calls,
            cuts=dict(self.cuts + self.env.cuts),
        )

    def _ask(self, prompt: str) -> None:
        """Begin with a prompt that stands on its own."""
        self.prompt = readable(prompt)
        self.history.clear()
        self._add(Step(source="user", message=self.prompt))

    def _add(self, step: Step, completion: Completion | None = None) -> None:
        self.steps.append(step)
        if completion is not None:
            self.usage.append((completion.prompt_tokens, completion.tokens))
        if self._save is not None:
            self._save(self.episode("unfinished"))
