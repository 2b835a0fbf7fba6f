"""Step rewards in a process of their own, each sample under a time limit: one that hangs or kills its process costs that sample alone.

The kernel needs no pool for its speed (`benchmarks/similarity.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple

from harness.edit_reward import EditStep
from harness.pool import Crashed, Late, Pool
from harness.prompt import Wire
from harness.reward import Scored, similarity, step_reward

GIVE_UP = 8
"""Samples in a row that hang or end their process: then it is the reward that fails, not they."""

_log = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """A completion to score; see `step_reward`."""

    id: str
    """Named in the log where the completion is slow or kills its process."""
    completion: str
    expert: str
    wire: Wire
    edit: EditStep | None = None


class RewardPool:
    """A process that runs `step_reward`. A context manager; `close` ends the process.

    Args:
        limit: seconds for one sample. The work budget ends a comparison within a second, so that this is never reached in good order.
    """

    def __init__(self, limit: float = 10.0) -> None:
        self._pool = Pool(prepare, 1, limit)
        self._failed = 0  # in a row

    def score(self, candidates: Sequence[Candidate]) -> list[Scored]:
        """What `step_reward` says of each, in order; where scoring was over the limit or ended its process, no reward and a `failure`.

        That is not the model's to answer for, since the time depends on the machine: what is punished is the work, which depends on the
        texts alone.

        Raises:
            RuntimeError: `GIVE_UP` samples in a row failed so; or a process does not start.
        """
        return [self._score(candidate) for candidate in candidates]

    def _score(self, candidate: Candidate) -> Scored:
        try:
            scored = self._pool.call(*candidate[1:])
        except (Late, Crashed) as error:
            lengths = f"{len(candidate.completion)} characters against {len(candidate.expert)}"
            _log.warning("sample %s: scoring %s (%s); it has no reward", candidate.id, error, lengths)
            self._failed += 1
            if self._failed == GIVE_UP:
                raise RuntimeError(
                    f"scoring failed for {GIVE_UP} samples in a row, last {candidate.id}: {error}; the reward itself hangs or crashes"
                ) from None
            return Scored(None, False, False, None, "slow" if isinstance(error, Late) else "crashed")
        self._failed = 0
        return scored

    def close(self) -> None:
        """End the process."""
        self._pool.close()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def prepare() -> Callable[[str, str, Wire, EditStep | None], Scored]:
    """What a process of the pool does first."""
    similarity("a", "b")  # compiles the kernel before any sample's time runs
    return step_reward
