"""Trajectory → StepExample: one training example for every turn that may be a target; and the split into training and validation."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

from pydantic import Field

from harness_trajectories.errors import UserError
from harness_trajectories.schema import ANSWER, Action, Frozen, Step, Trajectory

T = TypeVar("T")
Targets = Literal["all_but_last", "all_but_first", "all"]
_HEADING = re.compile(r"\d+\.[ \t]+\*\*[^*\n]+\*\*")


class ContextPolicy(Frozen):
    """Which earlier exchanges the model sees. Saved with a checkpoint; evaluation uses the same one."""

    kind: Literal["last_k", "full"] = "last_k"
    k: int = Field(default=2, ge=0)
    """Exchanges kept by `last_k`; the SRL paper keeps two on SWE."""
    title: bool = False
    """Show the title of the step to predict, where it is a numbered one with a title. In training only: evaluation knows none."""

    def select(self, history: Sequence[T]) -> Sequence[T]:
        """The kept end of `history`."""
        return history if self.kind == "full" else history[max(0, len(history) - self.k) :]


class Exchange(Frozen):
    """One turn of the past: what was done and what came back. Thoughts are not part of it."""

    actions: tuple[Action, ...]
    observation: str


class StepExample(Frozen):
    """Context and target of one step."""

    trajectory_id: str
    instance_id: str
    index: int
    """0-based among the trajectory's turns."""
    wire: Literal["calls", "text"]
    prompt: str
    """The task as the user put it."""
    history: tuple[Exchange, ...]
    """Earlier exchanges that the context policy keeps, oldest first."""
    omitted: int
    """Earlier exchanges that it leaves out."""
    thought: str
    target: tuple[Action, ...]
    """The expert's action: one call, or the several calls of one turn in order."""
    heading: str = ""
    """`3. **TITLE**` of the target, where the context policy shows titles and it has one."""


def exchange(step: Step) -> Exchange:
    """A turn as later turns see it."""
    return Exchange(actions=step.actions, observation="\n".join(o.content for o in step.observations))


def task_prompt(trajectory: Trajectory) -> str:
    """The user's words before the agent's first action."""
    words: list[str] = []
    for step in trajectory.steps:
        if step.source == "agent" and step.actions:
            break
        if step.source == "user":
            words.append(step.message)
    return "\n\n".join(words)


def why_no_target(step: Step, index: int, turns: int, targets: Targets) -> str | None:
    """Why turn `index` of `turns` is not predicted; None where it is."""
    if step.excluded is not None:
        return step.excluded
    if targets == "all_but_last" and index == turns - 1:
        return "last"
    if targets == "all_but_first" and index == 0:
        return "first"
    return None


def count_targets(trajectory: Trajectory, targets: Targets) -> Counter[str]:
    """Every action, counted once: `target` is the number of examples; any other key says why an action is no target of its own.

    A turn with several calls is one target: its further calls are counted as `parallel`.
    """
    turns = trajectory.turns
    counts: Counter[str] = Counter()
    for index, step in enumerate(turns):
        reason = why_no_target(step, index, len(turns), targets)
        if reason is not None:
            counts[reason] += len(step.actions)
            continue
        counts["target"] += 1
        if len(step.actions) > 1:
            counts["parallel"] += len(step.actions) - 1
    return counts


def step_examples(
    trajectory: Trajectory, context: ContextPolicy, targets: Targets, ledger: Counter[str] | None = None
) -> Iterator[StepExample]:
    """The examples of one trajectory, in order.

    What the user says in the middle of a run belongs to the exchange before it; with bare text, which has no observations, it is a new
    prompt that stands on its own. A turn without an action is no exchange.

    Args:
        targets: which turns are predicted. The SRL paper's literal reading is `all_but_last`.
        ledger: gains the trajectory's `count_targets`.
    """
    if ledger is not None:
        ledger.update(count_targets(trajectory, targets))
    turns = len(trajectory.turns)
    history: list[Exchange] = []
    before = 0  # turns before `prompt`
    prompt = task_prompt(trajectory)
    for step in trajectory.steps:
        if step.source == "user" and trajectory.wire == "text" and step.message and before + len(history):
            prompt = step.message if history else f"{prompt}\n\n{step.message}"
            before, history = before + len(history), []
        elif step.source == "user" and history:
            said = "\n\n".join(part for part in (history[-1].observation, step.message) if part)
            history[-1] = history[-1].model_copy(update={"observation": said})
        if step.source != "agent" or not step.actions:
            continue
        index = before + len(history)
        if why_no_target(step, index, turns, targets) is None:
            kept = context.select(history)
            yield StepExample(
                trajectory_id=trajectory.id,
                instance_id=trajectory.instance_id,
                index=index,
                wire=trajectory.wire,
                prompt=prompt,
                history=tuple(kept),
                omitted=len(history) - len(kept),
                thought="\n".join(part for part in (step.reasoning, step.message) if part),
                target=step.actions,
                heading=_heading(step) if context.title else "",
            )
        history.append(exchange(step))


def _heading(step: Step) -> str:
    found = _HEADING.match(str(step.actions[0].arguments.get("text", ""))) if step.actions[0].tool == ANSWER else None
    return found[0] if found else ""


def split_by_instance(trajectories: Sequence[Trajectory], n_val: int, seed: int) -> tuple[list[Trajectory], list[Trajectory]]:
    """(train, validation): all trajectories of an instance stand on one side.

    Where the data declare a validation split, that one is taken and the rest is for training. Otherwise `n_val` instances are drawn by
    `seed` from those that are not declared `test`; what is declared `test` is on neither side.

    Raises:
        UserError: an instance is declared in two splits, or none would be left to train on.
    """
    declared: dict[str, str] = {}
    for item in trajectories:
        if item.split is not None and declared.setdefault(item.instance_id, item.split) != item.split:
            raise UserError(f"instance {item.instance_id!r} is declared both {declared[item.instance_id]!r} and {item.split!r}")
    chosen = {instance for instance, split in declared.items() if split == "val"}
    usable = [item for item in trajectories if declared.get(item.instance_id) != "test"]
    if not chosen:
        instances = sorted({item.instance_id for item in usable})
        if n_val >= len(instances) > 0:
            raise UserError(f"{n_val} of {len(instances)} instances for validation leave none to train on; ask for fewer")
        chosen = set(random.Random(seed).sample(instances, n_val)) if instances else set()
    return [item for item in usable if item.instance_id not in chosen], [item for item in usable if item.instance_id in chosen]
