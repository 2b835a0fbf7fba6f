"""Models of this machine: loading a checkpoint, its prompts as tokens, and the `TransformersGenerator`."""

from __future__ import annotations

import gzip
import queue
import re
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from harness.generate import Completion, Sampling
from harness.generate_decode import decode
from harness.prompt import CHAT_TEMPLATE, Message
from harness_trajectories.errors import UserError

WEIGHT_FILES = ("*.safetensors",)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
ALLOWED = "Allowed: a checkpoint folder (config.json, weights, tokenizer), or a hub id owner/name where the hub can be reached"


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, a hub id, or a tokenizer.json (.gz too); with padding and a chat template in any case.

    Raises:
        UserError: there is none, or the hub cannot be reached.
    """
    path = Path(source)
    if path.is_dir() and not (path / "tokenizer.json").is_file() and (path / "tokenizer.json.gz").is_file():
        path = path / "tokenizer.json.gz"
    try:
        if path.is_file():
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer.from_buffer(data), eos_token="<|im_end|>", pad_token="<|endoftext|>"
            )
            if missing := [token for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>") if token not in tokenizer.get_vocab()]:
                raise ValueError(f"it lacks the ChatML tokens {', '.join(missing)}")
        else:
            folder = checkpoint_folder(source, TOKENIZER_FILES)
            loader = AutoTokenizer if (folder / "config.json").is_file() else PreTrainedTokenizerFast
            tokenizer = loader.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(f"no tokenizer can be loaded from {source}: {first_line(error)}. {ALLOWED}") from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def load_model(source: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The causal language model of a checkpoint folder or hub id.

    Raises:
        UserError: there is none, or the hub cannot be reached.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(checkpoint_folder(source, WEIGHT_FILES), dtype=dtype)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"no model can be loaded from {source}: {first_line(error)}. {ALLOWED}") from error


def load_config(source: str) -> PretrainedConfig:
    """What the model of a checkpoint folder or hub id is like; its weights are not fetched.

    Raises:
        UserError: there is none, or the hub cannot be reached.
    """
    try:
        return AutoConfig.from_pretrained(checkpoint_folder(source, ("config.json",)))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"no model configuration can be loaded from {source}: {first_line(error)}. {ALLOWED}") from error


def checkpoint_folder(source: str, needed: Sequence[str]) -> Path:
    """A local folder as it is, or the hub's files in the local cache. A mistyped path is never sent to the hub, and it is asked once.

    Args:
        needed: patterns of which a file must be there.

    Raises:
        ValueError: neither a folder nor a hub id, or nothing of what is needed in it.
        OSError: the hub cannot be reached.
    """
    folder = Path(source)
    if not folder.is_dir():
        if not HUB_ID.fullmatch(source):
            raise ValueError("no such folder, and not a hub id either")
        folder = Path(snapshot_download(source, allow_patterns=[*needed, "*.json", "*.jinja"]))
    if not any(any(folder.glob(pattern)) for pattern in needed):
        raise ValueError(f"the folder holds none of {', '.join(needed)}")
    return folder


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """The tokens that the model reads for a conversation, generation prompt included."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def end_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """Every token that ends a completion: the tokenizer's, ChatML's end of turn, and those that the model declares."""
    return declared_ends(tokenizer, model.generation_config)


def declared_ends(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> list[int]:
    """`end_tokens` of a model that is not loaded here, by its generation options."""
    declared = generation.eos_token_id
    ids = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    ids += declared if isinstance(declared, list) else [declared]
    return sorted({token for token in ids if token is not None and token != tokenizer.unk_token_id})


def completion_of(tokenizer: PreTrainedTokenizerBase, end: Collection[int], prompt: Sequence[int], tokens: Sequence[int]) -> Completion:
    """New tokens as text, without the one of `end` that ended them."""
    stopped = bool(tokens) and tokens[-1] in end
    text = tokenizer.decode(tokens[:-1] if stopped else tokens, skip_special_tokens=True)
    return Completion(text, len(prompt), len(tokens), "stop" if stopped else "length")


class Job(NamedTuple):
    """A completion to be made."""

    prompt: list[int]
    sampling: Sampling
    seed: int
    answer: Future[Completion]


class LocalGenerator:
    """What generators that run a model on this machine share: conversations become jobs, which `_submit` of a subclass has answered."""

    def __init__(self, model: str | Path) -> None:
        self.name = str(model)
        self.tokenizer = load_tokenizer(self.name)
        self._tokenizing = threading.Lock()

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling) -> list[Completion]:
        """One completion for each conversation, in order; the n-th uses seed `sampling.seed + n`."""
        with self._tokenizing:
            tokens = [prompt_ids(self.tokenizer, messages) for messages in prompts]
        jobs = [Job(prompt, sampling, sampling.seed + number, Future()) for number, prompt in enumerate(tokens)]
        for job in jobs:
            self._submit(job)
        return [job.answer.result() for job in jobs]

    def count(self, messages: list[Message]) -> int:
        """Tokens of a conversation, generation prompt included."""
        with self._tokenizing:
            return len(prompt_ids(self.tokenizer, messages))

    def _submit(self, job: Job) -> None:
        raise NotImplementedError


class TransformersGenerator(LocalGenerator):
    """A checkpoint folder or hub model. Requests of several threads are decoded together by one worker thread.

    Args:
        model: folder with weights and tokenizer, or a hub id.
        device: `cpu`, `cuda`, …; None: CUDA where there is one.
        batch: completions decoded at once.

    Raises:
        UserError: no model can be loaded from there.
    """

    def __init__(self, model: str | Path, device: str | None = None, batch: int = 32) -> None:
        super().__init__(model)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_model(str(model), dtype=torch.float32 if self.device == "cpu" else torch.bfloat16).to(self.device).eval()
        self._end = end_tokens(self.tokenizer, self._model)
        self._pad = self.tokenizer.pad_token_id
        self._batch = batch
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="generation", daemon=True)
        self._worker.start()

    def close(self) -> None:
        """Finish what is queued, then free the model."""
        if self._worker.is_alive():
            self._jobs.put(None)
            self._worker.join()
        del self._model

    def _submit(self, job: Job) -> None:
        self._jobs.put(job)

    def _work(self) -> None:
        closing = False
        while not closing and (first := self._jobs.get()) is not None:
            groups: dict[tuple[float, float, int], list[Job]] = {}
            job: Job | None = first
            while job is not None:
                groups.setdefault((job.sampling.temperature, job.sampling.top_p, job.sampling.max_tokens), []).append(job)
                if self._jobs.empty():
                    break
                job = self._jobs.get()
            closing = job is None
            for jobs in groups.values():
                jobs.sort(key=lambda job: len(job.prompt))
                for start in range(0, len(jobs), self._batch):
                    self._decode(jobs[start : start + self._batch])

    def _decode(self, jobs: list[Job]) -> None:
        sampling = jobs[0].sampling
        try:
            completions = decode(
                self._model,
                [job.prompt for job in jobs],
                self._end,
                self._pad,
                sampling.max_tokens,
                sampling.temperature,
                sampling.top_p,
                seeds=[job.seed for job in jobs] if sampling.temperature > 0 else None,
            )
        except Exception as error:  # handed to the threads that wait
            for job in jobs:
                job.answer.set_exception(error)
            return
        for job, (tokens, _) in zip(jobs, completions, strict=True):
            job.answer.set_result(completion_of(self.tokenizer, self._end, job.prompt, tokens))
