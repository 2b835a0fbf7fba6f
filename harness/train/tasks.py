"""The tasks that RLVR trains on and those that it is validated on."""

from __future__ import annotations

import random
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from harness.env import Task, load_env
from harness.generate import Sampling
from harness.images import ImagePolicy
from harness.plan import EvalConfig, Plan, builds, env_config, require_images, tasks_of
from harness.prompt import PromptPolicy
from harness.train.config import TrainConfig
from harness_trajectories.errors import UserError

PULLING = "the same command with --episodes.pull=true"


class Tasks(NamedTuple):
    """Of one run."""

    plan: Plan
    """How an episode is played: as an evaluation of the same options would, but for the sampling."""
    train: tuple[Task, ...]
    val: tuple[Task, ...]

    @property
    def ids(self) -> set[str]:
        """All that the weights will have seen; those for validation too, since they choose the checkpoint."""
        return {task.id for task in (*self.train, *self.val)}


def load_tasks(config: TrainConfig, policy: PromptPolicy, label: str, taught: Collection[str], held_out: Collection[str]) -> Tasks:
    """Read and split the tasks.

    The splits of the data set are taken, else some are held out: those of `held_out`, or drawn by the seed. A task of `held_out` is never
    trained on, and none of `taught` is for validation.

    Args:
        label: the policy's name in recorded episodes.
        taught: instances whose expert steps are trained on.
        held_out: instances whose expert steps choose the checkpoint.

    Raises:
        UserError: there are none, the environment knows no such option, or images are missing.
    """
    played = config.episodes
    env = load_env(config.domain).for_mode(played.mode, played.scaffold)
    dataset = played.dataset or (_generated(config) if "dataset" in env.Config.model_fields else None)
    named = {"dataset": dataset, "image_template": played.image_template}
    options = env_config(env, {**policy.env, **{name: value for name, value in named.items() if value is not None}})
    train, val = tasks_of(env, options, "train"), tasks_of(env, options, "val")
    if not train and played.dataset:
        train = tasks_of(env, options, "test")  # a file of which the environment knows one split
    if train.keys() & val.keys() or not val:
        chosen = train.keys() & set(held_out) or _drawn([name for name in train if name not in taught], config)
        val = {name: train[name] for name in train if name in chosen}
    training = tuple(task for name, task in train.items() if name not in val and name not in held_out)
    validation = [name for name in val if name not in taught]
    if len(validation) > config.validation.instances:
        validation = sorted(random.Random(config.seed).sample(validation, config.validation.instances), key=validation.index)
    if not training:
        raise UserError(f"{dataset or config.domain}: no tasks to train on; give a data set with a train split: --dataset")
    tasks = (*training, *(val[name] for name in validation))
    evaluation = EvalConfig(
        domain=config.domain,
        mode=played.mode,
        scaffold=played.scaffold,
        dataset=dataset,
        sandbox=played.sandbox,
        base_image=played.base_image,
        limits=played.limits,
        sampling=Sampling(max_tokens=config.rlvr.max_completion_tokens, temperature=config.rlvr.temperature, seed=config.seed),
    )
    images = ImagePolicy(played.pull, played.image_budget_gb, builds(tasks))
    plan = Plan(evaluation, env, options, {}, policy, None, label, [], images)
    require_images(plan, tasks, PULLING)
    return Tasks(plan, training, tuple(val[name] for name in validation))


def _generated(config: TrainConfig) -> str | None:
    """The folder of `harness data synth` among the data."""
    found = next((folder for folder in config.data if (Path(folder) / "tasks").is_dir()), None)
    told = f"{found}, the tasks beside the trajectories" if found else "the environment's own tasks"
    print(f"--dataset not given: {told}", file=sys.stderr)
    return found


def _drawn(names: list[str], config: TrainConfig) -> Collection[str]:
    count = 0 if len(names) < 2 else min(config.validation.instances, max(1, len(names) // 10))
    return set(random.Random(config.seed).sample(names, count))
