"""Supervised fine-tuning on expert steps, each alone or all of a trajectory at once: TRL's SFTTrainer on tokens of our own making."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from harness.train import processes
from harness.train.adapters import adapter_config
from harness.train.config import Memory, Supervised
from harness.train.data import Sample, order, step_count
from harness.train.failure import Finite
from harness.train.packed_loss import accept_trees, tree_logps
from harness.train.phases import Phases
from harness.train.prompts import Prompt, encoder
from harness.train.sharding import Shardable
from harness_trajectories.errors import UserError

IGNORED = -100
"""The label of a token that the loss leaves out."""
_TOKENISED = 1024
"""Completions that are tokenised at once."""


class Sequences:
    """Samples as token sequences, put together when a batch needs them.

    Attributes:
        dropped: how many were longer than `max_tokens`; they are left out, none is truncated.
        lengths: tokens of each sequence.
        names: the sample of each sequence.
    """

    def __init__(self, samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, options: Supervised) -> None:
        self._prompt_loss = options.prompt_loss
        self._pad = DataCollatorForLanguageModeling(tokenizer.pad_token_id)
        self._kept: list[tuple[Prompt, array[int]]] = []
        self.lengths: list[int] = []
        self.names: list[str] = []
        self.dropped = 0
        for sample, answer in zip(samples, _answers(samples, tokenizer), strict=True):
            length = sample.prompt_tokens + len(answer)
            if length > options.max_tokens:
                self.dropped += 1
                continue
            self._kept.append((sample.prompt, answer))
            self.lengths.append(length)
            self.names.append(sample.id)
        if not self._kept:
            raise UserError(f"all {self.dropped} sequences are longer than max_tokens={options.max_tokens}; raise it")

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """`input_ids` and `labels`, which the loss leaves out where they are `IGNORED`."""
        prompt, answer = self._kept[index]
        ids = prompt.ids()
        labels = [*(ids if self._prompt_loss else [IGNORED] * len(ids)), *answer]
        return {"input_ids": [*ids, *answer], "labels": labels}

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """What a forward pass takes, padded."""
        return self._pad([self[index] for index in indices])


class Trajectories:
    """All target steps of a trajectory as one sequence, a prefix tree (harness/train/packing.py): the task, the history without thoughts,
    and at every target what the model is to write there, thought included. So each target is read after what evaluation shows.

    Attributes:
        dropped: how many were longer than `max_tokens`, or had a prompt that was cut; they are left out, none is truncated.
        lengths: tokens of each.
    """

    def __init__(self, samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, options: Supervised) -> None:
        self._kept: list[list[tuple[Prompt, array[int]]]] = []
        self.lengths: list[int] = []
        self.names: list[str] = []
        self.dropped = 0
        for _, group in groupby(zip(samples, _answers(samples, tokenizer), strict=True), lambda pair: pair[0].trajectory):
            steps = list(group)
            length = max(sample.prompt_tokens for sample, _ in steps) + sum(len(answer) for _, answer in steps)
            if length > options.max_tokens or any(sample.cut for sample, _ in steps):
                self.dropped += 1
                continue
            self._kept.append([(sample.prompt, answer) for sample, answer in steps])
            self.lengths.append(length)
            self.names.append(steps[0][0].id)
        if not self._kept:
            raise UserError(f"all {self.dropped} trajectories are longer than max_tokens={options.max_tokens} or cut to max_prompt_tokens")

    def __len__(self) -> int:
        return len(self._kept)

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Prompts and completions of all their steps. `labels` is what TRL counts tokens by, (1, 1 + C)."""
        steps = [step for index in indices for step in self._kept[index]]
        completions = [answer.tolist() for _, answer in steps]
        labels = [IGNORED, *(token for completion in completions for token in completion)]
        return {"prompts": [prompt.ids() for prompt, _ in steps], "completions": completions, "labels": torch.tensor([labels])}


def _answers(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase) -> Iterator[array[int]]:
    """The tokens of the completions, the one that ends them included."""
    encode = encoder(tokenizer)
    for start in range(0, len(samples), _TOKENISED):
        for answer in encode([sample.completion for sample in samples[start : start + _TOKENISED]]):
            yield array("I", [*answer, tokenizer.eos_token_id])


