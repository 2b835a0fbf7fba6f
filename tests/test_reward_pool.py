"""Scoring in processes of their own: the reference is `step_reward` called here, one sample after the other."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

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


def running(pool: RewardPool) -> int:
    """The process of a pool that has scored something."""
    pool.score(SAMPLES[:1])
    (process,) = pool._pool.processes
    return process.pid


def test_scores_come_back_in_order_and_the_same_each_time(pool: RewardPool, expected: list[Scored]) -> None:
    assert pool.score(SAMPLES) == expected
    assert pool.score([HEAVY, *SAMPLES])[1:] == expected
    assert pool.score([]) == []


def test_a_slow_sample_is_named_and_has_no_reward_and_the_others_have(expected: list[Scored], caplog: pytest.LogCaptureFixture) -> None:
    with RewardPool(limit=0.08) as pool, caplog.at_level(logging.WARNING):
        scored = pool.score([*SAMPLES[:150], HEAVY, *SAMPLES[150:]])
    assert scored.pop(150) == Scored(None, False, False, None, "slow")
    assert scored == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"sample heavy: scoring took more than 0.08 s ({LONGEST + 15} characters against {LONGEST}); it has no reward"
    ]


def test_a_process_killed_between_batches_costs_nothing(pool: RewardPool, expected: list[Scored]) -> None:
    os.kill(running(pool), signal.SIGKILL)
    time.sleep(0.2)
    assert pool.score(SAMPLES) == expected


def test_a_process_killed_while_scoring_costs_its_sample_alone(expected: list[Scored], caplog: pytest.LogCaptureFixture) -> None:
    with RewardPool() as pool, caplog.at_level(logging.WARNING):
        victim = running(pool)
        os.kill(victim, signal.SIGSTOP)  # so that the first sample is still its when it dies
        threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
        scored = pool.score([HEAVY, *SAMPLES])
    assert scored == [Scored(None, False, False, None, "crashed"), *expected]
    assert [record.getMessage().split("(")[0] for record in caplog.records] == ["sample heavy: scoring ended its process "]


def test_a_stopped_process_is_no_hang(expected: list[Scored]) -> None:
    with RewardPool(limit=1.0) as pool:
        os.kill(running(pool), signal.SIGSTOP)
        scored = pool.score(SAMPLES)
    assert scored[0] == Scored(None, False, False, None, "slow")
    assert scored[1:] == expected[1:]


def test_no_process_outlives_its_pool() -> None:
    with RewardPool() as pool:
        victim = running(pool)
        os.kill(victim, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(victim, 0)


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
