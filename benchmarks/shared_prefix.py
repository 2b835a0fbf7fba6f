"""The update with shared prefixes against stock GRPOTrainer's: log-probs, loss and backward on the same model and batch.

Both sides are TRL's loss and its metrics; ours differs by the method that gives the log-probs. All completions have the same length, so
there is no padding and stock runs at its best: causal attention without a mask. The two take turns; the speedup is the median over pairs of
neighbours. Beside it stands what is counted: tokens forwarded when the steps of one trajectory are in one batch.

    python benchmarks/shared_prefix.py [--case cpu|gpu] [--rounds N] [--json]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from harness.train.packed_loss import accept_trees, tree_logps
from harness.train.packing import prefix_tree
from harness.train.tiny import train_tokenizer

STEPS = 4
TURN = 200
"""Tokens of an action and its observation."""


@dataclass(frozen=True)
class Case:
    """A model of random weights and a batch: one prompt, `group` completions."""

    layers: int
    hidden: int
    feedforward: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    dtype: torch.dtype
    checkpointed: bool
    prompt: int
    completion: int
    group: int
    speedup: float
    """What `update_speedup` should at least be."""
    device: str


CASES = {
    "cpu": Case(6, 256, 1024, 4, 4, 1536, True, torch.float32, False, 1900, 100, 8, 4.0, "cpu"),
    "gpu": Case(28, 3584, 18944, 28, 4, 152064, False, torch.bfloat16, True, 8192, 500, 8, 4.5, "cuda"),  # Qwen2.5-7B
}


class Packed(GRPOTrainer):
    """GRPOTrainer whose log-probs come from a prefix tree."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        accept_trees(self.model, self.temperature)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        prompts, completions = input_ids[:, :-logits_to_keep].tolist(), input_ids[:, -logits_to_keep:].tolist()
        logps, entropies = tree_logps(model, prompts, completions)
        return logps.view(-1, logits_to_keep), entropies.view(-1, logits_to_keep), None


def trainers(case: Case) -> tuple[GRPOTrainer, Packed]:
    """Stock's and ours, with the same weights."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden,
        intermediate_size=case.feedforward,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads,
        tie_word_embeddings=case.tied,
        dtype=case.dtype,
    )
    with torch.device(case.device):
        model = Qwen2ForCausalLM(config).to(case.dtype)
    tokenizer = train_tokenizer(["text"], 300)
    built = []
    for kind in (GRPOTrainer, Packed):
        arguments = GRPOConfig(
            output_dir=tempfile.gettempdir(),
            per_device_train_batch_size=case.group,
            num_generations=case.group,
            max_completion_length=case.completion,
            loss_type="grpo",
            beta=0.0,
            bf16=False,
            activation_checkpointing=case.checkpointed,
            use_cpu=case.device == "cpu",
            report_to="none",
        )
        trainer = kind(
            model=copy.deepcopy(model) if kind is Packed else model,
            reward_funcs=lambda **columns: [0.0],
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["text"] * case.group}),
            processing_class=tokenizer,
        )
        trainer.current_gradient_accumulation_steps = 1
        if case.checkpointed:
            trainer.model.activation_checkpointing_enable()
        trainer.model.train()
        built.append(trainer)
    return built[0], built[1]


def batch(case: Case) -> dict[str, torch.Tensor]:
    """As TRL's loss gets it."""
    prompt = torch.randint(case.vocabulary, (1, case.prompt), device=case.device).expand(case.group, -1)
    completions = torch.randint(case.vocabulary, (case.group, case.completion), device=case.device)
    return {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.linspace(-1, 1, case.group, device=case.device),
    }


def update(trainer: GRPOTrainer, inputs: dict[str, torch.Tensor]) -> tuple[float, int]:
    """Seconds of log-probs, loss and backward; on a GPU the bytes held at most, beyond those held before."""
    trainer.model.zero_grad()
    gpu = inputs["prompt_ids"].is_cuda
    before = torch.cuda.memory_allocated() if gpu else 0
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    trainer.compute_loss(trainer.model, inputs).backward()
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
    """Tokens forwarded for `STEPS` steps of one trajectory, each a group; the last prompt is as long as the case's.

    Args:
        context: `full`: a step's prompt is the last one's with a turn more; `last_k`: system and issue are shared, two turns follow.
    """
    rng = random.Random(0)
    issue, *turns = (rng.choices(range(1 << 15), k=size) for size in (case.prompt - STEPS * TURN, *[TURN] * STEPS))
    prompts: list[list[int]] = []
    for step in range(STEPS):
        seen = turns[: step + 1] if context == "full" else turns[max(step - 1, 0) : step + 1]
        prompts += [[*issue, *(token for turn in seen for token in turn)]] * case.group
    tree = prefix_tree(prompts, [rng.choices(range(1 << 15), k=case.completion) for _ in prompts])
    return {f"steps_tokens_{context}": len(tree.tokens), f"steps_token_ratio_{context}": tree.unshared / len(tree.tokens)}


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """All figures."""
    stock, ours = trainers(case)
    inputs = batch(case)
    tree = prefix_tree(inputs["prompt_ids"].tolist(), inputs["completion_ids"].tolist())
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
    length = case.prompt + case.completion
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
    case = CASES[options.case]
    figures = measure(case, options.rounds)
    if options.json:
        print(json.dumps(figures))
        return
    targets = {"update_speedup": case.speedup, "steps_token_ratio_full": 8.0, "steps_token_ratio_last_k": 8.0}
    for key, value in figures.items():
        target = f"   (at least {targets[key]:g})" if key in targets else ""
        print(f"{key:28} {value if isinstance(value, str | int) else format(value, '.4g')}{target}")


if __name__ == "__main__":
    main()
