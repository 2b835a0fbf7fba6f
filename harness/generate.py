"""Text from a model. Everything that needs one speaks to the `Generator` protocol."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from harness.prompt import Message
from harness_trajectories.errors import UserError

EngineName = Literal["auto", "transformers", "vllm"]
"""What runs a checkpoint on this machine."""


class Sampling(BaseModel):
    """How tokens are chosen. Greedy by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(default=2048, ge=1)
    """Limit of one completion."""
    temperature: float = Field(default=0.0, ge=0.0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int = 0


class Completion(NamedTuple):
    text: str
    prompt_tokens: int
    tokens: int
    finish: Literal["stop", "length"]


class Sampled(NamedTuple):
    """A completion as token ids."""

    tokens: list[int]
    """The token that ended it is the last one."""
    logprobs: list[float]
    """Of each token, under the distribution that it was drawn from; greedy: under the model's own."""


class Generator(Protocol):
    """A model that continues conversations. `generate` may be called from several threads at once."""

    name: str

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling) -> list[Completion]:
        """One completion for each conversation, in order."""

    def count(self, messages: list[Message]) -> int:
        """Tokens of a conversation, generation prompt included."""

    def close(self) -> None:
        """Free the model."""


class ScriptedGenerator:
    """A model that says what it is told to: for tests, demonstrations and the gold and null controls.

    Args:
        reply: the text that answers a conversation.
    """

    name = "scripted"

    def __init__(self, reply: Callable[[list[Message]], str]) -> None:
        self._reply = reply

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling) -> list[Completion]:
        texts = [self._reply(prompt) for prompt in prompts]
        return [Completion(text, self.count(prompt), max(1, len(text) // 4), "stop") for prompt, text in zip(prompts, texts, strict=True)]

    def count(self, messages: list[Message]) -> int:
        """A quarter of the characters: it has no tokenizer."""
        return sum(len(message["content"]) for message in messages) // 4

    def close(self) -> None:
        """Nothing to free."""


class RequestRefused(UserError):
    """The server does not accept one request, as a prompt beyond its context; others it may accept."""


def is_endpoint(spec: str) -> bool:
    """Whether a `--model` names an OpenAI-compatible endpoint, and not a checkpoint or hub id."""
    return spec.startswith(("http://", "https://"))


def parse_endpoint(spec: str) -> tuple[str, str]:
    """Base address and model of `http://HOST:PORT/v1#MODEL`.

    Raises:
        UserError: another shape, or one that holds a password.
    """
    url, _, model = spec.partition("#")
    if "@" in url or "?" in url:
        raise UserError(
            "--model: the address of an endpoint is written into files and so holds no user, password or query; set OPENAI_API_KEY"
        )
    try:
        whole = is_endpoint(url) and bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        whole = False
    if not whole or not model:
        raise UserError(f"--model {spec}: an endpoint is named http://HOST:PORT/v1#MODEL, with the model's name as the server knows it")
    return url.rstrip("/"), model


def local_engine() -> EngineName:
    """What `auto` means here: vLLM where it is installed and CUDA is there, else transformers."""
    if importlib.util.find_spec("vllm") is None:
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def require_vllm() -> None:
    """See that vLLM is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError("--engine vllm: vLLM is not installed. pip install 'srl-harness[vllm]', or --engine transformers")


def load_generator(spec: str, engine: EngineName = "auto") -> Generator:
    """The model that `--model` names: an endpoint `http://HOST:PORT/v1#MODEL`, or a checkpoint folder or hub id.

    Args:
        engine: what runs a checkpoint; an endpoint has its own.

    Raises:
        UserError: no model can be loaded from there.
    """
    if is_endpoint(spec):
        from harness.generate_openai import OpenAIGenerator

        return OpenAIGenerator(spec)
    if (local_engine() if engine == "auto" else engine) == "vllm":
        from harness.generate_vllm import VLLMGenerator

        return VLLMGenerator(spec)
    from harness.generate_hf import TransformersGenerator

    return TransformersGenerator(spec)
