"""`harness train --dry-run`: what a run would cost, from configuration, tokenizer and data; no weight is loaded.

Where the data lies on this machine, its steps are tokenised as training tokenises them. Elsewhere every prompt is taken to have
`max_prompt_tokens` and every completion the limit, which bounds the cost from above. How much a model will think is not known before it
does: completions are taken as long as the expert's (`expected`), and at the limit (`at_most`). All prompts are taken to have signal:
sampling takes longer by `tried_per_kept`, which metrics.jsonl tells after some steps. What a server samples, costs nothing here.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness.env import Env
from harness.generate_hf import load_config, load_tokenizer
from harness.train import estimate
from harness.train.config import TINY_MODEL, Memory, Outcome, Reinforced, Supervised, TrainConfig
from harness.train.data import corpus, load_examples, make_samples, step_count
from harness.train.estimate import CARDS, GB, Card, Shape, Step
from harness.train.prompts import Prompts
from harness.train.setup import stages_of
from harness.train.sft import Sequences, Trajectories
from harness.train.tiny import tiny_config, train_tokenizer

UTILISATION = 0.4
"""Share of a card's rates that is assumed where hours are given."""
VARIANTS = (Memory(), Memory(optimizer="adamw_8bit"), Memory(lora_rank=16))
"""What the memory of the run is compared with."""


class Data(NamedTuple):
    """Tokens of the steps. Elsewhere than here, the limits stand for them and `steps` is None."""

    prompts: Sequence[int]
    completions: Sequence[int]
    steps: int | None
    supervised: dict[str, Sequence[int]]
    """Of the sequences of each supervised stage."""


class Device(NamedTuple):
    name: str
    memory: float
    """Bytes."""
    gpu: bool


def dry_run(config: TrainConfig, env: type[Env], device_gb: float | None) -> dict[str, Any]:
    """The document that `--json` prints.

    Args:
        device_gb: memory of the GPU that is meant; None: the device that would be used here.

    Raises:
        UserError: data, configuration or tokenizer cannot be read, or the model is no dense decoder.
    """
    shape, data = _read(config, env)
    device = _device(config, device_gb)
    others = (one for one in VARIANTS if (one.lora_rank, one.optimizer) != (config.memory.lora_rank, config.memory.optimizer))
    return {
        "model": config.model,
        "parameters": shape.parameters,
        "trained_parameters": estimate.trained_parameters(shape, config.memory),
        "device": {"name": device.name, "gb": round(device.memory / GB, 1), "gpu": device.gpu},
        "data": {"steps": data.steps, "prompt_tokens": _spread(data.prompts), "completion_tokens": _spread(data.completions)},
        "memory": [_memory(config, memory, shape, data, device) for memory in (config.memory, *others)],
        "stages": {name: _stage(config, name, shape, data, device) for name in stages_of(config)},
        "utilisation": UTILISATION,
    }


def _read(config: TrainConfig, env: type[Env]) -> tuple[Shape, Data]:
    here = config.data and all(Path(source).exists() for source in config.data) and stages_of(config) != ["rlvr"]
    examples = load_examples(config, env) if here else None
    tokenizer = None
    if config.model != TINY_MODEL:
        model = load_config(config.model)
        tokenizer = load_tokenizer(config.model) if examples else None
    else:
        if examples:
            tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else train_tokenizer(corpus(examples), config.tiny.vocabulary)
        model = tiny_config(config.tiny, len(tokenizer) if tokenizer else config.tiny.vocabulary)
    shape = estimate.shape_of(model, config.memory.lora_targets)
    supervised = {name: options for name in stages_of(config) if isinstance(options := getattr(config, name), Supervised)}
    if examples is None:
        prompt, completion = config.max_prompt_tokens, config.srl.max_completion_tokens
        limits = {name: (min(prompt + completion, options.max_tokens),) for name, options in supervised.items()}
        limits |= {name: (options.max_tokens,) for name, options in supervised.items() if options.unit == "trajectory"}
        return shape, Data((prompt,), (completion,), None, limits)
    with tempfile.TemporaryDirectory() as folder:
        samples = make_samples(examples.train, examples.systems, Prompts(tokenizer, Path(folder)), config.max_prompt_tokens, Counter())
        completions = [len(ids) + 1 for ids in tokenizer([sample.completion for sample in samples], add_special_tokens=False)["input_ids"]]
        kinds = {"steps": Sequences, "trajectory": Trajectories}
        lengths = {name: kinds[options.unit](samples, tokenizer, options).lengths for name, options in supervised.items()}
    return shape, Data([sample.prompt_tokens for sample in samples], completions, len(samples), lengths)


