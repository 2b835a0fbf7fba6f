"""Where the time of training goes: seconds by phase, every second in one of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Clocks of named phases. One within another stops the outer one's clock as long as it lasts.

    What runs on a GPU counts where the processor waits for it.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A phase that lasts as long as the block."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        """A phase that lasts until `end`."""
        self._count()
        self._open.append(name)

    def end(self) -> None:
        """The phase that was begun last is over, and the one around it, if any, goes on."""
        self._count()
        self._open.pop()

    def add(self, name: str, seconds: float) -> None:
        """Time of a phase that was measured elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call; phases that are open go on."""
        self._count()
        taken, self._seconds = self._seconds, {}
        return taken

    def _count(self) -> None:
        now = time.monotonic()
        if self._open:
            self.add(self._open[-1], now - self._since)
        self._since = now
