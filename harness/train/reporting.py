"""Sends the figures of metrics.jsonl to TensorBoard, Weights & Biases or Trackio, through transformers' callbacks for them.

The trainers themselves report nowhere: these get our rows under our names, those of validations as `eval/…`, the others as `train/…`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks

PROJECT = "srl-harness"


class Reporters:
    """Of one stage; a run in each of the places, named after the run folder and the stage.

    Args:
        names: `report_to`; each package is installed.
    """

    def __init__(self, names: Sequence[str], run: Path, stage: str) -> None:
        self._name = f"{run.resolve().name}-{stage}"
        self._wandb = "wandb" in names
        if self._wandb:
            os.environ.setdefault("WANDB_PROJECT", PROJECT)
        self._callbacks = [kind() for kind in get_reporting_integration_callbacks(list(names))]
        for callback in self._callbacks:
            if isinstance(callback, TensorBoardCallback):
                callback.logging_dir = str(run / "tensorboard" / stage)

    def begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any) -> None:
        args = copy.copy(args)
        args.run_name, args.project = self._name, PROJECT
        self._call("on_train_begin", args, state, control, model=model)

    def send(self, row: Mapping[str, Any], args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """The figures of a row; they are shown at `state`'s step."""
        figures = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
        renamed = {f"eval_{name.removeprefix('val_')}" if name.startswith("val_") else name: value for name, value in figures.items()}
        self._call("on_log", args, state, control, logs=renamed)

    def end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        self._call("on_train_end", args, state, control)
        if self._wandb:
            import wandb

            wandb.finish()

    def _call(self, event: str, *given: Any, **options: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, event)(*given, **options)
