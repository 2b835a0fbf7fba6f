"""The contract with TRL: loss and gradient by hand (the GRPO objective, arXiv 2402.03300), advantages, order, rewards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from trl import GRPOTrainer

from harness.edit_reward import EditStep
from harness.generate import Sampled
from harness.generate_hf import end_tokens
from harness.prompt import Message
from harness.reward import expert_text, similarity
from harness.reward_pool import RewardPool
from harness.train.config import Memory, Reinforced, StepWise, TinyModel
from harness.train.data import Baselines, Sample, make_samples
from harness.train.engine import Engine
from harness.train.failure import TrainingFailed
from harness.train.grpo import ReinforcedTrainer, reinforced_trainer
from harness.train.phases import Phases
from harness.train.prompts import Prompts
from harness.train.rollouts import Rollout, Turn
from harness.train.sampling import PromptStream
from harness.train.step_rollouts import StepRollouts
from harness.train.tiny import build_model, train_tokenizer
from harness_trajectories import Action, comparable, render
from harness_trajectories.steps import StepExample

FULL = Memory()
TEXTS = [f"<think></think>\nmove {word} by {n}" for word in ("north", "south") for n in range(4)]


def conversation(number: int) -> list[Message]:
    return [Message(role="user", content=f"{TEXTS[number][16:]} ?" * (number + 1))]


def samples(folder: Path) -> list[Sample]:
    tokenizer = train_tokenizer([*TEXTS, "user\nassistant\n"], 330)
    steps = [
        StepExample(
            trajectory_id=f"t{n}",
            instance_id=f"i{n}",
            index=0,
            wire="text",
            prompt=conversation(n)[0]["content"],
            history=(),
            omitted=0,
            thought="",
            target=(Action(tool="answer", arguments={"text": text[16:]}),),
        )
        for n, text in enumerate(TEXTS)
    ]
    return make_samples(steps, {"text": ""}, Prompts(tokenizer, folder / "tokens"), 200, Counter())


Reward = Callable[..., list[float | None]]


class Rewarded:
    """A source of single turns on the samples' prompts; `reward` gets what was sampled."""

    def __init__(self, folder: Path, reward: Reward, rollouts: int = 4) -> None:
        self.samples = samples(folder)
        self.size = len(self.samples)
        self.trajectories = range(self.size)
        self.rollouts = rollouts
        self.figures: dict[str, float] = {}
        self.phases = Phases()
        self._reward = reward

    def name(self, item: int) -> str:
        return self.samples[item].id

    def prompt(self, item: int) -> list[int]:
        return self.samples[item].prompt.ids()

    def talk(self, prompt: list[int], engine: Engine) -> list[tuple[Turn, ...]]:
        return [(Turn(prompt, *one),) for one in engine.sample([prompt], copies=self.rollouts)[0]]

    def roll(self, items: Sequence[int], places: Sequence[int], engine: Engine) -> list[list[Rollout]]:
        talks = [(item, turns) for item in items for turns in self.talk(self.prompt(item), engine)]
        said = [[token for turn in turns for token in turn.completion] for _, turns in talks]
        values = iter(self._reward(completion_ids=said, sample=[item for item, _ in talks]))
        every = [Rollout(item, turns, float("nan") if (value := next(values)) is None else value) for item, turns in talks]
        return [every[start : start + self.rollouts] for start in range(0, len(every), self.rollouts)]

    def note(self, step: int, groups: Sequence[Sequence[Rollout]]) -> None:
        return


class Talking(Rewarded):
    """One to three turns. The next prompt begins as the last one did, without what was said."""

    def talk(self, prompt: list[int], engine: Engine) -> list[tuple[Turn, ...]]:
        talks = []
        for copy in range(self.rollouts):
            prompts = [prompt, [*prompt[:-2], 7, 8 + copy], [*prompt, 9, 10, 11]][: 1 + copy % 3]
            talks.append(tuple(Turn(before, *group[0]) for before, group in zip(prompts, engine.sample(prompts), strict=True)))
        return talks


