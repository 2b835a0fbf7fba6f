"""Packages that only some options need."""

from __future__ import annotations

from importlib.util import find_spec

from harness.train.config import TrainConfig
from harness_trajectories.errors import UserError


def check_packages(config: TrainConfig) -> None:
    """See that what the options ask for is installed, before anything long begins.

    Raises:
        UserError: a package is missing.
    """
    needed = {f"report_to {name}": name for name in config.report_to}
    if config.memory.lora_rank:
        needed[f"memory.lora_rank {config.memory.lora_rank}"] = "peft"
    if config.memory.optimizer != "adamw":
        needed[f"memory.optimizer {config.memory.optimizer}"] = "bitsandbytes"
    for option, package in needed.items():
        if find_spec(package) is None:
            raise UserError(f"{option} needs the package {package}, which is not installed: pip install {package}")
