"""Training end to end on a few hand-made trajectories, through the real command."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import training_corpus
from forked import Forked

from harness import cli, contamination
from harness.generate_hf import load_model, load_tokenizer
from harness.prompt import PromptPolicy
from harness.runs import read_jsonl

OPEN_GATE = ("--gate.min_format_rate=0", "--gate.min_varied_groups=0")
SFT = ("--method", "sft", "--sft.max_steps=4", "--sft.batch=8", "--sft.micro_batch=4")
SRL = (
    "--warmup.max_steps=4",
    "--warmup.batch=8",
    "--warmup.micro_batch=8",
    "--srl.max_steps=2",
    "--srl.prompts=2",
    "--srl.rollouts=4",
    "--srl.micro_batch=4",
    "--srl.max_completion_tokens=8",
)


def harness(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The command's exit code."""
    monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return training_corpus.write(tmp_path)


def test_srl_with_warm_up(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = ("train", "--domain", "swe", "--model", "tiny", "--data", data, "--out", run, "--json", *training_corpus.SMALL, *SRL)
    assert harness(monkeypatch, *command, *OPEN_GATE) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((run / "report.json").read_text())
    assert report["data"]["trajectories"] == 36
    assert report["stages"]["warmup"]["steps"] == 4
    assert report["stages"]["srl"]["steps"] == 2
    assert 0 <= report["stages"]["srl"]["gate_format_ok"] <= 1
    steps = [row for row in read_jsonl(run / "metrics.jsonl") if row["stage"] == "srl" and "reward" in row]
    assert [row["step"] for row in steps] == [1, 2]
    scores = {"format_ok", "exact", "similarity", "edit_similarity", "edits", "clipped", "zero_variance", "penalty_format"}
    assert {*scores, "baseline_constant", "baseline_copy"} <= steps[0].keys()
    completions = list(read_jsonl(run / "completions" / "step-00001.jsonl"))
    assert len(completions) == 8
    assert {"sample", "completion", "expert", "reward", "exact", "penalty"} <= completions[0].keys()
    assert (run / "plots" / "srl-reward.png").stat().st_size > 1000
    for name in ("base", "warmup", "best", "final"):
        checkpoint = run / "checkpoints" / name
        assert load_model(str(checkpoint)).num_parameters() == report["parameters"]
        assert load_tokenizer(str(checkpoint)).chat_template
        policy = PromptPolicy.load(checkpoint)
        assert policy is not None
        assert policy.env == {"brief": True}
        assert len(contamination.trained_on(checkpoint) or ()) == 36
    assert not (run / "checkpoints" / "resume").exists()

    assert harness(monkeypatch, *command, *OPEN_GATE) == 0
    assert "is finished" in capsys.readouterr().err
    assert harness(monkeypatch, *command, "--srl.learning_rate=0.5") == 2
    assert "learning_rate" in capsys.readouterr().err


def test_sft_goes_on_from_a_checkpoint_with_its_prompt_policy(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    common = ("train", "--domain", "swe", "--data", data, *SFT, "--validation.steps=6", "--checkpoint_every=5")
    small = (*training_corpus.SMALL, "--context.k=1", "--max_prompt_tokens=300")
    assert harness(monkeypatch, *common, "--model", "tiny", *small, "--out", first) == 0
    text = capsys.readouterr().out
    assert "constant action" in text
    assert "sft, after" in text
    assert harness(monkeypatch, *common, "--model", first / "checkpoints" / "final", "--out", second) == 0
    policy = PromptPolicy.load(second / "checkpoints" / "best")
    assert policy == PromptPolicy.load(first / "checkpoints" / "final")
    assert policy is not None
    assert policy.context.k == 1
    losses = [row["loss"] for folder in (first, second) for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < losses[0]


def test_the_gate_stops_a_model_that_has_nothing_to_reinforce(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert (
        harness(monkeypatch, "train", "--domain", "swe", "--model", "tiny", "--data", data, "--out", run, *training_corpus.SMALL, *SRL) == 1
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "RL does not start" in captured.err
    assert "gate.min_format_rate" in captured.err
    assert (run / "checkpoints" / "warmup" / "config.json").is_file()


def test_ctrl_c_saves_and_the_same_command_resumes(tmp_path: Path, data: Path, forked: Forked) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = _sft_command(data, run, steps=40)
    child = forked.start(command, log)
    _wait_for_step(run, 3, forked.running)
    os.kill(child, signal.SIGINT)
    assert forked.wait() == 130, log.read_text()
    assert "the same command resumes it" in log.read_text()
    done = forked.run(*command)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    assert _steps(run) == list(range(1, 41))


def test_bad_input_is_one_message(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    cases = {
        ("--domain", "swe", "--model", "tiny", "--data", tmp_path / "missing"): "no such file",
        ("--domain", "swe", "--model", "tiny", "--data", tmp_path / "empty"): "no trajectory",
        ("--domain", "swe", "--model", tmp_path / "empty", "--data", data): "no tokenizer can be loaded",
        ("--domain", "nothing", "--data", data): "unknown domain",
        ("--domain", "swe", "--model", "tiny", "--data", data, "--srl.learning_rat=1"): "learning_rate",
        ("--domain", "swe", "--model", "tiny", "--data", data, "--env.brif=1"): "brif",
        ("--domain", "swe", "--model", "tiny", "--data", data, "--sft.batch=9", "--sft.micro_batch=2", "--method", "sft"): "micro_batch 2",
    }
    for number, (arguments, message) in enumerate(cases.items()):
        assert harness(monkeypatch, "train", *arguments, "--out", tmp_path / f"run{number}") == 2, arguments
        captured = capsys.readouterr()
        assert captured.out == ""
        assert message in captured.err, captured.err
        assert "Traceback" not in captured.err


@pytest.mark.slow
def test_srl_steps_on_real_claude_trajectories_with_the_real_qwen_tokenizer(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    data = shared_data / "trajectories" / "swesmith_sft_xml_claude-3-7-sonnet"
    command = (
        "train",
        "--domain",
        "swe",
        "--model",
        "tiny",
        "--tokenizer",
        shared_data / "tokenizer" / "tokenizer.json.gz",
        "--data",
        data,
    )
    command += ("--out", run, "--json", *training_corpus.SMALL, *SRL, *OPEN_GATE)
    command += (
        "--env.brief=false",
        "--targets=all_but_last",
        "--max_prompt_tokens=1024",
        "--warmup.epochs=0",
        "--srl.prompts=1",
        "--gate.groups=2",
    )
    assert harness(monkeypatch, *command) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["data"]["trajectories"] == 3
    assert report["stages"]["srl"]["steps"] == 2
    assert report["data"]["cuts"]["prompts"] > 0
    assert "warmup" not in report["stages"]
    assert report["data"]["prompt_tokens"]["max"] <= 1024
    assert "cut to 1024 tokens" in captured.err


def _sft_command(data: Path, run: Path, steps: int) -> list[str]:
    options = ["--method", "sft", f"--sft.max_steps={steps}", "--sft.batch=8", "--sft.micro_batch=8", "--sft.epochs=100"]
    return _command(data, run, *options)


def _command(data: Path, run: Path, *options: str) -> list[str]:
    return ["train", "--domain", "swe", "--model", "tiny", "--data", str(data), "--out", str(run), *training_corpus.SMALL, *options]


def _steps(run: Path, stage: str = "sft") -> list[int]:
    return [row["step"] for row in read_jsonl(run / "metrics.jsonl") if row["stage"] == stage and "loss" in row]


def _wait_for_step(run: Path, step: int, running: Callable[[], bool], stage: str = "sft") -> None:
    deadline = time.monotonic() + 300
    while not any(done >= step for done in _steps(run, stage)):
        assert running(), "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.05)
