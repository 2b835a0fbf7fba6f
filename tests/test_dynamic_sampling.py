"""Dynamic sampling with refill: which groups a batch holds, and what the update is paid for. Its resume is in `test_resume.py`.

The reference is the definition in arXiv 2510.25992 (keep a prompt only if the deviation of its rewards exceeds ε, sample on until the batch
is full), applied here by hand to the rewards that were given out.
"""

from __future__ import annotations

import inspect
import random
import statistics
from pathlib import Path

import pytest
import test_train_grpo
import torch
from trl import GRPOTrainer

from harness.train.config import Reinforced
from harness.train.failure import TrainingFailed
from harness.train.rollouts import Rollout, Turn
from harness.train.sampling import PromptStream, Refill, has_signal

NAN = float("nan")


def group(item: int, rewards: list[float]) -> list[Rollout]:
    return [Rollout(item, (Turn([1], [1], [0.0]),), reward) for reward in rewards]


def test_a_group_has_signal_when_its_rewards_differ_by_more_than_the_deviation() -> None:
    assert has_signal([0.0, 1.0], 0.1)
    assert not has_signal([0.3] * 8, 0.0)
    assert not has_signal([0.1 + 0.2] * 3, 0.0)
    assert not has_signal([0.5, 0.5 + 1e-6], 1e-4)
    assert has_signal([0.5, 0.5 + 1e-6], 0.0)
    assert not has_signal([None, 0.5, 0.5, None], 0.0)
    assert not has_signal([NAN, 0.5, NAN], 0.0)
    assert not has_signal([None, None], 0.0)
    assert has_signal([None, 0.5, 0.6], 0.0)


