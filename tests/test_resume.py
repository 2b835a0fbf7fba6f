"""A run that is killed again and again ends as one that is left alone: the reference is that one, through the same real command."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import test_train
import training_corpus
from forked import Forked
from safetensors.torch import load_file

from harness.runs import read_jsonl

OPTIONS = (
    "--warmup.max_steps=40",
    "--warmup.batch=8",
    "--warmup.micro_batch=8",
    "--warmup.epochs=100",
    "--warmup.learning_rate=1e-2",
    "--srl.max_steps=12",
    "--srl.prompts=2",
    "--srl.rollouts=4",
    "--srl.micro_batch=8",
    "--srl.steps_per_trajectory=2",
    "--srl.max_completion_tokens=48",
    "--srl.learning_rate=1e-3",
    "--srl.dynamic_sampling=true",
    "--srl.max_tries=200",
    "--srl.steps_per_trajectory=2",
    "--gate.groups=2",
    "--validation.every=5",
    "--validation.steps=4",
    "--checkpoint_every=3",
    *test_train.OPEN_GATE,
)
KILLS = (
    ("versions.json", 1),
    ("/tokens", 2),
    None,
    (".new/", 5),
    ("resume/", 4),
    None,
    ("resume/", 90),
    (".new/", 9),
    None,
    ("resume/", 75),
    ("metrics.jsonl", 8),
    None,
    ("checkpoints/best", 1),
    ("completions/", 3),
    None,
    ("resume/srl", 12),
    ("completions/", 3),
    ("resume/srl", 30),
    (".final.new", 6),
    ("report.json", 1),
)
"""Before which change of a file a process is killed (see `forked.py`), in the order of a run: start-up, exports, checkpoints in the middle
of their writing, metrics, the end of a stage, sampling, the report. None: at any time, within three seconds."""


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_as_one_that_was_not(tmp_path: Path, forked: Forked) -> None:
    data = training_corpus.write(tmp_path)

    def command(run: Path) -> list[str]:
        return test_train._command(data, run, *OPTIONS)

    whole, log = tmp_path / "whole", tmp_path / "log"
    forked.start(command(whole), log)
    assert forked.wait() == 0, log.read_text()
    rng = random.Random(1)
    left = list(KILLS)
    runs = 0
    status = -signal.SIGKILL
    while left or status:
        path = tmp_path / f"killed{runs}"
        aim = left[0] if left else ("no such file", 1)
        child = forked.start(command(path), log, aim)
        if aim is None:
            time.sleep(rng.uniform(0, 3))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = forked.wait()
        assert status in (0, -signal.SIGKILL), log.read_text()
        if status == 0:  # it was over before its time came
            _assert_alike(path, whole)
            runs += 1
        else:
            left.pop(0)


def _assert_alike(run: Path, whole: Path) -> None:
    for folder in ("final", "best", "warmup", "base"):
        weights = [load_file(path / "checkpoints" / folder / "model.safetensors") for path in (run, whole)]
        for name, tensor in weights[0].items():
            assert (tensor - weights[1][name]).abs().max() <= 1e-6, (folder, name)
    for file in ("checkpoints/best/validation.json", "checkpoints/warmup/validation.json"):
        assert (run / file).read_text() == (whole / file).read_text()
    rows = _rows(run)
    assert rows == _rows(whole)
    sampled = [row for row in rows if "frontier" in row]
    assert [row["step"] for row in sampled] == list(range(1, 13))
    assert [row["frontier"] for row in sampled] == [sum(row["tried"] for row in sampled[: n + 1]) for n in range(12)]
    assert any(row["tried"] > 2 for row in sampled)
    completions = [{file.name: file.read_text() for file in (path / "completions").iterdir()} for path in (run, whole)]
    assert completions[0] == completions[1]
    assert not (run / "checkpoints" / "resume").exists()


def _rows(run: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without what the clock says, and without the row of the last checkpoint, which says nothing else: a kill after
    that checkpoint leaves it out."""
    clock = ("seconds", "share_", "_per_second")
    rows = read_jsonl(run / "metrics.jsonl")
    bare = [{name: value for name, value in row.items() if not any(part in name for part in clock)} for row in rows]
    return [row for row in bare if row.keys() != {"stage", "step"}]
