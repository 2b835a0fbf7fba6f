"""Calls in processes of their own. The reference is the function called here; the functions hang, die and grow on purpose."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.pool import Crashed, Late, Pool

HERE = str(Path(__file__).parent)


def double() -> Callable[[int], int]:
    def function(number: int) -> int:
        if number < 0:
            time.sleep(-number)
        if number == 13:
            os._exit(13)
        if number == 14:
            raise ValueError("seen on stderr")
        return 2 * number

    return function


def broken() -> Callable[[int], int]:
    raise SystemExit(7)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool[[int], int]]:
    monkeypatch.setenv("PYTHONPATH", HERE, prepend=os.pathsep)
    with Pool(double, 3, 1.0) as pool:
        yield pool


def test_processes_are_started_when_they_are_needed(pool: Pool[[int], int]) -> None:
    assert pool.processes == []
    assert [pool.call(n) for n in range(5)] == [0, 2, 4, 6, 8]
    assert len(pool.processes) == 1


def test_any_number_of_threads(pool: Pool[[int], int]) -> None:
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(pool.call, range(20, 320))) == [2 * n for n in range(20, 320)]
    assert len(pool.processes) <= 3


@pytest.mark.parametrize(("number", "failure", "told"), [(-600, Late, "took more than 1 s"), (13, Crashed, "ended its process")])
def test_one_call_fails_and_the_others_do_not(pool: Pool[[int], int], number: int, failure: type[Exception], told: str) -> None:
    pool.call(0)
    start = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        bad = threads.submit(pool.call, number)
        assert list(threads.map(pool.call, range(20, 60))) == [2 * n for n in range(20, 60)]
        with pytest.raises(failure, match=told):
            bad.result()
    assert time.monotonic() - start < 120
    assert pool.call(21) == 42


def test_an_exception_ends_its_process(pool: Pool[[int], int], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Crashed):
        pool.call(14)
    assert "seen on stderr" in capfd.readouterr().err


def test_what_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", HERE, prepend=os.pathsep)
    with Pool(broken, 1, 1.0) as pool, pytest.raises(RuntimeError, match=r"test_pool:broken.* ended with exit status 7"):
        pool.call(1)
    assert pool.processes == []


def test_close_ends_all(pool: Pool[[int], int]) -> None:
    pool.call(1)
    (process,) = pool.processes
    pool.close()
    assert process.poll() is not None


def test_a_busy_process_does_not_outlive_a_killed_caller(tmp_path: Path) -> None:
    """SIGKILL leaves the caller no time to end it: it ends itself."""
    code = (
        "import threading, time, harness.pool, test_pool\n"
        "harness.pool.ORPHANED = 0.5\n"
        "pool = harness.pool.Pool(test_pool.double, 1, 1.0)\n"
        "pool.call(1)\n"
        "print(pool.processes[0].pid, flush=True)\n"
        "pool.call(-600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])}
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True)
    assert caller.stdout is not None
    worker = int(caller.stdout.readline())
    time.sleep(0.3)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":  # ended; nobody has asked for it yet
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("it was still running")
