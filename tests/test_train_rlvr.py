"""RLVR and the pipeline through the real command, on generated math problems (no sandbox) and generated swe tasks (containers)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import test_swe_env
import test_train
from forked import Forked
from safetensors.torch import load_file

from harness import contamination
from harness.commands.synth import generate
from harness.env import load_env
from harness.generate_hf import load_model
from harness.prompt import PromptPolicy
from harness.runs import read_jsonl
from harness.train.checkpoint import validation_of
from harness.train.config import TrainConfig
from harness.train.data import load_examples
from harness.train.tasks import Tasks, load_tasks
from harness_trajectories import read
from harness_trajectories.errors import UserError

SMOKE = Path(__file__).resolve().parents[1] / "configs" / "smoke.yaml"
PARITY = "parity_env:ParityEnv"


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("math")
    generate("math", load_env("math"), 60, folder)
    return folder


def ids(folder: Path, *splits: str) -> set[str]:
    return {row["instance_id"] for split in splits for row in read_jsonl(folder / "tasks" / f"{split}.jsonl")}


def tasks(domain: str, taught: set[str] = frozenset(), held_out: set[str] = frozenset(), **options: object) -> Tasks:
    config = TrainConfig.model_validate({"domain": domain, "model": "none", "method": "rlvr", **options})
    return load_tasks(config, PromptPolicy(env=config.env), "policy", taught, held_out)


def test_the_pipeline_runs_each_stage_from_the_best_of_the_last(
    tmp_path: Path, problems: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ("train", "--domain", "math", "--method", "pipeline", "--model", "tiny", "--data", problems, "--config", SMOKE, "--out", run)
    assert test_train.harness(monkeypatch, *command) == 0
    captured = capsys.readouterr()
    assert "pipeline on" in captured.out
    assert "held-out tasks" in captured.out
    report = json.loads((run / "report.json").read_text())
    stages = report["stages"]
    assert list(stages) == ["warmup", "srl", "rlvr"]
    assert [stages[name]["steps"] for name in stages] == [4, 2, 2]
    assert report["data"]["train_tasks"] == len(ids(problems, "train"))
    assert report["data"]["val_tasks"] == 2
    checkpoints = run / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["base", "best", "final", "srl", "warmup"]
    for name, following in (("warmup", "srl"), ("srl", "rlvr")):
        best = validation_of(checkpoints / name)
        assert best is not None
        assert stages[name]["best"] == best
        prefix = "step_" if following == "rlvr" else ""
        for figure in ("exact", "reward", "similarity", "format_ok"):
            assert stages[following]["before"][f"{prefix}{figure}"] == best[figure]
    assert report["best"] == validation_of(checkpoints / "best")
    assert {"solved", "episodes", "turns", "step_exact"} <= report["best"].keys()
    assert "gate_solved" in stages["rlvr"]
    for name in ("warmup", "srl", "best", "final"):
        assert load_model(str(checkpoints / name)).num_parameters() == report["parameters"]
        assert ids(problems, "train") <= (contamination.trained_on(checkpoints / name) or set())
        assert not ids(problems, "test") & (contamination.trained_on(checkpoints / name) or set())
    steps = [row for row in read_jsonl(run / "metrics.jsonl") if row["stage"] == "rlvr" and "loss" in row]
    assert [(row["step"], row["episodes"], row["tried"]) for row in steps] == [(1, 8, 2), (2, 8, 2)]
    assert {run.instance_id for run in read(run / "episodes")} <= ids(problems, "train")
    assert (run / "plots" / "rlvr-rates.png").is_file()


def test_a_stage_ends_with_its_budget_of_tokens(tmp_path: Path, problems: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the step that reaches it, validated; reference: what the rows of the steps add up to."""
    command = ("train", "--domain", "math", "--method", "pipeline", "--model", "tiny", "--data", problems, "--config", SMOKE)
    budgets = {"warmup": 1, "srl": 1, "rlvr": 1}
    for steps in (1, 2):
        run = tmp_path / str(steps)
        given = [f"--{stage}.budget_tokens={budget}" for stage, budget in budgets.items()]
        assert test_train.harness(monkeypatch, *command, *given, "--out", run) == 0
        rows = list(read_jsonl(run / "metrics.jsonl"))
        for stage in budgets:
            mine = [row for row in rows if row["stage"] == stage]
            assert [row["step"] for row in mine if "loss" in row] == list(range(1, steps + 1))
            assert [row["step"] for row in mine if "val_reward" in row] == [0, steps]
            spent = [
                sum(row.get(part, 0) for part in ("prompt_tokens", "sampled_tokens", "update_tokens")) for row in mine if "loss" in row
            ]
            budgets[stage] = int(spent[0]) + 1  # so that the second run takes a step more


def test_rlvr_from_a_checkpoint_reads_tasks_alone(
    tmp_path: Path, problems: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    common = ("train", "--domain", "math", "--config", SMOKE)
    assert test_train.harness(monkeypatch, *common, "--method", "sft", "--model", "tiny", "--data", problems, "--out", first) == 0
    model, rest = first / "checkpoints" / "final", ("--method", "rlvr", "--dataset", problems, "--json")
    excluded = tmp_path / "excluded.txt"
    excluded.write_text(min(ids(problems, "val")))
    capsys.readouterr()
    assert test_train.harness(monkeypatch, *common, *rest, "--model", model, "--exclude", excluded, "--out", second) == 2
    assert "which --exclude names" in capsys.readouterr().err
    assert not second.exists()
    assert test_train.harness(monkeypatch, *common, *rest, "--model", model, "--gate.min_varied_groups=0.5", "--out", second) == 1
    captured = capsys.readouterr()
    assert "RL does not start: of 2 groups of 4 sampled" in captured.err
    assert test_train.harness(monkeypatch, *common, *rest, "--model", model, "--fresh", "--out", second) == 0
    report = json.loads(capsys.readouterr().out)
    assert "train_steps" not in report["data"]
    assert list(report["stages"]) == ["rlvr"]
    assert PromptPolicy.load(second / "checkpoints" / "best") == PromptPolicy.load(model)
    chosen = (*common, *rest, "--model", model, "--validation.rlvr_by=steps")
    assert test_train.harness(monkeypatch, *chosen, "--out", tmp_path / "third") == 2
    assert "no expert steps" in capsys.readouterr().err
    assert test_train.harness(monkeypatch, *chosen, "--data", problems, "--out", tmp_path / "third") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["best"]["step_exact"] == report["stages"]["rlvr"]["before"]["step_exact"]  # the first of equals
    assert report["best"]["step"] == 0


def test_tasks_keep_the_splits_of_their_data_set(problems: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tasks("math", data=[str(problems)])
    assert "the tasks beside the trajectories" in capsys.readouterr().err
    assert {task.id for task in found.train} == ids(problems, "train")
    assert {task.id for task in found.val} == ids(problems, "val")
    assert found.ids == ids(problems, "train", "val")
    few = tasks("math", episodes={"dataset": str(problems)}, validation={"instances": 2})
    assert len(few.val) == 2
    assert {task.id for task in few.train} == ids(problems, "train")


def test_tasks_without_splits_are_held_out_as_the_steps_are(tmp_path: Path) -> None:
    rows = [test_swe_env.record(f"task-{n}", {}, {}) for n in range(20)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {row["instance_id"] for row in rows}
    given = {"episodes": {"dataset": str(tmp_path / "tasks.jsonl"), "sandbox": "local"}, "validation": {"instances": 3}}
    drawn = tasks("swe", **given)
    assert len(drawn.val) == 2
    assert drawn.ids == names
    assert not {task.id for task in drawn.train} & {task.id for task in drawn.val}
    assert tasks("swe", **given) == drawn
    assert {task.id for task in tasks("swe", **given, seed=1).val} != {task.id for task in drawn.val}
    steps = sorted(names)
    held = tasks("swe", set(steps[5:]), set(steps[:5]), **given)
    assert {task.id for task in held.train} == set(steps[5:])
    assert len(held.val) == 3
    assert {task.id for task in held.val} < set(steps[:5])
    taught = tasks("swe", set(steps), **given)
    assert (taught.val, len(taught.train)) == ((), 20)


def test_rewritten_math_steps_are_their_own_tasks(tmp_path: Path) -> None:
    """The 60 questions that the paper holds out of the steps are held out of RLVR, too."""
    rows = [
        {"instance_id": f"s1k-{n}", "question": f"{n} + 1 = ?", "solution": f"1. **ADD** {n} + 1\n2. **ANSWER** \\boxed{{{n + 1}}}"}
        for n in range(700)
    ]
    file = tmp_path / "steps.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(domain="math", model="none", data=(str(file),), validation={"instances": 60})
    examples = load_examples(config, load_env("math"))
    taught, held_out = ({step.instance_id for step in part} for part in (examples.train, examples.val))
    found = tasks("math", taught, held_out, episodes={"dataset": str(file)}, validation={"instances": 60})
    assert {task.id for task in found.val} == held_out
    assert (len(found.train), len(found.val)) == (640, 60)
    assert {task.id: task.gold_answer for task in (*found.train, *found.val)}["s1k-1"] == "2"


def test_tasks_that_cannot_be_had_are_one_message(tmp_path: Path, problems: Path) -> None:
    with pytest.raises(UserError, match="--dataset"):
        tasks("swe")
    with pytest.raises(UserError, match="no option 'dataset'"):
        tasks("harness_sql:SqlEnv", episodes={"dataset": str(problems)})
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "train.jsonl").write_text("")
    (tmp_path / "tasks" / "val.jsonl").write_text("")
    with pytest.raises(UserError, match="no tasks to train on"):
        tasks("math", data=[str(tmp_path)])


def pipeline(problems: Path, run: Path) -> list[str]:
    options = ["--warmup.max_steps=40", "--warmup.epochs=100", "--warmup.learning_rate=1e-2", "--srl.max_steps=8", "--rlvr.max_steps=12"]
    options += ["--rlvr.dynamic_sampling=true", "--rlvr.max_completion_tokens=24", "--checkpoint_every=3", "--validation.every=4"]
    options += ["--warmup.micro_batch=4", "--srl.micro_batch=4", "--rlvr.micro_batch=4"]
    named = ["--domain", PARITY, "--method", "pipeline", "--model", "tiny", "--data", str(problems), "--out", str(run)]
    return ["train", *named, "--config", str(SMOKE), *options]


def rows(run: Path) -> list[list[object]]:
    names = ("stage", "step", "tried", "frontier", "solved", "episodes")
    return [[row.get(name) for name in names] for row in read_jsonl(run / "metrics.jsonl") if "loss" in row]


def apart(run: Path, other: Path, checkpoint: str) -> float:
    """The largest difference of a weight."""
    found, expected = (load_file(one / "checkpoints" / checkpoint / "model.safetensors") for one in (run, other))
    return max(float((tensor - found[name]).abs().max()) for name, tensor in expected.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, problems: Path, forked: Forked) -> Path:
    """A pipeline that was left alone."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = forked.run(*pipeline(problems, run))
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.slow
def test_a_pipeline_killed_in_every_stage_ends_with_the_weights_of_a_whole_one(
    tmp_path: Path, problems: Path, whole: Path, forked: Forked
) -> None:
    run, kills = tmp_path / "run", 0
    for stage, step in (("warmup", 8), ("srl", 4), ("rlvr", 2), ("rlvr", 8)):
        child = forked.start(pipeline(problems, run), tmp_path / "log")
        test_train._wait_for_step(run, step, forked.running, stage=stage)
        time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        kills += forked.wait() == -signal.SIGKILL
    assert kills >= 3
    done = forked.run(*pipeline(problems, run))
    assert done.returncode == 0, done.stderr
    assert "rlvr: resuming from" in done.stderr
    assert rows(run) == rows(whole)
    assert any(tried and tried > 2 for _, _, tried, *_ in rows(run))
    for checkpoint in ("warmup", "srl", "best", "final"):
        assert apart(run, whole, checkpoint) < 1e-6, checkpoint


@pytest.mark.slow
def test_two_processes_play_the_episodes_of_one(tmp_path: Path, problems: Path, whole: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "harness"]
    done = subprocess.run([*torchrun, *pipeline(problems, tmp_path / "run")], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    played = [[row for row in rows(run) if row[0] == "rlvr"] for run in (tmp_path / "run", whole)]
    assert played[0] == played[1]
    for checkpoint in ("warmup", "srl", "final"):
        assert apart(tmp_path / "run", whole, checkpoint) < 1e-4, checkpoint
    kept = [{run.id for run in read(folder / "episodes")} for folder in (tmp_path / "run", whole)]
    assert kept[0] == kept[1]
