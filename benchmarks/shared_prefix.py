"""The update with shared prefixes against stock GRPOTrainer's: log-probs, loss and backward on the same model and batch.

Ours is the trainer as shipped, whose sampling and scoring are left out: the batch is given to both. All completions have the same length,
so there is no padding and stock runs at its best: causal attention without a mask. The two take turns; the speedup is the median over
pairs of neighbours. Beside it stands what is counted: tokens forwarded when the steps of one trajectory are in one batch.

    python benchmarks/shared_prefix.py [--case cpu|gpu] [--rounds N] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from training_case import CASES, TOKENIZER, Case, build_model, our_trainer, step_prompts, stock_trainer
from trl import GRPOTrainer

from harness.train.config import Memory
from harness.train.engine import Engine
from harness.train.packing import prefix_tree
from harness.train.phases import Phases
from harness.train.rollouts import Rollout, Turn

STEPS = 4


class Given:
    """A `Source` of one group that is there already."""

    size = 1
    trajectories = range(1)

    def __init__(self, group: list[Rollout]) -> None:
        self.rollouts = len(group)
        self.figures: dict[str, float] = {}
        self.phases = Phases()
        self._group = group

    def name(self, item: int) -> str:
        return "given"

    def roll(self, items: Sequence[int], places: Sequence[int], engine: Engine) -> list[list[Rollout]]:
        return [self._group for _ in items]

    def note(self, step: int, groups: Sequence[Sequence[Rollout]]) -> None:
        return


def completions(case: Case, count: int) -> list[list[int]]:
    rng = random.Random(0)
    return [rng.choices(range(case.vocabulary), k=case.completion) for _ in range(count)]


def trainers(case: Case, prompt: list[int]) -> tuple[GRPOTrainer, GRPOTrainer, dict[str, Any]]:
    """Stock's and ours, with the same weights; and the batch, as TRL's loss gets it."""
    unknown = [math.nan] * case.completion
    group = [Rollout(0, (Turn(prompt, said, unknown),), float(n)) for n, said in enumerate(completions(case, case.group))]
    memory = Memory(gradient_checkpointing=case.checkpointed)
    stock = stock_trainer(case, build_model(case), ["text"], lambda **columns: [0.0], memory)
    ours = our_trainer(case, build_model(case), Given(group), memory)
    for trainer in (stock, ours):
        trainer.current_gradient_accumulation_steps = 1
        if case.checkpointed:
            trainer.model.activation_checkpointing_enable()
        trainer.model.train()
    return stock, ours, ours._prepare_inputs(None)


def update(trainer: GRPOTrainer, inputs: dict[str, Any]) -> tuple[float, int]:
    """Seconds of log-probs, loss and backward; on a GPU the bytes held at most, beyond those held before."""
    trainer.model.zero_grad()
    gpu = inputs["prompt_ids"].is_cuda
    before = torch.cuda.memory_allocated() if gpu else 0
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() - before if gpu else 0


def operations(case: Case, tokens: int, pairs: int) -> float:
    """Floating-point operations of forward and backward, nothing computed twice, logits at completions only.

    Args:
        tokens: that are forwarded.
        pairs: of a query and a key that it sees.
    """
    size = case.hidden // case.heads
    layer = case.hidden * (2 * case.hidden + 2 * case.kv_heads * size + 3 * case.feedforward)
    head = case.vocabulary * case.hidden * case.group * case.completion
    return 6.0 * (case.layers * (layer * tokens + 2 * case.hidden * pairs) + head)


def steps_of_a_trajectory(case: Case, context: str) -> dict[str, float]:
    """Tokens forwarded for `STEPS` steps of one trajectory, each a group; see `step_prompts`."""
    prompts = [prompt for prompt in TOKENIZER(step_prompts(case, STEPS, context))["input_ids"] for _ in range(case.group)]
    tree = prefix_tree(prompts, completions(case, len(prompts)))
    return {f"steps_tokens_{context}": len(tree.tokens), f"steps_token_ratio_{context}": tree.unshared / len(tree.tokens)}


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """All figures."""
    (prompt,) = TOKENIZER(step_prompts(case, 1, "full"))["input_ids"]
    stock, ours, inputs = trainers(case, prompt)
    tree = prefix_tree([prompt] * case.group, completions(case, case.group))
    update(stock, inputs)
    update(ours, inputs)
    gradients = [[parameter.grad for parameter in trainer.model.parameters()] for trainer in (stock, ours)]
    error = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*gradients, strict=True))
    del gradients
    pairs = []
    for _ in range(rounds):
        theirs = update(stock, inputs)
        stock.model.zero_grad()
        pairs.append((theirs, update(ours, inputs)))
        ours.model.zero_grad()
    length = len(prompt) + case.completion
    unshared = operations(case, case.group * length, case.group * length * (length + 1) // 2)
    shared = operations(case, len(tree.tokens), int((tree.positions + 1).sum()))
    speedups = [theirs[0] / own[0] for theirs, own in pairs]
    seconds = statistics.median(own[0] for _, own in pairs)
    return {
        "device": torch.cuda.get_device_name() if case.device == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "torch": torch.__version__,
        "gradient_error": error,
        "stock_s": statistics.median(theirs[0] for theirs, _ in pairs),
        "ours_s": seconds,
        "update_speedup": statistics.median(speedups),
        "update_speedup_least": min(speedups),
        "update_speedup_most": max(speedups),
        "token_ratio": tree.unshared / len(tree.tokens),
        "operations_ratio": unshared / shared,
        "ours_tflops": shared / seconds / 1e12,
        "stock_peak_bytes": max(theirs[1] for theirs, _ in pairs),
        "ours_peak_bytes": max(own[1] for _, own in pairs),
        **steps_of_a_trajectory(case, "full"),
        **steps_of_a_trajectory(case, "last_k"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=sorted(CASES), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(CASES[options.case], options.rounds)
    if options.json:
        print(json.dumps(figures))
        return
    targets = {"update_speedup": 4.0 if options.case == "cpu" else 4.5, "steps_token_ratio_full": 8.0, "steps_token_ratio_last_k": 8.0}
    for key, value in figures.items():
        target = f"   (at least {targets[key]:g})" if key in targets else ""
        print(f"{key:28} {value if isinstance(value, str | int) else format(value, '.4g')}{target}")


if __name__ == "__main__":
    main()
