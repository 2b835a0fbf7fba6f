"""Evaluation on a Ray cluster of two local nodes. Reference: the same evaluation in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from harness import Grade
from harness.env import Split
from harness.evaluate import evaluate
from harness.plan import EvalConfig, Plan, prepare
from harness.sandbox_docker import LABEL
from harness.sandbox_owner import is_gone
from harness_sql import SqlEnv, SqlTask
from harness_trajectories.errors import UserError

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
HARNESS = Path(sys.executable).with_name("harness")
TESTS = Path(__file__).parent
NEEDED = (str(TESTS), str(TESTS.parent / "envs/examples/sql"), *filter(None, [os.environ.get("PYTHONPATH")]))


class NodeEnv(SqlEnv):
    """Notes the node that graded it, takes its time, and begins once so many nodes play."""

    class Config(SqlEnv.Config):
        seconds: float = 0.0
        log: str = ""
        nodes: int = 1

    def reset(self, task: SqlTask) -> str:
        if self.config.log:
            with open(self.config.log, "a") as file:
                file.write(f"{task.id} {ray.get_runtime_context().get_node_id()}\n")
            deadline = time.monotonic() + 300
            while len({line.split()[1] for line in Path(self.config.log).read_text().splitlines()}) < self.config.nodes:
                assert time.monotonic() < deadline, "the other node does not play"
                time.sleep(0.05)
        time.sleep(self.config.seconds)
        return super().reset(task)

    def grade(self) -> Grade:
        found = super().grade()
        score = found.score if isinstance(found, Grade) else float(found)
        status = "resolved" if score == 1 else "unresolved"
        return Grade(score=score, status=status, notes=(ray.get_runtime_context().get_node_id(),))

    @classmethod
    def tasks(cls, config: Any, split: Split) -> Iterable[SqlTask]:
        return list(super().tasks(config, split))[:12]


def is_of_ray(owner: str) -> bool:
    """Whether the owner of a container is a process of a node."""
    return Path(f"/proc/{owner.split(' ')[3]}/cmdline").read_text().startswith("ray::")


def plan(**options: Any) -> Plan:
    return prepare(EvalConfig(domain="test_cluster:NodeEnv", mode="gold", **options), None)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(NEEDED))  # the nodes' processes have to find this module
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        made.add_node(num_cpus=2)
        yield made
        made.shutdown()


def test_both_nodes_play_and_the_folder_is_the_same(cluster: Any, tmp_path: Path) -> None:
    options = {"nodes": 2, "log": str(tmp_path / "log")}
    report = evaluate(plan(env=options), tmp_path / "far", workers=4, cluster=cluster.address)
    assert (report["n"], report["resolved"]) == (12, 12)
    assert len({row["notes"][0] for row in report["instances"].values()}) == 2
    near = evaluate(
        prepare(EvalConfig(domain="harness_sql:SqlEnv", mode="gold", instances=tuple(report["instances"])), None), tmp_path / "near"
    )
    assert list(near["instances"]) == list(report["instances"])
    assert near["mean"]["turns"] == report["mean"]["turns"]
    for name in report["instances"]:
        ours, theirs = (json.loads((tmp_path / side / "episodes" / f"{name}.json").read_text()) for side in ("far", "near"))
        assert [step.get("tool_calls") for step in ours["steps"]] == [step.get("tool_calls") for step in theirs["steps"]]


def test_a_lost_node_costs_no_instance(cluster: Any, tmp_path: Path) -> None:
    """The node is taken away while it plays: its episodes are played again on the other, and none counts as a failure of the model."""
    node, log = next(iter(cluster.worker_nodes)), tmp_path / "log"

    def lose() -> None:
        """As soon as an episode has begun on the node."""
        while not log.exists() or node.node_id not in log.read_text():
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    threading.Thread(target=lose, daemon=True).start()
    report = evaluate(plan(env={"seconds": 3.0, "nodes": 2, "log": str(log)}), tmp_path / "run", workers=4, cluster=cluster.address)
    assert report["statuses"]["resolved"] == report["n"] == 12
    attempts = [json.loads(file.read_text())["attempts"] for file in tmp_path.glob("run/instances/*/report.json")]
    assert max(attempts) > 1
    cluster.add_node(num_cpus=2)  # for the other tests


def test_kill_9_of_the_caller_loses_nothing_and_runs_nothing_twice(cluster: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [HARNESS, "eval", "--domain", "test_cluster:NodeEnv", "--mode", "gold", "--workers", "3", "--ray", cluster.address]
    command += ["--env.seconds=0.5", f"--env.log={log}", "--out", str(tmp_path / "run")]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ)
    reports = tmp_path / "run" / "instances"
    deadline = time.monotonic() + 180
    while len(list(reports.glob("*/report.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    finished = {file.parent.name for file in reports.glob("*/report.json")}
    assert 4 <= len(finished) < 12
    played = log.read_text().splitlines()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resolved"] == 12
    again = [line.split()[0] for line in log.read_text().splitlines()[len(played) :]]
    assert finished.isdisjoint(again)
    assert finished | set(again) == set(json.loads(done.stdout)["instances"])


@pytest.mark.docker
@pytest.mark.usefixtures("docker_engine")
def test_sandboxes_of_the_nodes(cluster: Any, tmp_path: Path) -> None:
    """Generated tasks in real containers, which are gone afterwards."""
    from docker import DockerClient

    data = tmp_path / "data"
    subprocess.run([HARNESS, "data", "synth", "--domain", "swe", "--profile", "tiny", "-n", "40", "--out", data], check=True, timeout=300)
    options = EvalConfig(domain="swe", mode="gold", dataset=str(data / "tasks" / "test.jsonl"))
    with closing(DockerClient.from_env()) as client:

        def owners() -> dict[str, str]:
            """By container."""
            return {one["Id"]: one["Labels"][LABEL] for one in client.api.containers(all=True, filters={"label": LABEL})}

        before = owners()
        report = evaluate(prepare(options, None), tmp_path / "run", workers=2, cluster=cluster.address)
        assert report["resolved"] == report["n"] == 4
        left = {name: owner for name, owner in owners().items() if name not in before and (is_gone(owner) or is_of_ray(owner))}
    assert not left, "of the nodes' processes, which live or were ended with the caller"


@pytest.mark.parametrize(("address", "reason"), [("127.0.0.1:1", "Connection refused"), ("somewhere", "allowed are auto, HOST:PORT")])
def test_no_cluster_is_one_clear_error(tmp_path: Path, address: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"--ray {address}: no Ray cluster answers there: .*{reason}.*ray start --head"):
        evaluate(plan(), tmp_path / "run", cluster=address)
