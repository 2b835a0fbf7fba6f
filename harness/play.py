"""One episode, from its task to its verdict: what a worker of an evaluation or of RLVR does, in a thread of this process or on another
machine."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from harness.agent import Episode, Save, replay, run, submit, verdict
from harness.env import EnvError, OpenSandbox
from harness.generate import Generator
from harness.plan import Item, Plan

PAUSES = (1.0, 5.0)
"""Seconds before each further try of an episode whose infrastructure failed: an engine that is started again needs some."""


class Interrupted(Exception):
    """The worker was told to stop."""


def play(plan: Plan, item: Item, generator: Generator | None, open_sandbox: OpenSandbox, save: Save) -> tuple[Episode, list[str]]:
    """Play and grade an episode once.

    Args:
        generator: None where the plan needs no model.
        save: called after every step; what it raises ends the episode.

    Returns:
        the episode, of which `exit` is `infra_error` where the infrastructure failed, and notes for its report.
    """
    config, task = plan.config, item.task
    env = plan.env(plan.env_config, open_sandbox)
    try:
        if plan.predictions is not None:
            episode = submit(env, task, plan.predictions.get(task.id, ""), plan.label)
        elif config.mode in ("gold", "null"):
            episode = replay(env, task, () if config.mode == "null" else None, save, config.grade, plan.label)
        else:
            assert generator is not None
            seed = config.sampling.seed + (item.sample or 1) - 1
            heat = 0.0 if item.sample == 0 else config.sampling.temperature
            sampling = config.sampling.model_copy(update={"seed": seed, "temperature": heat})
            episode = run(env, task, generator, config.limits, plan.policy, sampling, save, config.grade)
        notes = [] if plan.predictions is None or task.id in plan.predictions else ["no prediction"]
        try:
            if episode.grade is not None:
                statuses = [episode.grade.status, *(verdict(env).status for _ in range(config.repeat - 1))]
                notes += [f"flaky: {', '.join(statuses)}"] if len(set(statuses)) > 1 else []
            return episode, notes
        except EnvError as error:
            return episode.model_copy(update={"exit": "infra_error", "error": str(error), "grade": None}), []
    finally:
        try:
            env.close()
        except EnvError as error:
            print(f"{item.name}: closing the environment failed: {error}", file=sys.stderr)


def persist(attempt: Callable[[], tuple[Episode, list[str]]], name: str, stop: threading.Event) -> tuple[Episode, list[str], int]:
    """Play an episode until it has a verdict or its tries are used up.

    Args:
        attempt: plays it once (`play`).

    Returns:
        the episode, its notes, and the tries it took.

    Raises:
        Interrupted: `stop` was set meanwhile.
    """
    for tries, pause in enumerate((*PAUSES, 0.0), 1):
        episode, notes = attempt()
        if stop.is_set():
            raise Interrupted
        if episode.exit != "infra_error":
            break
        print(f"{name}: infrastructure failed, try {tries} of {len(PAUSES) + 1}: {episode.error}", file=sys.stderr)
        stop.wait(pause)
    return episode, notes, tries


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM unwinds the main thread as Ctrl-C does, so that sandboxes are taken away."""

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
