"""What samples for RL: token ids in, token ids and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

from harness.generate import Sampled
from harness.generate_decode import decode_chunks
from harness.train.sharding import Replica


def completion_seeds(seed: int, places: Sequence[int], copies: int) -> list[int]:
    """Seeds of the completions of prompts at these places of a stream, `copies` of each. What is sampled then depends on the weights and on
    them alone: not on the number of processes, nor on what else is sampled at once."""
    names = [f"{seed} {place} {copy}" for place in places for copy in range(copies)]
    return [int.from_bytes(blake2b(name.encode(), digest_size=7).digest()) for name in names]


class Engine(Protocol):
    """Samples from the policy. Unfiltered (top_p 1, no top_k): else the importance ratio is biased."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        copies: int = 1,
        max_tokens: int | None = None,
        seeds: Sequence[int] | None = None,
        greedy: bool = False,
    ) -> list[list[Sampled]]:
        """Completions of each prompt, in order.

        Args:
            copies: completions of each prompt; the prompt is read once.
            max_tokens: of a completion, at most; None: the run's limit.
            seeds: one for each completion (B × copies), which then depends on nothing else that is sampled.
            greedy: take the likeliest token each time, as validation does.
        """

    def refresh(self) -> None:
        """Take over the policy's weights and forget what was computed with older ones. Called after every optimizer step."""


class ModelEngine:
    """Samples in the process that trains, by `harness.generate_decode.decode`.

    Args:
        replica: of the model that is trained.
        end: tokens that end a completion.
        batch: completions decoded at once.
    """

    def __init__(self, replica: Replica, end: Sequence[int], pad: int, max_tokens: int, temperature: float, batch: int) -> None:
        self._replica = replica
        self._end = end
        self._pad = pad
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._batch = batch

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        copies: int = 1,
        max_tokens: int | None = None,
        seeds: Sequence[int] | None = None,
        greedy: bool = False,
    ) -> list[list[Sampled]]:
        """Prompts of like length are decoded together, the longest first."""
        groups: list[list[Sampled]] = [[] for _ in prompts]
        options = {"end": self._end, "pad": self._pad, "max_tokens": max_tokens or self._max_tokens}
        options["temperature"] = 0.0 if greedy else self._temperature
        for index, group in decode_chunks(self._replica.model, prompts, self._batch, copies=copies, seeds=seeds, **options):
            groups[index] = group
        return groups

    def refresh(self) -> None:
        self._replica.refresh()
