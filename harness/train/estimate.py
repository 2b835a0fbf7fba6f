"""What a training run costs: memory by part, tokens, operations and hours, and how far that is from what cannot be saved.

Memory follows what the trainers do. On a GPU the weights that are trained lie in float32 and are computed with in bfloat16, of which
autocast keeps copies; frozen ones lie in bfloat16. On a CPU all is float32. The parts are added up as if each were at its largest at the
same moment; what the allocator loses between its blocks is not in them.

Time is that of the arithmetic and of the memory traffic at the rates of a card. The floor shares every prefix in the update and computes
nothing again, reads each prompt once, and decodes as many completions at once as fit, in bfloat16.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from harness.train.config import Memory, Reinforced
from harness.train.packed_loss import LOGITS_AT_ONCE
from harness_trajectories.errors import UserError

GB = 1e9
TILE = 4096 * 32768
"""Logits that TRL's fused head holds at one time."""


class Card(NamedTuple):
    name: str
    memory: float
    """Bytes, as it is sold: what the card has beyond is left to the driver and to the allocator."""
    matmul: float
    """Operations a second that large products in bfloat16 reach, four fifths of the data sheet's."""
    bandwidth: float
    """Bytes a second."""


CARDS = (Card("H100", 80 * GB, 790e12, 3.35e12), Card("H200", 141 * GB, 790e12, 4.8e12))


class Shape(NamedTuple):
    """Of a dense decoder. Widths are numbers of values."""

    parameters: int
    embedding: int
    """Weights of the input embeddings; tied ones are the head's too."""
    matmul: int
    """Weights that every token is multiplied with, the head's left out."""
    head: int
    """Weights of the output embeddings."""
    adapted: int
    """Inputs and outputs of the layers that get adapters: so many weights for each rank."""
    layers: int
    hidden: int
    query: int
    """Width of a layer's queries, of all heads."""
    key: int
    """Width of a layer's keys; its values have the same."""
    feedforward: int
    vocabulary: int


def shape_of(config: PretrainedConfig, targets: str | Sequence[str]) -> Shape:
    """The shape of the model that transformers builds from `config`; no weight is allocated.

    Args:
        targets: `memory.lora_targets`.

    Raises:
        UserError: it is no dense decoder.
    """
    config = config.get_text_config()
    needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    missing = [name for name in needed if not isinstance(getattr(config, name, None), int)]
    if missing or getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        raise UserError(f"--dry-run knows dense decoders; a model of type {config.model_type!r} is none")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and layer is not head}
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embedding=model.get_input_embeddings().weight.numel(),
        matmul=sum(layer.weight.numel() for layer in linear.values()),
        head=head.weight.numel(),
        adapted=sum(layer.in_features + layer.out_features for name, layer in linear.items() if _gets_adapter(name, targets)),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        query=size * config.num_attention_heads,
        key=size * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
        feedforward=config.intermediate_size,
        vocabulary=config.vocab_size,
    )


def _gets_adapter(name: str, targets: str | Sequence[str]) -> bool:
    """As peft decides for a linear layer that is not the head."""
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def trained_parameters(shape: Shape, memory: Memory) -> int:
    return memory.lora_rank * shape.adapted or shape.parameters


def layer_activations(shape: Shape, adapters: bool, gpu: bool) -> int:
    """Bytes that the backward pass of a layer finds for each token."""
    hidden, query, key, wide = shape.hidden, shape.query, shape.key, shape.feedforward
    if not gpu:
        return 4 * ((4 if adapters else 6) * hidden + 2 * query + 2 * key + 4 * wide)
    return (18 if adapters else 26) * hidden + (6 if adapters else 4) * query + 4 * key + 8 * wide


def update_memory(
    shape: Shape, memory: Memory, gpu: bool, tokens: int, scored: int, checkpointed: bool, shared: bool, reference: bool
) -> dict[str, float]:
    """Bytes by part while a micro-batch is updated with.

    Args:
        tokens: forwarded at once.
        scored: of these, those whose log-probabilities are needed.
        checkpointed: activations are computed again layer by layer.
        shared: prefixes are forwarded once, and log-probabilities computed by us.
        reference: a KL term needs the model as it was.
    """
    hidden = shape.layers * shape.hidden * (2 if gpu and memory.lora_rank else 4)
    layer = layer_activations(shape, bool(memory.lora_rank), gpu)
    backward = shape.feedforward * (4 if gpu else 8) + 8 * shape.hidden  # the gradients of what a layer computes
    return {
        **standing_memory(shape, memory, gpu, reference),
        "gradients": 4 * trained_parameters(shape, memory),
        "bfloat16 copies": _copies(shape, memory, gpu),
        "activations": tokens * ((hidden + layer if checkpointed else shape.layers * layer) + backward),
        "logits": _logits(shape, memory, gpu, scored, shared),
    }


