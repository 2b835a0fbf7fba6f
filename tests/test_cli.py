"""Bad input: each gives one clear error on stderr, exit 2 or 1, and no traceback. The real command is run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Forked

HARNESS = Path(sys.executable).with_name("harness")


def call(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HARNESS, *arguments], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)


def assert_clear(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode in (1, 2), done
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A file of trajectories."""
    samples = Path(__file__).resolve().parents[1] / "trajectories" / "samples"
    file = tmp_path / "good.jsonl"
    file.write_text(next(samples.glob("swesmith*.jsonl")).read_text())
    return file


def test_help_is_quick(tmp_path: Path) -> None:
    def seconds(*command: str | Path) -> float:
        start = time.perf_counter()
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        return time.perf_counter() - start

    # A second; on a slow or busy machine ten times what these imports alone take there.
    imports = min(seconds(sys.executable, "-c", "import pydantic, rich, typer, yaml") for _ in range(5))
    assert min(seconds(HARNESS, "--help") for _ in range(5)) < max(1.0, 10 * imports)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "import", "nowhere.jsonl", "--out", "d"], ["nowhere.jsonl"]),
        (["data", "import", "empty", "--out", "d"], ["empty"]),
        (["data", "import", "torn.jsonl", "--out", "d"], ["torn.jsonl:1"]),
        (["data", "stats", "nowhere"], ["nowhere"]),
        (["data", "synth", "--domain", "cooking", "-n", "3", "--out", "d"], ["cooking", "swe"]),
        (["train", "--domain", "cooking"], ["cooking", "swe"]),
        (["train", "--domain", "swe", "--data", "nowhere", "--model", "tiny"], ["nowhere"]),
        (["train", "--domain", "swe", "--data", "empty", "--model", "tiny"], ["empty"]),
        (["train", "--domain", "swe", "--srl.learnig_rate=1"], ["learnig_rate", "did you mean"]),
        (["train", "--domain", "swe", "--data", "good.jsonl", "--model", "empty"], ["empty"]),
        (["eval", "--domain", "cooking"], ["cooking", "swe"]),
        (["eval", "--domain", "swe", "--mode", "dream"], ["dream", "oracle"]),
        (["eval", "--domain", "swe", "--mode", "e2e", "--model", "empty", "--dataset", "good-tasks.jsonl"], ["empty"]),
        (["eval", "--domain", "swe", "--mode", "gold", "--dataset", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["frobnicate"], ["frobnicate"]),
    ],
)
def test_bad_input(tmp_path: Path, good: Path, forked: Forked, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.jsonl").write_text('{"messages": [{"role": "user"')
    (tmp_path / "good-tasks.jsonl").write_text(
        '{"instance_id": "a__a-1", "repo": "a/a", "patch": "", "test_patch": "", "problem_statement": "x", '
        '"FAIL_TO_PASS": [], "PASS_TO_PASS": [], "files": {"a.py": ""}, "test_cmd": "true", "log_parser": "pytest"}\n'
    )
    assert_clear(forked.run(*arguments, cwd=tmp_path), *words)


def test_a_model_that_is_nowhere(tmp_path: Path, good: Path) -> None:
    done = call("train", "--domain", "swe", "--data", good, "--model", "someone/some-model", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert_clear(done, "someone/some-model")


def test_no_docker_engine(tmp_path: Path) -> None:
    done = call("data", "synth", "--domain", "swe", "-n", "3", "--out", "d", cwd=tmp_path, DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert_clear(done, "Docker")
