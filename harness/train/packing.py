"""The sequences of a micro-batch as one prefix tree, and attention over it.

A token that several sequences begin with stands in the tree once, so it is forwarded once. The tokens lie depth-first, so those that see
a token follow it without a gap. Attention then falls into few rectangles, each a plain kernel call without a mask: a run of tokens sees
itself causally, and everything below the run sees all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "prefix_tree"
"""The name under which transformers knows the attention."""


class Run(NamedTuple):
    """Consecutive tokens without a fork between them."""

    start: int
    stop: int
    end: int
    """Where the tokens below the run end; `stop` for a leaf."""


@dataclass(frozen=True)
class PrefixTree:
    """N tokens for C completion tokens of all sequences, in the order the sequences were given."""

    tokens: Tensor
    """(N,)"""
    positions: Tensor
    """Of each token in its sequence. (N,)"""
    runs: tuple[Run, ...]
    rows: Tensor
    """For each completion token the place in the tree of the token before it, where its logits come from. (C,)"""
    targets: Tensor
    """The completion tokens. (C,)"""
    unshared: int
    """Tokens of all sequences, each written out."""


def prefix_tree(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> PrefixTree:
    """The tree of the sequences prompt + completion; also equal beginnings of completions, and whole sequences, are shared.

    Raises:
        ValueError: a prompt is empty, so nothing predicts its completion's first token.
    """
    if not all(map(len, prompts)):
        raise ValueError("an empty prompt: the first token of its completion has no logits")
    whole = [np.array([*prompt, *completion], np.int64) for prompt, completion in zip(prompts, completions, strict=True)]
    path = np.empty(0, np.int64)  # places in the tree of the sequence before
    before = path
    pieces: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    ends = np.zeros(sum(map(len, whole)), np.int64)
    size = 0
    rows: list[np.ndarray] = [path] * len(whole)
    for index in sorted(range(len(whole)), key=lambda i: whole[i].tolist()):
        sequence = whole[index]
        shared = _common(before, sequence)
        ends[path[shared:]] = size
        new = len(sequence) - shared
        path = np.concatenate([path[:shared], np.arange(size, size + new)])
        pieces.append(sequence[shared:])
        positions.append(np.arange(shared, len(sequence)))
        rows[index] = path[len(prompts[index]) - 1 : -1]
        before, size = sequence, size + new
    ends[path] = size
    ends = ends[:size]
    # neighbours have the same end only if one follows the other in every sequence
    starts = np.flatnonzero(np.diff(ends, prepend=-1)).tolist()
    runs = tuple(Run(start, stop, int(ends[start])) for start, stop in zip(starts, [*starts[1:], size], strict=True))
    targets = [np.array(completion, np.int64) for completion in completions]
    parts = (np.concatenate(part) for part in (pieces, positions, rows, targets))
    tokens, places, before_targets, wanted = (torch.from_numpy(part).to(device) for part in parts)
    return PrefixTree(tokens, places, runs, before_targets, wanted, sum(map(len, whole)))


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """The length of the common beginning."""
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if len(differing) else length


class _TreeAttention(torch.autograd.Function):
    """Attention on the CPU, rectangle by rectangle, the softmax put together from the rectangles' own.

    Each rectangle's kernel gives its output and the log of its sum of exponentials, by which outputs are weighed. Backward, a rectangle
    that is given the whole output and the whole sum yields its share of the gradient of the whole.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: tuple[Run, ...], scale: float) -> Tensor:
        """All of shape (1, heads, N, size); the heads of key and value have been repeated."""
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out = torch.empty_like(query, dtype=torch.float32)
        total = torch.empty(query.shape[:3], dtype=torch.float32)
        for start, stop, _ in runs:
            out[:, :, start:stop], total[:, :, start:stop] = kernel(
                query[:, :, start:stop], key[:, :, start:stop], value[:, :, start:stop], 0.0, True, scale=scale
            )
        for start, stop, end in runs:
            if end > stop:
                part, weight = kernel(query[:, :, stop:end], key[:, :, start:stop], value[:, :, start:stop], 0.0, False, scale=scale)
                below, sums = out[:, :, stop:end], total[:, :, stop:end]
                both = torch.logaddexp(sums, weight)
                below.mul_((sums - both).exp()[..., None]).addcmul_(part.float(), (weight - both).exp()[..., None])
                sums.copy_(both)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, total)
        ctx.runs, ctx.scale = runs, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, total = ctx.saved_tensors
        (gradient,) = gradients
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        found = [torch.zeros_like(query, dtype=torch.float32) for _ in range(3)]

        def add(rows: slice, columns: slice, causal: bool) -> None:
            asked, seen = (slice(None), slice(None), rows), (slice(None), slice(None), columns)
            parts = kernel(gradient[asked], query[asked], key[seen], value[seen], out[asked], total[asked], 0.0, causal, scale=ctx.scale)
            for whole, part, place in zip(found, parts, (asked, seen, seen), strict=True):
                whole[place] += part

        for start, stop, end in ctx.runs:
            add(slice(start, stop), slice(start, stop), True)
            if end > stop:
                add(slice(stop, end), slice(start, stop), False)
        return *(whole.to(query.dtype) for whole in found), None, None


def attend_by_rectangles(query: Tensor, key: Tensor, value: Tensor, runs: tuple[Run, ...], scale: float) -> Tensor:
    """On the CPU: no score is computed that the mask of a sequence would hide. (1, heads, N, size)"""
    copies = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(copies, 1) for part in (key, value))
    return _TreeAttention.apply(query, key, value, runs, scale)


def attend_by_runs(query: Tensor, key: Tensor, value: Tensor, runs: tuple[Run, ...], scale: float) -> Tensor:
    """On any device: a run's queries against the keys of the runs above it and its own, by torch's public attention. (1, heads, N, size)

    One kernel a run and layer, 9 for a group of 8, each with hundreds of queries. Beyond their arithmetic they cost copies of the keys
    above, for Qwen2.5-7B a thousandth of the update by estimate; no GPU has run it. FlexAttention would be one kernel, but has no backward
    pass on a CPU, so that it could not be tested.
    """
    sizes = [run.stop - run.start for run in runs]
    queries, keys, values = (part.split(sizes, 2) for part in (query, key, value))
    above: list[int] = []
    parts = []
    for number, run in enumerate(runs):
        while above and runs[above[-1]].end <= run.start:
            above.pop()
        above.append(number)
        seen, weighed = (torch.cat([pieces[index] for index in above], 2) for pieces in (keys, values))
        bias = causal_lower_right(sizes[number], seen.shape[2])
        parts.append(
            scaled_dot_product_attention(queries[number], seen, weighed, bias, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
        )
    return torch.cat(parts, 2)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    tree: PrefixTree | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer. Without a tree it is torch's ordinary attention.

    Raises:
        ValueError: over a tree, with dropout or a sliding window.
    """
    if tree is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, sliding_window=sliding_window, **options
        )
    if dropout or sliding_window:
        raise ValueError(f"shared prefixes need attention without dropout and window; got dropout {dropout}, window {sliding_window}")
    device = query.device.type
    if torch.is_autocast_enabled(device):  # the kernels are called past autocast, which leaves rotated queries and keys in float32
        query, key, value = (part.to(torch.get_autocast_dtype(device)) for part in (query, key, value))
    attend = attend_by_rectangles if device == "cpu" else attend_by_runs
    return attend(query, key, value, tree.runs, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
