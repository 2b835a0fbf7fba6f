"""RL by TRL's GRPOTrainer: its objective and optimizer, on rollouts of our own.

Stock TRL 1.16 samples, scores and forwards rows of (prompt, completion). Here a row is a rollout (harness/train/rollouts.py), which has
one turn or several, each with a prompt of its own: SRL and RLVR differ in where rollouts come from, and in nothing else. Four private
methods of TRL are replaced. A batch is filled before TRL sees it (harness/train/sampling.py), so that groups without signal cost no
log-probs; TRL then finds the completions and rewards of the groups that were kept in place of its own. Its shuffle is left out: the
rollouts of an item stay together, so that the micro-batch shares what they have in common (harness/train/packing.py). A rollout's
completion is to TRL what the model wrote in all its turns, one after the other: GRPO's mean over its tokens goes over the whole episode.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head, pad, split_tensor_dict

from harness.generate_hf import end_tokens
from harness.train import processes
from harness.train.adapters import adapter_config
from harness.train.config import Memory, Reinforced
from harness.train.correlation import correlation, norm_gradient
from harness.train.data import step_count
from harness.train.engine import Engine, ModelEngine
from harness.train.failure import Finite, TrainingFailed, during
from harness.train.packed_loss import accept_trees, tree_logps
from harness.train.rollouts import Rollout, Source, length_figures
from harness.train.sampling import Refill
from harness.train.sft import common_arguments, forward_passes
from harness.train.sharding import Replica, Shardable
from harness_trajectories.errors import UserError

MEASURED, MEASURED_EVERY = 16, 10
"""The gradients of so many groups are compared every so many steps, with several steps of a trajectory in a micro-batch."""


class ReinforcedTrainer(Shardable, Finite, GRPOTrainer):
    """GRPOTrainer on the rollouts of a source, and without its model card."""

    def __init__(self, *args: Any, source: Source, options: Reinforced, refill: Refill, replica: Replica, **others: Any) -> None:
        super().__init__(*args, name=source.name, reward_funcs=_scored_before, **others)
        self._share_prefixes = options.share_prefixes
        if self._share_prefixes is None:
            self._share_prefixes = self.model.device.type == "cpu" or options.steps_per_trajectory > 1
        self.beta = options.kl  # TRL would load its reference by the model's name, which need not be these weights
        if self.beta and not hasattr(self.model, "peft_config"):
            self.ref_model = self.accelerator.prepare_model(replica.frozen(), evaluation_mode=True)
            add_fused_lm_head(self.ref_model, self.temperature, outputs=("log_probs", "entropy"))  # as TRL has done with the model
        if self._share_prefixes:
            for model in filter(None, (self.model, self.ref_model)):
                accept_trees(_bare(model), self.temperature)
        self._together = options.steps_per_trajectory
        self.source = source
        self.refill = refill
        self.engine: Engine = ModelEngine(
            replica,
            end_tokens(self._tokenizer, self.model),
            self._tokenizer.pad_token_id,
            options.max_completion_tokens,
            options.temperature,
            options.sample_batch,
        )
        self.phases = source.phases
        self._sampled: list[int] = []
        """Tokens of each completion that was sampled for the present step, dropped groups included."""
        self._read = 0
        """Tokens of the prompts that were read for it, a group's common one once."""
        self._max_gap, self._section = options.max_sampler_gap, options.section
        self._gaps: list[float] = []
        """Between trainer and sampler, in each micro-batch of the present step."""
        self._refreshed = -1
        self._batch: list[Rollout] = []
        """Of all processes."""
        self._present: list[Rollout] = []
        """Of this process: those whose log-probs TRL is asking for."""
        self.add_callback(refill)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's, without its shuffle: a micro-batch holds rollouts that are next to each other in the batch."""
        if self._step % self.args.steps_per_generation == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            batch["rollout"] = torch.arange(len(batch["advantages"]))
            if self._together > 1 and self.state.global_step % MEASURED_EVERY == 0:
                self._measure_correlation(batch["advantages"])
            self._buffered_inputs = split_tensor_dict(batch, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _measure_correlation(self, advantages: Tensor) -> None:
        """Of the gradients of a few groups of this process, of which those of one trajectory come first (see `side_by_side`).

        Args:
            advantages: of this process's rollouts.
        """
        count = self.source.rollouts

        def gradient(start: int) -> tuple[Hashable, Tensor]:
            group = mine[start : start + count]

            def loss() -> Tensor:
                logps, _ = self._turn_logps(self.model_wrapped, group)
                means = torch.stack([part.mean() for part in logps.split([len(one.tokens) for one in group])])
                return -(means * advantages[start : start + count]).mean()

            return self.source.trajectories[group[0].item], norm_gradient(self.model_wrapped, loss)

        mine = processes.mine(self._batch)
        value = correlation(gradient(start) for start in range(0, min(len(mine), MEASURED * count), count))
        self.model_wrapped.zero_grad()
        if value is not None:
            self._metrics["train"]["gradient_correlation"].append(value)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's, on a batch that was filled before."""
        self._sampled, self._read, self._gaps = [], 0, []
        with self.phases("sampling"):
            self._batch = [one for group in self.refill.fill(self._round, processes.count()) for one in group]
        self._present = processes.mine(self._batch)
        with self.phases("log_probs"):
            return super()._generate_and_score_completions([{"prompt": ""} for _ in self._present])

    def _round(self, items: list[int], places: list[int]) -> list[list[Rollout]]:
        groups = self.roll_out(items, places)
        self._sampled += [len(one.tokens) for group in groups for one in group]
        self._read += sum({id(turn.prompt): len(turn.prompt) for group in groups for one in group for turn in one.turns}.values())
        self.source.note(self.state.global_step + 1, groups)
        return groups

    def roll_out(self, items: list[int], places: list[int]) -> list[list[Rollout]]:
        """A group for each of these items; every process does its part and gets all."""
        with during("while sampling"):
            return processes.gathered(self.source.roll(processes.mine(items), processes.mine(places), self.fresh_engine()))

    def fresh_engine(self) -> Engine:
        """What samples, with the policy's weights as they are."""
        if self._refreshed != self.state.global_step:
            self.engine.refresh()
            self._refreshed = self.state.global_step
        return self.engine

    @property
    def figures(self) -> dict[str, float]:
        """Of the present step, for metrics.jsonl."""
        turns = [turn for one in self._batch for turn in one.turns]
        tokens = {"update_tokens": sum(len(turn.prompt) + len(turn.completion) for turn in turns)}
        gap = {"sampler_gap": max(self._gaps)} if self._gaps else {}
        return self.source.figures | self.refill.figures | self.sampling_figures | tokens | gap

    @property
    def sampling_figures(self) -> dict[str, float]:
        """Of what was read and written in sampling for the present step."""
        return {**length_figures(self._sampled), "prompt_tokens": self._read}

    def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
        """What was sampled for the batch, in place of sampling. Of several prompts TRL is shown the first."""
        first = [one.turns[0].prompt for one in self._present]
        logprobs = [[value for turn in one.turns for value in turn.logprobs] for one in self._present]
        return first, [one.tokens for one in self._present], None, prompts, logprobs, {}, None, []

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """The rewards of the batch in all processes, as they were when it was filled. (rollouts, 1)"""
        return torch.tensor([[one.reward] for one in self._batch], device=self.accelerator.device)

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        mine = processes.mine(self._batch)
        self._present = [mine[index] for index in inputs["rollout"].tolist()]
        self._items = [one.item for one in self._present]
        loss = super()._compute_loss(model, inputs)
        self._compare(inputs["sampling_per_token_logps"], inputs["completion_mask"].bool())
        return loss

    def _compare(self, sampled: Tensor, mask: Tensor) -> None:
        """Hold the sampler against the trainer: what was sampled must have the probabilities that it has here.

        Args:
            sampled: log-probs as they were sampled, NaN where the sampler does not say. (B, C)

        Raises:
            TrainingFailed: they are another model's.
        """
        gaps = (self._logps - sampled).abs()[mask]
        known = gaps[~gaps.isnan()]
        if not len(known):
            return
        gap = float(known.mean())
        self._gaps.append(gap)
        if gap > self._max_gap:
            raise TrainingFailed(
                f"the sampler is not the model that is trained: the log-probs of what it sampled differ from the trainer's by {gap:.3f} a "
                f"token on average ({self._section}.max_sampler_gap {self._max_gap:g}). Its weights are not those of this step, or it "
                "computes otherwise. No step was made"
            )

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """Of what the rollouts' turns say, each after its own prompt. (B, logits_to_keep) each; the entropies carry no gradient."""
        size = batch_size or len(self._present)
        parts = [self._turn_logps(model, self._present[start : start + size]) for start in range(0, len(self._present), size)]
        logps, entropies = (torch.cat(part) for part in zip(*parts, strict=True))
        mask = attention_mask[:, -logits_to_keep:].bool()
        empty = logps.new_zeros(mask.shape)
        self._logps = empty.masked_scatter(mask, logps.detach())
        return empty.masked_scatter(mask, logps), empty.masked_scatter(mask, entropies), None

    def _turn_logps(self, model: torch.nn.Module, rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor]:
        """Of all completion tokens, rollout after rollout: over a prefix tree, or padded as TRL does it. (C,) each"""
        turns = [turn for one in rollouts for turn in one.turns]
        if self._share_prefixes:
            with self.accelerator.autocast():
                return tree_logps(model, [turn.prompt for turn in turns], [turn.completion for turn in turns])
        ids, mask, kept = padded([turn.prompt for turn in turns], [turn.completion for turn in turns], self._tokenizer.pad_token_id)
        device, size = self.accelerator.device, self.args.per_device_train_batch_size
        logps, entropies, _ = super()._get_per_token_logps_and_entropies(
            model, ids.to(device), mask.to(device), kept, size, compute_entropy=True
        )
        said = mask[:, -kept:].bool().to(device)
        return logps[said], entropies[said]

    def create_model_card(self, *args: object, **options: object) -> None:
        return


def padded(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor, int]:
    """Ids and mask, prompts padded on the left and completions on the right, (B, T) each; and the width of the completions."""

    def both(rows: Sequence[Sequence[int]], side: str) -> list[Tensor]:
        masks = [torch.ones(len(row), dtype=torch.long) for row in rows]
        return [pad([torch.tensor(row) for row in rows], filler, padding_side=side), pad(masks, 0, padding_side=side)]

    (before, seen), (after, said) = both(prompts, "left"), both(completions, "right")
    return torch.cat([before, after], 1), torch.cat([seen, said], 1), after.shape[1]


def _bare(model: Any) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _scored_before(**columns: Any) -> list[float]:
    """In place of TRL's reward functions, whose values stand in the rollouts."""
    raise AssertionError("TRL asked for rewards")


def reinforced_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    options: Reinforced,
    folder: Path,
    seed: int,
    every: int,
    memory: Memory,
    replica: Replica | None = None,
) -> ReinforcedTrainer:
    """The trainer of an RL stage.

    Args:
        replica: of the model, to sample from; None: the model itself.
        folder: for resumable checkpoints, one every `every` steps.

    Raises:
        UserError: `micro_batch` of all processes does not divide the completions of a step, or does not hold the steps of a trajectory.
    """
    passes = forward_passes(options.prompts * options.rollouts, options.micro_batch, "prompts × rollouts =")
    together = options.steps_per_trajectory * options.rollouts
    if options.steps_per_trajectory > 1 and options.micro_batch < together:
        raise UserError(
            f"micro_batch {options.micro_batch} does not hold {options.steps_per_trajectory} steps of a trajectory × {options.rollouts} "
            f"rollouts = {together}, which are to share their prompts. Raise --{options.section}.micro_batch=N or lower "
            f"--{options.section}.steps_per_trajectory=N"
        )
    steps = step_count(source.size, options.prompts, options.epochs, options.max_steps)
    arguments = GRPOConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=passes,
        num_generations=options.rollouts,
        max_completion_length=options.max_completion_tokens,
        shuffle_dataset=False,
        temperature=options.temperature,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        epsilon=options.clip,
        loss_type="grpo",
        scale_rewards="group",
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=round(options.warmup_ratio * steps),
        max_grad_norm=options.grad_norm,
        **common_arguments(model, every, seed, memory),
    )
    trainer = ReinforcedTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [""] * (steps * options.prompts)}),
        processing_class=tokenizer,
        peft_config=adapter_config(memory),
        source=source,
        options=options,
        refill=Refill(source.size, options, seed, source.trajectories),
        replica=replica or Replica(model, model.device.type),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
