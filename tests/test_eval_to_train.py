"""Runs of an endpoint's model, recorded by `harness eval` and imported for training. References: the requests that the server got and the
answers that it gave, taken apart here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient
from test_swe_env import record
from typer.testing import CliRunner

from harness.cli import app
from harness.prompt import Message, messages
from harness.sandbox_docker import DockerSandboxes
from harness.sandbox_prepared import LABEL, REPOSITORY
from harness.scripted_server import ScriptedServer
from harness_trajectories import Trajectory, read
from harness_trajectories.steps import ContextPolicy, step_examples

HARNESS = Path(sys.executable).with_name("harness")
WAYS = {"agent": [], "agentless": ["--scaffold", "agentless"], "oracle": ["--mode", "oracle"]}
INVALID = "Let me think about this first."


def calls(operator: str) -> list[tuple[str, dict[str, str]]]:
    edit = {
        "command": "str_replace",
        "path": "/testbed/calc.py",
        "old_str": "    return a - b\n",
        "new_str": f"    return a {operator} b\n",
    }
    return [("bash", {"command": "cat calc.py\ngit log --oneline"}), ("str_replace_editor", edit), ("submit", {})]


def answers(operator: str) -> list[str]:
    return ["calc.py", f"calc.py\n<<<<<<< SEARCH\n    return a - b\n=======\n    return a {operator} b\n>>>>>>> REPLACE"]


def written(tool: str, arguments: dict[str, str]) -> str:
    lines = [f"<parameter={name}>\n{value}\n</parameter>" for name, value in arguments.items()]
    return "\n".join([f"<function={tool}>", *lines, "</function>"])


def said(conversation: list[Message]) -> str:
    """A model that mends the issue, and where the issue calls itself hard gets it wrong and writes one invalid output."""
    task, last = conversation[1]["content"], conversation[-1]["content"]
    operator = "*" if "hard" in "".join(message["content"] for message in conversation) else "+"
    if "<repository>" in last or "<file path=" in last:
        return f"<think>why not</think>\n{answers(operator)['<file path=' in last]}"
    turn = sum(message["role"] == "assistant" for message in conversation)
    if operator == "*" and turn == 1 and "not valid" not in last:
        return INVALID
    assert task.startswith("The repository lies in")
    return f"<think>turn {turn}</think>\n{written(*calls(operator)[turn])}"


def command(folder: Path, server: ScriptedServer, way: str, *more: str) -> list[str]:
    options = ["--dataset", "tasks.jsonl", "--sandbox", "local", "--out", "run", "--json", *more]
    hard = record("hard-2", {}, {}, problem_statement="A hard one: add(1, 2) is -1, it should be 3.")
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (record("easy-1", {}, {}), hard)))
    return [str(HARNESS), "eval", "--model", server.spec, *WAYS[way], *options]


def imported(folder: Path, out: str, *options: str) -> tuple[dict[str, Any], dict[str, Trajectory]]:
    ran = CliRunner().invoke(app, ["data", "import", str(folder / "run/episodes"), "--out", str(folder / out), "--json", *options])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout), {item.instance_id: item for item in read(folder / out)}


@pytest.mark.parametrize("way", WAYS)
def test_what_an_endpoints_model_does_is_recorded_and_trained_on(tmp_path: Path, way: str) -> None:
    with ScriptedServer(said, model="strong/model") as server:
        ran = subprocess.run(command(tmp_path, server, way), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert [row["status"] for row in report["instances"].values()] == ["resolved", "unresolved"]
    expected_mode = "oracle" if way == "oracle" else "e2e"
    assert (report["mode"], report["scaffold"]) == (expected_mode, None if way == "oracle" else way)
    assert (report["model"], report["decoding"]["temperature"], len(report["prompt_sha256"])) == (server.spec, 0, 64)

    counts, runs = imported(tmp_path, "all")
    assert (counts["rows"], counts["trajectories"], counts["by_format"]) == (2, 2, {"atif": 2})
    assert {name: run.resolved for name, run in runs.items()} == {"demo__easy-1": True, "demo__hard-2": False}
    for name, operator in (("demo__easy-1", "+"), ("demo__hard-2", "*")):
        done = [(action.tool, action.arguments) for turn in runs[name].turns for action in turn.actions]
        if way == "agent":
            assert done == calls(operator)
        else:
            assert [text for _, arguments in done for text in arguments.values()] == answers(operator)[way == "oracle" :]
        assert f"+    return a {operator} b" in (runs[name].patch or "")
    assert counts["actions"] == 2 * {"agent": 3, "agentless": 2, "oracle": 1}[way]

    read_by_model = [request["messages"] for request in server.requests]
    rebuilt = [
        messages(run.steps[0].message, example.prompt, example.history, example.wire, example.omitted)
        for run in runs.values()
        for example in step_examples(run, ContextPolicy(), "all")
    ]
    valid = [asked for asked in read_by_model if said(asked) != INVALID and "not valid" not in asked[-1]["content"]]
    assert len(valid) == len(read_by_model) - (2 if way == "agent" else 0)
    assert [asked for asked in rebuilt if asked in valid] == valid

    counts, runs = imported(tmp_path, "resolved", "--only-resolved")
    assert list(runs) == ["demo__easy-1"]
    assert sum(counts["dropped"].values()) == 1


def test_a_killed_run_leaves_an_episode_that_can_be_read(tmp_path: Path) -> None:
    reached, leave = threading.Event(), threading.Event()

    def reply(conversation: list[Message]) -> str:
        if sum(message["role"] == "assistant" for message in conversation) == 2 and not leave.is_set():
            reached.set()
            leave.wait(300)
        return said(conversation)

    with ScriptedServer(reply) as server:
        run = command(tmp_path, server, "agent", "--instances", "demo__easy-1")
        process = subprocess.Popen(run, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert reached.wait(180)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        leave.set()
        document = json.loads((tmp_path / "run/episodes/demo__easy-1.json").read_text())
        assert (document["extra"]["exit"], document["extra"]["resolved"]) == ("unfinished", None)
        counts, runs = imported(tmp_path, "killed")
        assert counts["errors"] == []
        done = runs["demo__easy-1"].turns
        assert [(turn.actions[0].tool, turn.actions[0].arguments) for turn in done] == calls("+")[:2]
        assert "return a - b" in done[0].observations[0].content
        assert not (tmp_path / "run/instances").exists()
        again = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["resolved"] == 1
    assert imported(tmp_path, "finished")[1]["demo__easy-1"].resolved is True


@pytest.mark.docker
@pytest.mark.usefixtures("docker_engine")
@pytest.mark.parametrize("way", ["agentless", "oracle", "agent"])
def test_in_containers_of_an_image(tmp_path: Path, way: str) -> None:
    """`harness eval` of an endpoint's model on a record that names an image, as all public ones do."""
    row = record("easy-1", {}, {})
    files: Any = row.pop("files")
    with DockerSandboxes() as sandboxes, sandboxes.open() as sandbox, closing(DockerClient.from_env()) as client:
        for path, text in files.items():
            sandbox.write(f"{sandbox.root}/{path}", text.encode())
        identity = "git config user.name x && git config user.email x@y"
        base = sandbox.exec(f"git init -q . && {identity} && git add -A . && git commit -qm base && git rev-parse HEAD").output.strip()
        tag = f"agentless-{way}"
        client.api.commit(sandbox.name, "srl-harness-test", tag)
        source = client.images.get(f"srl-harness-test:{tag}").id
    row |= {"image": f"srl-harness-test:{tag}", "base_commit": base}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row))
    try:
        with ScriptedServer(said) as server:
            options = ["--model", server.spec, "--dataset", "tasks.jsonl", "--out", "run", "--json", *WAYS[way]]
            ran = subprocess.run([str(HARNESS), "eval", *options], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        report = json.loads(ran.stdout)
        assert {name: one["status"] for name, one in report["instances"].items()} == {"demo__easy-1": "resolved"}
    finally:
        for image in client.images.list(REPOSITORY):
            if image.labels.get(LABEL) == source:
                client.images.remove(image.id, force=True)
        client.images.remove(f"srl-harness-test:{tag}", force=True)
