"""The benchmarks of training run on a tiny model, as on a CPU and as on a GPU: with adapters, bfloat16 and checkpointing."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import shared_prefix
import srl_step
from training_case import CASES

SMALL = {"prompt": 820, "completion": 4, "layers": 1, "hidden": 64, "feedforward": 64, "heads": 4, "kv_heads": 2, "vocabulary": 300}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_figures_are_there_and_both_sides_compute_the_same(name: str) -> None:
    case = dataclasses.replace(CASES[name], **SMALL, device="cpu")
    figures = shared_prefix.measure(case, rounds=1)
    assert figures["gradient_error"] < (1e-5 if name == "cpu" else 0.2)
    assert figures["steps_token_ratio_full"] > 8
    figures = srl_step.measure(case, steps=2, rounds=1)
    for side in ("stock", "ours"):
        assert sum(figures[f"{side}_{phase}_share"] for phase in srl_step.PHASES) == pytest.approx(1)
    assert figures["tokens_floor"] < figures["tokens_ours"] < figures["tokens_stock"]
