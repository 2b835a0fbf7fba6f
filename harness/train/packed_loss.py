"""Log-probabilities of completions with every shared token forwarded once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from harness.train.packing import ATTENTION, PrefixTree, prefix_tree

LOGITS_AT_ONCE = 1 << 26
"""Logits that are held at one time; above it they are computed in chunks, and once more in the backward pass."""


def accept_trees(model: PreTrainedModel, temperature: float) -> None:
    """From now on `model(tree=tree)` returns the log-probabilities of the tree's completion tokens and the entropies there, (C,) each in
    float32, the entropies without gradient. Without `tree` the forward stays as it was, its attention torch's own (sdpa).

    The call goes through the model's forward, so that wrappers (peft, autocast, data-parallel, sharded) do their work around it: call
    this on the bare model, before they wrap it, or on `get_base_model()` of a peft model.

    Args:
        temperature: the logits are divided by it.
    """
    model.set_attn_implementation(ATTENTION)
    original = model.forward

    @functools.wraps(type(model).forward)  # generation looks at the signature
    def forward(self: PreTrainedModel, *args: Any, tree: PrefixTree | None = None, **options: Any) -> Any:
        if tree is None:
            return original(*args, **options)
        hidden = self.base_model(
            input_ids=tree.tokens[None],
            position_ids=tree.positions[None],
            attention_mask=tree.tokens.new_zeros(1, 1, 1, 1),  # of four dimensions: transformers then builds no mask of its own
            use_cache=False,
            tree=tree,
        ).last_hidden_state[0]
        return _log_probabilities(self.get_output_embeddings(), hidden[tree.rows], tree.targets, temperature)

    model.forward = MethodType(forward, model)


def _log_probabilities(head: torch.nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Of the targets, from the hidden states that predict them, (C, H); and the entropies there."""

    def chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logps = torch.log_softmax(head(hidden).float() / temperature, -1)
        with torch.no_grad():
            entropies = -(logps.exp() * logps).sum(-1)
        return logps[torch.arange(len(targets), device=targets.device), targets], entropies

    size = max(LOGITS_AT_ONCE // head.weight.shape[0], 1)
    if len(targets) <= size:
        return chunk(hidden, targets)
    pairs = zip(hidden.split(size), targets.split(size), strict=True)
    logps, entropies = zip(*(checkpoint(chunk, *pair, use_reentrant=False) for pair in pairs), strict=True)
    return torch.cat(logps), torch.cat(entropies)


def tree_logps(model: torch.nn.Module, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the completions' tokens, one completion after the other. (C,) each

    Args:
        model: one that accepts trees, perhaps wrapped.
    """
    device = next(model.parameters()).device
    logps, entropies = model(tree=prefix_tree(prompts, completions, device))
    return logps, entropies
