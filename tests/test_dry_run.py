"""`harness train --dry-run` through the real command, against what a run of the same options does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import test_train
import training_corpus
from test_estimate import QWEN_7B

from harness.generate_hf import load_tokenizer
from harness.runs import read_jsonl

RECIPES = Path(__file__).resolve().parents[1] / "configs"


def cost_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str | Path) -> dict[str, Any]:
    assert test_train.harness(monkeypatch, "train", "--domain", "swe", *options, "--dry-run", "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.parametrize("unit", ["steps", "trajectory"])
def test_a_run_does_what_was_foretold(
    tmp_path: Path, unit: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An epoch of supervised training sees every token once; RL reads and samples what stands in its rows."""
    data, run = training_corpus.write(tmp_path), tmp_path / "run"
    options = ("--model", "tiny", "--data", data, *training_corpus.SMALL, f"--warmup.unit={unit}", "--context.kind=full")
    options += ("--warmup.epochs=1", "--warmup.batch=4", "--warmup.micro_batch=4", "--validation.instances=0", *test_train.SRL[3:])
    cost = cost_of(monkeypatch, capsys, *options)
    assert not run.exists()
    command = ("train", "--domain", "swe", *options, "--out", run, "--json")
    assert test_train.harness(monkeypatch, *command, *test_train.OPEN_GATE) == 0
    report = json.loads(capsys.readouterr().out)
    assert cost["parameters"] == cost["trained_parameters"] == report["parameters"]
    assert cost["data"]["steps"] == report["data"]["train_steps"]
    assert cost["data"]["prompt_tokens"]["max"] == report["data"]["prompt_tokens"]["max"]
    assert cost["data"]["prompt_tokens"]["mean"] == pytest.approx(report["data"]["prompt_tokens"]["mean"], abs=0.1)
    rows = {name: [row for row in read_jsonl(run / "metrics.jsonl") if row["stage"] == name and "loss" in row] for name in cost["stages"]}
    assert {name: stage["steps"] for name, stage in cost["stages"].items()} == {name: len(found) for name, found in rows.items()}
    forwarded = [row["update_tokens"] for row in rows["warmup"]]
    assert cost["stages"]["warmup"]["expected"]["update_tokens"]["run"] == pytest.approx(sum(forwarded) / len(forwarded), rel=0.02)
    for row in rows["srl"]:
        assert row["sampled_tokens"] <= cost["stages"]["srl"]["at_most"]["sampled_tokens"] * row["tried_per_kept"]
        assert row["update_tokens"] <= 1.3 * cost["stages"]["srl"]["at_most"]["update_tokens"]["unshared"]  # two prompts are few
    (first, *_) = cost["memory"]
    assert first["fits"] == {"this machine": True}
    assert "cards" in cost["stages"]["srl"]["at_most"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """Qwen2.5-7B's configuration and tokenizer, without weights."""
    folder = tmp_path_factory.mktemp("qwen")
    QWEN_7B.save_pretrained(folder)
    load_tokenizer(str(shared_data / "tokenizer" / "tokenizer.json.gz")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("card", "gb"), [("h100", 80), ("h200", 141)])
def test_the_recipes_for_one_card_fit_it(
    card: str, gb: int, qwen: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = cost_of(monkeypatch, capsys, "--config", RECIPES / f"swe-srl-{card}.yaml", "--model", qwen, "--device-gb", str(gb))
    first, *others = cost["memory"]
    assert list(first["moments"]) == ["srl, sampling", "srl, update", "validation"]
    said = {float(found) for found in re.findall(r"([\d.]+) GB while", (RECIPES / f"swe-srl-{card}.yaml").read_text())}
    assert sorted(said) == pytest.approx(sorted(sum(parts.values()) for parts in first["moments"].values()), abs=0.06)
    assert first["fits"][f"{card.upper()} {gb} GB"]
    assert not all(other["fits"][f"{card.upper()} {gb} GB"] for other in others)
    assert cost["data"]["steps"] is None
    assert cost["stages"]["srl"]["steps"] is None
    found = cost["stages"]["srl"]["at_most"]
    assert found["update_tokens"]["unshared"] == 512 * 8 * (8192 + 2048)
    assert all(part["run"] >= part["floor"] * 0.999 for card in found["cards"].values() for part in card["seconds"].values())


def test_the_text_names_what_does_not_fit(
    tmp_path: Path, qwen: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shared_data / "trajectories" / "swesmith_sft_xml_claude-3-7-sonnet"
    options = ("--model", qwen, "--data", data, "--device-gb", "24", "--memory.optimizer=paged_adamw_8bit")
    assert test_train.harness(monkeypatch, "train", "--domain", "swe", *options, "--dry-run") == 0
    text = capsys.readouterr().out
    assert "7.62B parameters" in text
    assert "a GPU of 24 GB: DOES NOT FIT" in text
    assert "all weights, paged_adamw_8bit" in text
    assert "× the floor" in text
    assert "64 steps" in text
    assert not list(tmp_path.iterdir())


def test_what_a_server_samples_costs_nothing_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", "tiny", "--data", training_corpus.write(tmp_path), *training_corpus.SMALL, *test_train.SRL)
    here, there = (cost_of(monkeypatch, capsys, *options, f"--srl.sampler={name}") for name in ("model", "http://other:8000"))
    sampling = [cost["memory"][0]["moments"]["srl, sampling"] for cost in (here, there)]
    assert sampling[1].items() < sampling[0].items()
    assert here["memory"][0]["moments"]["srl, update"] == there["memory"][0]["moments"]["srl, update"]
    assert here["stages"]["srl"]["at_most"]["sampled_tokens"] > there["stages"]["srl"]["at_most"]["sampled_tokens"] == 0


def test_bad_input_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {("--model", tmp_path / "none"): "no model configuration can be loaded", ("--model", "tiny", "--device-gb", "0"): "device-gb"}
    for options, message in cases.items():
        assert test_train.harness(monkeypatch, "train", "--domain", "swe", "--data", "none", *options, "--dry-run") == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert message in captured.err