def standing_memory(shape: Shape, memory: Memory, gpu: bool, reference: bool) -> dict[str, float]:
    """Bytes by part of what is kept all through an RL stage."""
    trained = trained_parameters(shape, memory)
    whole = shape.parameters * (2 if gpu and memory.lora_rank else 4)
    states = 8 * trained
    if memory.optimizer != "adamw":
        in_full = 0 if memory.lora_rank else shape.embedding  # embeddings keep 32 bits
        states = 8 * in_full + (2 + 8 / 256) * (trained - in_full)  # two scales for each block of 256
    return {
        "weights": whole + (4 * trained if memory.lora_rank else 0),
        "optimizer": states,
        **({"reference": whole} if reference and not memory.lora_rank else {}),
    }


def sampling_memory(
    shape: Shape, memory: Memory, gpu: bool, prompts: int, completions: int, longest: tuple[int, int], reference: bool
) -> dict[str, float]:
    """Bytes by part while completions are sampled by the model that is trained.

    Args:
        prompts: read at once, and kept once for all their completions.
        completions: decoded at once.
        longest: tokens of a prompt, of a completion.
    """
    width = 2 if gpu else 4
    read = prompts * longest[0] * (4 * width * shape.feedforward + 20 * shape.hidden)  # one layer at a time
    kept = prompts * longest[0] + completions * longest[1]
    cache = kept * cached_bytes(shape, memory, gpu)
    grown = cache / shape.layers + 2 * width * shape.query * kept  # a layer's cache twice, and repeated for all heads
    return {
        **standing_memory(shape, memory, gpu, reference),
        "bfloat16 copies": _copies(shape, memory, gpu),
        "cache": cache,
        "a layer's work": max(read, grown),
        "logits": completions * shape.vocabulary * (22 if gpu else 24),
    }


def vllm_memory(shape: Shape, gpu: bool, share: float, device: float, longest: tuple[int, int]) -> dict[str, float]:
    """Bytes by part of what vLLM takes beside the model: its share of the device, or what weights and one completion need, if more."""
    width = 2 if gpu else 4
    needed = width * (shape.parameters + 2 * shape.layers * shape.key * sum(longest))
    return {"vLLM": max(share * device, needed) if gpu else needed}


def cached_bytes(shape: Shape, memory: Memory, gpu: bool) -> int:
    """Of a token's keys and values in all layers. Beside weights in float32 autocast leaves the rotated keys in float32."""
    return shape.layers * shape.key * (8 if not gpu else 4 if memory.lora_rank else 6)


def _copies(shape: Shape, memory: Memory, gpu: bool) -> int:
    return 2 * (shape.matmul + shape.head) if gpu and not memory.lora_rank else 0


def _logits(shape: Shape, memory: Memory, gpu: bool, scored: int, shared: bool) -> float:
    """Ours in float32, with what the backward pass makes of them; TRL's in tiles, with a gradient of the head of its own."""
    if shared:
        return 5 * 4 * min(scored * shape.vocabulary, LOGITS_AT_ONCE)
    return (2 if gpu else 16) * min(scored * shape.vocabulary, TILE) + (0 if memory.lora_rank else 4 * shape.head)


class Work(NamedTuple):
    """Of a forward pass, perhaps as a mean."""

    tokens: float
    """Forwarded."""
    contexts: float
    """Tokens that they attend to, added up over them."""
    scored: float
    """Whose logits are computed."""


def sequences(prompt: float, completion: float, copies: int) -> Work:
    """Each sequence by itself."""
    length = prompt + completion
    return Work(copies * length, copies * length**2 / 2, copies * completion)


def tree(prompt: float, completion: float, copies: int) -> Work:
    """The prompt once, the completions behind it."""
    contexts = prompt**2 / 2 + copies * (completion * prompt + completion**2 / 2)
    return Work(prompt + copies * completion, contexts, copies * completion)


def forward_operations(shape: Shape, work: Work) -> float:
    return 2 * shape.matmul * work.tokens + 4 * shape.layers * shape.query * work.contexts + 2 * shape.head * work.scored


def update_operations(shape: Shape, work: Work, adapters: bool, checkpointed: bool) -> float:
    """Forward and backward. Of frozen weights no gradient is computed; checkpointing goes forward once more."""
    return forward_operations(shape, work) * (1 + (1 if adapters else 2) + checkpointed)


