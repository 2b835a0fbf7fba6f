"""Training that samples with a server: against the model that is trained (transformers, in this process), and against one process.

`TokenServer` stands for vLLM's where only our side is tested; vLLM itself is in `test_vllm_server.py`.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import test_sharding
import test_train
import test_train_grpo
import torch
import training_corpus
from token_server import TokenServer

from harness.generate_hf import end_tokens
from harness.runs import read_jsonl
from harness.scripted_server import RawAnswer, ScriptedServer
from harness.train import processes, server_engine
from harness.train.config import Memory, Outcome, StepWise, TinyModel
from harness.train.engine import ModelEngine
from harness.train.failure import TrainingFailed
from harness.train.grpo import ReinforcedTrainer
from harness.train.server_engine import ServerEngine, check_server
from harness.train.sharding import Replica
from harness.train.tiny import build_model, train_tokenizer
from harness_trajectories.errors import UserError

PROMPTS = [[5, 6, 7], [9] * 40, [*[9] * 40, 8]]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is not waited for for minutes."""
    monkeypatch.setattr(server_engine, "PATIENCE", 1.0)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A checkpoint of other weights than those that are trained."""
    tokenizer = train_tokenizer([*test_train_grpo.TEXTS, "user\nassistant\n"], 330)
    build_model(TinyModel(hidden=32, layers=2, heads=2, feedforward=64), tokenizer, seed=7).save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def served(trainer: Any, server: TokenServer, folder: Path) -> ServerEngine:
    options = StepWise(sampler=server.address, max_completion_tokens=6, temperature=trainer.temperature)
    trainer.engine = ServerEngine(options, trainer.model, end_tokens(trainer._tokenizer, trainer.model), folder / "sampler")
    return trainer.engine


def test_it_samples_what_the_model_samples_by_the_same_seeds(start: Path, tmp_path: Path) -> None:
    trainer = test_train_grpo.trainer_with(test_train_grpo.by_length, tmp_path, temperature=0.8)
    end = end_tokens(trainer._tokenizer, trainer.model)
    local = ModelEngine(Replica(trainer.model, "cpu"), end, trainer._tokenizer.pad_token_id, 6, 0.8, 8)
    seeds = [first + copy for first in (3, 2**55, 77) for copy in range(4)]
    with TokenServer(start) as server:
        engine = served(trainer, server, tmp_path)
        engine.refresh()
        for options in ({"copies": 4, "seeds": seeds}, {"greedy": True}, {"seeds": seeds[::4], "max_tokens": 2}):
            found, expected = engine.sample(PROMPTS, **options), local.sample(PROMPTS, **options)
            assert [[one.tokens for one in group] for group in found] == [[one.tokens for one in group] for group in expected]
            for group, others in zip(found, expected, strict=True):
                for one, other in zip(group, others, strict=True):
                    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert {len(body["prompt"]) for body in server.requests} == {3, 40, 41}
        assert len(server.requests) == 9  # a prompt's completions are one request
        assert all({"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}.items() <= body.items() for body in server.requests)
        engine.close()


@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "adapters"])
def test_it_samples_from_the_weights_of_the_step(start: Path, tmp_path: Path, rank: int) -> None:
    """The server computes with the old weights until its cache is reset."""
    options = {"max_steps": 4, "learning_rate": 3e-2, "dynamic_sampling": False, "max_sampler_gap": 1e-5}
    trainer = test_train_grpo.trainer_with(test_train_grpo.by_length, tmp_path, memory=Memory(lora_rank=rank), **options)
    with TokenServer(start) as server:
        engine = served(trainer, server, tmp_path)
        trainer.train()  # would end at a larger gap
        assert trainer.figures["sampler_gap"] > 0
        assert len(set(server.folders)) == 4
        assert [str(path) for path in (tmp_path / "sampler").iterdir()] == server.folders[-1:]
        engine.refresh = lambda: None
        trainer._refreshed = -1
        with pytest.raises(TrainingFailed, match="the sampler is not the model that is trained"):
            trainer.train()
        engine.close()
        assert not (tmp_path / "sampler").exists()


def test_a_server_that_was_started_again_reads_the_weights_again(start: Path, tmp_path: Path) -> None:
    trainer = test_train_grpo.trainer_with(test_train_grpo.by_length, tmp_path)
    with TokenServer(start) as server:
        engine = served(trainer, server, tmp_path)
        engine.refresh()
        expected = engine.sample(PROMPTS, seeds=[1, 2, 3])
        server.stop()
        server.start()
        assert engine.sample(PROMPTS, seeds=[1, 2, 3]) == expected
        assert len(server.folders) == 2

        server.stop()
        threading.Timer(0.3, server.start).start()
        assert engine.sample(PROMPTS, seeds=[1, 2, 3]) == expected
        server.answers = [RawAnswer(503), RawAnswer(200, '{"choices": [{"index": 0, "finish_reason": "abort"}]}')]
        assert engine.sample(PROMPTS, seeds=[1, 2, 3]) == expected

        other = served(trainer, server, tmp_path / "other")
        other.refresh()
        with pytest.raises(TrainingFailed, match=r"has weights that another run has given it \(weights-"):
            engine.sample(PROMPTS, seeds=[1, 2, 3])
        other.close()
        server.answers = [RawAnswer(400, '{"error": {"message": "too long"}}')]
        engine.refresh()
        with pytest.raises(TrainingFailed, match=r"^the server http://127.0.0.1:\d+ answers 400 \(too long\)$"):
            engine.sample(PROMPTS)
        engine._folder = tmp_path / "unseen"
        engine._write = lambda folder: None
        with pytest.raises(
            TrainingFailed, match=r"cannot take over the weights: it answers 500 \(Repo id .*unseen/weights-\d+ under that name"
        ):
            engine.refresh()
        engine.close()


def test_what_cannot_sample_is_refused_with_the_command_that_starts_what_can(start: Path) -> None:
    def refusal(address: str, longest: int = 100) -> str:
        with pytest.raises(UserError) as error:
            check_server(Outcome(sampler=address), longest)
        said = str(error.value)
        assert said.startswith(f"rlvr.sampler {address}: ")
        assert f"VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --max-model-len {longest} (docs" in said
        return said

    with TokenServer(start, limit=100) as server:
        check_server(Outcome(sampler=server.address), 100)
        assert "it takes 100 tokens of a prompt and its completion, and the run has up to 101" in refusal(server.address, 101)
    assert "it cannot be reached: " in refusal(server.address)
    with TokenServer(start, raw=True) as server:
        assert "not those of the distribution that it samples from" in refusal(server.address)
    with TokenServer(start, rpc=False) as server:
        assert "its weights cannot be replaced" in refusal(server.address)
    with ScriptedServer(lambda messages: "", key="secret") as other:
        assert "answers 401 (this key is not known); is OPENAI_API_KEY its key?" in refusal(other.url.removesuffix("/v1"))


def test_the_option_is_a_name_or_an_address() -> None:
    for said in ("http://127.0.0.1:8000", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/"):
        options = StepWise(sampler=said)
        assert (options.sampler, options.served) == ("http://127.0.0.1:8000", True)
    assert not any(StepWise(sampler=name).served for name in ("model", "vllm"))
    for wrong in ("server", "http://", "http://user:word@host:1", "http://host/v1#model"):
        with pytest.raises(ValueError, match=r"expected model, vllm, or the address of a vLLM server: http://HOST:PORT"):
            StepWise(sampler=wrong)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a small model."""
    folder = tmp_path_factory.mktemp("warm")
    data = training_corpus.write(folder)
    with pytest.MonkeyPatch.context() as patch:
        command = ("train", "--domain", "swe", "--model", "tiny", "--data", data, *training_corpus.SMALL, *test_train.SFT)
        assert test_train.harness(patch, *command, "--out", folder / "run") == 0
    return folder


