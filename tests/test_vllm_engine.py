"""Training that samples with vLLM, against the model that is trained: transformers' forward pass in float32, by other kernels.

What needs vLLM runs in an environment that holds it and what training imports, `make vllm-cpu`, as a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import training_corpus
from test_generate_vllm import ENVIRONMENT, PYTHON
from test_train import OPEN_GATE, SRL

from harness.runs import read_jsonl
from harness.train.config import Outcome, StepWise
from harness.train.vllm_engine import check_vllm
from harness_trajectories.errors import UserError

DRIVER = Path(__file__).with_name("vllm_training_driver.py")
TOLERANCE = 1e-3


def driven(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if not PYTHON.is_file():
        pytest.skip(f"no {PYTHON}: `make vllm-cpu` makes that environment, or name another one's Python in HARNESS_VLLM_PYTHON")
    command = [str(PYTHON), str(DRIVER), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def found(folder: Path, case: str) -> dict[str, Any]:
    done = driven(folder, case)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.vllm
@pytest.mark.slow
def test_it_samples_from_the_weights_of_the_step(tmp_path: Path) -> None:
    said = found(tmp_path, "sync")
    assert said["error"] == ""
    assert len(said["gaps"]) == 4
    assert max(said["gaps"]) < TOLERANCE
    assert len(set(said["sums"])) == 5  # the weights moved in each step
    assert said["alone"] == said["together"]
    assert len({tuple(tokens) for tokens in said["together"]}) == 6
    for row in said["greedy"]:
        assert row["tokens"] == row["expected"]
        assert row["logprobs"] == pytest.approx(row["expected_logprobs"], abs=TOLERANCE)


@pytest.mark.vllm
@pytest.mark.slow
def test_adapters_are_added_to_the_weights_that_sample(tmp_path: Path) -> None:
    said = found(tmp_path, "adapters")
    assert len(said["gaps"]) == 4
    assert max(said["gaps"]) < TOLERANCE
    assert len(set(said["sums"])) == 4


@pytest.mark.vllm
@pytest.mark.slow
def test_weights_that_were_not_handed_over_end_the_run_before_a_step(tmp_path: Path) -> None:
    said = found(tmp_path, "stale")
    assert "the sampler is not the model that is trained" in said["error"]
    assert "srl.max_sampler_gap 0.02" in said["error"]
    assert len(said["gaps"]) == 1


@pytest.mark.vllm
@pytest.mark.slow
def test_the_command_trains_with_it(tmp_path: Path) -> None:
    data, run = training_corpus.write(tmp_path), tmp_path / "run"
    # Heads of 32: vLLM's build for CPUs has no attention for narrower ones.
    options = (*training_corpus.SMALL, *SRL, *OPEN_GATE, "--tiny.hidden=64", "--srl.sampler=vllm")
    done = driven("train", "--domain", "swe", "--model", "tiny", "--data", data, "--out", run, "--json", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stages"]["srl"]["steps"] == 2  # nothing of vLLM's beside it
    gaps = [row["sampler_gap"] for row in read_jsonl(run / "metrics.jsonl") if "sampler_gap" in row]
    assert len(gaps) == 2
    assert max(gaps) < TOLERANCE


def test_it_is_refused_in_several_processes_and_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    check_vllm(StepWise())
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(UserError, match=r"^srl\.sampler vllm needs vLLM.*pip install 'srl-harness\[vllm\]'.*--srl\.sampler=model$"):
        check_vllm(StepWise(sampler="vllm"))
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^rlvr\.sampler vllm is for one process, and this run has 2: not supported yet"):
        check_vllm(Outcome(sampler="vllm"))
