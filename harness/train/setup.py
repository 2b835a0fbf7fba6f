"""What the stages of a run share: the model to start from, the steps to train on, what is written beside the weights."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness import contamination
from harness.env import Env
from harness.generate_hf import end_tokens, load_model, load_tokenizer
from harness.prompt import PromptPolicy
from harness.runs import Run
from harness.train import processes
from harness.train.checkpoint import Companions, export
from harness.train.config import TINY_MODEL, TrainConfig
from harness.train.data import Baselines, Examples, Sample, corpus, load_examples, make_samples
from harness.train.measure import baseline_means
from harness.train.prompts import Prompts
from harness.train.recorder import Figures
from harness.train.server_engine import check_server
from harness.train.sharding import Replica
from harness.train.tasks import Tasks, load_tasks
from harness.train.tiny import build_model, train_tokenizer
from harness.train.vllm_engine import check_vllm
from harness_trajectories.errors import UserError
from harness_trajectories.steps import StepExample

TOKENS = "tokens"
"""Folder of the run's token store; it goes when the run is finished."""


class Setup(NamedTuple):
    """Ready for the first stage."""

    config: TrainConfig
    run: Run
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    replica: Replica
    companions: Companions
    train: Sequence[Sample]
    val: Sequence[Sample]
    baselines: Baselines
    baseline_figures: Figures
    """On the validation steps; empty where no stage reads steps."""
    tasks: Tasks | None
    """None where no stage plays episodes."""
    data: dict[str, Any]
    """For the report: counts of the data and what became of it."""

    @property
    def checkpoints(self) -> Path:
        return self.run.path / "checkpoints"

    def resumable(self, stage: str) -> Path:
        """Where the resumable checkpoints of a stage lie."""
        return self.checkpoints / "resume" / stage


def set_up(config: TrainConfig, env: type[Env], run: Run) -> Setup:
    """Data and model of a run.

    Raises:
        UserError: data, model or options cannot be used.
    """
    started = time.monotonic()
    stages = stages_of(config)
    for name, options in (("warmup", config.warmup), ("sft", config.sft)):
        if name in stages and options.unit == "trajectory" and (config.context.kind != "full" or options.prompt_loss):
            raise UserError(
                f"{name}.unit trajectory trains on answers after the whole history: it needs --context.kind=full and no prompt_loss"
            )
    if processes.count() > 1 and (config.memory.lora_rank or config.memory.optimizer != "adamw"):
        raise UserError(
            f"memory.lora_rank {config.memory.lora_rank}, memory.optimizer {config.memory.optimizer}: in several processes (here "
            f"{processes.count()}) all weights are trained, by adamw; leave the two out, or train in one process"
        )
    for options in (config.srl, config.rlvr):
        if options.section in stages and options.served:
            check_server(options, config.max_prompt_tokens + options.max_completion_tokens)
        elif options.section in stages:
            check_vllm(options)
    reads_steps = stages != ["rlvr"] or config.model == TINY_MODEL or config.validation.rlvr_by == "steps"
    examples = load_examples(config, env) if reads_steps else Examples()
    config = config.model_copy(update={"env": config.env | examples.env})
    limit = config.max_prompt_tokens
    policy = PromptPolicy(context=config.context, max_prompt_tokens=limit, env=config.env)
    taught, held_out = ({example.instance_id for example in part} for part in (examples.train, examples.val))
    tasks = load_tasks(config, policy, str(run.path), taught, held_out) if "rlvr" in stages else None
    before = contamination.trained_on(Path(config.model)) if Path(config.model).is_dir() else None
    seen = examples.instances | (tasks.ids if tasks else set()) | (before or frozenset())
    contamination.guard(seen, config.exclude)
    made = run.path / "checkpoints" / "base"
    tokenizer, model = _base(config, made, examples)
    cuts: Counter[str] = Counter()
    prompts = Prompts(tokenizer, run.path / TOKENS, read_only=not processes.is_first())
    train = make_samples(examples.train, examples.systems, prompts, limit, cuts, examples.edits)
    some = _some(examples.val, config.validation.steps, config.seed)
    val = make_samples(some, examples.systems, prompts, limit, cuts, examples.edits)
    if "rlvr" in stages and config.validation.rlvr_by == "steps" and not val:
        raise UserError(f"validation.rlvr_by steps: of the steps in {', '.join(config.data)} none are held out to validate on")
    if cuts["prompts"]:
        print(f"cut to {limit} tokens: {cuts['prompts']} of {len(train) + len(val)} prompts {dict(cuts)}", file=sys.stderr)
    baselines = Baselines(train, config.seed)
    lengths = [sample.prompt_tokens for sample in train]
    data: dict[str, Any] = {**examples.counts}
    if train:
        data |= {"train_steps": len(train), "val_steps": len(val), "cuts": dict(cuts)}
        data["prompt_tokens"] = {"mean": sum(lengths) / len(lengths), "max": max(lengths)}
    if tasks:
        data |= {"dataset": tasks.plan.config.dataset, "train_tasks": len(tasks.train), "val_tasks": len(tasks.val)}
    data["seconds"] = round(time.monotonic() - started, 1)
    companions = Companions(tokenizer, policy, frozenset(seen))
    if config.model == TINY_MODEL and not made.exists():
        export(model, companions, made)
    figures = baseline_means(val or train[:200], baselines) if train else {}
    return Setup(config, run, tokenizer, model, Replica(model, _device(config)), companions, train, val, baselines, figures, tasks, data)


def stages_of(config: TrainConfig) -> list[str]:
    """The names of a run's stages, in order."""
    if config.method == "sft":
        return ["sft"]
    first = ["warmup"] if config.warmup.epochs else []
    return [*first, *(["srl", "rlvr"] if config.method == "pipeline" else [config.method])]


def _base(config: TrainConfig, made: Path, examples: Examples) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model to start from. A tiny one is built once and then belongs to the run.

    Args:
        made: where the run keeps it.
    """
    if config.tokenizer and config.model != TINY_MODEL:
        raise UserError(f"--tokenizer goes with --model {TINY_MODEL}; {config.model} brings its own")
    if config.model != TINY_MODEL or made.exists():
        source = str(made) if config.model == TINY_MODEL else config.model
        tokenizer, model = load_tokenizer(source), load_model(source, _dtype(config))
    else:
        tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else train_tokenizer(corpus(examples), config.tiny.vocabulary)
        model = build_model(config.tiny, tokenizer, config.seed)
    model.generation_config.eos_token_id = end_tokens(tokenizer, model)
    return tokenizer, model


def _dtype(config: TrainConfig) -> torch.dtype:
    """Of the weights: float32 where they are trained; bfloat16 where they are frozen and the device computes in it."""
    return torch.bfloat16 if config.memory.lora_rank and _device(config) == "cuda" else torch.float32


def _device(config: TrainConfig) -> str:
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _some(examples: list[StepExample], limit: int, seed: int) -> list[StepExample]:
    """At most `limit` of them, drawn by `seed`, in their order."""
    if len(examples) <= limit:
        return examples
    return [examples[index] for index in sorted(random.Random(seed).sample(range(len(examples)), limit))]
