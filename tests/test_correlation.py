"""The correlation of a trajectory's gradients. References: its definition on whole gradients, and the variance that it predicts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import test_steps_together
import test_train_grpo
import torch
from test_packing import build
from torch import Tensor

from harness.train.correlation import correlation, norm_gradient


def by_definition(names: Sequence[int], vectors: Sequence[Tensor]) -> float:
    related, unrelated = [], []
    for (one, a), (other, b) in itertools.combinations(zip(names, vectors, strict=True), 2):
        (related if one == other else unrelated).append(float((a @ b).detach()))
    own = sum(float((a @ a).detach()) for a in vectors) / len(vectors)
    base = sum(unrelated) / len(unrelated)
    return (sum(related) / len(related) - base) / (own - base)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_norm_gradient_is_that_of_the_logarithms_of_the_norm_weights(kind: str) -> None:
    model = build(kind, tied=True)
    ids = torch.randint(2, 97, (3, 11))
    weights = [parameter for name, parameter in model.named_parameters() if "norm" in name]
    with torch.no_grad():
        for weight in weights:
            weight.uniform_(0.5, 1.5)
    expected = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, weights)
    found = norm_gradient(model, lambda: model(input_ids=ids, labels=ids).loss)
    by_name = [gradient * weight for gradient, weight in zip(expected, weights, strict=True)]
    torch.testing.assert_close(found.sort().values, torch.cat(by_name).sort().values, atol=1e-6, rtol=1e-4)
    assert len(weights) == 7


@pytest.mark.parametrize("true", [-0.2, 0.0, 0.3, 0.8])
def test_it_is_what_the_variance_of_a_batch_follows(true: float) -> None:
    """Runs of 4 vectors about a common mean, drawn with a known correlation: N / (1 + 3 ρ) unrelated ones have a mean of that variance."""
    torch.manual_seed(0)
    covariance = torch.full((4, 4), true).fill_diagonal_(1.0)
    drawn = torch.einsum("rs,bnsd->bnrd", torch.linalg.cholesky(covariance), torch.randn(40, 16, 4, 50)) + 0.3  # (batches, runs, 4, size)
    variance = drawn.mean((1, 2)).var(0).mean() * 64
    assert float(variance) == pytest.approx(1 + 3 * true, rel=0.1, abs=0.05)
    names = [run for run in range(16) for _ in range(4)]
    found = [correlation(zip(names, batch.flatten(0, 1), strict=True)) for batch in drawn]
    assert sum(found) / len(found) == pytest.approx(true, abs=0.02)
    assert found[0] == pytest.approx(by_definition(names, list(drawn[0].flatten(0, 1))), abs=1e-5)


def test_without_related_or_without_unrelated_ones_there_is_none() -> None:
    assert correlation([(1, torch.ones(3)), (2, torch.ones(3))]) is None
    assert correlation([(1, torch.ones(3)), (1, torch.zeros(3))]) is None
    assert correlation([(1, torch.zeros(3)), (1, torch.zeros(3)), (2, torch.zeros(3))]) is None


def test_what_is_logged_is_that_of_the_steps_whole_gradients(tmp_path: Path) -> None:
    options = {"prompts": 8, "micro_batch": 8, "dynamic_sampling": False, "steps_per_trajectory": 2}
    trainer = test_train_grpo.trainer_with(test_train_grpo.by_length, tmp_path, test_steps_together.Steps, **options)
    trainer._prepare_inputs(None)
    (logged,) = trainer._metrics["train"]["gradient_correlation"]
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    names, whole, norms = [], [], []
    for start in range(0, 32, 4):
        group = trainer._batch[start : start + 4]
        rewards = torch.tensor([one.reward for one in group])
        loss = torch.zeros(())
        for one, advantage in zip(group, (rewards - rewards.mean()) / (rewards.std() + 1e-4), strict=True):
            prompt, said, _ = one.turns[0]
            logits = trainer.model(input_ids=torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
            loss = loss - advantage * torch.log_softmax(logits, -1)[torch.arange(len(said)), torch.tensor(said)].mean() / 4
        parameters = dict(trainer.model.named_parameters())
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        names.append(group[0].item // 2)
        whole.append(torch.cat([gradient.flatten() for gradient in gradients.values()]))
        norms.append(torch.cat([gradient * parameters[name] for name, gradient in gradients.items() if "norm" in name]))
    assert names == [number for number in names[::2] for _ in range(2)]
    assert logged == pytest.approx(by_definition(names, norms), abs=1e-4)
    assert logged == pytest.approx(by_definition(names, whole), abs=0.1)
