"""What happens beside the optimizer steps: metrics, progress, validation, the best checkpoint, and a clean stop on Ctrl-C."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness.progress import Progress
from harness.runs import Run, read_jsonl, write_text
from harness.train.checkpoint import WHOLE, Companions, export, validation_of

if TYPE_CHECKING:
    from harness.train.stages import Stage

Figures = dict[str, float]
TRL_NAMES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "mean_token_accuracy": "token_accuracy",
    "epoch": "epoch",
}
"""Figures of the trainer's log that go into metrics.jsonl, under which name."""


class Stop:
    """Ctrl-C asks for a stop after the current step; a second one interrupts at once. A context manager."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this step, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)


class Recorder(TrainerCallback):
    """Of one stage.

    Args:
        every: optimizer steps between validations.
        best: folder of the stage's best checkpoint.
    """

    def __init__(self, run: Run, stage: Stage, companions: Companions, stop: Stop, every: int, best: Path) -> None:
        self._run = run
        self._stage = stage
        self._companions = companions
        self._stop = stop
        self._every = every
        self._best = best
        self._since = time.monotonic()
        self.progress = Progress(stage.trainer.args.max_steps, stage.name)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        self.progress.resume_at(state.global_step)
        if state.global_step == 0:
            self._measure(0, others["model"])
        self._since = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        if self._stop.requested:
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **others: Any) -> None:
        if "train_runtime" in logs:
            return
        now = time.monotonic()
        row = {TRL_NAMES[name]: value for name, value in logs.items() if name in TRL_NAMES}
        row |= self._stage.extra()
        self._run.log({"stage": self._stage.name, "step": state.global_step, **row, "seconds": round(now - self._since, 3)})
        shown = {name: float(row[name]) for name in ("loss", "reward", "format_ok", "exact", "solved") if isinstance(row.get(name), float)}
        self.progress.advance(1, **shown)
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._measure(state.global_step, others["model"])
        self._since = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._companions.save(directory)
        (directory / WHOLE).touch()

    def _measure(self, step: int, model: Any) -> None:
        if self._stage.measure is None:
            return
        started = time.monotonic()
        figures = self._stage.measure()
        row = {f"val_{name}": value for name, value in figures.items()}
        self._run.log({"stage": self._stage.name, "step": step, **row, "seconds": round(time.monotonic() - started, 3)})
        before = validation_of(self._best)
        if before is None or _rank(figures, self._stage.rank) > _rank(before, self._stage.rank):
            export(model, self._companions, self._best, {"step": step, **figures})


def begin_stage(run: Run, stage: str, step: int, facts: Figures) -> None:
    """Drop the rows of steps that a kill undid, since they will be done again; at the beginning of a stage, log `facts`.

    Args:
        step: after which the stage goes on; 0 where it begins.
    """
    file = run.path / "metrics.jsonl"
    rows = list(read_jsonl(file))
    kept = [row for row in rows if row.get("stage") != stage or (0 < step >= row["step"])]
    if len(kept) < len(rows):
        write_text(file, "".join(f"{json.dumps(row)}\n" for row in kept))
    if step == 0:
        run.log({"stage": stage, "step": 0, **facts})


def stage_reports(run: Run) -> dict[str, dict[str, Any]]:
    """By stage: steps, seconds of training and of validation, the facts of its beginning, and the validations before and after."""
    reports: dict[str, dict[str, Any]] = {}
    for row in read_jsonl(run.path / "metrics.jsonl"):
        report = reports.setdefault(row["stage"], {"steps": 0, "seconds": 0.0, "validation_seconds": 0.0})
        figures = {name.removeprefix("val_"): value for name, value in row.items() if name.startswith("val_")}
        if figures:
            report["validation_seconds"] += row["seconds"]
            report["after" if "before" in report else "before"] = figures
        elif row["step"] == 0:
            report |= {name: value for name, value in row.items() if name not in ("stage", "step")}
            report |= {"steps": 0, "seconds": 0.0}
        else:
            report["steps"] = row["step"]
            report["seconds"] += row["seconds"]
    return reports


def _rank(figures: Figures, names: Sequence[str]) -> tuple[float, ...]:
    return tuple(figures[name] for name in names)
