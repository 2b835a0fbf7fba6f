"""The processes of one training run, one for each GPU: `torchrun` starts them, and here they meet, wait for each other and end together.

torchrun says in the environment who is who (RANK, WORLD_SIZE, LOCAL_RANK); without it there is one process, and nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")

SILENCE = timedelta(minutes=30)
"""How long a process waits for the others, when all are alive, before the run ends."""
PREPARING = timedelta(days=1)
"""How long the others wait while the first reads and tokenises the data."""

_store: distributed.Store | None = None
_spoken = sys.stdout, sys.stderr
_raised = False
"""This process raised first."""
_turns = 0


class ProcessLost(Exception):
    """Another process of the run has ended, or no longer answers."""


def count() -> int:
    """Processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes the run folder, and speaks for all."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside it the processes can talk to each other, and end with `one_voice`; from here on stdout and stderr are the first one's."""
    global _store, _spoken
    if count() == 1:
        yield
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    _store, rank, world = next(distributed.rendezvous("env://", timeout=SILENCE))
    group = distributed.PrefixStore("group", _store)
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    distributed.init_process_group(backend, store=group, rank=rank, world_size=world, timeout=SILENCE)
    _spoken = sys.stdout, sys.stderr
    if not is_first():
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    with one_voice():
        yield
    distributed.destroy_process_group()


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """What one process raises in here ends all, with one message: the one that raised first lets it out, the others exit in silence.

    Raises:
        ProcessLost: another process was killed, or has not answered for `SILENCE`.
    """
    try:
        yield
    except Exception as error:
        if count() == 1:
            raise
        if not _raised_first():
            raise SystemExit(1) from None
        sys.stdout, sys.stderr = _spoken
        if isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise ProcessLost(
                f"one of the {count()} processes of this run was killed, or has not answered for {SILENCE}; the torchrun of its node "
                "names it"
            ) from error
        raise


def _raised_first() -> bool:
    global _raised
    try:
        _raised = _raised or _store.add("raised", 1) == 1
    except distributed.DistError:  # it was kept by a process that has ended
        return False
    return _raised


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """The first process runs the body, then all others do."""
    global _turns
    if count() > 1:
        _turns += 1
        if not is_first():
            _store.wait([f"turn {_turns}"], PREPARING)
    yield
    if count() > 1 and is_first():
        _store.set(f"turn {_turns}", "done")


def gathered(items: list[T]) -> list[T]:
    """The items of all processes, in the order of the processes."""
    if count() == 1:
        return items
    parts: list[list[T]] = [[] for _ in range(count())]
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def mine(items: Sequence[T]) -> Sequence[T]:
    """This process's part, as long as the others' or one longer; the parts in the order of the processes are the items."""
    rank, world = int(os.environ.get("RANK", "0")), count()
    return items[len(items) * rank // world : len(items) * (rank + 1) // world]
