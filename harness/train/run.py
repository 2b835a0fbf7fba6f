"""A training run from options to report, stage after stage. A killed one goes on in the stage and at the step where it stopped."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from harness.env import load_env
from harness.generate_hf import load_model
from harness.reward_pool import RewardPool
from harness.runs import Run, open_run, write_json, write_text
from harness.train import processes
from harness.train.adapters import merge
from harness.train.checkpoint import export, last_resumable, make_newest, step_of, validation_of
from harness.train.config import MAY_CHANGE, TrainConfig
from harness.train.curves import draw
from harness.train.failure import NoSignal, Stopped, one_message
from harness.train.packages import check_packages
from harness.train.recorder import Recorder, Stop, begin_stage
from harness.train.reporting import Reporters
from harness.train.setup import TOKENS, Setup, set_up, stages_of
from harness.train.sharding import load_whole
from harness.train.stages import STAGES
from harness.train.summary import describe, stage_reports
from harness_trajectories.errors import UserError


def train(config: TrainConfig, out: Path, fresh: bool = False) -> dict[str, Any]:
    """Run, or take up again, the training that `config` describes; a finished one is only reported.

    Returns:
        the content of RUN/report.json.

    Raises:
        UserError: data, model or options cannot be used.
        TrainingFailed: anything else that ends it before its time; the same command goes on from its last whole checkpoint.
        GateClosed: RL does not start.
        Stopped: Ctrl-C.
    """
    with one_message(out), processes.one_voice():
        return _train(config, out, fresh)


def _train(config: TrainConfig, out: Path, fresh: bool) -> dict[str, Any]:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    check_packages(config)
    env = load_env(config.domain)
    existed = out.exists() and not fresh
    with processes.first_alone():
        run = open_run(out, "train", config, fresh, MAY_CHANGE) if processes.is_first() else Run(out, resumed=True)
    report = run.path / "report.json"
    if report.is_file():
        print(f"{out} is finished; --fresh trains anew", file=sys.stderr)
        _clean(run)
        return json.loads(report.read_text())
    try:
        with processes.first_alone():
            setup = set_up(config, env, run)
    except UserError:
        if not existed and processes.is_first():
            shutil.rmtree(out)  # so that the corrected command may use it
        raise
    setup.replica.place()
    with Stop() as stop, RewardPool() as pool:
        _all(setup, pool, stop)
    with processes.first_alone():
        return _report(setup) if processes.is_first() else json.loads(report.read_text())


def _all(setup: Setup, pool: RewardPool, stop: Stop) -> None:
    """Every stage that is not finished, each from the best checkpoint of the one before."""
    model, companions, checkpoints = setup.model, setup.companions, setup.checkpoints
    best = checkpoints / "best"  # of the present stage
    *first, last = stages_of(setup.config)
    for name in first:
        kept = checkpoints / name  # it is there once the stage is finished
        if not kept.exists():
            _stage(setup, pool, name, stop)
            with processes.first_alone():
                if best.exists():  # for the first
                    best.rename(kept)
            if not kept.exists():
                export(model, companions, kept)
        load_whole(model, load_model(str(kept)).state_dict())
    _stage(setup, pool, last, stop)
    export(model, companions, checkpoints / "final")


def _stage(setup: Setup, pool: RewardPool, name: str, stop: Stop) -> None:
    """Train to the end of a stage, from its last whole checkpoint where there is one.

    Raises:
        GateClosed: RL does not start.
        Stopped: Ctrl-C; a checkpoint was written.
    """
    with STAGES[name](setup, pool, name) as stage:
        trainer, steps = stage.trainer, stage.trainer.args.max_steps
        resume = last_resumable(setup.resumable(name))
        if resume is not None:
            print(f"{name}: resuming from {resume}", file=sys.stderr)
        if processes.is_first():
            begin_stage(setup.run, name, step_of(resume) if resume else 0, stage.facts)
        reporters = Reporters(setup.config.report_to if processes.is_first() else (), setup.run.path, name)
        every = setup.config.validation.every
        recorder = Recorder(setup.run, stage, setup.companions, stop, every, setup.checkpoints / "best", reporters)
        trainer.add_callback(recorder)
        try:
            with recorder.progress:
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except Exception as error:
            if not isinstance(error, NoSignal) or getattr(setup.config, name).without_signal == "fail":
                error.add_note(f"{name}, step {trainer.state.global_step + 1} of {steps}")
                raise
            print(f"{name}: finished at step {trainer.state.global_step} of {steps}: {error}", file=sys.stderr)
            recorder.end_early(trainer)
        if stop.requested and trainer.state.global_step < steps:
            raise Stopped(f"stopped in {name} at step {trainer.state.global_step} of {steps}; the same command resumes it")
        merge(trainer.model)


def _report(setup: Setup) -> dict[str, Any]:
    """Write report.md and then report.json, which says that the run is finished; take away what only a run under way needs."""
    config, run, checkpoints = setup.config, setup.run, setup.checkpoints
    best = checkpoints / "best"
    report: dict[str, Any] = {
        "domain": config.domain,
        "method": config.method,
        "model": config.model,
        "stages": stage_reports(run),
        "data": setup.data,
        "parameters": setup.model.num_parameters(),
        "baselines": setup.baseline_figures,
    }
    for name in stages_of(config)[:-1]:
        if figures := validation_of(checkpoints / name):
            report["stages"][name]["best"] = figures
    if best.exists():
        report["best"] = validation_of(best)
        make_newest(best)
    report["checkpoint"] = str(best if best.exists() else checkpoints / "final")
    report["plots"] = [str(path.relative_to(run.path)) for path in draw(run)]
    write_text(run.path / "report.md", describe(run, report))
    write_json(run.path / "report.json", report)
    _clean(run)
    return report


def _clean(run: Run) -> None:
    """Take away what only a run under way needs."""
    for folder in (run.path / "checkpoints" / "resume", run.path / TOKENS):
        shutil.rmtree(folder, ignore_errors=True)