class Step(NamedTuple):
    """What an optimizer step does."""

    forwarded: Work
    """In the update, by this run."""
    unshared: Work
    """The same with every sequence by itself."""
    shared: Work
    """The same with everything that the sequences of a group begin with once."""
    read: Work
    """Prompts before sampling."""
    sampled: float
    """Tokens."""
    prompt: float
    completion: float
    """Tokens of a sampled one, on average."""
    batch: int
    """Completions decoded at once."""
    vllm_memory: float | None = None
    """Share of the card that vLLM samples in, as many at once as fit there; None: the model samples."""


NOTHING = Work(0.0, 0.0, 0.0)


def supervised_step(prompts: Sequence[int], completions: Sequence[int], lengths: Sequence[int], batch: int) -> Step:
    """With a batch of sequences.

    Args:
        prompts, completions: of single steps.
        lengths: of the sequences, which are steps or, with prefixes once, the steps of a trajectory.
    """
    steps = batch * len(prompts) / len(lengths)
    alone = _times(_mean([sequences(*pair, 1) for pair in zip(prompts, completions, strict=True)]), steps)
    work = _times(_mean([Work(length, length**2 / 2, 0.0) for length in lengths]), batch)._replace(scored=alone.scored)
    return Step(work, alone, work, NOTHING, 0.0, 0.0, 0.0, 1)


def reinforced_step(prompts: Sequence[int], completions: Sequence[int], options: Reinforced, shared: bool) -> Step:
    """With a batch of such prompts, of which all have signal; what prompts of different groups have in common is not counted, nor what a
    server does."""
    pairs, group = list(zip(prompts, completions, strict=True)), options.rollouts
    parts = max(1, group // options.micro_batch)  # of a group, in micro-batches of their own
    unshared = _times(_mean([sequences(*pair, group) for pair in pairs]), options.prompts)
    trees = _times(_mean([tree(*pair, group // parts) for pair in pairs]), options.prompts * parts)
    whole = _times(_mean([tree(*pair, group) for pair in pairs]), options.prompts)
    read = _times(_mean([Work(prompt, prompt**2 / 2, 1) for prompt in prompts]), options.prompts)
    mean_prompt, mean_completion = sum(prompts) / len(prompts), sum(completions) / len(completions)
    batch = min(options.sample_batch, options.prompts * group)
    sampled = options.prompts * group * mean_completion
    if options.served:
        read, sampled = NOTHING, 0.0
    memory = options.vllm_memory if options.sampler == "vllm" else None
    return Step(trees if shared else unshared, unshared, whole, read, sampled, mean_prompt, mean_completion, batch, memory)


def step_seconds(shape: Shape, card: Card, step: Step, memory: Memory, checkpointed: bool) -> dict[str, tuple[float, float]]:
    """By part of the step: at the card's rates, and the floor."""
    adapters = bool(memory.lora_rank)
    update = update_operations(shape, step.forwarded, adapters, checkpointed), update_operations(shape, step.shared, adapters, False)
    parts = {"update": (update[0] / card.matmul, update[1] / card.matmul)}
    if step.sampled:
        reading = forward_operations(shape, step.read) / card.matmul
        best, least = largest_batch(shape, card, step), 4 * shape.layers * shape.key
        batch, cached = min(step.batch, best), cached_bytes(shape, memory, True)
        if step.vllm_memory is not None:
            batch, cached = largest_batch(shape, card._replace(memory=step.vllm_memory * card.memory), step), least
        decoding = decode_seconds(shape, card, step, batch, cached), decode_seconds(shape, card, step, best, least)
        parts |= {"reading": (reading, reading), "decoding": decoding}
    return parts


def decode_seconds(shape: Shape, card: Card, step: Step, batch: float, cached: float) -> float:
    """`batch` completions growing at once: each token reads the cache of all before it, and shares the weights with the batch's.

    Args:
        cached: bytes of a token in the cache.
    """
    context = step.prompt + step.completion / 2
    traffic = cached * context + 2 * (shape.matmul + shape.head) / batch
    operations = 2 * (shape.matmul + shape.head) + 4 * shape.layers * shape.query * context
    return step.sampled * max(traffic / card.bandwidth, operations / card.matmul)


def largest_batch(shape: Shape, card: Card, step: Step) -> float:
    """Completions that fit on a card beside the weights, all in bfloat16."""
    return max(1.0, (card.memory - 2 * shape.parameters) / (4 * shape.layers * shape.key * (step.prompt + step.completion)))


def _mean(works: Sequence[Work]) -> Work:
    return Work(*(sum(values) / len(works) for values in zip(*works, strict=True)))


def _times(work: Work, number: float) -> Work:
    return Work(*(number * value for value in work))