def srl(warm: Path, run: Path, *options: str) -> tuple[str | Path, ...]:
    command = ("train", "--domain", "swe", "--data", warm / "hand.jsonl", "--model", warm / "run/checkpoints/final", "--out", run)
    return (*command, "--srl.max_steps=3", "--checkpoint_every=1", *test_train.SRL[4:], *test_train.OPEN_GATE, *options)


@pytest.mark.slow
def test_the_command_ends_where_the_server_does_and_goes_on_where_another_is(
    warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with TokenServer(warm / "run/checkpoints/final") as server:

        def until_step() -> None:
            while not test_train._steps(run, "srl"):
                threading.Event().wait(0.01)
            server.stop()

        thread = threading.Thread(target=until_step)
        thread.start()
        assert test_train.harness(monkeypatch, *srl(warm, run, f"--srl.sampler={server.address}/v1")) == 1
        thread.join()
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"while sampling: the server {server.address} has been lost for 1 s: " in said
        assert "The same command goes on from step " in said
        assert "--srl.sampler=model. " in said
        assert not (run / "sampler").exists()
        assert test_train.harness(monkeypatch, *srl(warm, run, f"--srl.sampler={server.address}")) == 2
        assert "it cannot be reached" in capsys.readouterr().err
        server.start()
    with TokenServer(warm / "run/checkpoints/final") as server:
        assert test_train.harness(monkeypatch, *srl(warm, run, f"--srl.sampler={server.address}")) == 0
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if "sampler_gap" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert max(row["sampler_gap"] for row in rows) < 1e-5
    assert not (run / "sampler").exists()


def trained(folder: Path, address: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The weights of a run of three steps, and the gap to the server in each."""
    trainer, _ = test_sharding.reinforced(folder / os.environ.get("RANK", "one"), max_sampler_gap=1e-5)
    assert isinstance(trainer, ReinforcedTrainer)
    options = StepWise(sampler=address, max_completion_tokens=6)
    trainer.engine = ServerEngine(options, trainer.model, end_tokens(trainer._tokenizer, trainer.model), folder / "sampler")
    gaps: list[float] = []
    compare = trainer._compare

    def noted(*arguments: Any) -> None:
        compare(*arguments)
        gaps.append(trainer._gaps[-1])

    trainer._compare = noted
    trainer.train()
    trainer.engine.close()
    return dict(test_sharding.whole(trainer.model)), gaps


def work(rank: int, folder: Path, address: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with processes.together():
        torch.save(trained(folder, address), folder / f"found-{rank}")


@pytest.mark.slow
def test_two_processes_with_a_server_train_as_one(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asks for half of the completions; the first hands over the weights."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(random.randint(20000, 30000)))
    with TokenServer(start) as server:
        torch.multiprocessing.spawn(work, (tmp_path, server.address), nprocs=2)
        asked, server.requests = prompts_of(server.requests), []
        handed = len(server.folders)
        expected, gaps = trained(tmp_path, server.address)
        assert asked == prompts_of(server.requests)
        assert (handed, len(server.folders)) == (test_sharding.STEPS, 2 * test_sharding.STEPS)
    for rank in range(2):
        weights, theirs = torch.load(tmp_path / f"found-{rank}")
        assert test_sharding.apart(weights, expected) <= 1e-5
        assert max(*theirs, *gaps) < 1e-5
        assert theirs


def prompts_of(requests: Sequence[dict[str, Any]]) -> list[tuple[int, list[int]]]:
    return sorted((body["seed"], body["prompt"]) for body in requests)
