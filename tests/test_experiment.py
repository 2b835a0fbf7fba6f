"""Controlled comparisons: the smallest preset through the real command, killed and taken up again; the intervals.

References: the normal approximation of a binomial's interval, and of a mean's over seeds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import yaml

from harness.experiment.config import PRESETS, Experiment, Experts
from harness.experiment.data import make_experts
from harness.experiment.figures import accuracy, against, interval, right
from harness.experiment.plan import Layout, arm_jobs, base_jobs
from harness.runs import read_jsonl

HARNESS = Path(sys.executable).with_name("harness")
pytestmark = pytest.mark.slow
SMOKE = yaml.safe_load((PRESETS / "smoke.yaml").read_text())


def harness(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(HARNESS), "experiment", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest preset, killed with all its jobs in the middle, then taken up again."""
    run = tmp_path_factory.mktemp("experiment") / "run"
    process = subprocess.Popen([HARNESS, "experiment", "smoke", "--out", run], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (run / "base-1/steps.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    times = {file: file.stat().st_mtime_ns for file in run.glob("base-1/*/report.json")}
    done = harness("smoke", "--out", run, "--page", run / "page/results.md", "--json")
    assert done.returncode == 0, done.stderr
    assert times == {file: file.stat().st_mtime_ns for file in times}, "a finished job was done again"
    (run / "printed.json").write_text(done.stdout)
    return run


def test_every_arm_of_every_seed_is_an_ordinary_run(finished: Path) -> None:
    report = json.loads((finished / "printed.json").read_text())
    assert report == json.loads((finished / "report.json").read_text())
    for arm, stages in (("sft", ["sft"]), ("srl-rlvr", ["srl", "rlvr"])):
        assert list(report["arms"][arm]) == ["1", "2"]
        for seed, row in report["arms"][arm].items():
            assert [stage["method"] for stage in row["stages"]] == stages
            for number, stage in enumerate(row["stages"], 1):
                run = finished / f"seed-{seed}" / arm / f"train-{number}"
                assert stage["method"] == json.loads((run / "report.json").read_text())["method"]
                rows = list(read_jsonl(run / "metrics.jsonl"))
                names = ("prompt_tokens", "sampled_tokens", "update_tokens")
                assert stage["tokens"] == sum(row.get(name, 0) for row in rows for name in names)
            statuses = json.loads((finished / f"seed-{seed}" / arm / "eval-same/report.json").read_text())["statuses"]
            assert row["tests"]["same"]["right"].count("1") == statuses["resolved"]
    trained = [yaml.safe_load((finished / f"seed-{seed}/srl-rlvr/train-2/config.yaml").read_text()) for seed in (1, 2)]
    assert [run["model"] for run in trained] == [str(finished / f"seed-{seed}/srl-rlvr/train-1/checkpoints/best") for seed in (1, 2)]
    assert trained[0]["data"] != trained[1]["data"]
    assert {run["rlvr"]["budget_tokens"] for run in trained} == {SMOKE["budget_tokens"] // 2}


def test_the_page_says_it_all(finished: Path) -> None:
    page = (finished / "page/results.md").read_text()
    for text in (
        "Seeds finished: 2 of 2",
        "| sft |",
        "| srl-rlvr |",
        "| base |",
        "srl-rlvr − sft",
        "pass@2",
        "What the paper reports",
        "profile: machines",
    ):
        assert text in page, text
    pictures = [line.split("(")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert len(pictures) == 2
    for picture in pictures:
        assert (finished / "page" / picture).read_bytes().startswith(b"\x89PNG")
    assert (finished / "report.md").is_file()


def test_a_finished_one_is_only_reported_and_seeds_may_be_added(finished: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.glob("seed-*/**/report.json")}
    again = harness("smoke", "--out", finished)
    assert again.returncode == 0
    assert "srl-rlvr" in again.stdout
    assert before == {file: file.stat().st_mtime_ns for file in finished.glob("seed-*/**/report.json")}
    other = harness("smoke", "--out", finished, "--budget_tokens=5")
    assert other.returncode == 2
    assert "budget_tokens: 20000 there, 5 asked for" in other.stderr
    layout = Layout(finished, Experiment.model_validate({**SMOKE, "seeds": 3}))
    todo = [job for job in arm_jobs(layout) if not job.done.exists()]
    assert {job.done.relative_to(finished).parts[0] for job in todo if "seed" in job.name} == {"seed-3"}


def test_ctrl_c_ends_all_and_a_closed_gate_compares_nothing(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**SMOKE, "gate": {"with_thought": [0.4, 0.6]}}))
    run = tmp_path / "run"
    process = subprocess.Popen([HARNESS, "experiment", file, "--out", run], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (run / "base-1/train-1/metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "takes it up again" in said
    mine = [pid for pid in os.listdir("/proc") if pid.isdigit() and str(run).encode() in _command(pid)]
    assert mine == []
    closed = harness(file, "--out", run)
    assert closed.returncode == 1
    assert "sampled steps with a thought that are right: 0.000, wanted 0.4 to 0.6: DOES NOT HOLD" in closed.stderr
    assert "nothing was compared" in closed.stderr
    assert not list(run.glob("seed-*"))


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_what_fails_is_named_and_the_rest_is_done(finished: Path, tmp_path: Path) -> None:
    options = {**SMOKE, "seeds": 1, "arms": {"bad": {"stages": [{"method": "sft", "sft": {"batch": 3}}]}, "sft": SMOKE["arms"]["sft"]}}
    file, run = tmp_path / "mine.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(options))
    done = harness(file, "--out", run)
    assert done.returncode == 1
    assert "seed-1-bad-train-1: error:" in done.stderr
    assert (run / "seed-1/sft/eval-same/report.json").is_file()
    assert "Seeds finished: bad 0, sft 1 of 1" in (run / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no experiment 'nothing'. Allowed: machines, smoke"),
        (["smoke", "--arms=1"], "--arms=1: arms: Input should be a valid dictionary"),
        (["smoke", "--budget=1"], "unknown option 'budget'; did you mean 'budget_tokens'"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = harness(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_presets_are_whole(tmp_path: Path) -> None:
    for preset in PRESETS.glob("*.yaml"):
        layout = Layout(tmp_path / preset.stem, Experiment.model_validate(yaml.safe_load(preset.read_text())))
        jobs = [*base_jobs(layout), *arm_jobs(layout)]
        made = [job.done for job in jobs]
        assert len({job.name for job in jobs}) == len(set(made)) == len(jobs)
        for place, job in enumerate(jobs):
            assert set(job.needs) <= set(made[:place]), f"{job.name} comes before what it needs"


def test_experts_of_a_seed(tmp_path: Path) -> None:
    make_experts("math", "machines", Experts(profile="machines", n=6, validation=2), 1, tmp_path / "silent")
    make_experts("math", "machines-told", Experts(profile="machines", n=6, validation=2), 1, tmp_path / "told")
    tasks = {split: [row["instance_id"] for row in read_jsonl(tmp_path / f"silent/tasks/{split}.jsonl")] for split in ("train", "val")}
    assert {split: len(found) for split, found in tasks.items()} == {"train": 6, "val": 2}
    silent, told = (list(read_jsonl(tmp_path / name / "trajectories.jsonl")) for name in ("silent", "told"))
    assert [row["instance_id"] for row in silent] == [row["instance_id"] for row in told] == tasks["train"] + tasks["val"]


def test_intervals() -> None:
    rng = np.random.default_rng(1)
    z = NormalDist().inv_cdf(0.975)
    one = (rng.random((1, 400)) < 0.3).astype(float)
    mean = one.mean()
    half = z * (mean * (1 - mean) / 400) ** 0.5
    assert interval(one) == pytest.approx((mean, mean - half, mean + half), abs=0.006)
    seeds = np.repeat(rng.normal(0.5, 0.1, (40, 1)), 50, 1)  # tasks say nothing, seeds all
    half = z * seeds[:, 0].std() / 40**0.5
    assert interval(seeds) == pytest.approx((seeds.mean(), seeds.mean() - half, seeds.mean() + half), abs=0.004)
    one = {"steps": {"greedy": {"right": "0" * 200}}, "tests": {"same": {"right": "1-0-" * 50}}}
    none = accuracy({"arms": {"x": dict.fromkeys("123", one)}}, "x", "steps")
    assert none.mean == none.low == 0
    assert none.high == pytest.approx(z**2 / (200 + z**2))  # Wilson's upper bound for 0 of 200
    assert accuracy({"arms": {"x": {"1": one}}}, "x", "same").mean == 0.5  # of those that have a verdict
    assert interval(np.zeros((2, 9))) == (0, 0, 0)  # of differences


def test_differences_are_paired(finished: Path) -> None:
    figures = json.loads((finished / "report.json").read_text())
    rows = figures["arms"]["sft"]
    rows["1"]["tests"]["same"]["right"], rows["2"]["tests"]["same"]["right"] = "110000", "000011"
    del figures["arms"]["srl-rlvr"]["1"]
    figures["arms"]["srl-rlvr"]["2"]["tests"]["same"]["right"] = "100001"
    assert right(figures, "sft", "same").tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]]
    difference = against(figures, "srl-rlvr", "sft", "same")
    assert difference is not None
    assert difference.tolist() == [[1, 0, 0, 0, -1, 0]]
    figures["arms"]["sft"] = {}
    assert against(figures, "srl-rlvr", "sft", "same") is None
