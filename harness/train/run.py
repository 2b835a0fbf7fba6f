"""A training run from options to report: data, model, warm-up, the method, checkpoints. A killed run goes on where it stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed
from transformers.utils import logging as transformers_logging

from harness import contamination
from harness.env import Env, load_env
from harness.generate_hf import end_tokens, load_model, load_tokenizer
from harness.prompt import PromptPolicy
from harness.reward_pool import RewardPool
from harness.runs import Run, open_run, write_json
from harness.train.checkpoint import Companions, export, last_resumable, make_newest, step_of, validation_of
from harness.train.config import TINY_MODEL, Supervised, TrainConfig
from harness.train.curves import draw
from harness.train.data import Baselines, Examples, Sample, corpus, load_examples, make_samples
from harness.train.grpo import reinforced_trainer
from harness.train.measure import baseline_means, check_gate, validate
from harness.train.prompts import Prompts
from harness.train.recorder import Figures, Recorder, Stop, begin_stage, stage_reports
from harness.train.sft import Sequences, sft_trainer
from harness.train.step_rollouts import StepRollouts
from harness.train.tiny import build_model, train_tokenizer
from harness_trajectories.errors import UserError
from harness_trajectories.steps import StepExample

TOKENS = "tokens"
"""Folder of the run's token store; it goes when the run is finished."""


class Stopped(Exception):
    """Ctrl-C; the run can be taken up again."""


