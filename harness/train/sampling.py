"""Which prompts RL trains on: an endless seeded stream, a frontier in it, and dynamic sampling with refill.

The stream is never written out: place n is the n mod size-th of the permutation that (seed, n div size) gives, so the frontier, one
number, is its whole state. A round samples and scores the groups of the next prompts; a group whose rewards do not differ is dropped,
which has cost generation and reward only. Rounds go on until the batch is full; each draws about what is missing, by the share kept so
far. What a round brings beyond the full batch is given back: the frontier stands behind the last group taken, those prompts are drawn
again for the next batch, by the model of that time. So every prompt before the frontier was trained on once or dropped once for lack of
signal, none beyond it was, and no group trains a model that did not sample it. Without dynamic sampling every group is taken.

A resumable checkpoint holds the frontier (`sampling.json`) beside the random states, so a resumed stage neither skips nor repeats a prompt.
Several processes: each samples an equal part of a round, all read all groups and decide alike (not tested on more than one).
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Sequence
from math import ceil, isnan
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness.runs import write_json
from harness.train.config import Reinforced
from harness.train.failure import TrainingFailed
from harness.train.rollouts import Rollout

FILE = "sampling.json"


class PromptStream:
    """An endless stream of the indices 0 … size − 1: one seeded permutation after the other."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed
        self._epoch = -1
        self._permutation: list[int] = []

    def __getitem__(self, place: int) -> int:
        epoch, offset = divmod(place, self._size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = list(range(self._size))
            random.Random(f"{self._seed} {epoch}").shuffle(self._permutation)
        return self._permutation[offset]

    def passes(self, place: int) -> float:
        """How often the data was gone through before `place`."""
        return place / self._size


def has_signal(rewards: Sequence[float | None], min_deviation: float) -> bool:
    """Whether the rewards of a group differ, by more than a standard deviation of `min_deviation`. None and NaN are no rewards."""
    values = [reward for reward in rewards if reward is not None and reward == reward]
    return len(set(values)) > 1 and statistics.stdev(values) > min_deviation


class Refill(TrainerCallback):
    """Fills batches from the stream, and keeps the frontier in the checkpoints.

    Attributes:
        frontier: place in the stream behind the last prompt that was trained on or dropped.
        figures: of the last batch, for metrics.jsonl.
    """

    def __init__(self, size: int, options: Reinforced, seed: int) -> None:
        self._stream = PromptStream(size, seed)
        self._options = options
        self.frontier = 0
        self.figures: dict[str, float] = {}

    def fill(self, sample_round: Callable[[list[int], list[int]], list[list[Rollout]]], world: int = 1) -> list[list[Rollout]]:
        """`prompts` groups, in the stream's order.

        Args:
            sample_round: rolls out a group for each item, given with its place in the stream; what it returns is the same in every process.
            world: processes; the prompts of a round are a multiple of it.

        Raises:
            TrainingFailed: too few groups have signal among `max_tries × prompts`.
        """
        options = self._options
        limit = options.max_tries * options.prompts
        kept: list[list[Rollout]] = []
        seen = unscored = 0  # of the prompts decided on for this batch
        while len(kept) < options.prompts:
            if seen >= limit:
                here = options.section
                raise TrainingFailed(
                    f"of {seen} prompts × {options.rollouts} rollouts only {len(kept)} groups have rewards that differ (deviation above "
                    f"{here}.min_deviation {options.min_deviation:g}; {unscored} rollouts have no reward); a batch needs {here}.prompts "
                    f"{options.prompts}, and tries at most {here}.max_tries {options.max_tries} × {options.prompts} prompts. No step was "
                    f"made with fewer. Raise {here}.max_tries, with which the run goes on, or begin another from its best checkpoint with "
                    f"a higher {here}.temperature or {here}.rollouts, fewer {here}.prompts, or --{here}.dynamic_sampling=false"
                )
            wanted = (options.prompts - len(kept)) * max(seen, 1) / max(len(kept), 1)
            count = min(ceil(wanted) if seen else options.prompts, options.prompts, limit - seen)
            start = self.frontier + seen
            places = list(range(start, start + ceil(count / world) * world))
            for group in sample_round([self._stream[place] for place in places], places):
                if len(kept) == options.prompts:
                    break
                seen += 1
                unscored += sum(isnan(one.reward) for one in group)
                if not options.dynamic_sampling or has_signal([one.reward for one in group], options.min_deviation):
                    kept.append(group)
        self.frontier += seen
        self.figures = {
            "tried": seen,
            "tried_per_kept": seen / len(kept),
            "frontier": self.frontier,
            "passes": self._stream.passes(self.frontier),
        }
        return kept

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        if state.is_world_process_zero:
            write_json(_file(args, state), {"frontier": self.frontier})

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        if state.global_step:
            self.frontier = json.loads(_file(args, state).read_text())["frontier"]


def _file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE
