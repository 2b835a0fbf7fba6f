"""What a run shows of itself: phases, rows, TensorBoard's files, pictures and the page.

References: TensorBoard's own reader, the wall clock, the completions that were kept, PIL's reading of the pictures.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import test_train
import training_corpus
from PIL import Image

from harness.runs import Run, read_jsonl
from harness.train.curves import draw
from harness.train.phases import Phases
from harness.train.summary import stage_reports


def test_every_second_is_in_one_phase() -> None:
    phases = Phases()
    started = time.monotonic()
    phases.begin("update")
    time.sleep(0.05)
    with phases("sampling"):
        time.sleep(0.1)
        with phases("scoring"):
            time.sleep(0.15)
        time.sleep(0.1)
    phases.end()
    time.sleep(0.05)  # in none
    seconds = phases.take()
    phases.add("checkpoint", 2.0)
    assert seconds.keys() == {"update", "sampling", "scoring"}
    assert seconds["sampling"] > 0.19
    assert seconds["scoring"] > 0.14
    assert seconds["update"] > 0.04
    assert sum(seconds.values()) <= time.monotonic() - started - 0.05
    assert phases.take() == {"checkpoint": 2.0}


def test_a_phase_ends_with_its_block_whatever_happens() -> None:
    phases = Phases()
    with pytest.raises(ZeroDivisionError), phases("outer"), phases("inner"):
        raise ZeroDivisionError
    time.sleep(0.5)
    assert sum(phases.take().values()) < 0.5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SRL after a warm-up, a validation and a checkpoint after each second step, written to TensorBoard."""
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("seeing")
    data = training_corpus.write(folder)
    path = folder / "run"
    options = ("--report_to=[tensorboard]", "--validation.every=2", "--checkpoint_every=2", "--srl.max_steps=4", "--samples_logged=5")
    command = ("train", "--domain", "swe", "--model", "tiny", "--data", data, "--out", path, "--json", *training_corpus.SMALL)
    with pytest.MonkeyPatch.context() as patch:
        assert test_train.harness(patch, *command, *test_train.SRL, *options, *test_train.OPEN_GATE) == 0
    return path


def rows(run: Path, stage: str, name: str) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(run / "metrics.jsonl") if row["stage"] == stage and name in row]


def test_steps_tell_tokens_and_seconds(run: Path) -> None:
    steps = rows(run, "srl", "reward")
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    for row in steps:
        assert 1 <= row["completion_tokens_min"] <= row["completion_tokens"] <= row["completion_tokens_max"] <= 8
        assert row["sampled_tokens"] == row["completion_tokens"] * 8 * row["tried"] / 2
        assert row["update_tokens"] > row["sampled_tokens"]
        phases = {name: row[name] for name in row if name.startswith("seconds_")}
        assert {"seconds_sampling", "seconds_scoring", "seconds_log_probs", "seconds_update"} <= phases.keys()
        assert 0.5 * row["seconds"] < sum(phases.values()) <= row["seconds"] + 0.005
        assert sum(row[name.replace("seconds", "share")] for name in phases) <= 1.001
        assert row["tokens_per_second"] == pytest.approx(row["sampled_tokens"] / row["seconds_sampling"], rel=0.02)
        assert {"entropy", "zero_variance", "tried_per_kept", "clipped", "update_tokens_per_second", "grad_norm"} <= row.keys()
    assert ["seconds_checkpoint" in row for row in steps] == [True, False, True, False]  # the first best, and that after the second step
    supervised = rows(run, "warmup", "loss")
    assert len(supervised) == 4
    assert all(row["update_tokens_per_second"] > 0 for row in supervised)
    last = list(read_jsonl(run / "metrics.jsonl"))[-1]
    assert (last["step"], "seconds_checkpoint" in last, "loss" in last) == (4, True, False)


def test_kept_completions_stand_beside_the_experts_action(run: Path) -> None:
    kept = list(read_jsonl(run / "completions" / "step-00004.jsonl"))
    assert len(kept) == 5
    assert {"sample", "reward", "exact", "penalty", "clipped", "tokens", "action", "expert", "completion"} <= kept[0].keys()
    assert all((row["action"] is None) == (not row["format_ok"]) for row in kept)


def test_tensorboard_gets_the_figures_of_metrics(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for stage in ("warmup", "srl"):
        events = EventAccumulator(str(run / "tensorboard" / stage))
        events.Reload()
        for name, tag in (("loss", "train/loss"), ("val_reward", "eval/reward"), ("seconds_update", "train/seconds_update")):
            expected = [(row["step"], pytest.approx(row[name], rel=1e-5, abs=1e-9)) for row in rows(run, stage, name)]
            assert [(event.step, event.value) for event in events.Scalars(tag)] == expected
            assert expected
        assert not [tag for tag in events.Tags()["scalars"] if tag.count("/") > 1]  # TRL's raw names have more


def test_the_page_and_the_pictures(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    page = (run / "report.md").read_text()
    names = {f"plots/srl-{name}.png" for name in ("reward", "rates", "lengths", "time", "loss")}
    assert names | {"plots/warmup-loss.png", "plots/warmup-time.png"} <= set(report["plots"])
    for name in report["plots"]:
        assert f"({name})" in page
        with Image.open(run / name) as picture:
            assert picture.width > 600
            assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 20
    assert "constant action" in page
    assert "## srl: 4 steps" in page
    assert not [line for line in page.splitlines() if "nan" in line.lower().split()]


def test_the_report_adds_up(run: Path) -> None:
    stage = json.loads((run / "report.json").read_text())["stages"]["srl"]
    shares = {name: phase["share"] for name, phase in stage["phases"].items()}
    assert {"sampling", "scoring", "update", "validation", "checkpoint"} <= shares.keys()
    assert 0.5 < sum(shares.values()) <= 1.001
    assert stage["last"]["reward"] == rows(run, "srl", "reward")[-1]["reward"]  # a tenth of four steps is the last one
    whole = sum(row["seconds"] for row in rows(run, "srl", "seconds"))
    assert stage["seconds"] + stage["validation_seconds"] == pytest.approx(whole)


def test_long_runs_are_drawn_smooth_and_short_ones_at_all(tmp_path: Path) -> None:
    run = Run(tmp_path, False)
    for step in range(1, 200):
        run.log({"stage": "sft", "step": step, "loss": 1 / step, "seconds": 1.0, "seconds_update": 0.9, "update_tokens": 10})
    assert [path.name for path in draw(run)] == ["sft-time.png", "sft-loss.png"]
    single = Run(tmp_path / "single", False)
    single.log({"stage": "srl", "step": 1, "loss": 0.0, "reward": 0.5, "seconds": 1.0})
    assert [path.name for path in draw(single)] == ["srl-reward.png", "srl-loss.png"]
    assert stage_reports(single)["srl"]["last"] == {"loss": 0.0, "reward": 0.5}
    assert draw(Run(tmp_path / "empty", False)) == []
