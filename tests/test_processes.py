"""Processes of one run, started by torchrun: who goes first, and how all end when one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness.train.processes import ProcessLost, gathered, mine
from harness_trajectories.errors import UserError

START = """
import os, signal, sys, time
from datetime import timedelta
from pathlib import Path
from harness.train import processes
from harness_trajectories.errors import UserError

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
processes.SILENCE = timedelta(seconds=float(sys.argv[2]))
with processes.together():
    print("process", rank, "joined")
"""


def launch(folder: Path, body: str, count: int = 2, silence: float = 1000) -> subprocess.CompletedProcess[str]:
    """What torchrun says after `count` processes ran `body`, which takes much less than the silence."""
    script = folder / "body.py"
    script.write_text(START + "".join(f"    {line}\n" for line in body.strip().splitlines()))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [*launcher, str(script), str(folder), str(silence)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_first_goes_first_and_speaks_for_all(tmp_path: Path) -> None:
    body = """
for turn in range(3):
    with processes.first_alone():
        with (folder / "order").open("a") as file:
            file.write(f"{turn} {'first' if processes.is_first() else 'other'}\\n")
items = processes.mine(range(7))
assert processes.gathered([len(items)]) == [2, 2, 3], items
assert processes.gathered(list(items)) == list(range(7))
"""
    done = launch(tmp_path, body, count=3)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "process 0 joined\n"
    order = (tmp_path / "order").read_text().splitlines()
    for turn in range(3):
        assert [line for line in order if line.startswith(str(turn))] == [f"{turn} first", f"{turn} other", f"{turn} other"]
    assert mine([1, 2]) == gathered([1, 2]) == [1, 2]


def test_an_exception_in_one_process_ends_all_with_its_message(tmp_path: Path) -> None:
    body = """
for turn in range(1000000):
    if turn == 5 and rank == "1":
        raise UserError("something is wrong here")
    processes.gathered([turn])
"""
    done = launch(tmp_path, body)
    assert done.returncode != 0
    assert done.stderr.count("UserError: something is wrong here") == 1
    assert "gloo" not in done.stderr


def test_what_all_raise_is_said_once(tmp_path: Path) -> None:
    done = launch(tmp_path, 'raise UserError("something is wrong here")')
    assert done.returncode != 0
    assert done.stderr.count("UserError: something is wrong here") == 1


def test_a_killed_process_ends_all(tmp_path: Path) -> None:
    """torchrun names it."""
    body = """
for turn in range(1000000):
    if turn == 5 and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    processes.gathered([turn])
"""
    done = launch(tmp_path, body)
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr


def test_a_process_that_hangs_ends_all(tmp_path: Path) -> None:
    """Training has then failed: exit code 1, where a user's error is 2."""
    body = """
from harness.train.failure import one_message
if rank == "1":
    time.sleep(100000)
with one_message(folder), processes.one_voice():
    processes.gathered([1])
"""
    done = launch(tmp_path, body, silence=5)
    assert done.returncode != 0
    said = "one of the 2 processes of this run was killed, or has not answered for 0:00:05; the torchrun of its node names it"
    assert done.stderr.count(f"ProcessLost: {said}\n") == 1
    assert done.stderr.count(f"TrainingFailed: {said}. The same command begins the stage again\n") == 1
    assert not issubclass(ProcessLost, UserError)
