"""`harness` commands in forked children of one process that has imported everything: a start costs a tenth of a second, not seven.

As a program: reads lines of JSON ([arguments, working folder, file of the output, file of the errors, kill]), forks, answers with the
child's process id and, when it has ended, with its exit status as `subprocess` gives it. With a kill, [part, n], the child ends by SIGKILL
just before the n-th change of files or folders that have this part in their path.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")
"""Python's audit events of a change, besides those `open` that write."""


class Forked:
    """The program, as a context manager, in the environment of this process or another one. One child at a time."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._environment = environment
        self._child: int | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, __file__]
        self._server = subprocess.Popen(command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server.stdin is not None
        self._end()
        self._server.stdin.close()
        self._server.wait()

    def start(
        self,
        arguments: Sequence[str | Path],
        log: Path,
        kill: tuple[str, int] | None = None,
        errors: Path | None = None,
        cwd: Path = Path(),
    ) -> int:
        """The child's process id. What it writes goes to `log`, its errors to `errors` where that is given."""
        assert self._server.stdin is not None
        self._end()
        self._server.stdin.write(json.dumps([[*map(str, arguments)], str(cwd), str(log), str(errors or log), kill]) + "\n")
        self._server.stdin.flush()
        self._child = self._read()
        return self._child

    def running(self) -> bool:
        """Whether the child has not ended."""
        return Path(f"/proc/{self._child}").exists()

    def wait(self) -> int:
        """The exit status of the child: −9 where it was killed."""
        self._child = None
        return self._read()

    def run(self, *arguments: str | Path, cwd: Path = Path()) -> subprocess.CompletedProcess[str]:
        """A whole command, as `subprocess.run` gives it."""
        with TemporaryDirectory() as folder:
            log, errors = Path(folder, "log"), Path(folder, "errors")
            self.start(arguments, log, errors=errors, cwd=cwd)
            return subprocess.CompletedProcess(arguments, self.wait(), log.read_text(), errors.read_text())

    def _end(self) -> None:
        """The child that a failed test has left."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            self.wait()

    def _read(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


def _serve() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `harness train` does before it imports torch
    import matplotlib.pyplot  # noqa: F401

    import harness.train.run  # noqa: F401
    from harness import cli

    gc.freeze()  # at its end a child does not look at, and so copy, all that was imported
    for line in sys.stdin:
        arguments, folder, *files, kill = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            for descriptor, file in enumerate(files, 1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
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
