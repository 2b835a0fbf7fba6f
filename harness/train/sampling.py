"""Which prompts RL trains on: an endless seeded stream, a frontier in it, and dynamic sampling with refill.

The stream is never written out: place n is the n mod size-th of the permutation that (seed, n div size) gives, so the frontier, one
number, is its whole state. With `steps_per_trajectory` of more than one, so many steps of a trajectory stand next to each other in it;
those that are left of them in a batch stand in one micro-batch, where what their prompts begin with is computed once.

A round samples and scores the groups of the next prompts; a group whose rewards do not differ is dropped, which has cost generation and
reward only. Rounds go on until the batch is full; each draws about what is missing, by the share kept so far. What a round brings beyond
the full batch is given back: the frontier stands behind the last group taken, those prompts are drawn again for the next batch, by the
model of that time. So every prompt before the frontier was trained on once or dropped once for lack of signal, none beyond it was, and no
group trains a model that did not sample it. Without dynamic sampling every group is taken.

A resumable checkpoint holds the frontier (`sampling.json`) beside the random states, so a resumed stage neither skips nor repeats a prompt.
Several processes: each samples an equal part of a round, all read all groups and decide alike.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Hashable, Sequence
from math import ceil, isnan
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness.runs import write_json
from harness.train.config import Reinforced
from harness.train.failure import NoSignal
from harness.train.rollouts import Rollout

FILE = "sampling.json"


class PromptStream:
    """An endless stream of the items 0 … size − 1: one seeded permutation after the other.

    Args:
        trajectories: what each item is a step of; the steps of one stand in their order. None: the items are unrelated.
        run: steps of a trajectory that stand next to each other, the latest first: its prompt is the longest. Where a trajectory is cut
            moves by a step with each permutation.
    """

    def __init__(self, size: int, seed: int, trajectories: Sequence[Hashable] | None = None, run: int = 1) -> None:
        self._size = size
        self._seed = seed
        self._run = run
        steps: dict[Hashable, list[int]] = {}
        for item in range(size):
            steps.setdefault(trajectories[item] if trajectories is not None else item, []).append(item)
        self._steps = list(steps.values())
        self._epoch = -1
        self._permutation: list[int] = []

    def __getitem__(self, place: int) -> int:
        epoch, offset = divmod(place, self._size)
        if epoch != self._epoch:
            self._epoch = epoch
            first = -(epoch % self._run)
            runs = [steps[max(at, 0) : at + self._run] for steps in self._steps for at in range(first, len(steps), self._run)]
            random.Random(f"{self._seed} {epoch}").shuffle(runs)
            self._permutation = [item for run in runs for item in reversed(run)]
        return self._permutation[offset]

    def passes(self, place: int) -> float:
        """How often the data was gone through before `place`."""
        return place / self._size


def has_signal(rewards: Sequence[float | None], min_deviation: float) -> bool:
    """Whether the rewards of a group differ, by more than a standard deviation of `min_deviation`. None and NaN are no rewards."""
    values = [reward for reward in rewards if reward is not None and reward == reward]
    return len(set(values)) > 1 and statistics.stdev(values) > min_deviation


def side_by_side(groups: Sequence[list[Rollout]], trajectories: Sequence[Hashable], room: int) -> list[list[Rollout]]:
    """The groups in an order in which neighbours of one trajectory stand in one micro-batch, of `room` groups each, wherever they fit.

    The longest runs are placed first, each into the micro-batch begun last or a new one; if none fits into what is left, one is split.
    """
    runs: list[list[list[Rollout]]] = []
    for group in groups:
        same = bool(runs) and trajectories[runs[-1][0][0].item] == trajectories[group[0].item]
        if same and len(runs[-1]) < room:
            runs[-1].append(group)
        else:
            runs.append([group])
    runs.sort(key=len, reverse=True)
    ordered: list[list[Rollout]] = []
    while runs:
        left = room - len(ordered) % room
        fitting = next((index for index, run in enumerate(runs) if len(run) <= left), None)
        if fitting is not None:
            ordered += runs.pop(fitting)
        else:
            ordered += runs[-1][:left]
            runs[-1] = runs[-1][left:]
    return ordered


class Refill(TrainerCallback):
    """Fills batches from the stream, and keeps the frontier in the checkpoints.

    Attributes:
        frontier: place in the stream behind the last prompt that was trained on or dropped.
        figures: of the last batch, for metrics.jsonl.
    """

    def __init__(self, size: int, options: Reinforced, seed: int, trajectories: Sequence[Hashable] | None = None) -> None:
        self._stream = PromptStream(size, seed, trajectories, options.steps_per_trajectory)
        self._trajectories = range(size) if trajectories is None else trajectories
        self._options = options
        self.frontier = 0
        self.figures: dict[str, float] = {}

    def fill(self, sample_round: Callable[[list[int], list[int]], list[list[Rollout]]], world: int = 1) -> list[list[Rollout]]:
        """`prompts` groups, in the stream's order but for what `side_by_side` moves.

        Args:
            sample_round: rolls out a group for each item, given with its place in the stream; what it returns is the same in every process.
            world: processes; the prompts of a round are a multiple of it.

        Raises:
            NoSignal: too few groups have signal among `max_tries × prompts`.
        """
        options = self._options
        limit = options.max_tries * options.prompts
        kept: list[list[Rollout]] = []
        seen = unscored = 0  # of the prompts decided on for this batch
        while len(kept) < options.prompts:
            if seen >= limit:
                here = options.section
                raise NoSignal(
                    f"of {seen} prompts × {options.rollouts} rollouts only {len(kept)} groups have rewards that differ (deviation above "
                    f"{here}.min_deviation {options.min_deviation:g}; {unscored} rollouts have no reward); a batch needs {here}.prompts "
                    f"{options.prompts}, and tries at most {here}.max_tries {options.max_tries} × {options.prompts} prompts. No step was "
                    f"made with fewer. Raise {here}.max_tries, with which the run goes on, or begin another from its best checkpoint with "
                    f"a higher {here}.temperature or {here}.rollouts, fewer {here}.prompts, or --{here}.dynamic_sampling=false. "
                    f"With --{here}.without_signal=end the stage ends here"
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
        if options.steps_per_trajectory > 1:
            return side_by_side(kept, self._trajectories, options.micro_batch // options.rollouts)
        return kept

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        if state.is_world_process_zero:
            write_json(_file(args, state), {"frontier": self.frontier})

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        if state.global_step:
            self.frontier = json.loads(_file(args, state).read_text())["frontier"]


def _file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE
