"""What ends a training early: exit code 1, one message, and a folder that the same command takes up again.

The faults are real ones where that is possible (a full file system, a stopped process); else put into the model or the engine from outside.
The reference is a run that nothing went wrong with: the one that was taken up again ends with its weights.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import test_train
import torch
import training_corpus
import yaml
from safetensors.torch import load_file
from transformers import PreTrainedModel

from harness import pool, reward_pool
from harness.generate_hf import load_model, load_tokenizer
from harness.prompt import PromptPolicy
from harness.reward_pool import RewardPool
from harness.runs import Run, read_jsonl
from harness.train import checkpoint, engine, failure, grpo, run, setup

STEPS = 6
SRL = (
    f"--srl.max_steps={STEPS}",
    "--srl.prompts=2",
    "--srl.rollouts=4",
    "--srl.micro_batch=8",
    "--srl.max_completion_tokens=48",
    "--srl.dynamic_sampling=true",
    "--srl.max_tries=100",
    "--checkpoint_every=2",
    "--validation.every=2",
    "--validation.steps=4",
    *test_train.OPEN_GATE,
)
SFT = ("--method", "sft", "--sft.max_steps=6", "--sft.batch=4", "--sft.micro_batch=2", "--checkpoint_every=2", "--validation.steps=2")
Command = Callable[..., int]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a warmed-up model that SRL starts from, and an SRL run of it that nothing went wrong with."""
    folder = tmp_path_factory.mktemp("made")
    data = training_corpus.write(folder)
    options = ("--sft.max_steps=40", "--sft.batch=8", "--sft.micro_batch=8", "--sft.epochs=100", "--sft.learning_rate=1e-2")
    with pytest.MonkeyPatch.context() as patch:
        common = ("train", "--domain", "swe", "--data", data)
        warm = (*common, "--model", "tiny", "--method", "sft", *training_corpus.SMALL, *options, "--out", folder / "warm")
        assert test_train.harness(patch, *warm) == 0
        assert test_train.harness(patch, *common, "--model", folder / "warm/checkpoints/final", *SRL, "--out", folder / "whole") == 0
    return folder


@pytest.fixture
def command(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Trains on into a folder; its exit code."""

    def train(*options: str, out: Path = tmp_path / "run") -> int:
        model = made / "warm/checkpoints/final"
        return test_train.harness(
            monkeypatch, "train", "--domain", "swe", "--data", made / "hand.jsonl", "--model", model, "--out", out, *options
        )

    return train


def message(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command ended with."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, captured.err
    assert captured.err.splitlines()[-1] == lines[0]
    return lines[0]


def assert_as_whole(path: Path, made: Path) -> None:
    weights = [load_file(folder / "checkpoints/final/model.safetensors") for folder in (path, made / "whole")]
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 1e-6, name
    assert test_train._steps(path, "srl") == list(range(1, STEPS + 1))


def after_step(step: int, act: Callable[[], None]) -> Callable[[Run, Mapping[str, Any]], None]:
    """`Run.log` that acts once metrics.jsonl holds this step of SRL."""
    log = Run.log

    def logging(run: Run, row: Mapping[str, Any]) -> None:
        log(run, row)
        if (row["stage"], row.get("step")) == ("srl", step) and "loss" in row:
            act()

    return logging


def spoiling(load: Callable[..., PreTrainedModel], spoil: Callable[[PreTrainedModel], None]) -> Callable[..., PreTrainedModel]:
    def loaded(*arguments: Any) -> PreTrainedModel:
        model = load(*arguments)
        spoil(model)
        return model

    return loaded


def test_a_gradient_that_is_not_finite_makes_no_step(
    made: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def spoil(model: PreTrainedModel) -> None:
        def once(gradient: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return gradient * float("inf") if len(calls) == 4 else gradient

        model.model.norm.weight.register_hook(once)

    with monkeypatch.context() as patch:
        patch.setattr(setup, "load_model", spoiling(setup.load_model, spoil))
        assert command(*SRL) == 1
    said = message(capsys)
    assert "srl, step 4 of 6: the gradient norm is " in said
    assert "hand__" in said
    assert "goes on from step 2 of srl" in said
    assert test_train._steps(tmp_path / "run", "srl") == [1, 2, 3]
    for file in (tmp_path / "run").rglob("model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())
    assert command(*SRL) == 0
    assert_as_whole(tmp_path / "run", made)


def test_a_loss_that_is_not_finite_names_the_samples_of_its_micro_batch(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def spoil(model: PreTrainedModel) -> None:
        def once(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
            calls.extend([1] * module.training)
            return output * float("nan") if len(calls) == 6 else output

        model.model.norm.register_forward_hook(once)

    with monkeypatch.context() as patch:
        patch.setattr(setup, "load_model", spoiling(setup.load_model, spoil))
        assert command(*SFT) == 1
    said = message(capsys)
    assert "sft, step 3 of 6: the loss is nan on hand__" in said
    assert said.count("hand__") == 2
    assert "goes on from step 2 of sft" in said
    assert command(*SFT) == 0
    assert test_train._steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


class Dying(engine.ModelEngine):
    """Dies at its fourth call."""

    error: Exception
    calls: list[int]

    def sample(self, prompts: Sequence[Sequence[int]], *arguments: Any, **options: Any) -> Any:
        self.calls.append(len(prompts))
        if len(self.calls) == 4:
            raise self.error
        return super().sample(prompts, *arguments, **options)


def test_a_sampler_that_dies_is_one_message(
    made: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(grpo, "ModelEngine", type("Gone", (Dying,), {"error": ConnectionError("it hung up\nand more"), "calls": []}))
        assert command(*SRL) == 1
    said = message(capsys)
    assert " of 6: while sampling: ConnectionError: it hung up (HARNESS_DEBUG" in said
    assert "The same command " in said
    assert command(*SRL) == 0
    assert_as_whole(tmp_path / "run", made)


def test_out_of_memory_says_what_to_lower_and_the_run_goes_on_with_it(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with monkeypatch.context() as patch:
        patch.setattr(grpo, "ModelEngine", type("Full", (Dying,), {"error": error, "calls": []}))
        assert command(*SRL) == 1
    said = message(capsys)
    for option in ("micro_batch", "srl.sample_batch", "srl.max_completion_tokens", "max_prompt_tokens"):
        assert option in said
    assert command(*SRL, "--srl.sample_batch=4", "--srl.micro_batch=4") == 0
    assert test_train._steps(tmp_path / "run", "srl") == list(range(1, STEPS + 1))
    options = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["srl"]
    assert (options["sample_batch"], options["micro_batch"]) == (4, 4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int) -> None:
    """Leave so many bytes."""
    free = os.statvfs(folder)
    with (folder / "ballast").open("wb") as stream:
        stream.write(b"x" * (free.f_bavail * free.f_frsize - left))


@pytest.mark.parametrize("step", [3, STEPS], ids=["at a checkpoint", "at the end"])
def test_a_full_disk_harms_no_checkpoint(
    made: Path, small_disk: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    path = small_disk / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", after_step(step, lambda: fill(small_disk, 65536)))
        assert command(*SRL, out=path) == 1
    said = message(capsys)
    assert f"the disk of {path} is full" in said
    assert f"goes on from step {step // 3 * 2} of srl" in said
    (small_disk / "ballast").unlink()
    assert command(*SRL, out=path) == 0
    assert_as_whole(path, made)


def test_an_export_to_a_full_disk_leaves_the_one_before(made: Path, small_disk: Path) -> None:
    source = made / "warm/checkpoints/final"
    model = load_model(str(source))
    companions = checkpoint.Companions(load_tokenizer(str(source)), PromptPolicy(), frozenset({"i"}))
    best = small_disk / "best"
    checkpoint.export(model, companions, best, {"step": 1})
    for left in (0, 20_000, 60_000, 100_000):
        fill(small_disk, left)
        with pytest.raises(failure.TrainingFailed, match="is full"), failure.one_message(small_disk):
            checkpoint.export(model, companions, best, {"step": 2})
        assert checkpoint.validation_of(best) == {"step": 1}
        assert [path.name for path in small_disk.iterdir()] == ["ballast", "best"]
        (small_disk / "ballast").unlink()
    assert load_model(str(best)).num_parameters() == model.num_parameters()
    checkpoint.export(model, companions, best, {"step": 2})
    assert checkpoint.validation_of(best) == {"step": 2}


def test_a_reward_that_hangs_once_costs_a_sample_and_always_ends_the_run(
    made: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scoring process is stopped as it gets a sample, which is how a call that never returns looks from outside."""
    path = tmp_path / "run"
    call = pool._Worker.call
    stopped: list[int] = []

    def stopping(worker: pool._Worker, given: Any, limit: float) -> Any:
        steps = len(test_train._steps(path, "srl"))
        if steps >= (3 if stopped else 1):
            stopped.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGSTOP)
        return call(worker, given, limit)

    with monkeypatch.context() as patch:
        patch.setattr(run, "RewardPool", functools.partial(RewardPool, limit=1.0))
        patch.setattr(reward_pool, "GIVE_UP", 2)
        patch.setattr(pool._Worker, "call", stopping)
        assert command(*SRL) == 1
    said = message(capsys)
    assert re.search(r"srl, step 4 of 6: while sampling: scoring failed for 2 samples in a row, last hand__\d-\w+#\d: took more than", said)
    assert len(stopped) == 3
    assert "goes on from step 2 of srl" in said
    assert [row["unscorable"] for row in read_jsonl(path / "metrics.jsonl") if "unscorable" in row][1] > 0
    assert command(*SRL) == 0
    assert test_train._steps(path, "srl") == list(range(1, STEPS + 1))


def test_groups_without_signal_end_with_their_figures(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An untrained model earns the penalty for its format each time."""
    command = ("train", "--domain", "swe", "--model", "tiny", "--data", made / "hand.jsonl", "--out", tmp_path / "run")
    command += (*training_corpus.SMALL, "--warmup.epochs=0", *SRL, "--srl.max_completion_tokens=8")
    for tries in (2, 3):
        assert test_train.harness(monkeypatch, *command, f"--srl.max_tries={tries}") == 1
        said = message(capsys)
        assert f"srl, step 1 of 6: of {2 * tries} prompts × 4 rollouts only 0 groups have rewards that differ" in said
        assert "0 rollouts have no reward" in said
        assert "The same command begins the stage again" in said
    assert test_train.harness(monkeypatch, *command, "--srl.without_signal=end", "--srl.max_tries=4") == 0
    assert "srl: finished at step 0 of 6: of 8 prompts × 4 rollouts only 0 groups" in capsys.readouterr().err
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["stages"]["srl"]["steps"] == 0
    assert Path(report["checkpoint"]).is_dir()
    last = [row for row in read_jsonl(tmp_path / "run/metrics.jsonl") if "sampled_tokens" in row][-1]
    assert last["sampled_tokens"] >= 8 * 4
