"""`harness` commands in forked children of one process that has imported everything: a start costs a tenth of a second, not seven.

As a program: reads lines of JSON ([arguments, log file, kill]), forks, answers with the child's process id and, when it has ended, with its
exit status as `subprocess` gives it. With a kill, [part, n], the child ends by SIGKILL just before the n-th change of files or folders that
have this part in their path.
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

CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")
"""Python's audit events of a change, besides those `open` that write."""


class Forked:
    """The program, as a context manager. One child at a time."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def start(self, arguments: Sequence[str | Path], log: Path, kill: tuple[str, int] | None = None) -> int:
        """The child's process id. Its output goes to `log`."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([[*map(str, arguments)], str(log), kill]) + "\n")
        self._server.stdin.flush()
        return self._read()

    def wait(self) -> int:
        """The exit status of the child: −9 where it was killed."""
        return self._read()

    def _read(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


def _serve() -> None:
    import matplotlib.pyplot  # noqa: F401

    import harness.train.run  # noqa: F401
    from harness import cli

    for line in sys.stdin:
        arguments, log, kill = json.loads(line)
        child = os.fork()
        if child == 0:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if kill is not None:
                _die_at(*kill)
            sys.argv = ["harness", *arguments]
            cli.main()
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _die_at(part: str, count: int) -> None:
    left = count

    def hook(event: str, details: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and part in str(details[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    _serve()
