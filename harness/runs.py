"""Run folders: each explains itself (options, versions, git revision) and is taken up again by the same command.

RUN/config.yaml       the resolved options
RUN/versions.json     packages, Python, platform, git revision, when it was started and taken up again
RUN/metrics.jsonl     one object a step
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from harness_trajectories.errors import UserError

PACKAGES = (
    "srl-harness",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "tokenizers",
    "datasets",
    "math-verify",
    "pydantic",
    "docker",
    "numba",
    "vllm",
    "swebench",
)
TEMPORARY = re.compile(r"\..+\.\d+\.\d{6,}")
"""The name of a file that `write_text` has not finished."""


class Run:
    """An open run folder.

    Args:
        path: the folder.
        resumed: whether an earlier call of the same command had begun it.
    """

    def __init__(self, path: Path, resumed: bool) -> None:
        self.path = path
        self.resumed = resumed

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one object to metrics.jsonl."""
        append_jsonl(self.path / "metrics.jsonl", row)


def open_run(path: Path, command: str, config: BaseModel, fresh: bool = False, may_change: Collection[str] = ()) -> Run:
    """Begin a run in `path`, or take up the one that lies there.

    Args:
        command: the harness command (`train`, `eval`); a folder belongs to one.
        fresh: move what lies there aside (never delete it) and begin anew.
        may_change: last names of options with which the run may be taken up though they differ; config.yaml then holds the new ones.

    Raises:
        UserError: the folder holds another command's run, or one with other options; the difference is shown.
    """
    wanted = {"command": command, **json.loads(config.model_dump_json())}
    file = path / "config.yaml"
    if fresh:
        move_aside(path)
    resumed = file.is_file()
    changes: dict[str, str] = {}
    if resumed:
        found = yaml.safe_load(file.read_text())
        changes = _difference(found, wanted)
        if refused := [line for key, line in changes.items() if key.rpartition(".")[2] not in may_change]:
            raise UserError(
                f"{path} holds a run with other options:\n  "
                + "\n  ".join(refused)
                + "\nUse the same options to resume it, another --out for a new run, or --fresh to move it aside."
            )
        for torn in path.rglob(".*.*.*"):
            if TEMPORARY.fullmatch(torn.name):
                torn.unlink()
    elif path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; --out takes a folder")
    path.mkdir(parents=True, exist_ok=True)
    if not resumed or changes:
        write_text(file, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
    versions = path / "versions.json"
    record = json.loads(versions.read_text()) if versions.is_file() else {"runs": []}
    record["runs"].append(_versions())
    write_json(versions, record)
    return Run(path, resumed)


def option_of(path: Path, name: str) -> Any:
    """An option of the run that lies in `path`; None where there is no run, or it has no such option."""
    file = path / "config.yaml"
    return yaml.safe_load(file.read_text()).get(name) if file.is_file() else None


def move_aside(path: Path) -> None:
    """Give what lies at `path`, if anything, a name with the time in it. Nothing is deleted."""
    if path.exists():
        aside = path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns() % 10**6:06}")
        path.rename(aside)
        print(f"moved the earlier run to {aside}", file=sys.stderr)


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with temporary.open("w", encoding="utf-8", errors="surrogatepass") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # what a full disk leaves of it
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line; a torn last line of a killed writer is closed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as stream:
        if stream.tell() > 0:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(json.dumps(row).encode() + b"\n")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file of ours; lines that a killed writer left torn are passed over. Empty where there is no file."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Option → how it differs."""
    changes: dict[str, str] = {}
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes |= _difference(old, new, f"{prefix}{key}.")
        elif old != new:
            changes[f"{prefix}{key}"] = f"{prefix}{key}: {old!r} there, {new!r} asked for"
    return changes


def _versions() -> dict[str, Any]:
    packages: dict[str, str] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "argv": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "git": _git_revision(),
        "packages": packages,
    }


def _git_revision() -> str | None:
    """The revision of the working tree that the code runs from, with `-dirty` where it was changed; None outside one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
