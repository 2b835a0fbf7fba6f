"""A model over several processes: torch's `fully_shard` (FSDP2) on every device, and what a sharded model cannot do by itself.

The weights of a decoder layer are gathered when it computes, in the forward and the backward pass; the rest (embeddings, last norm) is one
more group. Every forward is then a step that all processes take together. Sampling cannot be: the processes decode different numbers of
tokens. So each keeps a whole copy of the weights to sample and validate with (`Replica`), taken over from the shards after each optimizer
step; on a GPU it is in bfloat16, 2 bytes a weight.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as sharded_checkpoint
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_model_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from harness.train import processes
from harness_trajectories.errors import UserError

SHARDS = "shards"
"""Folder of a resumable checkpoint: weights and optimizer state, a file a process."""


def is_sharded(model: Any) -> bool:
    return isinstance(model, FSDPModule)


def shard(model: PreTrainedModel, device: str) -> None:
    """Spread the weights over all processes, in place; each layer comes to the device by itself.

    On a GPU they stay float32, are computed with in bfloat16, and gradients are averaged over the processes in float32.
    """
    mesh = init_device_mesh(device, (processes.count(),))
    precision = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if device == "cuda" else {}
    for module in list(model.modules()):
        if type(module).__name__ in (model._no_split_modules or ()):
            fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(**precision))
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(**precision, output_dtype=torch.float32 if precision else None))
    assert is_sharded(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    model._is_accelerate_prepared = True  # accelerate takes it as it is: else it would wrap it in DDP


def whole(model: torch.nn.Module, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """The weights by name, each gathered when it is asked for; all processes must ask for all."""
    for name, parameter in model.named_parameters():
        value = parameter.detach().to(dtype or parameter.dtype)
        yield name, value.full_tensor() if isinstance(value, DTensor) else value


def load_whole(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Take over whole weights, which every process has, into a model that is sharded or not."""
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))


def _copied(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """A frozen copy on the device, moved weight by weight. Buffers stay as exact as they are: positions need it."""
    kind = {"dtype": torch.bfloat16} if device == "cuda" else {}
    moved = {id(weight): Parameter(weight.detach().to(device, copy=True, **kind), requires_grad=False) for weight in model.parameters()}
    return copy.deepcopy(model, moved | {id(buffer): buffer.to(device, copy=True) for buffer in model.buffers()})


class Replica:
    """What samples from a model: the model itself, or a copy of it where it is sharded.

    Attributes:
        model: to sample from; its weights are those of the last `refresh`.
    """

    def __init__(self, model: PreTrainedModel, device: str) -> None:
        self.model = self._trained = model
        self._device = device

    def place(self) -> None:
        """Bring the model to the device; with several processes, which call it together, make the copy and shard the model."""
        model, device = self._trained, self._device
        if processes.count() == 1:
            model.to(device)
            return
        self.model = _copied(model, device)
        shard(model, device)

    def refresh(self) -> None:
        """Take over the weights that are trained. All processes call it together."""
        if self.model is self._trained:
            return
        own = dict(self.model.named_parameters())
        for name, value in whole(self._trained, self.model.dtype):
            own[name].copy_(value)

    def frozen(self) -> PreTrainedModel:
        """A copy of the weights as they are, sharded where the model is."""
        self.refresh()
        model = copy.deepcopy(self.model).requires_grad_(False).eval()
        if is_sharded(self._trained):
            shard(model, self._device)
        return model


class Shardable:
    """Stands before a Trainer whose model may be sharded: resumable checkpoints of which each process writes and reads its own part.

    Their number may change between the two, but not from or to one.
    """

    def training_step(self, model: torch.nn.Module, *inputs: Any) -> Tensor:
        assert model is self.model, f"the model is wrapped in {type(model).__name__}"
        return super().training_step(model, *inputs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not is_sharded(self.model):
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        sharded_checkpoint.save(self._state(), checkpoint_id=Path(output_dir) / SHARDS)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        if is_sharded(self.model) != (Path(checkpoint) / SHARDS).is_dir():
            raise UserError(
                f"{checkpoint} was written by {'one process' if is_sharded(self.model) else 'several processes'}, and this run has "
                f"{processes.count()}; go on with as many, or begin anew with --fresh"
            )
        if not is_sharded(self.model):
            super()._load_from_checkpoint(checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = self._state()
        sharded_checkpoint.load(state, checkpoint_id=Path(checkpoint) / SHARDS)
        optimizer = self.optimizer.optimizer
        set_state_dict(self.model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def _state(self) -> dict[str, Any]:
        weights, moments = get_state_dict(self.model, self.optimizer.optimizer)
        return {"model": weights, "optimizer": moments}
