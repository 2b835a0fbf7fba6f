"""envs/examples/sql as a third party has it: built and installed with pip into a folder of its own, outside the source tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Forked

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "envs/examples/sql"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder to work in; the installed package lies beside it, in `site`."""
    folder = tmp_path_factory.mktemp("sql")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(folder / "site"), str(EXAMPLE)], check=True, capture_output=True)
    (folder / "work").mkdir()
    return folder / "work"


@pytest.fixture(scope="module")
def environment(place: Path) -> dict[str, str]:
    """Of a process that finds the installed package."""
    paths = [str(place.parent / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="module")
def harness(place: Path, environment: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """What a command in that environment prints as JSON."""
    with Forked(environment) as forked:

        def call(*arguments: str) -> Any:
            done = forked.run(*arguments, "--json", cwd=place)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        yield call


def test_it_is_found_by_its_name_and_passes_its_tests_and_every_check(
    place: Path, environment: dict[str, str], harness: Callable[..., Any]
) -> None:
    def python(*arguments: str) -> str:
        done = subprocess.run([sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    module = python("-c", "import harness_sql; print(harness_sql.__file__)")
    assert Path(module.strip()).is_relative_to(place.parent / "site")
    rows = {row["name"]: row for row in harness("env", "list")["environments"]}
    assert rows["sql"]["class"] == "harness_sql:SqlEnv"
    assert rows["sql"]["tools"] == ["query", "answer"]
    assert harness("env", "check", "sql")["ok"]
    shutil.copy(EXAMPLE / "test_harness_sql.py", place)
    assert "3 passed" in python("-m", "pytest", "-q", "test_harness_sql.py")


def test_it_trains_with_srl_on_its_gold_trajectories_and_evaluates(place: Path, harness: Callable[..., Any]) -> None:
    made = harness("data", "synth", "--domain", "sql", "-n", "20", "--out", "data/sql")
    assert (made["trajectories"], made["dropped"]) == (20, {})
    smoke = ("--model", "tiny", "--config", str(ROOT / "configs/smoke.yaml"))
    report = harness("train", "--domain", "sql", "--method", "srl", *smoke, "--data", "data/sql", "--out", "runs/sql")
    assert (report["data"]["trajectories"], report["data"]["target"]) == (20, 20 * 3)
    rows = [json.loads(line) for line in (place / "runs/sql/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "srl" and "reward" in row and "loss" in row] == [1, 2]
    limits = ("--limits.max_turns=4", "--limits.max_tokens=200")
    found = harness("eval", "--domain", "sql", "--model", report["checkpoint"], *limits, "--out", "runs/eval")
    assert (found["n"], found["graded"]) == (20, 20)
    gold = harness("eval", "--domain", "sql", "--mode", "gold", "--out", "runs/gold")
    assert gold["resolved"] == 20
