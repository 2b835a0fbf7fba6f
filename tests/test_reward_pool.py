"""Scoring in processes of their own: the reference is `step_reward` called here, one sample after the other."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from harness.pool import _Worker
from harness.reward import LONGEST, Scored, step_reward
from harness.reward_pool import Candidate, RewardPool

HEAVY = Candidate("heavy", "<think></think>" + "a" * LONGEST, "ab" * (LONGEST // 2), "text")
"""Takes the whole budget of work, some tenths of a second."""
SAMPLES = [
    Candidate(f"step-{at}", completion, expert, "text")
    for at, (completion, expert) in enumerate(
        [("<think></think>" + "xy" * (at % 50), "xyz" * (at % 20)) for at in range(300)]
        + [("no span", "x"), ("<think></think>\ud800", "x")]
    )
]


@pytest.fixture(scope="module")
def expected() -> list[Scored]:
    return [step_reward(sample.completion, sample.expert, sample.wire) for sample in SAMPLES]


@pytest.fixture
def pool() -> Iterator[RewardPool]:
    with RewardPool() as pool:
        yield pool


def running(pool: RewardPool) -> subprocess.Popen[bytes]:
    """The process of a pool that has scored something."""
    pool.score(SAMPLES[:1])
    (process,) = pool._pool.processes
    return process


def signalled(monkeypatch: pytest.MonkeyPatch, *numbers: signal.Signals) -> None:
    """The process that is given `HEAVY` gets these signals, the first as it gets the sample."""
    call = _Worker.call

    def calling(worker: _Worker, given: Any, limit: float) -> Any:
        if given[0][0] is HEAVY.completion:
            worker.process.send_signal(numbers[0])
            for number in numbers[1:]:
                threading.Timer(0.5, worker.process.send_signal, (number,)).start()
        return call(worker, given, limit)

    monkeypatch.setattr(_Worker, "call", calling)


def test_scores_come_back_in_order_and_the_same_each_time(pool: RewardPool, expected: list[Scored]) -> None:
    assert pool.score(SAMPLES) == expected
    assert pool.score([HEAVY, *SAMPLES])[1:] == expected
    assert pool.score([]) == []


def test_a_slow_sample_is_named_and_has_no_reward_and_the_others_have(
    expected: list[Scored], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process is stopped: on whatever machine it takes longer than its limit, and the others do not."""
    signalled(monkeypatch, signal.SIGSTOP)
    with RewardPool(limit=1.0) as rewards, caplog.at_level(logging.WARNING):
        scored = rewards.score([*SAMPLES[:150], HEAVY, *SAMPLES[150:]])
    assert scored.pop(150) == Scored(None, False, False, None, "slow")
    assert scored == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"sample heavy: scoring took more than 1 s ({LONGEST + 15} characters against {LONGEST}); it has no reward"
    ]


def test_a_process_killed_between_batches_costs_nothing(pool: RewardPool, expected: list[Scored]) -> None:
    process = running(pool)
    process.kill()
    process.wait()
    assert pool.score(SAMPLES) == expected


def test_a_process_killed_while_scoring_costs_its_sample_alone(
    expected: list[Scored], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    signalled(monkeypatch, signal.SIGSTOP, signal.SIGKILL)  # stopped, so that the sample is still its when it dies
    with RewardPool() as rewards, caplog.at_level(logging.WARNING):
        scored = rewards.score([HEAVY, *SAMPLES])
    assert scored == [Scored(None, False, False, None, "crashed"), *expected]
    assert [record.getMessage().split("(")[0] for record in caplog.records] == ["sample heavy: scoring ended its process "]


def test_a_stopped_process_is_no_hang(expected: list[Scored]) -> None:
    with RewardPool(limit=1.0) as pool:
        running(pool).send_signal(signal.SIGSTOP)
        scored = pool.score(SAMPLES)
    assert scored[0] == Scored(None, False, False, None, "slow")
    assert scored[1:] == expected[1:]


def test_no_process_outlives_its_pool() -> None:
    with RewardPool() as pool:
        process = running(pool)
        assert process.poll() is None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_the_processes_import_no_torch() -> None:
    code = "import sys, harness.reward_pool; print([name for name in ('torch', 'transformers', 'trl', 'datasets') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_script_without_a_main_guard_can_use_the_pool() -> None:
    code = (
        "from harness.reward_pool import *\n"
        "with RewardPool() as pool: print(pool.score([Candidate('s', '<think></think>ab', 'ab', 'text')])[0].reward)"
    )
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=True)
    assert done.stdout == "1.0\n"
