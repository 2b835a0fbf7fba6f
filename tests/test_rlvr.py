"""Episodes as rollouts. References: the environment's own grade of the recorded actions, the prompts and tokens of an evaluation with the
same model, and the group advantage by hand."""

from __future__ import annotations

import json
import math
import re
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from door_env import DoorEnv
from test_agent import no_sandbox

import harness.play
from harness.agent import Limits, replay
from harness.env import EnvError, Task
from harness.generate import Completion, Sampled, Sampling, ScriptedGenerator
from harness.generate_hf import TransformersGenerator, prompt_ids
from harness.plan import EvalConfig, Item, Plan
from harness.play import play
from harness.prompt import Message, PromptPolicy
from harness.train.checkpoint import Companions, export
from harness.train.config import Memory, Outcome, TinyModel
from harness.train.engine import ModelEngine, completion_seeds
from harness.train.episode_rollouts import EpisodeRollouts
from harness.train.episodes import Players, Start
from harness.train.grpo import ReinforcedTrainer, reinforced_trainer
from harness.train.phases import Phases
from harness.train.sharding import Replica
from harness.train.tiny import build_model, train_tokenizer
from harness_trajectories import Action, read, render
from harness_trajectories.errors import UserError

RULES = DoorEnv.system_prompt(DoorEnv.Config())
TOKENIZER = train_tokenizer([RULES, "user\nassistant\nsystem\nOBSERVATION:\nThe number is 4.\nIt stands at 3.<think>\n"], 420)
END = [TOKENIZER.eos_token_id]
TASKS = list(DoorEnv.tasks(DoorEnv.Config(), "train"))


def call(tool: str, **arguments: int) -> str:
    return f"<think>so</think>\n{render(Action(tool=tool, arguments=dict(arguments)))}"


def clumsy(conversation: str, seed: int) -> str:
    """Door 0 opens always, 1 never; with the others the first turn goes one too far where the seed is odd. 3 gets something invalid said
    before, and the knob of 5 comes off with some seeds."""
    number = int(re.findall(r"The number is (\d+)", conversation)[0])
    said = conversation.count("assistant\n") - 1
    if number == 3 and "not valid" not in conversation and not said:
        return "I do not know."
    if number == 5 and seed % 3 == 0:
        return call("turn", by=13)
    if said == 0:
        return call("turn", by=number + (1 if number == 1 or (number > 1 and seed % 2) else 0))
    return call("open")


class SpokenEngine:
    """An `Engine` that says what it is told to, cut off at the limit."""

    def __init__(self, reply: Callable[[str, int], str]) -> None:
        self._reply = reply
        self.threads: set[threading.Thread] = set()
        self.sizes: list[int] = []

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        copies: int = 1,
        max_tokens: int | None = None,
        seeds: Sequence[int] | None = None,
        greedy: bool = False,
    ) -> list[list[Sampled]]:
        self.threads.add(threading.current_thread())
        self.sizes.append(len(prompts))
        found = []
        for prompt, seed in zip(prompts, seeds or [0] * len(prompts), strict=True):
            ids = [*TOKENIZER(self._reply(TOKENIZER.decode(prompt), seed))["input_ids"], *END][:max_tokens]
            found.append([Sampled(ids, [float("nan")] * len(ids))])
        return found

    def refresh(self) -> None:
        return


def plan(limits: Limits | None = None, tokens: int = 200, temperature: float = 1.0) -> Plan:
    config = EvalConfig(domain="door", limits=limits or Limits(), sampling=Sampling(max_tokens=tokens, temperature=temperature, seed=3))
    return Plan(config, DoorEnv, DoorEnv.Config(), {}, PromptPolicy(max_prompt_tokens=4000), None, "policy", [])


def players(workers: int = 4, closed: Callable[[], None] = lambda: None, **options: Any) -> Players:
    return Players(plan(**options), TOKENIZER, END, workers, no_sandbox, closed)


def source(folder: Path, tasks: Sequence[Task] = TASKS, **options: Any) -> EpisodeRollouts:
    return EpisodeRollouts(tasks, players(), Outcome(rollouts=4, prompts=2, **options), folder, 3, Phases())


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.play, "PAUSES", (0.0, 0.0))


def tiny_model() -> Any:
    return build_model(TinyModel(hidden=32, layers=1, heads=2, feedforward=64), TOKENIZER, seed=1)


