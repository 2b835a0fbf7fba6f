"""LoRA: adapters that are trained beside frozen weights, and the whole weights that the two amount to.

A stage begins and ends with whole weights. peft puts the adapters into the model in place, so whoever holds the model samples and validates
with them; at the end of the stage they are added to the weights. The reference of a KL term is the model without its adapters: what the
stage began with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from transformers import PreTrainedModel

from harness.train.config import Memory

if TYPE_CHECKING:
    from peft import LoraConfig


def adapter_config(memory: Memory) -> LoraConfig | None:
    """What the trainers wrap the model with; None for full fine-tuning."""
    if not memory.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=memory.lora_rank,
        lora_alpha=2 * memory.lora_rank if memory.lora_alpha is None else memory.lora_alpha,
        target_modules=memory.lora_targets if isinstance(memory.lora_targets, str) else list(memory.lora_targets),
    )


def whole_weights(model: Any) -> tuple[PreTrainedModel, dict[str, torch.Tensor] | None]:
    """The bare model, and what to save as its weights where adapters are in it: the sums, in the weights' own type, on the CPU.

    The model itself is left as it is: adding and taking away again would not give the same weights back.
    """
    if not is_peft_model(model):
        return model, None
    from peft.tuners.tuners_utils import BaseTunerLayer

    bare = model.get_base_model()
    weights = {
        name.replace(".base_layer.", "."): tensor.cpu()
        for name, tensor in bare.state_dict().items()
        if f".{model.base_model.prefix}" not in name
    }
    for name, layer in bare.named_modules():
        if isinstance(layer, BaseTunerLayer):
            for adapter in layer.active_adapters:
                weight = weights[f"{name}.weight"]
                weights[f"{name}.weight"] = (weight.float() + layer.get_delta_weight(adapter).float().cpu()).to(weight.dtype)
    return bare, weights


def merge(model: Any) -> None:
    """Add the adapters, if any, to the weights of the bare model and take them out of it."""
    if is_peft_model(model):
        model.merge_and_unload()
