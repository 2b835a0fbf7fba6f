"""The decoding loop: token ids in, token ids out, for training, validation and evaluation alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from harness.generate import Sampled

COMPACT = 0.75
"""Finished sequences leave the batch once that makes it no more than this share of what it was."""
PROMPT, PADDING = -1, -2
"""In place of a completion's number: tokens that all completions of a prompt see, and that none does."""


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
