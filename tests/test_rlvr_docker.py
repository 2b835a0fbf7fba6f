"""RLVR on generated software-engineering tasks, in containers: a tiny model plays the agent loop, the tasks' own tests are the reward.

The model has learnt the training tasks by heart, so that at temperature 1 it solves them at times. Reference: the patch of each recorded
episode, graded once more in a fresh container.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
import test_evaluate
import test_train
from forked import Forked
from test_train_rlvr import ids

from harness import contamination
from harness.agent import submit
from harness.commands.synth import generate
from harness.env import load_env
from harness.runs import read_jsonl
from harness.sandbox_open import Sandboxes
from harness_trajectories import read

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.usefixtures("docker_engine")]
TINY = ("--tiny.hidden=64", "--tiny.layers=2", "--validation.instances=1")
LEARN = (*TINY, "--sft.epochs=200", "--sft.max_steps=60", "--sft.learning_rate=5e-3", "--validation.steps=0")
RLVR = ("--rlvr.max_steps=2", "--rlvr.prompts=2", "--rlvr.rollouts=4", "--gate.groups=3", "--episodes.workers=4", "--samples_logged=100")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, forked: Forked) -> tuple[Path, Path]:
    """Tasks, and a checkpoint that solves some of them."""
    folder = tmp_path_factory.mktemp("swe")
    generate("swe", load_env("swe"), 12, folder / "data")
    model = ("--domain", "swe", "--method", "sft", "--model", "tiny", "--data", folder / "data", "--out", folder / "sft")
    done = forked.run("train", *model, *LEARN)
    assert done.returncode == 0, done.stderr
    return folder / "data", folder / "sft" / "checkpoints" / "final"


def test_the_tests_of_the_task_reward_the_agent(tmp_path: Path, learnt: tuple[Path, Path], forked: Forked) -> None:
    data, model = learnt
    run = tmp_path / "run"
    done = forked.run("train", "--domain", "swe", "--method", "rlvr", "--model", model, "--data", data, "--out", run, *RLVR)
    assert done.returncode == 0, done.stderr
    assert "held-out tasks" in done.stdout
    steps = [row for row in read_jsonl(run / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert 0 < row["solved"] < 1
        assert row["status_resolved"] == row["solved"] * row["episodes"]
        assert (row["unscorable"], row["tries"]) == (0, row["episodes"])
        assert row["grad_norm"] > 0
        assert row["turns"] > 1
        assert row["tried"] >= 2
    assert ids(data, "train", "val") <= (contamination.trained_on(run / "checkpoints" / "final") or set())

    env = load_env("swe")
    config = env.Config(dataset=data, brief=True)
    tasks = {task.id: task for task in env.tasks(config, "train")}
    episodes = list(read(run / "episodes" / "step-00001"))
    assert len(episodes) == steps[0]["episodes"]
    assert max(len(one.turns) for one in episodes) >= 3
    solved = [one for one in episodes if one.resolved]
    others = [one for one in episodes if not one.resolved]
    assert len(solved) == steps[0]["status_resolved"]
    with closing(Sandboxes()) as sandboxes:
        for one in [*solved[:3], *[one for one in others if one.patch][:2]]:
            graded = env(config, sandboxes)
            with closing(graded):
                again = submit(graded, tasks[one.instance_id], one.patch or "", "again")
            assert again.grade is not None
            assert (again.grade.status == "resolved") == one.resolved


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_no_container(tmp_path: Path, learnt: tuple[Path, Path], forked: Forked, number: signal.Signals) -> None:
    """Ctrl-C twice, or SIGTERM, in the middle of a step; the same command goes on."""
    data, model = learnt
    run, log = tmp_path / "run", tmp_path / "log"
    options = (
        "train",
        "--domain",
        "swe",
        "--method",
        "rlvr",
        "--model",
        model,
        "--data",
        data,
        "--out",
        run,
        *RLVR,
        "--checkpoint_every=1",
    )
    child = forked.start(options, log)
    test_train._wait_for_step(run, 1, forked.running, stage="rlvr")
    deadline = time.monotonic() + 120
    while len(test_evaluate.containers(child)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child, number)
    if number == signal.SIGINT:
        time.sleep(0.3)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
    assert forked.wait() == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], log.read_text()
    assert test_evaluate.containers(child) == []
    done = forked.run(*options, "--json")
    assert done.returncode == 0, done.stderr
    assert "rlvr: resuming from" in done.stderr
    report = json.loads(done.stdout)
    assert report["stages"]["rlvr"]["steps"] == 2
