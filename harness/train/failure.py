"""What ends a run before its time: one message that says what, where and what to do, and a folder that the same command takes up again."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.train.checkpoint import WHOLE, step_of
from harness.train.processes import ProcessLost
from harness_trajectories.errors import UserError

FULL = ("no space left", "disk quota", "os error 28", "os error 122", "unexpected pos", "pytorchstreamwriter")
"""What OSError, safetensors and torch.save say where a disk is full; torch says no more than that its file is shorter than it should be."""
MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
NAMED = 16
"""Samples that a message names."""
UNSTEPPED = "No step was made with it. If it comes back: look at these samples, or begin another run with a lower learning rate"


class TrainingFailed(Exception):
    """The work failed. The message is the whole output; the run goes on from its last whole checkpoint."""


class NoSignal(TrainingFailed):
    """Too few groups have rewards that differ to fill a batch."""


class GateClosed(Exception):
    """RL does not start: the model's format or the spread of its rewards leaves nothing to reinforce."""


class Stopped(Exception):
    """Ctrl-C; the run can be taken up again."""


@contextmanager
def during(place: str) -> Iterator[None]:
    """Have the message of a failure in here say where it was."""
    try:
        yield
    except Exception as error:
        error.add_note(place)
        raise


@contextmanager
def one_message(run: Path) -> Iterator[None]:
    """Whatever fails in here is `TrainingFailed`, with the places of `during`, what can be done, and from where the run goes on.

    Args:
        run: its folder.
    """
    try:
        yield
    except (UserError, GateClosed, Stopped):
        raise
    except Exception as error:
        place = "".join(f"{note}: " for note in reversed(getattr(error, "__notes__", ())))
        raise TrainingFailed(f"{place}{_told(error, run)}. The same command {_resumes(run)}") from error


def _told(error: Exception, run: Path) -> str:
    if isinstance(error, TrainingFailed | ProcessLost):
        return str(error)
    message = str(error).strip().split("\n")[0][:600].removesuffix(".") or "no reason given"
    chain: list[BaseException] = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(earlier)
    said = " ".join(map(str, chain)).lower()
    if any(getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for one in chain) or any(words in said for words in FULL):
        there = next(path for path in (run, *run.absolute().parents) if path.exists())
        return (
            f"the disk of {run} is full ({shutil.disk_usage(there).free / 1e6:.1f} MB free; {message}). The checkpoints before are whole. "
            "Free some space there"
        )
    if isinstance(error, MemoryError) or any(words in said for words in MEMORY):
        return (
            f"out of memory ({message}). Lower micro_batch (sequences of one forward and backward pass) or srl.sample_batch (completions "
            "decoded at once), with which the run goes on; or begin another with less of srl.max_completion_tokens or max_prompt_tokens"
        )
    return f"{message if type(error) is RuntimeError else f'{type(error).__name__}: {message}'} (HARNESS_DEBUG=1 shows where)"


def _resumes(run: Path) -> str:
    whole = max(run.glob(f"checkpoints/resume/*/checkpoint-*/{WHOLE}"), key=lambda file: file.stat().st_mtime, default=None)
    if whole is None:
        return "begins the stage again"
    stage = whole.parent.parent.name
    if (run / "checkpoints" / stage).exists():
        return f"goes on after {stage}, which is finished"
    return f"goes on from step {step_of(whole.parent)} of {stage}"


class Finite:
    """Beside a `Trainer`: no step is made on a loss or a gradient that is not finite, so that no checkpoint holds what came of it.

    Args:
        name: of an item that is trained on.
    """

    def __init__(self, *args: Any, name: Callable[[int], str], **others: Any) -> None:
        super().__init__(*args, **others)
        self._name = name
        self._items: Sequence[int] = ()
        """Of the present micro-batch."""
        self._behind: list[int] = []
        """The items behind the gradient so far."""

    def training_step(self, *args: Any, **others: Any) -> Tensor:
        """One micro-batch.

        Raises:
            TrainingFailed: its loss is not finite.
        """
        loss: Tensor = super().training_step(*args, **others)
        self._behind += self._items
        if not math.isfinite(loss.item()):
            raise TrainingFailed(f"the loss is {loss.item()} on {self._named(self._items)}. {UNSTEPPED}")
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm of the step's gradient, which `Trainer` asks for just before it steps.

        Raises:
            TrainingFailed: it is not finite.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(norm):
            raise TrainingFailed(
                f"the gradient norm is {norm}, at loss {self._tr_loss.item():g}, on {self._named(self._behind)}. {UNSTEPPED}"
            )
        self._behind = []
        return norm

    def _named(self, items: Sequence[int]) -> str:
        names = list(dict.fromkeys(map(self._name, items)))
        return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