def train(config: TrainConfig, out: Path, fresh: bool = False) -> dict[str, Any]:
    """Run, or take up again, the training that `config` describes; a finished one is only reported.

    Returns:
        the content of RUN/report.json.

    Raises:
        UserError: data, model or options cannot be used.
        GateClosed: RL does not start.
        Stopped: Ctrl-C.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    env = load_env(config.domain)
    existed = out.exists() and not fresh
    run = open_run(out, "train", config, fresh)
    report = run.path / "report.json"
    if report.is_file():
        print(f"{out} is finished; --fresh trains anew", file=sys.stderr)
        return json.loads(report.read_text())
    try:
        training = _Training(config, env, run)
    except UserError:
        if not existed:
            shutil.rmtree(out)  # so that the corrected command may use it
        raise
    with training.stop:
        return training.all()


class _Training:
    def __init__(self, config: TrainConfig, env: type[Env], run: Run) -> None:
        self.config = config
        self.run = run
        self.stop = Stop()
        self.checkpoints = run.path / "checkpoints"
        self.report: dict[str, Any] = {
            "domain": config.domain,
            "method": config.method,
            "model": config.model,
            "stages": {},
        }
        started = time.monotonic()
        examples = load_examples(config, env)
        seen = examples.instances | (
            contamination.trained_on(Path(config.model)) or frozenset() if Path(config.model).is_dir() else frozenset()
        )
        contamination.guard(seen, config.exclude)
        self.tokenizer, self.model = self._base(examples)
        self.cuts: Counter[str] = Counter()
        limit = config.max_prompt_tokens
        prompts = Prompts(self.tokenizer, run.path / TOKENS)
        self.train: list[Sample] = make_samples(examples.train, examples.systems, prompts, limit, self.cuts)
        validation = _some(examples.val, config.validation.steps, config.seed)
        self.val: list[Sample] = make_samples(validation, examples.systems, prompts, limit, self.cuts)
        if self.cuts["prompts"]:
            print(
                f"cut to {limit} tokens: {self.cuts['prompts']} of {len(self.train) + len(self.val)} prompts {dict(self.cuts)}",
                file=sys.stderr,
            )
        policy = PromptPolicy(context=config.context, max_prompt_tokens=limit, env=config.env)
        self.companions = Companions(self.tokenizer, policy, frozenset(seen))
        self.baselines = Baselines(self.train, config.seed)
        self.report["data"] = {
            **examples.counts,
            "train_steps": len(self.train),
            "val_steps": len(self.val),
            "cuts": dict(self.cuts),
            "prompt_tokens": {
                "mean": sum(s.prompt_tokens for s in self.train) / len(self.train),
                "max": max(s.prompt_tokens for s in self.train),
            },
            "seconds": round(time.monotonic() - started, 1),
        }
        self.report["parameters"] = self.model.num_parameters()
        self.report["baselines"] = baseline_means(self.val or self.train[:200], self.baselines)

    def all(self) -> dict[str, Any]:
        config = self.config
        if config.model == TINY_MODEL and not (self.checkpoints / "base").exists():
            export(self.model, self.companions, self.checkpoints / "base")
        if config.warmup.epochs and config.method == "srl":
            if (self.checkpoints / "warmup").exists():
                self.model.load_state_dict(load_model(str(self.checkpoints / "warmup")).state_dict())
            else:
                self._supervised("warmup", config.warmup, best=None)
                export(self.model, self.companions, self.checkpoints / "warmup")
        if config.method == "sft":
            self._supervised("sft", config.sft, best=self.checkpoints / "best")
        else:
            self._reinforced()
        export(self.model, self.companions, self.checkpoints / "final")
        best = self.checkpoints / "best"
        if best.exists():
            self.report["best"] = validation_of(best)
            make_newest(best)
        self.report["checkpoint"] = str(best if best.exists() else self.checkpoints / "final")
        self.report["plots"] = [str(path.relative_to(self.run.path)) for path in draw(self.run)]
        self.report["stages"] = stage_reports(self.run)
        write_json(self.run.path / "report.json", self.report)
        for folder in (self.checkpoints / "resume", self.run.path / TOKENS):
            shutil.rmtree(folder, ignore_errors=True)
        return self.report

    def _base(self, examples: Examples) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        """Tokenizer and model to start from. A tiny one is built once and then belongs to the run."""
        config = self.config
        made = self.checkpoints / "base"
        if config.tokenizer and config.model != TINY_MODEL:
            raise UserError(f"--tokenizer goes with --model {TINY_MODEL}; {config.model} brings its own")
        if config.model != TINY_MODEL or made.exists():
            source = str(made) if config.model == TINY_MODEL else config.model
            tokenizer, model = load_tokenizer(source), load_model(source)
        else:
            tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else train_tokenizer(corpus(examples), config.tiny.vocabulary)
            model = build_model(config.tiny, tokenizer, config.seed)
        model.generation_config.eos_token_id = end_tokens(tokenizer, model)
        return tokenizer, model.to(self._device())

    def _device(self) -> str:
        if self.config.device != "auto":
            return self.config.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _supervised(self, stage: str, options: Supervised, best: Path | None) -> None:
        sequences = Sequences(self.train, self.tokenizer, options)
        if sequences.dropped:
            print(f"{stage}: {sequences.dropped} sequences longer than {options.max_tokens} tokens are left out", file=sys.stderr)
        set_seed(self.config.seed)
        trainer = sft_trainer(
            self.model, self.tokenizer, sequences, options, self._resumable(stage), self.config.seed, self.config.checkpoint_every
        )
        facts = {"sequences": len(sequences), "dropped_too_long": sequences.dropped}
        self._stage(stage, trainer, lambda: {}, best, facts)

    def _reinforced(self) -> None:
        config = self.config
        folder = self._resumable("srl")
        set_seed(config.seed)
        facts: Figures = {}
        if last_resumable(folder) is None:
            gate = check_gate(self.model, self.tokenizer, self.train, config)
            facts = {f"gate_{name}": value for name, value in gate.items()}
            print(f"gate: format {gate['format_ok']:.1%}, groups that differ {gate['varied_groups']:.1%}: RL starts", file=sys.stderr)
        with RewardPool() as pool:
            end = end_tokens(self.tokenizer, self.model)
            completions = self.run.path / "completions"
            source = StepRollouts(self.train, self.baselines, self.tokenizer, end, config.srl, completions, config.samples_logged, pool)
            trainer = reinforced_trainer(self.model, self.tokenizer, source, config.srl, folder, config.seed, config.checkpoint_every)
            self._stage("srl", trainer, lambda: source.figures | trainer.refill.figures, self.checkpoints / "best", facts)

    def _stage(self, stage: str, trainer: Trainer, extra: Callable[[], Figures], best: Path | None, facts: Figures) -> None:
        """Train to the end of a stage, from its last whole checkpoint where there is one.

        Raises:
            Stopped: Ctrl-C; a checkpoint was written.
        """
        steps = trainer.args.max_steps
        resume = last_resumable(self._resumable(stage))
        if resume is not None:
            print(f"{stage}: resuming from {resume}", file=sys.stderr)
        begin_stage(self.run, stage, step_of(resume) if resume else 0, facts)
        measure = self._validate if self.val else None
        recorder = Recorder(self.run, stage, steps, self.companions, self.stop, measure, self.config.validation.every, extra, best)
        trainer.add_callback(recorder)
        with recorder.progress:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if self.stop.requested and trainer.state.global_step < steps:
            raise Stopped(f"stopped in {stage} at step {trainer.state.global_step} of {steps}; the same command resumes it")

    def _resumable(self, stage: str) -> Path:
        return self.checkpoints / "resume" / stage

    def _validate(self) -> Figures:
        config = self.config
        return {
            **validate(self.model, self.tokenizer, self.val, config.srl.max_completion_tokens, config.srl.sample_batch),
            **self.report["baselines"],
        }


def _some(examples: list[StepExample], limit: int, seed: int) -> list[StepExample]:
    """At most `limit` of them, drawn by `seed`, in their order."""
    if len(examples) <= limit:
        return examples
    return [examples[index] for index in sorted(random.Random(seed).sample(range(len(examples)), limit))]
