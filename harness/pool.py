"""A function called in processes of their own, each call under a time limit: one that hangs or ends its process costs that call alone.

Nothing in Python stops a call that hangs in compiled code (a pattern that backtracks, arithmetic on a billion digits, a bug) except the
end of its process. The processes are started as commands, not forked and not by multiprocessing's spawn, so that they import neither
torch nor the caller's main module.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import LifoQueue
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
STARTING = 120.0
"""Seconds that a process has to import and, the first time on a machine, to compile."""
ORPHANED = 5.0
"""Seconds beyond the limit after which a process ends itself: its caller, who should have ended it, is no more."""


class Late(Exception):
    """The call took longer than its limit."""


class Crashed(Exception):
    """The call ended its process."""


class Pool(Generic[P, R]):
    """Processes that run one function, started when they are first needed. Any number of threads may call.

    Args:
        prepare: called once in each process; it imports and compiles what is needed and returns the function. It is found again by the
            names of its module and itself.
        workers: processes, at most.
        limit: seconds for one call, start and waiting for a free process not counted.
    """

    def __init__(self, prepare: Callable[[], Callable[P, R]], workers: int, limit: float) -> None:
        self.limit = limit
        self._prepare = f"{prepare.__module__}:{prepare.__qualname__}"
        self._free: LifoQueue[_Worker | None] = LifoQueue()  # None: a process that is not started yet
        self._workers: set[_Worker] = set()
        for _ in range(workers):
            self._free.put(None)

    def call(self, *arguments: P.args, **options: P.kwargs) -> R:
        """What the function returns.

        Raises:
            Late, Crashed: it does not; the process is replaced.
            RuntimeError: a process does not start.
        """
        worker = self._free.get()
        try:
            if worker is None or worker.process.poll() is not None:
                worker = self._replace(worker)
            worker.wait_ready()
            found: R = worker.call((arguments, options), self.limit)
        except (Late, Crashed):
            worker = self._replace(worker)  # it starts while nobody waits for it
            raise
        except BaseException:
            self._end(worker)
            worker = None
            raise
        finally:
            self._free.put(worker)
        return found

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """Those that are running."""
        return [worker.process for worker in self._workers]

    def close(self) -> None:
        """End the processes; calls under way come back as `Crashed`."""
        for worker in list(self._workers):
            self._end(worker)

    def _replace(self, worker: _Worker | None) -> _Worker:
        self._end(worker)
        new = _Worker(self._prepare, self.limit + ORPHANED)
        self._workers.add(new)
        return new

    def _end(self, worker: _Worker | None) -> None:
        if worker is not None:
            self._workers.discard(worker)
            worker.end()

    def __enter__(self) -> Pool[P, R]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Worker:
    """A process. It is used by one thread at a time."""

    def __init__(self, prepare: str, orphaned: float) -> None:
        self.connection, theirs = Pipe()
        self._command = [sys.executable, "-P", "-m", "harness.pool", str(theirs.fileno()), prepare, str(orphaned)]
        self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()
        self._ready = False

    def wait_ready(self) -> None:
        """Raises: RuntimeError: it ended, or is not ready in time."""
        if self._ready:
            return
        try:
            if self.connection.poll(STARTING):
                self.connection.recv()
                self._ready = True
                return
            told = f"was not ready after {STARTING:g} s"
        except (EOFError, OSError):
            told = f"ended with exit status {self.process.wait()}"
        raise RuntimeError(f"a process ({' '.join(self._command[:4])} ... {self._command[5]}) {told}; its own message stands above")

    def call(self, given: tuple[Any, Any], limit: float) -> Any:
        """Raises: Late, Crashed."""
        until = time.monotonic() + limit
        try:
            self.connection.send(given)
            if self.connection.poll(max(0.0, until - time.monotonic())):
                return self.connection.recv()
        except (EOFError, OSError):
            raise Crashed("ended its process") from None
        raise Late(f"took more than {limit:g} s")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


def _serve(connection: Connection, prepare: str, orphaned: float) -> None:
    """Answer calls until the other end closes. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it is doing
    module, _, name = prepare.partition(":")
    function = getattr(import_module(module), name)()
    connection.send(None)
    while True:
        try:
            arguments, options = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, orphaned)
        found = function(*arguments, **options)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(found)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), sys.argv[2], float(sys.argv[3]))
