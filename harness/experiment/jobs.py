"""Jobs in processes of their own, forked from one that has imported everything: each a harness command, or a function of this package.

A job is finished once its file is there. The same call takes up what is not; what a job had half done, its own command takes up.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from harness.progress import Progress

PRELOADED = ["harness.experiment.child"]


class Job(NamedTuple):
    """Something to be done once."""

    name: str
    done: Path
    """The file that is there once it is done."""
    needs: tuple[Path, ...]
    """Such files of other jobs."""
    command: tuple[str, ...] = ()
    """Words of a harness command."""
    call: tuple[str, tuple[object, ...]] | None = None
    """Or a function, as `module:name`, with its arguments."""


class JobsFailed(Exception):
    """Some jobs failed. The message names them and their logs."""


def run_jobs(jobs: Sequence[Job], workers: int, logs: Path) -> None:
    """Do all that are not done, `workers` at a time, in their order as far as what they need allows.

    Args:
        logs: folder of the jobs' output, a file each, with the command in its first line.

    Raises:
        JobsFailed: after all that did not depend on what failed.
        KeyboardInterrupt: after those under way have stopped.
    """
    waiting = [job for job in jobs if not job.done.exists()]
    running: list[tuple[BaseProcess, Job]] = []
    failed: list[Job] = []
    logs.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with Progress(len(jobs), "jobs", every=30) as progress:
        progress.resume_at(len(jobs) - len(waiting))
        try:
            while waiting or running:
                for job in [job for job in waiting if all(file.exists() for file in job.needs)][: workers - len(running)]:
                    waiting.remove(job)
                    process = context.Process(target=_child, args=(job, logs / f"{job.name}.log"), name=job.name)
                    process.start()
                    running.append((process, job))
                if not running:
                    break
                connection.wait([process.sentinel for process, _ in running])
                for ended in [pair for pair in running if not pair[0].is_alive()]:
                    running.remove(ended)
                    job, code = ended[1], ended[0].exitcode
                    if code or not job.done.exists():
                        failed.append(job)
                        print(f"{job.name} failed, exit code {code}: {logs / job.name}.log", file=sys.stderr)
                    progress.advance(1, last=job.name)
        except BaseException:
            for one, _ in running:
                os.kill(one.pid or 0, signal.SIGINT)
            for one, _ in running:
                one.join()
            raise
    if failed:
        told = "\n".join(f"  {job.name}: {_last_line(logs / f'{job.name}.log')}" for job in failed)
        raise JobsFailed(f"{len(failed)} of {len(jobs)} jobs failed and {len(waiting)} that need them were not begun. Logs: {logs}\n{told}")


def _child(job: Job, log: Path) -> None:
    """Do the job in this process, which has no terminal; it ends with its parent."""
    os.setsid()
    parent = multiprocessing.parent_process()

    def watch() -> None:
        while parent is not None and parent.is_alive():
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if job.call is not None:
        place, arguments = job.call
        print(f"$ {place}{arguments}", file=sys.stderr, flush=True)
        module, _, name = place.partition(":")
        getattr(importlib.import_module(module), name)(*arguments)
        return
    sys.argv = ["harness", *job.command]
    print(f"$ {' '.join(sys.argv)}", file=sys.stderr, flush=True)
    runpy.run_module("harness", run_name="__main__")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.startswith("error")), next((line for line in reversed(lines) if line), ""))
