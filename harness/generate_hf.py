"""Generation with transformers: one decoding loop for training, validation and evaluation, and the `TransformersGenerator` over it."""

from __future__ import annotations

import gzip
import queue
import re
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from harness.generate import Completion, Sampled, Sampling
from harness.prompt import CHAT_TEMPLATE, Message
from harness_trajectories.errors import UserError

WEIGHT_FILES = ("*.safetensors",)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
ALLOWED = "Allowed: a checkpoint folder (config.json, weights, tokenizer), or a hub id owner/name where the hub can be reached"
COMPACT = 0.75
"""Finished sequences leave the batch once that makes it no more than this share of what it was."""
PROMPT, PADDING = -1, -2
"""In place of a completion's number: tokens that all completions of a prompt see, and that none does."""


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


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    end: Sequence[int],
    pad: int,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    copies: int = 1,
    seeds: Sequence[int] | None = None,
) -> list[Sampled]:
    """Continue token sequences as one left-padded batch, on CUDA in bfloat16. A prompt is read once however many `copies` continue it.
    Its keys and values are kept once too where the model's attention allows it: the copies then grow side by side, a mask between them.

    Args:
        end: tokens that end a completion; the one that did is part of it.
        temperature: 0 is greedy.
        copies: completions of each prompt, adjacent in the result.
        seeds: one for each completion, which then does not depend on what else is in the batch; None: torch's global generator.

    Returns:
        B × copies completions of at most `max_tokens` new tokens.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            return _decode(model, prompts, end, pad, max_tokens, temperature, top_p, copies, seeds)
    finally:
        model.train(training)


def _decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    end: Sequence[int],
    pad: int,
    max_tokens: int,
    temperature: float,
    top_p: float,
    copies: int,
    seeds: Sequence[int] | None,
) -> list[Sampled]:
    device = model.device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)  # (B, T)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits
    together = copies if _takes_groups(model, cache) else 1
    if together < copies:
        cache.batch_repeat_interleave(copies)
    rows = torch.arange(len(prompts) * copies, device=device).view(-1, together)  # completions that grow side by side (B, R)
    logits = logits[:, -1].repeat_interleave(copies, 0)  # (B × R, V)
    position = positions[:, -1:].repeat_interleave(copies, 0).view(rows.shape)
    owners = torch.where(mask.bool(), PROMPT, PADDING).repeat_interleave(copies // together, 0)  # whose each cached token is (B, K)
    ends = torch.tensor(list(end), device=device)
    drawn = None
    if temperature > 0:
        drawn = (
            torch.rand(len(logits), max_tokens, dtype=torch.float64, device=device)
            if seeds is None
            else uniforms(seeds, max_tokens, device)
        )
    growing = torch.ones_like(rows, dtype=torch.bool)
    columns: list[tuple[list[int], list[int], list[float], list[bool]]] = []
    for step in range(max_tokens):
        token, logprob = _choose(logits, temperature, top_p, None if drawn is None else drawn[rows.flatten(), step])
        columns.append((rows.flatten().tolist(), token.tolist(), logprob.tolist(), growing.flatten().tolist()))
        token = token.view(rows.shape)
        growing = growing & ~torch.isin(token, ends)
        if not growing.any() or step == max_tokens - 1:
            break
        position = position + 1
        alive = growing.sum(1)
        kept, most = alive.nonzero(as_tuple=True)[0], int(alive.max())
        if len(kept) * most <= COMPACT * rows.numel():
            cache.batch_select_indices(kept)
            places = growing[kept].sort(dim=1, descending=True, stable=True).indices[:, :most]
            rows, token, position, growing = (part[kept].gather(1, places) for part in (rows, token, position, growing))
            owners = owners[kept]
        owners = torch.cat([owners, rows], 1)
        if together > 1:
            mask = ((owners == PROMPT)[:, None] | (owners[:, None] == rows[:, :, None]))[:, None]  # (B, 1, R, K)
        else:
            mask = (owners != PADDING).long()
        logits = model(input_ids=token, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True).logits.flatten(
            0, 1
        )
    completions = [Sampled([], []) for _ in range(len(prompts) * copies)]
    for numbers, tokens, logprobs, live in columns:
        for number, value, logprob, grew in zip(numbers, tokens, logprobs, live, strict=True):
            if grew:
                completions[number].tokens.append(value)
                completions[number].logprobs.append(logprob)
    return completions


def _takes_groups(model: PreTrainedModel, cache: DynamicCache) -> bool:
    """Whether completions of a prompt can grow side by side, a mask between them: in every layer plain attention over all that is cached
    (no window, no recurrent state), by an implementation that takes boolean masks."""
    plain = all(type(layer) is DynamicLayer for layer in cache.layers)
    return plain and ALL_MASK_ATTENTION_FUNCTIONS[model.config._attn_implementation] is sdpa_mask


def decode_chunks(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    chunk: int,
    copies: int = 1,
    seeds: Sequence[int] | None = None,
    **options: Any,
) -> Iterator[tuple[int, list[Sampled]]]:
    """`decode` over many prompts, at most `chunk` completions at once, prompts of like length together.

    Yields:
        (index of the prompt, its completions), longest prompts first.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    size = max(1, chunk // copies)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        own = None if seeds is None else [seed for index in part for seed in seeds[index * copies :][:copies]]
        completions = decode(model, [prompts[index] for index in part], copies=copies, seeds=own, **options)
        for place, index in enumerate(part):
            yield index, completions[place * copies : (place + 1) * copies]


def uniforms(seeds: Sequence[int], count: int, device: torch.device) -> torch.Tensor:
    """`count` numbers from [0, 1) for each seed, by the generator SplitMix64: as cheap for many seeds as for one. (B, count), float64"""
    state = torch.tensor([_signed(seed) for seed in seeds], device=device)[:, None]
    state = state + torch.arange(1, count + 1, device=device) * _signed(0x9E3779B97F4A7C15)  # int64 arithmetic wraps around
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ _shifted(state, shift)) * _signed(factor)
    return _shifted(state ^ _shifted(state, 31), 11).double() / 2**53


def _shifted(value: torch.Tensor, by: int) -> torch.Tensor:
    """To the right, zeros coming in: torch's int64 would bring in the sign."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    """The int64 of the same lower 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


def _choose(logits: torch.Tensor, temperature: float, top_p: float, drawn: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """One token for each row and its log-probability. `logits`: (B, V); returns (B,) each.

    Args:
        drawn: from [0, 1): the token is where the sum of the probabilities passes it. (B,); None: greedy.
    """
    probabilities = torch.softmax(logits.float() / (temperature or 1.0), -1)
    if drawn is None:
        token = logits.argmax(-1)
        return token, probabilities.gather(-1, token[:, None])[:, 0].log()
    if top_p < 1.0:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    sums = probabilities.cumsum(-1, dtype=torch.float64)
    token = torch.searchsorted(sums, drawn[:, None] * sums[:, -1:], right=True)[:, 0].clamp(max=sums.shape[1] - 1)
    return token, (probabilities.gather(-1, token[:, None])[:, 0] / probabilities.sum(-1)).log()


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
