"""What the benchmarks of training measure on: a model of random weights, prompts of one trajectory's steps, and both trainers."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from harness.train.adapters import adapter_config
from harness.train.config import Memory, Reinforced
from harness.train.engine import ModelEngine
from harness.train.grpo import ReinforcedTrainer, reinforced_trainer
from harness.train.rollouts import Source
from harness.train.sharding import Replica
from harness.train.tiny import train_tokenizer

LETTERS = "bcdfghjklmnpqrsvwz"
"""A token each."""
TURN = 200
"""Tokens of an action and its observation."""
TOKENIZER = train_tokenizer(["text"], 300)


@dataclass(frozen=True)
class Case:
    """A model of random weights; prompts of at most `prompt` tokens; groups of completions that are all of one length."""

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
    lora_rank: int
    """In the whole step; the update by itself trains all weights."""
    device: str


CASES = {
    "cpu": Case(6, 256, 1024, 4, 4, 1536, True, torch.float32, False, 1900, 100, 8, 0, "cpu"),
    "gpu": Case(28, 3584, 18944, 28, 4, 152064, False, torch.bfloat16, True, 8192, 500, 8, 16, "cuda"),  # Qwen2.5-7B
}


def build_model(case: Case) -> Qwen2ForCausalLM:
    """The same weights each time."""
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
        return Qwen2ForCausalLM(config).to(case.dtype)


def step_prompts(case: Case, steps: int, context: str) -> list[str]:
    """Prompts of consecutive steps of one trajectory; the last of the full history has `case.prompt` tokens.

    Args:
        context: `full`: a step's prompt is the last one's with a turn more; `last_k`: system and issue are shared, two turns follow.
    """
    rng = random.Random(0)
    issue, *turns = ("".join(rng.choices(LETTERS, k=size)) for size in (case.prompt - steps * TURN, *[TURN] * steps))
    return [issue + "".join(turns[: step + 1] if context == "full" else turns[max(step - 1, 0) : step + 1]) for step in range(steps)]


def stock_trainer(
    case: Case, model: PreTrainedModel, prompts: list[str], reward: Callable[..., list[float]], memory: Memory
) -> GRPOTrainer:
    """TRL's own: one optimizer step over the prompts, a group in each micro-batch."""
    arguments = GRPOConfig(
        output_dir=tempfile.gettempdir(),
        max_steps=1,
        per_device_train_batch_size=case.group,
        gradient_accumulation_steps=len(prompts),
        num_generations=case.group,
        shuffle_dataset=False,
        max_completion_length=case.completion,
        generation_kwargs={"eos_token_id": [case.vocabulary]},
        loss_type="grpo",
        beta=0.0,
        bf16=case.device != "cpu",
        gradient_checkpointing=memory.gradient_checkpointing,
        use_cpu=case.device == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=TOKENIZER,
        peft_config=adapter_config(memory),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.eos_token_ids = [case.vocabulary]  # a token that the model cannot write
    return trainer


def our_trainer(case: Case, model: PreTrainedModel, source: Source, memory: Memory) -> ReinforcedTrainer:
    """As shipped: one optimizer step over the source's items, all in one micro-batch."""
    options = Reinforced(
        max_steps=1,
        prompts=source.size,
        rollouts=case.group,
        micro_batch=source.size * case.group,
        share_prefixes=True,
        dynamic_sampling=False,
        max_completion_tokens=case.completion,
    )
    trainer = reinforced_trainer(model, TOKENIZER, source, options, Path(tempfile.gettempdir()), seed=0, every=1, memory=memory)
    trainer.args.save_strategy = "no"
    pad, batch = TOKENIZER.pad_token_id, options.sample_batch
    replica = Replica(trainer.model, case.device)
    trainer.engine = ModelEngine(replica, [case.vocabulary], pad, case.completion, options.temperature, batch)
    return trainer
