"""What `test_vllm_engine.py` has done in the environment that holds vLLM and TRL: one JSON document on stdout.

python vllm_training_driver.py FOLDER sync|stale|adapters
python vllm_training_driver.py train ...      the command itself
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from test_train_grpo import TEXTS, Rewarded
from transformers import TrainerCallback

from harness import cli
from harness.generate_hf import end_tokens
from harness.train.config import Memory, Reinforced, TinyModel
from harness.train.failure import TrainingFailed
from harness.train.grpo import ReinforcedTrainer, reinforced_trainer
from harness.train.tiny import build_model, train_tokenizer
from harness.train.vllm_engine import VLLMEngine


def suit_the_cpu_build() -> None:
    """What vLLM's build for CPUs needs: weights that stay in the layout they are loaded in, and a search for kernels among all loaded
    modules that passes over numba's objects, whose `vars` is no dictionary."""
    from vllm import _custom_ops
    from vllm.triton_utils import dispatcher

    _custom_ops._supports_onednn = False
    dispatcher.vars = lambda value: own if hasattr(own := value.__dict__, "get") else {}  # type: ignore[attr-defined]


class Watched(VLLMEngine):
    """Notes the size of the weights that each refresh handed over; a stale one keeps the first."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sums: list[float] = []
        self.stale = False

    def refresh(self) -> None:
        if self.stale and self.sums:
            return
        super().refresh()
        self.sums.append(sum(float(weight.detach().abs().sum()) for weight in self._model.parameters()))


class Gaps(TrainerCallback):
    def __init__(self, trainer: ReinforcedTrainer) -> None:
        self.trainer = trainer
        self.found: list[float] = []

    def on_step_end(self, *args: Any, **others: Any) -> None:
        self.found.append(self.trainer.figures["sampler_gap"])


PROMPTS = [[5, 6, 7], [9] * 300, [*[9] * 300, 8]]
"""One begins as another does, with more than one block of vLLM's cache."""


def alone_and_together(engine: VLLMEngine) -> dict[str, Any]:
    """Tokens sampled by the same seeds, whatever else is sampled."""
    together = engine.sample(PROMPTS, copies=2, seeds=range(6))
    alone = [engine.sample([PROMPTS[seed // 2]], seeds=[seed])[0][0] for seed in range(6)]
    return {"together": [one.tokens for group in together for one in group], "alone": [one.tokens for one in alone]}


def likeliest(trainer: ReinforcedTrainer, engine: VLLMEngine) -> list[dict[str, Any]]:
    """Greedy completions, and what the model that is trained says in one forward pass: its likeliest token and the token's log-prob."""
    rows = []
    for prompt, (said,) in zip(PROMPTS, engine.sample(PROMPTS, max_tokens=5, greedy=True), strict=True):
        with torch.no_grad():
            logits = trainer.model.eval()(input_ids=torch.tensor([[*prompt, *said.tokens]])).logits[0, len(prompt) - 1 : -1]
        logps = torch.log_softmax(logits, -1)
        expected = {"expected": logps.argmax(-1).tolist(), "expected_logprobs": logps[range(len(logps)), said.tokens].tolist()}
        rows.append({"tokens": said.tokens, "logprobs": said.logprobs, **expected})
    return rows


def main() -> None:
    suit_the_cpu_build()
    if sys.argv[1] == "train":
        cli.main()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    folder, case = Path(sys.argv[1]), sys.argv[2]
    tokenizer = train_tokenizer([*TEXTS, "user\nassistant\n"], 330)
    model = build_model(TinyModel(hidden=64, layers=2, heads=2, feedforward=64), tokenizer, seed=1)
    end = end_tokens(tokenizer, model)
    options = Reinforced(
        prompts=4,
        rollouts=4,
        micro_batch=16,
        max_completion_tokens=12,
        max_steps=4,
        learning_rate=3e-2 if case == "adapters" else 3e-3,
        dynamic_sampling=False,
        temperature=0.8,
        max_sampler_gap=0.02,
    )

    def sevens(completion_ids: list[list[int]], **columns: object) -> list[float | None]:
        return [sum(token % 7 == 0 for token in ids) / len(ids) for ids in completion_ids]

    memory = Memory(lora_rank=4 if case == "adapters" else 0)
    trainer = reinforced_trainer(model, tokenizer, Rewarded(folder, sevens), options, folder, seed=0, every=100, memory=memory)
    trainer.engine = engine = Watched(trainer.model, end, options.max_completion_tokens, options.temperature, 512, 0.3)
    engine.stale = case == "stale"
    gaps = Gaps(trainer)
    trainer.add_callback(gaps)
    found: dict[str, Any] = {"error": ""}
    try:
        trainer.train()
    except TrainingFailed as error:
        found["error"] = str(error)
    found["gaps"] = gaps.found
    found["sums"] = engine.sums
    if case == "sync":
        engine.sample(PROMPTS)  # what is kept of them is of the weights before the last step
        engine.refresh()
        found |= alone_and_together(engine)
        found["greedy"] = likeliest(trainer, engine)
    engine.close()
    json.dump(found, out)
    out.flush()


if __name__ == "__main__":
    main()
