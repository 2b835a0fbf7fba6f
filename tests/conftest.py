"""Fixtures shared by all tests."""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from forked import Forked
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
# A shell starts its background jobs with SIGINT ignored, and children inherit that; the tests of Ctrl-C need it back.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: a worker that gets one of them at the end would be alone with it."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public data; it is not part of the repository."""
    path = Path(os.environ.get("HARNESS_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path}; set HARNESS_DATA to the folder")
    return path


@pytest.fixture(scope="session")
def forked() -> Iterator[Forked]:
    with Forked() as server:
        yield server


@pytest.fixture(scope="session")
def docker_engine() -> None:
    """Skip where no Docker engine answers. On a fresh machine the base image is made here, by one process while others wait."""
    from harness.base_image import base_image
    from harness.sandbox import NoEngine
    from harness.sandbox_docker import connect

    try:
        client = connect()
    except NoEngine as error:
        pytest.skip(str(error))
    with closing(client), Path(tempfile.gettempdir(), "srl-harness-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        base_image(client)
