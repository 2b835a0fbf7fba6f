"""What RL trains on. A rollout is what the model did with one item: one turn for a single step (SRL), several for an episode (RLVR)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol

from harness.train.engine import Engine
from harness.train.phases import Phases


class Turn(NamedTuple):
    """A prompt and what the model wrote, in token ids. Each turn has a prompt of its own: what the model then read."""

    prompt: list[int]
    completion: list[int]
    logprobs: list[float]
    """Of the completion, as it was sampled; NaN where the engine does not say."""


class Rollout(NamedTuple):
    """The turns share the reward's advantage; GRPO's mean over tokens goes over all of them."""

    item: int
    turns: tuple[Turn, ...]
    """At least one, of at least one token."""
    reward: float
    """NaN where it could not be had for no fault of the model's."""
    detail: Any = None
    """What the source wants to know again in `note`."""

    @property
    def tokens(self) -> list[int]:
        """What the model wrote, turn after turn."""
        return [token for turn in self.turns for token in turn.completion]


def length_figures(lengths: Sequence[int]) -> dict[str, float]:
    """What is logged of the lengths of sampled completions, in tokens."""
    return {
        "completion_tokens": sum(lengths) / len(lengths),
        "completion_tokens_min": min(lengths),
        "completion_tokens_max": max(lengths),
        "sampled_tokens": sum(lengths),
    }


class Source(Protocol):
    """Items to train on and how they are rolled out (`step_rollouts.py`, `episode_rollouts.py`).

    Attributes:
        size: items; they are numbered from 0.
        trajectories: what each item is a step of; those of one trajectory stand in their order. A range where items are unrelated.
        rollouts: of each item, its group.
        figures: of the present optimizer step, for metrics.jsonl.
        phases: the stage's clocks. `roll` runs within `sampling`; what it does besides is a phase of its own, such as `scoring`.
    """

    size: int
    trajectories: Sequence[Hashable]
    rollouts: int
    figures: dict[str, float]
    phases: Phases

    def name(self, item: int) -> str:
        """What to call an item where it makes training fail."""

    def roll(self, items: Sequence[int], places: Sequence[int], engine: Engine) -> list[list[Rollout]]:
        """A group for each item.

        Args:
            places: of the items in the stream of prompts, which no two draws share: what an episode's seed is made of.
        """

    def note(self, step: int, groups: Sequence[Sequence[Rollout]]) -> None:
        """Take down what was rolled out in all processes, dropped groups included; several times a step if that sampled in rounds."""
