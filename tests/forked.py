"""`harness` commands in forked children of one process that has imported everything: a start costs a tenth of a second, not seven.

As a program: reads lines of JSON ([arguments, log file, event]), forks, answers with the child's process id and, when it has ended, with
its exit status as `subprocess` gives it. A child with an `event` kills itself with SIGKILL just before its n-th change of a file or folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

CHANGES = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")
"""Of Python's audit events, those of a changing file or folder; of `open` only where it writes."""


class Forked:
    """The program, as a context manager. One child at a time."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def start(self, arguments: Sequence[str | Path], log: Path, event: int | None = None) -> int:
        """The child's process id. Its output goes to `log`."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([[*map(str, arguments)], str(log), event]) + "\n")
        self._server.stdin.flush()
        return self._read()

    def wait(self) -> int:
        """The exit status of the child: −9 where it was killed."""
        return self._read()

    def _read(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


def _serve() -> None:
    import harness.train.run  # noqa: F401
    from harness import cli

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        arguments, log, event = json.loads(line)
        child = os.fork()
        if child == 0:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if event is not None:
                _die_at(event)
            sys.argv = ["harness", *arguments]
            cli.main()
        print(child, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _die_at(event: int) -> None:
    left = event

    def hook(name: str, details: tuple[object, ...]) -> None:
        nonlocal left
        if name not in CHANGES:
            return
        if name == "open" and not (isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    _serve()