def test_the_stream_goes_through_all_samples_again_and_again() -> None:
    stream = PromptStream(10, seed=3)
    passes = [[stream[place] for place in range(start, start + 10)] for start in range(0, 50, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 5
    assert [PromptStream(10, seed=3)[place] for place in (47, 12)] == [stream[47], stream[12]]
    assert [PromptStream(10, seed=4)[place] for place in range(10)] != passes[0]


def test_batches_are_the_next_groups_with_signal_and_nothing_is_skipped() -> None:
    """Any keep pattern: batches concatenated = the stream without the dropped places, and the frontier stands behind the last one taken."""
    rng = random.Random(7)
    for share in (0.15, 0.5, 0.9, 1.0):
        varied = [rng.random() < share for _ in range(40)]
        refill = Refill(40, Reinforced(prompts=6, rollouts=2, max_tries=100), seed=1)
        taken: list[int] = []
        for _ in range(20):
            batch = refill.fill(lambda indices, places, varied=varied: [group(i, [0.0, 1.0 if varied[i] else 0.0]) for i in indices])
            assert len(batch) == 6
            taken += [members[0].item for members in batch]
            before = [PromptStream(40, 1)[place] for place in range(refill.frontier)]
            assert taken == [index for index in before if varied[index]]
            assert before[-1] == taken[-1]


def test_a_batch_that_never_fills_is_one_message_with_the_figures() -> None:
    refill = Refill(5, Reinforced(prompts=4, rollouts=2, max_tries=3), seed=0)
    drawn: list[int] = []

    def sample(indices: list[int], places: list[int]) -> list[list[Rollout]]:
        drawn.extend(indices)
        return [group(index, [1.0, 1.0 if index else 0.5]) for index in indices]

    with pytest.raises(TrainingFailed, match=r"of 12 prompts × 2 rollouts only [23] groups.*srl.max_tries 3"):
        refill.fill(sample)
    assert len(drawn) == 12
    assert refill.frontier == 0


@pytest.mark.parametrize("world", [1, 3])
def test_processes_decide_alike_on_the_same_groups(world: int) -> None:
    sizes: list[int] = []

    def sample(indices: list[int], places: list[int]) -> list[list[Rollout]]:
        sizes.append(len(indices))
        return [group(index, [0.0, float(index % 3 == 0)]) for index in indices]

    refill = Refill(50, Reinforced(prompts=6, rollouts=2), seed=0)
    assert [members[0].item for members in refill.fill(sample, world)] == [
        i for i in (PromptStream(50, 0)[n] for n in range(50)) if i % 3 == 0
    ][:6]
    assert all(size % world == 0 for size in sizes)


def test_the_update_holds_kept_groups_alone_with_their_own_completions(tmp_path: Path) -> None:
    """Half the samples are given equal rewards, one completion none; the advantages are those of the rewards that were given out."""
    given: dict[tuple[int, tuple[int, ...]], float] = {}
    rounds: list[list[int]] = []
    dull = PromptStream(len(test_train_grpo.TEXTS), 0)[0] % 2

    def reward(sample: list[int], completion_ids: list[list[int]]) -> list[float | None]:
        rounds.append(sample[::4])
        values: list[float | None] = []
        for place, (index, ids) in enumerate(zip(sample, completion_ids, strict=True)):
            value = 0.25 if index % 2 == dull else float(sum(ids) % 17) / 17
            values.append(None if index % 2 == dull and place % 4 == 0 else value)
            given[index, tuple(ids)] = value
        return values

    trainer = test_train_grpo.trainer_with(reward, tmp_path)
    inputs = test_train_grpo.batch_of(trainer)
    assert sum(len(one) for one in rounds) > 2
    prompts = {tuple(sample.prompt.ids()): index for index, sample in enumerate(trainer.source.samples)}
    found: dict[int, list[tuple[float, float]]] = {}
    for row in range(8):
        ids = tuple(inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist())
        tokens = tuple(inputs["completion_ids"][row][inputs["completion_mask"][row].bool()].tolist())
        index = prompts[ids]
        found.setdefault(index, []).append((given[index, tokens], float(inputs["advantages"][row])))
    assert [len(rows) for rows in found.values()] == [4, 4]
    for index, rows in found.items():
        assert index % 2 != dull
        rewards = [value for value, _ in rows]
        for value, advantage in rows:
            assert advantage == pytest.approx((value - statistics.mean(rewards)) / (statistics.stdev(rewards) + 1e-4), abs=1e-4)
    assert trainer.refill.figures["tried"] == trainer.refill.frontier
    assert trainer.refill.figures["tried_per_kept"] == trainer.refill.frontier / 2


def test_log_probs_are_not_computed_while_filling(tmp_path: Path) -> None:
    trainer = test_train_grpo.trainer_with(test_train_grpo.by_length, tmp_path)
    calls: list[torch.Tensor] = []
    compute = trainer._get_per_token_logps_and_entropies

    def counted(model: object, ids: torch.Tensor, *rest: object, **options: object) -> object:
        calls.append(ids)
        return compute(model, ids, *rest, **options)

    trainer._get_per_token_logps_and_entropies = counted
    inputs = test_train_grpo.batch_of(trainer)
    assert calls == []
    trainer.compute_loss(trainer.model, inputs)
    assert [len(ids) for ids in calls] == [8]


def test_trl_calls_what_is_overridden_as_it_did() -> None:
    """TRL 1.16: the shape of each private method that ReinforcedTrainer replaces, and where it is called."""
    replaced = ("_prepare_inputs", "_generate", "_calculate_rewards", "_compute_loss", "_get_per_token_logps_and_entropies")
    names = {name: list(inspect.signature(getattr(GRPOTrainer, name)).parameters) for name in replaced}
    assert names.pop("_get_per_token_logps_and_entropies")[:6] == [
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
    ]
    assert names == {
        "_prepare_inputs": ["self", "generation_batch"],
        "_generate": ["self", "prompts"],
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "_compute_loss": ["self", "model", "inputs"],
    }
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert source.count("self._generate(prompts)") == 1
    assert source.count("self._calculate_rewards(inputs, prompts, completions, completion_ids_list)") == 1
    returned = "return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images, tool_images"
    assert returned in inspect.getsource(GRPOTrainer._generate)
    assert "rewards_per_func = gather(rewards_per_func)" in inspect.getsource(GRPOTrainer._calculate_rewards)
    preparing = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert (
        preparing.index("_generate_and_score_completions") < preparing.index("shuffle_sequence_dict") < preparing.index("split_tensor_dict")
    )