def test_rewards_are_the_grades_of_the_recorded_actions(tmp_path: Path) -> None:
    rolled = source(tmp_path).roll([0, 1, 2, 3, 4, 6], range(6), SpokenEngine(clumsy))
    rewards = [[one.reward for one in group] for group in rolled]
    assert rewards[:2] == [[1.0] * 4, [0.0] * 4]
    assert {value for group in rewards[2:] for value in group} == {0.0, 1.0}
    for group in rolled:
        for one in group:
            trajectory = one.detail.played.episode.trajectory
            actions = [action for turn in trajectory.turns for action in turn.actions]
            again = replay(DoorEnv(DoorEnv.Config(), no_sandbox), TASKS[one.item], actions)
            assert again.grade is not None
            assert again.grade.score == one.reward
            assert len(one.turns) == (3 if one.item == 3 else 2)


def test_turns_are_what_evaluation_sends_and_gets(tmp_path: Path) -> None:
    """The recorded outputs, said again by the scripted model: the conversations that it is then asked with."""
    rolled = source(tmp_path).roll([2, 3], [0, 1], SpokenEngine(clumsy))
    for one in (one for group in rolled for one in group):
        texts = iter([TOKENIZER.decode(turn.completion[:-1]) for turn in one.turns])
        asked: list[list[Message]] = []

        def reply(conversation: list[Message], texts: Iterator[str] = texts, asked: list[list[Message]] = asked) -> str:
            asked.append(conversation)
            return next(texts)

        played = plan(temperature=0.0)
        episode, _ = play(played, Item(TASKS[one.item], None), ScriptedGenerator(reply), no_sandbox, lambda _: None)
        assert [prompt_ids(TOKENIZER, conversation) for conversation in asked] == [turn.prompt for turn in one.turns]
        steps = one.detail.played.episode.trajectory.steps
        assert episode.trajectory.steps == steps
        assert ("not valid" in asked[1][-1]["content"]) == (one.item == 3)


class Listening(TransformersGenerator):
    """Evaluation's own generator; it keeps what it reads and writes."""

    def __init__(self, model: Path) -> None:
        super().__init__(model, "cpu")
        self.said: list[tuple[list[int], Completion]] = []

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling) -> list[Completion]:
        found = super().generate(prompts, sampling)
        self.said += [(prompt_ids(self.tokenizer, prompt), one) for prompt, one in zip(prompts, found, strict=True)]
        return found


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_the_trained_model_plays_as_its_checkpoint_does_in_evaluation(tmp_path: Path, temperature: float) -> None:
    model = tiny_model()
    export(model, Companions(TOKENIZER, PromptPolicy(), frozenset()), tmp_path / "checkpoint")
    engine = ModelEngine(Replica(model, "cpu"), END, TOKENIZER.pad_token_id, 12, 1.0, 8)
    options: dict[str, Any] = {"tokens": 12, "temperature": temperature}
    sampling = plan(**options).config.sampling
    starts = [Start(task, sampling.model_copy(update={"seed": 1000 * n})) for n, task in enumerate(TASKS[:3])]
    together = players(**options).play(starts, engine, Phases())
    for start, played in zip(starts, together, strict=True):
        generator = Listening(tmp_path / "checkpoint")
        alone = plan(**options)
        alone = alone._replace(config=alone.config.model_copy(update={"sampling": start.sampling}))
        episode, _ = play(alone, Item(start.task, None), generator, no_sandbox, lambda _: None)
        generator.close()
        assert [prompt for prompt, _ in generator.said] == [turn.prompt for turn in played.turns]
        assert [one.tokens for _, one in generator.said] == [len(turn.completion) for turn in played.turns]
        assert episode.trajectory.steps == played.episode.trajectory.steps
        assert len(played.turns) == 3
        assert episode.exit == played.episode.exit == "format_errors"


def test_an_episode_depends_on_seed_place_and_copy_alone(tmp_path: Path) -> None:
    model = tiny_model()
    engine = ModelEngine(Replica(model, "cpu"), END, TOKENIZER.pad_token_id, 12, 1.0, 8)
    found = []
    for workers, items in ((1, [2]), (8, [4, 2, 3])):
        one = EpisodeRollouts(TASKS, players(workers, tokens=12), Outcome(rollouts=4, prompts=2), tmp_path, 0, Phases())
        groups = one.roll(items, [17 if item == 2 else item for item in items], engine)
        found.append([[turn.completion for turn in rollout.turns] for rollout in groups[items.index(2)]])
    assert found[0] == found[1]
    assert len({str(turns) for turns in found[0]}) == 4
    assert len({number for seed in (0, 1) for number in completion_seeds(seed, [-1, 0, 1], 8)}) == 48


