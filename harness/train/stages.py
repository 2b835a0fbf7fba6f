"""The stages of a run: a trainer each, with what is measured beside it. A method is a list of stages, each from the last one's result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from typing import NamedTuple

from transformers import set_seed

from harness.generate_hf import end_tokens
from harness.play import terminable
from harness.reward_pool import RewardPool
from harness.sandbox_open import Sandboxes
from harness.train import processes
from harness.train.checkpoint import last_resumable
from harness.train.config import Reinforced, TrainConfig
from harness.train.episode_rollouts import EpisodeRollouts
from harness.train.episodes import Players
from harness.train.failure import during
from harness.train.grpo import ReinforcedTrainer, reinforced_trainer
from harness.train.measure import check_gate, validate
from harness.train.phases import Phases
from harness.train.recorder import Figures
from harness.train.server_engine import FOLDER, ServerEngine
from harness.train.setup import Setup
from harness.train.sft import OrderedSFTTrainer, Sequences, Trajectories, sft_trainer
from harness.train.step_rollouts import StepRollouts
from harness.train.vllm_engine import VLLMEngine


class Stage(NamedTuple):
    """A stage that is ready to train."""

    name: str
    trainer: OrderedSFTTrainer | ReinforcedTrainer
    """Its `figures` are those of the last step that its log lacks; in its `phases` it counts what is not the update itself."""
    measure: Callable[[], Figures] | None
    """Validation of the model as it is; None where nothing is held out."""
    rank: tuple[str, ...]
    """The figures of `measure` by which checkpoints are compared."""
    facts: Mapping[str, float] = {}
    """Figures of its beginning."""
    budget: int | None = None
    """Tokens after which it ends early."""


@contextmanager
def supervised(setup: Setup, pool: RewardPool, name: str) -> Iterator[Stage]:
    """`warmup` or `sft`: the options are those of that name."""
    config = setup.config
    options = {"warmup": config.warmup, "sft": config.sft}[name]
    kind = Trajectories if options.unit == "trajectory" else Sequences
    sequences = kind(setup.train, setup.tokenizer, options)
    if sequences.dropped:
        what = "trajectories that were cut or are" if options.unit == "trajectory" else "sequences"
        print(f"{name}: {sequences.dropped} {what} longer than {options.max_tokens} tokens are left out", file=sys.stderr)
    set_seed(config.seed)
    folder = setup.resumable(name)
    trainer = sft_trainer(setup.model, setup.tokenizer, sequences, options, folder, config.seed, config.checkpoint_every, config.memory)
    facts = {"sequences": len(sequences), "dropped_too_long": sequences.dropped}
    yield Stage(name, trainer, _on_steps(setup, pool), ("exact", "reward"), facts, options.budget_tokens)


@contextmanager
def srl(setup: Setup, pool: RewardPool, name: str) -> Iterator[Stage]:
    """RL on the similarity of single steps.

    Raises:
        GateClosed: RL does not start.
    """
    config, options = setup.config, setup.config.srl
    end = end_tokens(setup.tokenizer, setup.model)
    completions = setup.run.path / "completions"
    source = StepRollouts(
        setup.train, setup.baselines, setup.tokenizer, end, options, completions, _logged(config), config.seed, pool, Phases()
    )
    folder = setup.resumable(name)
    set_seed(config.seed)
    trainer = reinforced_trainer(
        setup.model, setup.tokenizer, source, options, folder, config.seed, config.checkpoint_every, config.memory, setup.replica
    )
    with _sampler(setup, options, trainer):
        facts = _gate(setup, name, trainer)
        yield Stage(name, trainer, _on_steps(setup, pool), ("exact", "reward"), facts, options.budget_tokens)


@contextmanager
def rlvr(setup: Setup, pool: RewardPool, name: str) -> Iterator[Stage]:
    """RL on the outcome of episodes.

    Raises:
        GateClosed: RL does not start.
        EnvError: the infrastructure fails.
    """
    config, tasks = setup.config, setup.tasks
    assert tasks is not None
    played = config.episodes
    with terminable(), closing(Sandboxes(played.sandbox, played.base_image, tasks.plan.images)) as sandboxes:
        end = end_tokens(setup.tokenizer, setup.model)
        players = Players(tasks.plan, setup.tokenizer, end, played.workers, sandboxes, sandboxes.close)
        source = EpisodeRollouts(tasks.train, players, config.rlvr, setup.run.path / "episodes", _logged(config), Phases())
        folder = setup.resumable(name)
        set_seed(config.seed)
        trainer = reinforced_trainer(
            setup.model, setup.tokenizer, source, config.rlvr, folder, config.seed, config.checkpoint_every, config.memory, setup.replica
        )
        on_steps = _on_steps(setup, pool)

        def measure() -> Figures:
            steps = on_steps() if on_steps else {}
            with during("while validating"):
                figures = source.validate(tasks.val, trainer.fresh_engine())
            return figures | {f"step_{figure}": value for figure, value in steps.items()}

        rank = ("step_exact", "step_reward") if config.validation.rlvr_by == "steps" else ("solved", "reward")
        with _sampler(setup, config.rlvr, trainer):
            facts = _gate(setup, name, trainer)
            yield Stage(name, trainer, measure if tasks.val else None, rank, facts, config.rlvr.budget_tokens)


STAGES: Mapping[str, Callable[[Setup, RewardPool, str], AbstractContextManager[Stage]]] = {
    "warmup": supervised,
    "sft": supervised,
    "srl": srl,
    "rlvr": rlvr,
}


@contextmanager
def _sampler(setup: Setup, options: Reinforced, trainer: ReinforcedTrainer) -> Iterator[None]:
    """Have vLLM sample for the trainer, where the options say so."""
    if options.sampler == "model":
        yield
        return
    end = end_tokens(setup.tokenizer, setup.model)
    if options.served:
        engine = ServerEngine(options, trainer.model, end, setup.run.path / FOLDER)
    else:
        longest = setup.config.max_prompt_tokens + options.max_completion_tokens
        limits = (options.max_completion_tokens, options.temperature, longest, options.vllm_memory)
        engine = VLLMEngine(trainer.model, end, *limits)
    with closing(engine) as trainer.engine:
        yield


def _gate(setup: Setup, name: str, trainer: ReinforcedTrainer) -> Figures:
    """What the gate found, where the stage is at its beginning."""
    if last_resumable(setup.resumable(name)) is not None:
        return {}
    with during(f"at the gate of {name}"):
        gate = check_gate(trainer.source, trainer.roll_out, setup.config.gate, setup.config.seed)
    print(f"gate: format {gate['format_ok']:.1%}, groups that differ {gate['varied_groups']:.1%}: RL starts", file=sys.stderr)
    set_seed(setup.config.seed)
    return {f"gate_{figure}": value for figure, value in gate.items()}


def _logged(config: TrainConfig) -> int:
    """Samples that this process keeps."""
    return config.samples_logged if processes.is_first() else 0


def _on_steps(setup: Setup, pool: RewardPool) -> Callable[[], Figures] | None:
    """Validation on the held-out steps."""
    if not setup.val:
        return None
    options = setup.config.srl
    batch = setup.config.validation.sample_batch or options.sample_batch

    def measure() -> Figures:
        with during("while validating"):
            setup.replica.refresh()
            found = validate(setup.replica.model, setup.tokenizer, setup.val, options, pool, batch)
        return found | setup.baseline_figures

    return measure
