"""Checkpoints: exported ones that anything can load, and resumable ones that a killed stage goes on from.

RUN/checkpoints/base        the tiny preset's untrained model
RUN/checkpoints/warmup      after the supervised warm-up
RUN/checkpoints/best        the best on validation, with validation.json
RUN/checkpoints/final       after the last step
RUN/checkpoints/resume/STAGE/checkpoint-N   the last ones of a stage, with optimizer, schedule and random state

Each holds weights, tokenizer, the prompt policy and the ids of the instances that it was trained on.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from harness import contamination
from harness.prompt import PromptPolicy
from harness.runs import write_json
from harness.train import processes
from harness.train.adapters import whole_weights
from harness.train.sharding import is_sharded, whole

WHOLE = "whole"
"""Marks a resumable checkpoint whose writing was finished."""
VALIDATION = "validation.json"


class Companions(NamedTuple):
    """What stands in a checkpoint beside the weights."""

    tokenizer: PreTrainedTokenizerBase
    policy: PromptPolicy
    instances: frozenset[str]

    def save(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)
        self.policy.save(directory)
        contamination.record(directory, self.instances)


def export(model: Any, companions: Companions, directory: Path, validation: dict[str, float] | None = None) -> None:
    """Write a loadable checkpoint so that `directory` is there whole or not at all; one that lies there is replaced.

    Args:
        model: perhaps with adapters, which are added to the weights that are written; if it is sharded, all processes call this together,
            and the first writes.
    """
    if is_sharded(model):
        bare, weights = model, {name: value.cpu() for name, value in whole(model) if processes.is_first()}
    else:
        bare, weights = whole_weights(model)
    if not processes.is_first():
        return
    fresh = directory.with_name(f".{directory.name}.new")
    stale = directory.with_name(f".{directory.name}.old")
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        bare.save_pretrained(fresh, state_dict=weights)
        companions.save(fresh)
        if validation is not None:
            write_json(fresh / VALIDATION, validation)
        settle(fresh)
    except Exception:
        shutil.rmtree(fresh, ignore_errors=True)  # a full disk has room again
        raise
    if directory.exists():
        directory.rename(stale)
    fresh.rename(directory)
    shutil.rmtree(stale, ignore_errors=True)


def settle(directory: Path) -> None:
    """Have the files of a checkpoint on the disk: a system that finds out late that it has no room says so here, and a power cut tears
    nothing that is taken for whole.

    Raises:
        OSError: they cannot be written.
    """
    for path in (*directory.rglob("*"), directory):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def validation_of(directory: Path) -> dict[str, float] | None:
    """The figures with which a checkpoint was exported; None where there is no such checkpoint."""
    file = directory / VALIDATION
    return json.loads(file.read_text()) if file.is_file() else None


def last_resumable(stage: Path) -> Path | None:
    """The newest whole checkpoint of a stage; ones torn by a kill are removed."""
    with processes.first_alone():
        found = sorted(stage.glob("checkpoint-*"), key=step_of)
        for path in found:
            if not (path / WHOLE).is_file():
                shutil.rmtree(path)
        return next((path for path in reversed(found) if path.exists()), None)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done at a resumable checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def make_newest(directory: Path) -> None:
    """Have `harness eval` without --model find this one among the run's checkpoints."""
    if (directory / "config.json").is_file():
        os.utime(directory / "config.json")
