"""What runs a checkpoint in an evaluation: which engine is taken, where that is written down, and when it is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from harness.evaluate import evaluate
from harness.generate import ScriptedGenerator, load_generator, local_engine
from harness.plan import EvalConfig, Plan, prepare
from harness.scripted_server import ScriptedServer
from harness.train.config import TinyModel
from harness.train.tiny import build_model, train_tokenizer
from harness_trajectories.errors import UserError

without_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_tokenizer(["select count(*) from orders"], 300)
    build_model(TinyModel(hidden=32, layers=1, heads=2, feedforward=32), tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plan(**options: Any) -> Plan:
    given = {"domain": "harness_sql:SqlEnv", "instances": ("sql-test-0",), "sampling": {"max_tokens": 4}, **options}
    return prepare(EvalConfig.model_validate(given))


def recorded(run: Path) -> tuple[str, str | None]:
    return yaml.safe_load((run / "config.yaml").read_text())["engine"], json.loads((run / "report.json").read_text())["engine"]


def test_auto_is_vllm_only_with_cuda_and_stands_resolved_in_the_run(checkpoint: Path, tmp_path: Path) -> None:
    installed = importlib.util.find_spec("vllm") is not None
    expected = "vllm" if installed and torch.cuda.is_available() else "transformers"
    assert local_engine() == expected
    evaluate(plan(model=str(checkpoint)), tmp_path)
    assert recorded(tmp_path) == (expected, expected)


@without_vllm
def test_a_run_is_taken_up_with_the_engine_that_it_began_with(checkpoint: Path, tmp_path: Path) -> None:
    evaluate(plan(model=str(checkpoint), engine="transformers"), tmp_path)
    evaluate(plan(model=str(checkpoint)), tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("engine: transformers", "engine: vllm"))
    with pytest.raises(UserError, match="engine: 'vllm' there, 'transformers' asked for"):
        evaluate(plan(model=str(checkpoint), engine="transformers"), tmp_path)
    with pytest.raises(UserError, match=r"pip install 'srl-harness\[vllm\]'"):
        evaluate(plan(model=str(checkpoint)), tmp_path)


@without_vllm
def test_without_vllm_one_message_says_how_to_get_it_before_a_run_is_begun(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pip install 'srl-harness\[vllm\]', or --engine transformers"):
        load_generator(str(checkpoint), "vllm")
    with pytest.raises(UserError, match="vLLM is not installed"):
        evaluate(plan(model=str(checkpoint), engine="vllm"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_engine_that_has_nothing_to_run_is_left_out_and_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer(lambda _: "no") as server:
        evaluate(plan(model=server.spec, engine="vllm"), tmp_path / "endpoint")
    assert "--engine vllm is left out: an endpoint has an engine of its own" in capsys.readouterr().err
    evaluate(plan(mode="gold", engine="transformers"), tmp_path / "gold")
    assert "--engine transformers is left out: no model is loaded" in capsys.readouterr().err
    evaluate(plan(model="named"), tmp_path / "given", generator=ScriptedGenerator(lambda _: "no"))
    assert "--engine" not in capsys.readouterr().err
    assert {recorded(tmp_path / name) for name in ("endpoint", "gold", "given")} == {("auto", None)}


def test_a_cluster_has_no_vllm_engines(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vllm serve"):
        evaluate(plan(model=str(checkpoint), engine="vllm"), tmp_path / "run", cluster="127.0.0.1:1")
    with pytest.raises(UserError, match="no Ray cluster answers"):
        evaluate(plan(model=str(checkpoint)), tmp_path / "run", cluster="127.0.0.1:1")
    assert "engine: transformers" in (tmp_path / "run/config.yaml").read_text()
