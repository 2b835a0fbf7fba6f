"""What happens around an evaluation: containers are killed, the engine goes and comes back. Reference: the gold patches, which resolve
every instance when nothing happens. Kill −9 of the harness itself: test_evaluate.py and test_cluster.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from docker import DockerClient
from docker.errors import DockerException

from harness.evaluate import evaluate
from harness.generate import ScriptedGenerator
from harness.plan import EvalConfig, prepare
from harness.prompt import completion
from harness.sandbox import Limits, Ran, Sandbox
from harness.sandbox_docker import DockerSandboxes
from harness.sandbox_open import Sandboxes
from harness_envs.swe.synth.batch import TEST_COMMAND
from harness_trajectories import Action

HARNESS = Path(sys.executable).with_name("harness")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos")
    command = [HARNESS, "data", "synth", "--domain", "swe", "--profile", "tiny", "-n", "20", "--out", folder]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    rows = (folder / "tasks" / "train.jsonl").read_text().splitlines(keepends=True)[:6]
    (folder / "six.jsonl").write_text("".join(rows))
    return folder / "six.jsonl"


def wait(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def reports(folder: Path) -> dict[str, dict[str, Any]]:
    return {file.parent.name: json.loads(file.read_text()) for file in folder.glob("instances/*/report.json")}


def finished(folder: Path) -> dict[str, int]:
    """Instances with a verdict, and the time in ns at which it was written."""
    found = {name: row for name, row in reports(folder).items() if row["status"] != "infra_error"}
    return {name: (folder / "instances" / name / "report.json").stat().st_mtime_ns for name in found}


class Doomed(Sandbox):
    """A sandbox whose container is killed right before the first command that holds a word, once an instance."""

    def __init__(self, inner: Any, word: str, doomed: dict[str, int]) -> None:
        self.inner, self.word, self.doomed, self.root = inner, word, doomed, inner.root

    def exec(self, command: str, timeout: float = 60.0) -> Ran:
        if self.word in command:
            base = self.inner.exec("git rev-parse HEAD").output.strip()
            self.doomed[base] = self.doomed.get(base, 0) + 1
            if self.doomed[base] == 1:
                with closing(DockerClient.from_env()) as client:
                    client.api.kill(self.inner.name)
        return self.inner.exec(command, timeout)

    def read(self, path: str) -> bytes:
        return self.inner.read(path)

    def write(self, path: str, data: bytes) -> None:
        self.inner.write(path, data)

    def close(self) -> None:
        self.inner.close()


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.usefixtures("docker_engine")
@pytest.mark.parametrize("word", ["END_OF_PATCH", TEST_COMMAND], ids=["while it plays", "while it is graded"])
def test_a_killed_container_costs_no_instance(tasks: Path, tmp_path: Path, word: str) -> None:
    doomed: dict[str, int] = {}
    plan = prepare(EvalConfig(mode="gold", dataset=str(tasks)), None)
    with closing(Sandboxes()) as sandboxes:
        report = evaluate(plan, tmp_path, workers=2, open_sandbox=lambda *a, **k: Doomed(sandboxes(*a, **k), word, doomed))
    assert report["resolved"] == report["n"] == len(doomed) == 6
    assert {row["attempts"] for row in reports(tmp_path).values()} == {2}, "each was killed once, and tried once more"


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.usefixtures("docker_engine")
def test_a_full_disk_is_the_models_own_affair(tasks: Path, tmp_path: Path) -> None:
    """Every episode writes more than its sandbox may hold: each ends as the model's, and the next run finds everything as it was."""
    fill = completion("", [Action(tool="bash", arguments={"command": "cat /dev/zero > /tmp/full; echo written"})], "calls")
    leave = completion("", [Action(tool="submit")], "calls")
    model = ScriptedGenerator(lambda prompt: leave if any(m["role"] == "assistant" for m in prompt) else fill)
    with DockerSandboxes(limits=Limits(disk_mb=64, file_size_mb=1024)) as sandboxes:
        plan = prepare(EvalConfig(mode="e2e", dataset=str(tasks)), "scripted")
        report = evaluate(plan, tmp_path / "full", workers=2, generator=model, open_sandbox=sandboxes.open)
    assert report["statuses"]["empty_patch"] == report["n"] == 6
    gold = evaluate(prepare(EvalConfig(mode="gold", dataset=str(tasks)), None), tmp_path / "gold", workers=2)
    assert gold["resolved"] == 6


class Engine:
    """A second dockerd of this test's own, that nobody else uses. It has a network namespace of its own: without a bridge to use, an engine
    takes the bridge of the first one away."""

    def __init__(self, folder: Path) -> None:
        self.host = f"unix://{folder}/docker.sock"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        folder = self._folder
        command = [
            "unshare",
            "--net",
            "dockerd",
            "--data-root",
            f"{folder}/data",
            "--exec-root",
            f"{folder}/exec",
            "--pidfile",
            f"{folder}/pid",
            "-H",
            self.host,
        ]
        with (folder / "log").open("ab") as log:
            command += ["--bridge=none", "--iptables=false"]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            wait(self._answers, 120)
        except AssertionError:
            self.stop()
            pytest.skip(f"no second engine can be started here: {(folder / 'log').read_text()[-300:]}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=60)
            self._process = None

    def _answers(self) -> bool:
        try:
            with closing(DockerClient(self.host, timeout=5)) as client:
                return bool(client.ping())
        except DockerException:
            return False


@pytest.fixture
def engine() -> Iterator[Engine]:
    if shutil.which("dockerd") is None or shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("a second engine needs dockerd, unshare and root")
    with TemporaryDirectory(prefix="srl-", ignore_cleanup_errors=True) as folder:  # short: the path of a socket has 107 bytes at most
        made = Engine(Path(folder))
        made.start()
        yield made
        made.stop()


@pytest.mark.docker
@pytest.mark.slow
def test_the_engine_is_restarted_in_the_middle(tasks: Path, tmp_path: Path, engine: Engine) -> None:
    command = [HARNESS, "eval", "--mode", "gold", "--dataset", str(tasks), "--out", "run", "--workers", "2", "--json"]
    run = tmp_path / "run"
    env = {**os.environ, "DOCKER_HOST": engine.host}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait(lambda: len(finished(run)) >= 2 or process.poll() is not None, 240)
    engine.stop()
    time.sleep(1.0)
    engine.start()
    _, errors = process.communicate(timeout=300)
    assert "infrastructure failed" in errors, errors
    assert {row["status"] for row in reports(run).values()} <= {"resolved", "infra_error"}, errors
    before = finished(run)
    assert len(before) >= 2
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resolved"] == 6
    assert before.items() <= finished(run).items(), "a finished instance was run again"