def trainer_with(
    reward: Reward, folder: Path, kind: type[Rewarded] = Rewarded, memory: Memory = FULL, feedforward: int = 64, **options: float
) -> ReinforcedTrainer:
    tokenizer = train_tokenizer([*TEXTS, "user\nassistant\n"], 330)
    model = build_model(TinyModel(hidden=32, layers=2, heads=2, feedforward=feedforward), tokenizer, seed=1)
    settings = {"prompts": 2, "rollouts": 4, "micro_batch": 8, "max_completion_tokens": 6, "max_steps": 2, **options}
    trainer = reinforced_trainer(model, tokenizer, kind(folder, reward), Reinforced(**settings), folder, seed=0, every=100, memory=memory)
    trainer.create_optimizer_and_scheduler(2)
    trainer.current_gradient_accumulation_steps = 8 // settings["micro_batch"]
    model.train()
    return trainer


def by_length(completion_ids: list[list[int]], **columns: object) -> list[float | None]:
    """A reward that differs within a group."""
    return [float(sum(ids) % 17) / 17 for ids in completion_ids]


def batch_of(trainer: ReinforcedTrainer) -> dict[str, torch.Tensor]:
    loader = iter(trainer.get_train_dataloader())
    return trainer._prepare_inputs(next(loader))