def test_the_callers_thread_samples_for_all(tmp_path: Path) -> None:
    engine = SpokenEngine(clumsy)
    groups = EpisodeRollouts(TASKS, players(8), Outcome(rollouts=8, prompts=2), tmp_path, 0, Phases()).roll([0, 1], [0, 1], engine)
    assert engine.threads == {threading.current_thread()}
    assert sum(engine.sizes) == sum(len(one.turns) for group in groups for one in group) == 32
    assert max(engine.sizes) == 8
    assert len(engine.sizes) <= 12


def trainer_on(folder: Path, tasks: Sequence[Task], **options: Any) -> ReinforcedTrainer:
    settings = {"prompts": 2, "rollouts": 4, "micro_batch": 8, "max_steps": 2, **options}
    outcome = Outcome(**settings)
    rollouts = EpisodeRollouts(tasks, players(), outcome, folder / "episodes", 3, Phases())
    trainer = reinforced_trainer(tiny_model(), TOKENIZER, rollouts, outcome, folder, 0, 100, Memory())
    trainer.engine = SpokenEngine(clumsy)
    trainer.create_optimizer_and_scheduler(2)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def batch_of(trainer: ReinforcedTrainer) -> dict[str, torch.Tensor]:
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def test_all_right_and_all_wrong_are_dropped_and_the_others_get_the_group_advantage(tmp_path: Path) -> None:
    trainer = trainer_on(tmp_path, TASKS[:4])
    inputs = batch_of(trainer)
    items = [one.item for one in trainer._batch]
    assert set(items) == {2, 3}
    for start in (0, 4):
        rewards = [one.reward for one in trainer._batch[start : start + 4]]
        assert set(rewards) == {0.0, 1.0}
        for reward, advantage in zip(rewards, inputs["advantages"][start : start + 4].tolist(), strict=True):
            assert advantage == pytest.approx((reward - statistics.mean(rewards)) / (statistics.stdev(rewards) + 1e-4), abs=1e-5)
    assert inputs["completion_mask"].sum(1).tolist() == [len(one.tokens) for one in trainer._batch]
    rolled, figures = trainer.source._groups, trainer.source.figures
    assert len(rolled) >= trainer.refill.figures["tried"] >= 2
    assert figures["episodes"] == 4 * len(rolled)
    assert figures["zero_variance"] == 1 - sum(len({one.reward for one in group}) > 1 for group in rolled) / len(rolled)
    assert figures["solved"] == sum(one.reward for group in rolled for one in group) / (4 * len(rolled))
    invalid = 4 * sum(group[0].item == 3 for group in rolled)
    assert invalid
    assert figures["format_ok"] == pytest.approx(1 - invalid / sum(len(one.turns) for group in rolled for one in group))


def test_failed_infrastructure_gives_no_reward_and_no_gradient(tmp_path: Path) -> None:
    trainer = trainer_on(tmp_path, [TASKS[5], TASKS[7], TASKS[2]], dynamic_sampling=False, prompts=3, micro_batch=12)
    inputs = batch_of(trainer)
    failed = [math.isnan(one.reward) for one in trainer._batch]
    by_item = {item: [f for f, one in zip(failed, trainer._batch, strict=True) if one.item == item] for item in range(3)}
    assert by_item[1] == [True] * 4
    assert by_item[2] == [False] * 4
    assert {True, False} == set(by_item[0])
    died = next(one for one in trainer._batch if one.item == 1)
    ((prompt, said, logprobs),) = died.turns
    assert (prompt, said, died.detail.played.turns) == (END, END, ())
    assert math.isnan(logprobs[0])
    assert died.detail.played.tries == 3
    assert "the house is gone" in died.detail.played.episode.error
    for advantage, none in zip(inputs["advantages"].tolist(), failed, strict=True):
        assert not (none and advantage)
    found = torch.autograd.grad(trainer.compute_loss(trainer.model, inputs), list(trainer.model.parameters()))
    assert all(gradient.isfinite().all() for gradient in found)
    assert any(gradient.abs().max() > 1e-4 for gradient in found)
    broken = torch.tensor(failed)[:, None]
    other = {**inputs, "completion_ids": inputs["completion_ids"].masked_fill(broken, 5)}
    trainer._batch = [
        one._replace(turns=tuple(turn._replace(completion=[5] * len(turn.completion)) for turn in one.turns)) if none else one
        for one, none in zip(trainer._batch, failed, strict=True)
    ]
    again = torch.autograd.grad(trainer.compute_loss(trainer.model, other), list(trainer.model.parameters()))
    for a, b in zip(found, again, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    figures = trainer.source.figures
    assert figures["unscorable"] == sum(failed)
    assert figures["exit_infra_error"] == sum(failed)
    assert figures["solved"] == sum(one.reward == 1 for one in trainer._batch) / (12 - sum(failed))


def test_infrastructure_that_fails_everywhere_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="failed in all 4 episodes, the last time: EnvError: the house is gone"):
        source(tmp_path).roll([7], [0], SpokenEngine(clumsy))


