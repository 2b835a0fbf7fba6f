"""How alike the gradients of one trajectory's steps are: what a batch loses by taking several of them (`srl.steps_per_trajectory`).

N steps of which k at a time come from one trajectory are worth N / (1 + (k − 1) ρ) unrelated ones: the gradient of so many has the same
variance. The correlation ρ is measured on a few steps, each with a backward pass of its own, from the gradients by the norms' weights
(by their logarithms): for each norm, the sum over tokens of its output × the output's gradient. That is a small part of a gradient, and
gave the whole one's ρ to 0.01 in four comparisons on tiny models, where the last layer alone was far from it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor


def norm_gradient(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """Of a loss, by the logarithms of all norm weights that it reaches. Leaves gradients in the parameters."""
    found: dict[int, Tensor] = {}

    def watch(number: int, output: Tensor) -> None:
        if output.requires_grad:
            value = output.detach()

            def add(gradient: Tensor) -> None:
                found[number] = found.get(number, 0) + (gradient.float() * value).flatten(0, -2).sum(0)

            output.register_hook(add)

    norms = [module for module in model.modules() if getattr(getattr(module, "weight", None), "ndim", 0) == 1]
    hooks = [
        norm.register_forward_hook(lambda module, given, output, number=number: watch(number, output)) for number, norm in enumerate(norms)
    ]
    try:
        value = loss()
    finally:
        for hook in hooks:
            hook.remove()
    value.backward()
    return torch.cat([found[number] for number in sorted(found)])


def correlation(gradients: Iterable[tuple[Hashable, Tensor]]) -> float | None:
    """Of gradients with one name, against those with different names; None without pairs of both kinds,
    or where all gradients are the same, as when no group has signal.

    It is (S − D) / (Q − D), of mean inner products: S of two gradients of one name, D of two of different names, Q of one with itself.
    """
    names, vectors = zip(*gradients, strict=True)
    stacked = torch.stack(vectors).double()
    products = stacked @ stacked.T
    same = torch.tensor([[one == other for other in names] for one in names], device=products.device)
    itself = torch.eye(len(names), dtype=torch.bool, device=products.device)
    if not (same & ~itself).any() or same.all():
        return None
    related, unrelated, own = (float(products[pairs].mean()) for pairs in (same & ~itself, ~same, itself))
    return (related - unrelated) / (own - unrelated) if own != unrelated else None