def _device(config: TrainConfig, device_gb: float | None) -> Device:
    if device_gb is not None:
        named = next((_named(card) for card in CARDS if card.memory == device_gb * GB), f"a GPU of {device_gb:g} GB")
        return Device(named, device_gb * GB, True)
    if config.device != "cpu" and torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return Device(card.name, card.total_memory, True)
    return Device("this machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), False)


def _named(card: Card) -> str:
    return f"{card.name} {card.memory / GB:.0f} GB"


def _checkpointed(memory: Memory, device: Device) -> bool:
    return device.gpu if memory.gradient_checkpointing is None else memory.gradient_checkpointing


def _shared(options: Supervised | Reinforced, device: Device) -> bool:
    if isinstance(options, Supervised):
        return options.unit == "trajectory"
    return (not device.gpu or options.steps_per_trajectory > 1) if options.share_prefixes is None else options.share_prefixes


def _memory(config: TrainConfig, memory: Memory, shape: Shape, data: Data, device: Device) -> dict[str, Any]:
    """GB by part at the moments that need most, and what the largest fits on."""
    checkpointed = _checkpointed(memory, device)
    moments: dict[str, dict[str, float]] = {}
    beside: dict[str, float] = {}
    for name in stages_of(config):
        options: Supervised | Reinforced = getattr(config, name)
        shared, longest, reference, beside = _shared(options, device), max(data.prompts), False, {}
        if isinstance(options, Supervised):
            length = max(data.supervised[name])
            every = options.prompt_loss or options.unit == "trajectory"
            tokens, scored = options.micro_batch * length, options.micro_batch * (length if every else min(max(data.completions), length))
        else:
            reference = options.kl > 0
            scored = options.micro_batch * options.max_completion_tokens
            tokens = scored + longest * (ceil(options.micro_batch / options.rollouts) if shared else options.micro_batch)
            batch = min(
                options.sample_batch, config.episodes.workers if isinstance(options, Outcome) else options.prompts * options.rollouts
            )
            read = batch if isinstance(options, Outcome) else max(1, batch // options.rollouts)  # each turn of an episode is read by itself
            lengths = (longest, options.max_completion_tokens)
            sampling = estimate.sampling_memory(shape, memory, device.gpu, read, batch, lengths, reference)
            if options.sampler == "vllm":
                beside = estimate.vllm_memory(shape, device.gpu, options.vllm_memory, device.memory, lengths)
            if options.sampler != "model":
                sampling = estimate.standing_memory(shape, memory, device.gpu, reference) | beside
            moments[f"{name}, sampling"] = sampling
        update = estimate.update_memory(shape, memory, device.gpu, tokens, scored, checkpointed, shared, reference)
        moments[f"{name}, update"] = update | beside
    if config.validation.instances and config.validation.steps:
        batch = min(config.validation.sample_batch or config.srl.sample_batch, config.validation.steps)
        lengths = (max(data.prompts), config.srl.max_completion_tokens)
        moments["validation"] = estimate.sampling_memory(shape, memory, device.gpu, batch, batch, lengths, False) | beside
    largest = max(moments, key=lambda moment: sum(moments[moment].values()))
    peak = sum(moments[largest].values())
    kept = peak - (moments[largest]["optimizer"] if memory.optimizer == "paged_adamw_8bit" else 0.0)
    limits = {device.name: device.memory, **({_named(card): card.memory for card in CARDS} if device.gpu else {})}
    return {
        "trains": f"adapters of rank {memory.lora_rank}" if memory.lora_rank else "all weights",
        "optimizer": memory.optimizer,
        "gradient_checkpointing": checkpointed,
        "moments": {moment: {part: round(value / GB, 3) for part, value in parts.items()} for moment, parts in moments.items()},
        "largest": largest,
        "gb": round(peak / GB, 2),
        "fits": {name: kept <= limit for name, limit in limits.items()},
    }


def _stage(config: TrainConfig, name: str, shape: Shape, data: Data, device: Device) -> dict[str, Any]:
    options: Supervised | Reinforced = getattr(config, name)
    if isinstance(options, Outcome):
        return {"steps": options.max_steps, "not_estimated": "how long episodes are is not known before they are played"}
    if isinstance(options, Supervised):
        lengths = data.supervised[name]
        steps = step_count(len(lengths), options.batch, options.epochs, options.max_steps) if data.steps else options.max_steps
        found = {"expected": estimate.supervised_step(data.prompts, data.completions, lengths, options.batch)}
    else:
        steps = step_count(data.steps, options.prompts, options.epochs, options.max_steps) if data.steps else options.max_steps
        limit, shared = options.max_completion_tokens, _shared(options, device)
        expected = [min(length, limit) for length in data.completions]
        found = {
            label: estimate.reinforced_step(data.prompts, completions, options, shared)
            for label, completions in (("expected", expected), ("at_most", [limit] * len(data.prompts)))
            if data.steps or label == "at_most"
        }
    return {"steps": steps, **{label: _cost(config, shape, step, steps, device) for label, step in found.items()}}


def _cost(config: TrainConfig, shape: Shape, step: Step, steps: int | None, device: Device) -> dict[str, Any]:
    """Of an optimizer step: tokens and operations; on a GPU its seconds on each card, and the hours of all steps."""
    checkpointed, adapters = _checkpointed(config.memory, device), bool(config.memory.lora_rank)
    cost: dict[str, Any] = {
        "cards": {},
        "sampled_tokens": round(step.sampled),
        "read_tokens": round(step.read.tokens),
        "update_tokens": {
            "unshared": round(step.unshared.tokens),
            "shared": round(step.shared.tokens),
            "run": round(step.forwarded.tokens),
        },
        "update_operations": estimate.update_operations(shape, step.forwarded, adapters, checkpointed),
    }
    for card in CARDS if device.gpu else ():
        parts = estimate.step_seconds(shape, card, step, config.memory, checkpointed)
        now, floor = (sum(values) for values in zip(*parts.values(), strict=True))
        cost["cards"][_named(card)] = {
            "seconds": {part: {"run": round(run, 2), "floor": round(least, 2)} for part, (run, least) in parts.items()},
            "distance": round(now / floor, 2),
            "hours": round(now * steps / UTILISATION / 3600, 2) if steps else None,
        }
    return cost


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    return {"mean": round(sum(lengths) / len(lengths), 1), "max": max(lengths)}