def test_some_episodes_are_kept_and_can_be_imported(tmp_path: Path) -> None:
    rollouts = source(tmp_path / "episodes")
    groups = rollouts.roll([2, 0], [5, 6], SpokenEngine(clumsy))
    rollouts.note(4, groups[:1])
    rollouts.note(4, groups[1:])
    files = sorted((tmp_path / "episodes" / "step-00004").iterdir())
    assert [file.stem for file in files] == ["door-2.5.0", "door-2.5.1", "door-2.5.2"]
    found = {item.id: item for item in read(tmp_path / "episodes")}
    for place, one in enumerate(groups[0][:3]):
        run = found[f"door-2.5.{place}"]
        assert (run.instance_id, run.model, run.resolved) == ("door-2", "policy", one.reward == 1)
        assert [action.tool for turn in run.turns for action in turn.actions] == ["turn", "open"]
    assert rollouts.figures["episodes"] == 8
    document = json.loads(files[0].read_text())
    assert document["extra"]["exit"] == "done"


def test_validation_is_greedy_and_counts_what_was_graded(tmp_path: Path) -> None:
    figures = source(tmp_path).validate([TASKS[n] for n in (0, 1, 2, 3, 7)], SpokenEngine(clumsy))
    assert (figures["solved"], figures["episodes"], figures["unscorable"]) == (3 / 4, 5, 1)
    assert figures["status_resolved"] == 3
    assert figures["turns"] == 9 / 5


def test_limits_end_episodes_and_a_cut_output_is_counted(tmp_path: Path) -> None:
    found = players(limits=Limits(max_turns=1)).play([Start(TASKS[0], Sampling(max_tokens=200))], SpokenEngine(clumsy), Phases())
    assert (found[0].episode.exit, found[0].clipped) == ("turn_limit", 0)
    cut = players(limits=Limits(max_tokens=20)).play([Start(TASKS[0], Sampling(max_tokens=15))], SpokenEngine(clumsy), Phases())
    assert cut[0].episode.exit == "token_limit"
    assert [len(turn.completion) for turn in cut[0].turns] == [15, 5]
    assert cut[0].clipped == 2


@contextmanager
def quick(seconds: float) -> Iterator[None]:
    before = set(threading.enumerate())
    clock = threading.Timer(seconds, lambda: None)
    clock.start()
    yield
    assert clock.is_alive(), "it hung"
    clock.cancel()
    clock.join()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt()], ids=["engine fails", "Ctrl-C"])
def test_what_ends_sampling_ends_all_episodes(error: BaseException) -> None:
    closed: list[bool] = []
    calls: list[int] = []

    def fails(conversation: str, seed: int) -> str:
        calls.append(seed)
        if len(calls) > 5:
            raise error
        return call("turn", by=0)

    starts = [Start(TASKS[n % 7], Sampling(temperature=1, seed=n)) for n in range(40)]
    with quick(20), pytest.raises(type(error)):
        players(8, lambda: closed.append(True)).play(starts, SpokenEngine(fails), Phases())
    assert closed == [True]


def test_a_users_mistake_ends_all_episodes() -> None:
    narrow = Players(plan()._replace(policy=PromptPolicy(max_prompt_tokens=16)), TOKENIZER, END, 4, no_sandbox, lambda: None)
    with quick(20), pytest.raises(UserError, match="max_prompt_tokens is too small"):
        narrow.play([Start(task, Sampling()) for task in TASKS[:7] * 3], SpokenEngine(clumsy), Phases())
