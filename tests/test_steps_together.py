"""Several steps of a trajectory in a micro-batch: where they stand in the stream, and what is left together of them in a batch.

References: the definition of the stream (each pass a permutation of all items, in runs), applied by hand.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import test_dynamic_sampling
import test_train_grpo

from harness.train.config import Reinforced
from harness.train.rollouts import Rollout
from harness.train.sampling import PromptStream, Refill, side_by_side
from harness_trajectories.errors import UserError

LENGTHS = (7, 1, 4, 12, 3)
TRAJECTORIES = [name for name, length in enumerate(LENGTHS) for _ in range(length)]
SIZE = len(TRAJECTORIES)


def runs_of(items: Sequence[int]) -> list[list[int]]:
    """Cut where an item is not the step before the last one, of the same trajectory."""
    runs: list[list[int]] = []
    for item in items:
        if runs and item == runs[-1][-1] - 1 and TRAJECTORIES[item] == TRAJECTORIES[item + 1]:
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


@pytest.mark.parametrize("count", [1, 2, 4, 100])
def test_each_pass_is_a_permutation_in_runs_of_one_trajectory(count: int) -> None:
    stream = PromptStream(SIZE, 3, TRAJECTORIES, count)
    passes = [[stream[place] for place in range(start, start + SIZE)] for start in range(0, 6 * SIZE, SIZE)]
    for one in passes:
        assert sorted(one) == list(range(SIZE))
        cuts = sum(-(-length // count) for length in LENGTHS) + len(LENGTHS)  # as few as there can be, and one more for each trajectory
        assert len(runs_of(one)) <= cuts
    assert len({tuple(one) for one in passes}) == 6
    assert [PromptStream(SIZE, 3, TRAJECTORIES, count)[place] for place in (5 * SIZE + 1, 8)] == [stream[5 * SIZE + 1], stream[8]]
    beside = {pair for one in passes for run in runs_of(one) for pair in itertools.pairwise(run)}
    if count > 1:  # wherever a trajectory is cut in one pass, it is not in another
        assert len(beside) == SIZE - len(LENGTHS)


def test_one_step_at_a_time_is_the_stream_of_unrelated_items() -> None:
    alone, steps = PromptStream(SIZE, 5), PromptStream(SIZE, 5, TRAJECTORIES, 1)
    assert [alone[place] for place in range(3 * SIZE)] == [steps[place] for place in range(3 * SIZE)]


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_batches_hold_the_next_groups_with_signal(share: float) -> None:
    rng = random.Random(7)
    varied = [rng.random() < share for _ in range(SIZE)]
    options = Reinforced(prompts=6, rollouts=2, micro_batch=6, max_tries=100, steps_per_trajectory=3)
    refill = Refill(SIZE, options, 1, TRAJECTORIES)
    stream, behind = PromptStream(SIZE, 1, TRAJECTORIES, 3), 0
    for _ in range(20):
        groups = refill.fill(lambda items, places: [test_dynamic_sampling.group(i, [0.0, float(varied[i])]) for i in items])
        drawn = [stream[place] for place in range(behind, refill.frontier)]
        assert sorted(group[0].item for group in groups) == sorted(item for item in drawn if varied[item])
        assert varied[drawn[-1]]
        behind = refill.frontier


def placed(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Micro-batches of trajectories' numbers; of the first, `lengths[0]` groups stand next to each other in the batch, and so on."""
    names = [name for name, length in enumerate(lengths) for _ in range(length)]
    groups = [[Rollout(item, (), 0.0)] for item in range(len(names))]
    ordered = [group[0].item for group in side_by_side(groups, names, room)]
    assert sorted(ordered) == list(range(len(names)))
    return [[names[item] for item in ordered[start : start + room]] for start in range(0, len(ordered), room)]


def test_runs_are_split_only_where_they_do_not_fit() -> None:
    assert placed([2, 4, 1, 3, 2], 4) == [[1] * 4, [3, 3, 3, 2], [0, 0, 4, 4]]
    assert placed([3, 3, 3, 3], 4) == [[0, 0, 0, 3], [1, 1, 1, 3], [2, 2, 2, 3]]
    assert placed([6, 2], 4) == [[0] * 4, [0, 0, 1, 1]]
    for lengths in itertools.product(range(1, 5), repeat=5):
        if sum(lengths) % 4 == 0:
            apart = sum(len(set(part)) for part in placed(lengths, 4))
            names = [name for name, length in enumerate(lengths) for _ in range(length)]
            assert apart <= sum(len(set(names[start : start + 4])) for start in range(0, len(names), 4))


class Steps(test_train_grpo.Rewarded):
    """Pairs of items are steps of one trajectory; the second's prompt goes on where the first's ends."""

    def __init__(self, folder: Path, reward: test_train_grpo.Reward) -> None:
        super().__init__(folder, reward)
        self.trajectories = [item // 2 for item in range(self.size)]
        prompts = [sample.prompt.ids() for sample in self.samples]
        self.prompts = [prompts[item - item % 2] + [9, 10, 11] * (item % 2) for item in range(self.size)]

    def prompt(self, item: int) -> list[int]:
        return self.prompts[item]


@pytest.mark.parametrize("together", [1, 2])
def test_a_micro_batch_reads_once_what_its_steps_begin_with(tmp_path: Path, together: int) -> None:
    options = {"prompts": 4, "micro_batch": 4 * together, "dynamic_sampling": False, "steps_per_trajectory": together}
    trainer = test_train_grpo.trainer_with(test_train_grpo.by_length, tmp_path, Steps, **options)
    read: list[int] = []
    trainer.model.model.embed_tokens.register_forward_hook(lambda module, given, found: read.append(found.shape[1]))
    for step in range(4 // together):
        trainer._step = step
        inputs = trainer._prepare_inputs(None)
        read.clear()
        trainer.compute_loss(trainer.model, inputs).backward()
        items = [one.item for one in trainer._present]
        assert items[::4] == ([items[0], items[0] - 1] if together == 2 else items[:1])
        assert len({item // 2 for item in items}) == 1
        sequences = [(*turn.prompt, *turn.completion) for one in trainer._present for turn in one.turns]
        assert read == [len({sequence[:end] for sequence in sequences for end in range(1, len(sequence) + 1)})]


def test_by_default_a_micro_batch_is_a_group() -> None:
    assert Reinforced().micro_batch == Reinforced().rollouts


def test_a_micro_batch_too_small_for_the_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"micro_batch 8 does not hold 4 steps of a trajectory × 4 rollouts = 16"):
        test_train_grpo.trainer_with(test_train_grpo.by_length, tmp_path, steps_per_trajectory=4, prompts=4)