def log_probabilities(trainer: ReinforcedTrainer, width: int) -> torch.Tensor:
    """Of what the batch's rollouts say, from plain logits of each turn by itself; 0 behind it. (B, width)"""
    rows = []
    for one in trainer._batch:
        found = []
        for prompt, said, _ in one.turns:
            logits = trainer.model(input_ids=torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
            found.append(torch.log_softmax(logits, -1)[torch.arange(len(said)), torch.tensor(said)])
        rows.append(torch.nn.functional.pad(torch.cat(found), (0, width - sum(map(len, found)))))
    return torch.stack(rows)


def error(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest difference in a parameter's gradient, relative to the largest entry of that gradient."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shift", [0.0, 0.4])
@pytest.mark.parametrize("share", [True, False], ids=["as a prefix tree", "padded"])
@pytest.mark.parametrize("kind", [Rewarded, Talking], ids=["one turn", "several turns"])
def test_loss_and_gradient_are_the_grpo_objective(tmp_path: Path, kind: type[Rewarded], share: bool, shift: float) -> None:
    trainer = trainer_with(by_length, tmp_path, kind, share_prefixes=share)
    inputs = batch_of(trainer)
    assert {len(one.turns) for one in trainer._batch} == ({1} if kind is Rewarded else {1, 2, 3})
    logps = log_probabilities(trainer, inputs["completion_ids"].shape[1])
    old = logps.detach() - shift * torch.linspace(-1, 1, logps.shape[1])
    if shift:
        inputs["old_per_token_logps"] = old
    ratio = torch.exp(logps - old)
    advantage = inputs["advantages"][:, None]
    per_token = -torch.minimum(ratio * advantage, ratio.clamp(1 - 0.2, 1 + 0.2) * advantage)
    mask = inputs["completion_mask"]
    assert mask.sum(1).tolist() == [len(one.tokens) for one in trainer._batch]
    expected = ((per_token * mask).sum(1) / mask.sum(1)).mean()
    parameters = list(trainer.model.parameters())
    expected_gradients = torch.autograd.grad(expected, parameters)
    loss = trainer.compute_loss(trainer.model, inputs)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    assert any(gradient.abs().max() > 1e-4 for gradient in expected_gradients)
    assert error(torch.autograd.grad(loss, parameters), expected_gradients) <= 1e-5


@pytest.mark.parametrize("share", [True, False], ids=["as a prefix tree", "padded"])
def test_loss_and_gradient_are_those_of_stock_trl(tmp_path: Path, share: bool) -> None:
    """TRL's own loss on the padded batch that it would have made: its method for log-probs in place of ours."""
    trainer = trainer_with(by_length, tmp_path, share_prefixes=share)
    inputs = batch_of(trainer)
    parameters = list(trainer.model.parameters())
    loss = trainer.compute_loss(trainer.model, inputs)
    found = torch.autograd.grad(loss, parameters)
    trainer._get_per_token_logps_and_entropies = GRPOTrainer._get_per_token_logps_and_entropies.__get__(trainer)
    expected = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    assert error(found, torch.autograd.grad(expected, parameters)) <= 1e-5


@pytest.mark.parametrize("share", [True, False], ids=["as a prefix tree", "padded"])
def test_micro_batches_add_up_and_keep_groups_together(tmp_path: Path, share: bool) -> None:
    whole = trainer_with(by_length, tmp_path / "whole", Talking, share_prefixes=share)
    parts = trainer_with(by_length, tmp_path / "parts", Talking, share_prefixes=share, micro_batch=4)
    found = []
    for trainer in (whole, parts):
        torch.manual_seed(3)
        rows = next(iter(trainer.get_train_dataloader()))
        steps = 8 // trainer.args.per_device_train_batch_size
        for step in range(steps):
            trainer._step = step
            inputs = trainer._prepare_inputs(rows)
            trainer.compute_loss(trainer.model, inputs).backward()
            if steps > 1:
                assert len({one.item for one in trainer._present}) == 1
        found.append([parameter.grad for parameter in trainer.model.parameters()])
    assert error(found[1], found[0]) <= 1e-5


@pytest.mark.parametrize("share", [True, False], ids=["as a prefix tree", "padded"])
def test_a_penalty_on_leaving_the_start_has_no_gradient_there(tmp_path: Path, share: bool) -> None:
    """The reference is the model as it was handed over: at the start the estimator of the divergence and its gradient are 0."""
    plain = trainer_with(by_length, tmp_path / "plain", share_prefixes=share)
    held = trainer_with(by_length, tmp_path / "held", share_prefixes=share, kl=0.5)
    found = []
    for trainer in (plain, held):
        torch.manual_seed(3)
        inputs = batch_of(trainer)
        found.append(torch.autograd.grad(trainer.compute_loss(trainer.model, inputs), list(trainer.model.parameters())))
    assert held._metrics["train"]["kl"] == [pytest.approx(0.0, abs=1e-6)]
    assert error(found[1], found[0]) <= 1e-5
    with torch.no_grad():
        held.model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    held.compute_loss(held.model, inputs)
    assert held._metrics["train"]["kl"][-1] > 1e-5


@pytest.mark.parametrize("share", [True, False], ids=["as a prefix tree", "padded"])
@pytest.mark.parametrize("kind", [Rewarded, Talking], ids=["one turn", "several turns"])
def test_a_sampler_with_other_weights_ends_the_run_before_a_step(tmp_path: Path, kind: type[Rewarded], share: bool) -> None:
    """The gap is compared with one from plain logits of each turn by itself."""
    trainer = trainer_with(by_length, tmp_path, kind, share_prefixes=share)
    inputs = batch_of(trainer)
    trainer.compute_loss(trainer.model, inputs)
    assert trainer.figures["sampler_gap"] < 1e-5
    with torch.no_grad():
        trainer.model.model.layers[0].mlp.up_proj.weight.mul_(3)
    logps = log_probabilities(trainer, inputs["completion_ids"].shape[1])
    sampled = [torch.tensor([value for turn in one.turns for value in turn.logprobs]) for one in trainer._batch]
    every = torch.cat([(row[: len(one)] - one).abs() for row, one in zip(logps, sampled, strict=True)])
    trainer._max_gap = float(every.mean()) * 1.01
    trainer.compute_loss(trainer.model, inputs)
    trainer._max_gap = float(every.mean()) * 0.99
    with pytest.raises(TrainingFailed, match=r"the sampler is not the model that is trained.*srl\.max_sampler_gap"):
        trainer.compute_loss(trainer.model, inputs)
    assert trainer.figures["sampler_gap"] == pytest.approx(float(every.mean()), rel=1e-4)


def test_advantages_are_rewards_over_the_group_deviation(tmp_path: Path) -> None:
    given: list[float | None] = [0.1, 0.9, 0.4, 0.4, -1.0, 1.0, None, 0.0]
    trainer = trainer_with(lambda **columns: given, tmp_path, dynamic_sampling=False)
    rows = next(iter(trainer.get_train_dataloader()))
    found = trainer._generate_and_score_completions(rows)["advantages"]
    expected = []
    for group in (given[:4], given[4:]):
        values = torch.tensor([value for value in group if value is not None])
        expected += [0.0 if value is None else float((value - values.mean()) / (values.std() + 1e-4)) for value in group]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_groups_are_whole_and_in_the_order_of_the_stream(tmp_path: Path) -> None:
    seen: list[int] = []

    def reward(sample: list[int], completion_ids: list[list[int]]) -> list[float | None]:
        seen.extend(sample)
        return by_length(completion_ids)

    trainer = trainer_with(reward, tmp_path, dynamic_sampling=False)
    for rows in list(trainer.get_train_dataloader())[:2]:
        trainer._generate_and_score_completions(rows)
    assert seen == [number for number in seen[::4] for _ in range(4)]
    assert seen[::4] == [PromptStream(len(TEXTS), 0)[place] for place in range(4)]
    assert len(set(seen)) == 4


def test_prompts_reach_trl_as_the_tokens_that_it_would_have_made(tmp_path: Path) -> None:
    trainer = trainer_with(by_length, tmp_path, dynamic_sampling=False)
    drawn = [PromptStream(len(TEXTS), 0)[place] for place in (0, 1) for _ in range(4)]
    theirs, *_ = trainer._tokenize_prompts([conversation(number) for number in drawn])
    inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    read = [ids[mask.bool()].tolist() for ids, mask in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)]
    assert read == theirs


class Saying:
    """An engine that says what it is told to."""

    def __init__(self, completions: list[list[list[int]]]) -> None:
        self._completions = completions

    def sample(self, prompts: Sequence[Sequence[int]], copies: int = 1, **options: object) -> list[list[Sampled]]:
        return [[Sampled(ids, [0.0] * len(ids)) for ids in group] for group in self._completions]

    def refresh(self) -> None:
        return


def test_steps_are_scored_and_what_is_logged_of_them(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([*TEXTS, "user\nassistant\n"], 330)
    known, end = samples(tmp_path), tokenizer.eos_token_id
    texts = [TEXTS[0], TEXTS[1], "no think", TEXTS[2]]
    ids = [[*tokenizer(text)["input_ids"], end] for text in texts]
    options = StepWise(rollouts=2, prompts=2)
    with RewardPool() as pool:
        source = StepRollouts(known, Baselines(known, 0), tokenizer, [end], options, tmp_path, 3, 0, pool, Phases())
        groups = source.roll([0, 2], [0, 1], Saying([ids[:2], [ids[2][:-1], ids[3]]]))
    source.note(7, groups)
    rewards = [one.reward for group in groups for one in group]
    assert [one.item for group in groups for one in group] == [0, 0, 2, 2]
    assert rewards[0] == 1.0
    assert 0 < rewards[1] < 1
    assert rewards[2:] == [-1.0, 1.0]
    figures = source.figures
    assert figures["format_ok"] == 0.75
    assert figures["exact"] == 0.5
    assert figures["clipped"] == 0.25
    assert figures["penalty_format"] == 1
    assert figures["zero_variance"] == 0.0
    assert figures["baseline_copy"] == 0.0
    assert 0 < figures["baseline_constant"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "step-00007.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in rows] == texts[:3]
    source.note(7, groups[:1])
    assert source.figures["format_ok"] == 5 / 6
    source.note(8, groups[:1])
    assert source.figures["format_ok"] == 1


@pytest.mark.parametrize("reward", ["similarity", "edit"])
def test_edits_are_paid_by_their_words_or_by_what_they_do(tmp_path: Path, reward: Literal["similarity", "edit"]) -> None:
    tokenizer = train_tokenizer([*TEXTS, "user\nassistant\n"], 330)
    expert, model = (
        Action(tool="str_replace_editor", arguments={"command": "str_replace", "path": "a", "old_str": old, "new_str": new})
        for old, new in (("b", "c"), ("a\nb", "a\nc"))
    )
    edit = EditStep(expert, {"a": "a\nb\n"})
    known = [samples(tmp_path)[0]._replace(wire="calls", expert=expert_text([expert]), edit=edit)]
    ids = [tokenizer(f"<think></think>{render(one)}")["input_ids"] for one in (model, Action(tool="submit"))]
    with RewardPool() as pool:
        options = StepWise(rollouts=2, prompts=2, reward=reward)
        source = StepRollouts(known, Baselines(known, 0), tokenizer, [0], options, tmp_path, 0, 0, pool, Phases())
        groups = source.roll([0], [0], Saying([ids]))
    source.note(1, groups)
    words = [similarity(comparable(one), comparable(expert)) for one in (model, Action(tool="submit"))]
    rewards = words if reward == "similarity" else [1.0, words[1]]
    assert [one.reward for one in groups[0]] == rewards
    assert source.figures["reward"] == sum(rewards) / 2
    assert source.figures["similarity"] == sum(words) / 2
    assert source.figures["edit_similarity"] == (1.0 + words[1]) / 2
    assert source.figures["edits"] == 1


def test_the_end_tokens_are_those_of_trl(tmp_path: Path) -> None:
    trainer = trainer_with(by_length, tmp_path)
    assert sorted(trainer.eos_token_ids) == end_tokens(trainer.processing_class, trainer.model)