class OrderedSFTTrainer(Shardable, Finite, SFTTrainer):
    """SFTTrainer that takes its data in the order in which they stand, so that a resumed run goes on at the same place.

    `create_model_card` writes nothing: a run folder explains itself.
    """

    def __init__(self, *args: Any, step_tokens: Sequence[int], **options: Any) -> None:
        super().__init__(*args, **options)
        self.phases = Phases()
        self._step_tokens = step_tokens

    @property
    def figures(self) -> dict[str, float]:
        """Of the last optimizer step, for metrics.jsonl."""
        return {"update_tokens": self._step_tokens[self.state.global_step - 1]}

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self._items = inputs.pop("sequence").tolist()
        return super()._prepare_inputs(inputs)

    def create_model_card(self, *args: object, **options: object) -> None:
        return


class TrajectorySFTTrainer(OrderedSFTTrainer):
    """The same mean over the tokens of an optimizer step, computed over a prefix tree."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        logps, entropies = tree_logps(model, inputs["prompts"], inputs["completions"])
        self._metrics["train"]["entropy"].append(entropies.mean().item())
        loss = -logps.sum() / (len(logps) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss


def sft_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequences | Trajectories,
    options: Supervised,
    folder: Path,
    seed: int,
    every: int,
    memory: Memory,
) -> OrderedSFTTrainer:
    """The trainer of one supervised stage.

    Args:
        folder: for resumable checkpoints, one every `every` steps.

    Raises:
        UserError: `micro_batch` of all processes does not divide `batch`.
    """
    passes = forward_passes(options.batch, options.micro_batch, "batch")
    steps = step_count(len(sequences), options.batch, options.epochs, options.max_steps)
    places = order(sequences.lengths, options.batch, steps, seed)
    lengths = [sequences.lengths[place] for place in places]

    def collate(rows: list[dict[str, int]]) -> dict[str, Any]:
        chosen = [row["sequence"] for row in rows]
        return sequences.batch(chosen) | {"sequence": torch.tensor(chosen)}

    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=passes,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule,
        warmup_steps=round(options.warmup_ratio * steps),
        weight_decay=options.weight_decay,
        adam_beta2=options.beta2,
        max_grad_norm=options.grad_norm,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        **common_arguments(model, every, seed, memory),
    )
    if isinstance(sequences, Trajectories):
        accept_trees(model, temperature=1.0)
    kind = TrajectorySFTTrainer if isinstance(sequences, Trajectories) else OrderedSFTTrainer
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"sequence": places}),
        data_collator=collate,
        processing_class=tokenizer,
        peft_config=adapter_config(memory),
        step_tokens=[sum(lengths[start : start + options.batch]) for start in range(0, len(lengths), options.batch)],
        name=sequences.names.__getitem__,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def forward_passes(batch: int, micro_batch: int, name: str) -> int:
    """Forward and backward passes of a process for one optimizer step.

    Args:
        name: what `batch` is called.

    Raises:
        UserError: the processes' micro-batches do not divide it.
    """
    at_once = micro_batch * processes.count()
    if batch % at_once:
        told = f"micro_batch {micro_batch}" + (f" × {processes.count()} processes" if processes.count() > 1 else "")
        raise UserError(f"{told} does not divide {name} {batch}")
    return batch // at_once


def _always(device: torch.device) -> bool:
    """In TRL's place of "has Triton": score the labelled positions alone. Elsewhere TRL scores the whole prompt too, to spare compilers of
    other devices new shapes; on a CPU that only costs time, with a real vocabulary most of it."""
    return True


OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}
"""`memory.optimizer` → transformers' name."""


def common_arguments(model: PreTrainedModel, every: int, seed: int, memory: Memory) -> dict[str, object]:
    """What both methods set alike. On a CPU: float32 and no gradient checkpointing, which are 3.3 times as fast there."""
    gpu = model.device.type != "cpu"
    if not gpu:
        trl.trainer.utils._use_triton = _always
    return {
        "seed": seed,
        "use_cpu": not gpu,
        "bf16": gpu,
        "gradient_checkpointing": gpu if memory.gradient_checkpointing is None else memory.gradient_checkpointing,
        "optim": OPTIMIZERS[memory.optimizer],
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
    }
