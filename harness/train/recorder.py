"""What happens beside the optimizer steps: metrics, progress, validation, the best checkpoint, and a clean stop on Ctrl-C.

The rows of a stage in metrics.jsonl, all with `stage` and `step`:
- the first: facts of its beginning (the gate before RL, sequences left out).
- one a step: the trainer's figures and those of sampling; `seconds`, and by phase `seconds_…` and `share_…` of it; tokens a second, those
  sampled by the seconds of sampling (`tokens_per_second`) and those of the updated sequences by the seconds of the update.
- one a validation: `val_…` and its `seconds`.
- the last, where something was saved after the last step: the seconds of that. Earlier checkpoints count in the step after them.
"""

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
from harness.train import processes
from harness.train.checkpoint import WHOLE, Companions, export, settle, validation_of
from harness.train.reporting import Reporters
from harness.train.summary import spent_tokens

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
    "gradient_correlation": "gradient_correlation",
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
        reporters: where rows are sent besides.
    """

    def __init__(self, run: Run, stage: Stage, companions: Companions, stop: Stop, every: int, best: Path, reporters: Reporters) -> None:
        self._run = run
        self._stage = stage
        self._companions = companions
        self._stop = stop
        self._every = every
        self._best = best
        self._reporters = reporters
        self._phases = stage.trainer.phases
        self._spent = 0.0
        self._since = self._saving = time.monotonic()
        self.progress = Progress(stage.trainer.args.max_steps, stage.name)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        self.progress.resume_at(state.global_step)
        self._reporters.begin(args, state, control, others["model"])
        self._spent = sum(spent_tokens(row) for row in read_jsonl(self._run.path / "metrics.jsonl") if row["stage"] == self._stage.name)
        self._since = time.monotonic()
        self._phases.take()  # what the gate took
        if state.global_step == 0:
            self._measure(args, state, control, others["model"])

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        self._phases.begin("update")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        self._phases.end()
        self._stop.requested = any(processes.gathered([self._stop.requested]))
        if self._stop.requested:
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **others: Any) -> None:
        if "train_runtime" in logs:
            return
        row = {TRL_NAMES[name]: value for name, value in logs.items() if name in TRL_NAMES}
        row |= self._stage.trainer.figures | self._times()
        for tokens, phase in (("sampled_tokens", "sampling"), ("update_tokens", "update")):
            if tokens in row and row.get(f"seconds_{phase}"):
                name = "tokens_per_second" if phase == "sampling" else "update_tokens_per_second"
                row[name] = round(row[tokens] / row[f"seconds_{phase}"], 1)
        self._log(row, args, state, control)
        shown = {name: float(row[name]) for name in ("loss", "reward", "format_ok", "exact", "solved") if isinstance(row.get(name), float)}
        self.progress.advance(1, **shown)
        self._spent += spent_tokens(row)
        if self._stage.budget and self._spent >= self._stage.budget:
            control.should_training_stop = True
        if state.global_step % self._every == 0 or state.global_step == state.max_steps or control.should_training_stop:
            self._measure(args, state, control, others["model"])
        self._saving = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        processes.gathered([])  # all have written their part
        if processes.is_first():
            directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._companions.save(directory)
            settle(directory)
            (directory / WHOLE).touch()
        self._phases.add("checkpoint", time.monotonic() - self._saving)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        times = self._times()
        if "seconds_checkpoint" in times:
            self._log(times, args, state, control)
        self._reporters.end(args, state, control)

    def end_early(self, trainer: Any) -> None:
        """Finish the log of a stage that found no batch to go on with: what it sampled in vain, and the validation of its last weights."""
        about = trainer.args, trainer.state, trainer.control
        self._log(trainer.sampling_figures | self._times(), *about)
        if trainer.state.global_step % self._every:
            self._measure(*about, trainer.model)

    def _measure(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any) -> None:
        if self._stage.measure is None:
            return
        started = time.monotonic()
        figures = self._stage.measure()
        row = {f"val_{name}": value for name, value in figures.items()}
        seconds = time.monotonic() - started
        self._since += seconds
        self._log({**row, "seconds": round(seconds, 3)}, args, state, control)
        before = validation_of(self._best)
        if before is None or _rank(figures, self._stage.rank) > _rank(before, self._stage.rank):
            with self._phases("checkpoint"):
                export(model, self._companions, self._best, {"step": state.global_step, **figures})

    def _times(self) -> Figures:
        """Seconds since the last step's row, without those of validations, and by phase."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        phases = self._phases.take()
        times = {"seconds": round(seconds, 3)}
        for name, value in phases.items():
            times |= {f"seconds_{name}": round(value, 3), f"share_{name}": round(value / seconds, 4)}
        return times

    def _log(self, row: dict[str, Any], args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        if processes.is_first():
            self._run.log({"stage": self._stage.name, "step": state.global_step, **row})
            self._reporters.send(row, args, state, control)


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


def _rank(figures: Figures, names: Sequence[str]) -> tuple[float, ...]:
    return tuple(figures[name] for name in names)
