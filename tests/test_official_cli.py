"""Predictions that an evaluation wrote, given unchanged to SWE-bench's own command. Reference: its report on the same file of instances,
whose verdicts are compared one by one; it runs in the same images, on the same engine, and needs no network for that."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.base_image import base_image
from harness.evaluate import evaluate
from harness.plan import EvalConfig, prepare
from harness.sandbox_docker import connect
from harness.sandbox_prepared import LABEL
from harness_envs.swe.patch import git_diff
from harness_envs.swe.task import DATE

pytest.importorskip("swebench", reason="the extra swebench is not installed")
HARNESS = Path(sys.executable).with_name("harness")
IMAGES = "srl-harness-test-official-cli"
COMMIT = (
    f"git init -q && git add -A && GIT_AUTHOR_DATE='{DATE} +0000' GIT_COMMITTER_DATE='{DATE} +0000' "
    "git -c user.name=harness -c user.email=harness@localhost commit -q -m base"
)
KINDS = ("gold", "empty", "wrong", "not applying", "breaking")
"""Of the predictions, in turn."""
COUNTS = {"tiny": 5, "plain": 3}
"""Instances by profile."""
STATUS = {
    "gold": ("resolved", "resolved_ids"),
    "empty": ("empty_patch", "empty_patch_ids"),
    "wrong": ("unresolved", "unresolved_ids"),
    "not applying": ("patch_error", "error_ids"),
    "breaking": ("unresolved", "unresolved_ids"),
}
"""What ours says of each kind, and the list of the official report that an instance of this status belongs to."""


def packed(files: dict[str, str]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    stream.seek(0)
    return stream


def eval_script(row: dict[str, Any]) -> str:
    tests = " ".join(sorted({test.split("::")[0] for test in row["FAIL_TO_PASS"] + row["PASS_TO_PASS"]}))
    checkout = f"git checkout {row['base_commit']} {tests}"
    lines = ["#!/bin/bash", "set -uxo pipefail", "cd /testbed", checkout, "git apply -v - <<'EOF_OF_TESTS'", row["test_patch"].rstrip("\n")]
    lines += ["EOF_OF_TESTS", ": '>>>>> Start Test Output'", f"{row['test_cmd']} {tests}", ": '>>>>> End Test Output'", checkout]
    return "\n".join(lines) + "\n"


def patch(row: dict[str, Any], files: dict[str, str], kind: str) -> str:
    source = row["patch"].split(" b/", 1)[1].split("\n", 1)[0]
    if kind == "wrong":
        return git_diff({}, {"notes.txt": "nothing\n"})
    if kind == "not applying":
        return git_diff({source: "not there\n" * 3}, {source: "not there either\n" * 3})
    if kind == "breaking":
        return git_diff({source: files[source]}, {source: "raise RuntimeError\n" + files[source]})
    return str(row["patch"]) if kind == "gold" else ""


@pytest.fixture(scope="module")
def made(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with rows.jsonl, in the schema of SWE-bench 5, and given.jsonl; and the kind of each instance's prediction."""
    folder = tmp_path_factory.mktemp("official")
    rows: list[dict[str, Any]] = []
    for profile, count in COUNTS.items():
        data = folder / profile
        command = [HARNESS, "data", "synth", "--domain", "swe", "--profile", profile, "-n", "20", "--out", data]
        subprocess.run(command, check=True, timeout=300, capture_output=True)
        rows += [json.loads(line) for line in (data / "tasks" / "train.jsonl").read_text().splitlines()][:count]
    client = connect()
    dockerfile = f"FROM {base_image(client)}\nCOPY repo /testbed\nWORKDIR /testbed\nRUN {COMMIT}\n"
    kinds: dict[str, str] = {}
    with (folder / "rows.jsonl").open("w") as dataset, (folder / "given.jsonl").open("w") as given:
        for number, row in enumerate(rows):
            files = row.pop("files")
            context = {"Dockerfile": dockerfile, **{f"repo/{path}": text for path, text in files.items()}}
            row["image"] = f"{IMAGES}:{number}"
            client.images.build(fileobj=packed(context), custom_context=True, tag=row["image"], rm=True)
            script = eval_script(row)
            row = {key: value for key, value in row.items() if key not in ("test_cmd", "bug")}
            row |= {"eval_script": script, "log_parser": "parse_log_pytest", "eval_type": "pass_and_fail"}
            dataset.write(json.dumps(row) + "\n")
            kind = kinds[row["instance_id"]] = KINDS[number % len(KINDS)]
            text = patch(row, files, kind)
            given.write(json.dumps({"instance_id": row["instance_id"], "model_name_or_path": "some/model", "model_patch": text}) + "\n")
    yield folder, kinds
    for number in range(len(rows)):
        name = f"{IMAGES}:{number}"
        for prepared in client.images.list(filters={"label": f"{LABEL}={client.images.get(name).id}"}):
            client.images.remove(str(prepared.id), force=True)
        client.images.remove(name, force=True)
    client.close()


@pytest.mark.docker
@pytest.mark.slow
def test_the_official_command_takes_our_predictions_and_agrees(made: tuple[Path, dict[str, str]]) -> None:
    folder, kinds = made
    config = EvalConfig(dataset=str(folder / "rows.jsonl"), predictions=str(folder / "given.jsonl"))
    evaluate(prepare(config, None), folder / "first")  # prepares the images
    begun = time.monotonic()
    ours = evaluate(prepare(config, None), folder / "ours")["instances"]
    our_seconds = time.monotonic() - begun

    command = [
        sys.executable,
        "-m",
        "swebench.harness.run_evaluation",
        "--dataset_name",
        "rows.jsonl",
        "--run_id",
        "r",
        "--max_workers",
        "1",
    ]
    command += ["--predictions_path", "ours/predictions.jsonl"]
    begun = time.monotonic()
    done = subprocess.run(command, cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=1500)
    their_seconds = time.monotonic() - begun
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.r.json")
    theirs = json.loads(file.read_text())

    for instance, kind in kinds.items():
        status, wanted = STATUS[kind]
        lists = [name for name in {pair[1] for pair in STATUS.values()} if instance in theirs[name]]
        assert (ours[instance]["status"], lists) == (status, [wanted]), (instance, kind)
    assert theirs["submitted_instances"] == len(kinds) == sum(COUNTS.values())
    tested = sum(kind != "empty" for kind in kinds.values())
    seconds = [total / tested for total in (our_seconds, their_seconds)]
    print(f"seconds per tested instance: ours {seconds[0]:.2f}, official {seconds[1]:.2f}, {seconds[1] / seconds[0]:.1f} times")
