"""Data sets of tasks: files, hub ids, generated ones, and plain task directories.

A task directory is the simplest way to write one task by hand::

    my-task/
        issue.md        the issue's text
        patch.diff      the gold answer
        test.patch      brings the tests that judge it
        task.json       the other fields of a row: fail_to_pass, pass_to_pass, test_cmd, log_parser, image, ...
        repo/           the base tree, or
        Dockerfile      of an image that holds it at /testbed as a git repository; or `image` in task.json names one

The id is the folder's name unless task.json has `instance_id`; without `base_commit` the image is taken as it is. A folder of such folders
is a data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.env import Split
from harness_envs.swe.schemas import read
from harness_envs.swe.task import SweTask
from harness_trajectories import hub
from harness_trajectories.errors import ReadError, UserError

TASK, REPO, DOCKERFILE = "task.json", "repo", "Dockerfile"
TEXTS = {"issue.md": "problem_statement", "patch.diff": "patch", "test.patch": "test_patch"}
"""Files of a task directory → the row's field."""
BUILT = "srl-harness-task"
"""Repository of the images of task directories; the tag is a hash of the folder."""
_SUFFIXES = (".json", ".jsonl", ".parquet")


def load_tasks(source: str | Path, image_template: str | None = None, split: Split = "test") -> list[SweTask]:
    """Tasks of a data set, in its order.

    Args:
        source: a .json (list, or mapping of rows), .jsonl or .parquet file; a directory that `harness data synth` wrote, of which
            `tasks/<split>.jsonl` is read; a task directory or a folder of them; a hub id `owner/name` or a folder downloaded from there, of
            which the test split is read where it has one.
        image_template: the image of a row that names none, instead of its schema's (see `schemas.IMAGE_TEMPLATE`).
        split: which part of a synth directory; other sources are one split.

    Raises:
        UserError: nothing such, an unreadable file, a bad row (the message says which), two rows of one id.
    """
    tasks: dict[str, SweTask] = {}
    for place, line, row in _rows(Path(source), split):
        try:
            if not isinstance(row, dict):
                raise ValueError(f"expected an object with the fields of a SWE-bench row, got {type(row).__name__}")
            task = read(row, image_template)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ReadError(place, line, f"{field + ': ' if field else ''}{first['msg']}") from None
        except (ValueError, AttributeError, TypeError) as error:
            raise ReadError(place, line, str(error)) from None
        if task.id in tasks:
            raise ReadError(place, line, f"instance_id {task.id!r} occurs twice")
        tasks[task.id] = task
    if not tasks:
        raise UserError(f"{source}: no rows")
    return list(tasks.values())


def _rows(path: Path, split: Split) -> Iterator[tuple[str, int | None, Any]]:
    """Rows with the file and the 1-based line (JSONL) or number that they come from."""
    if path.is_dir():
        yield from _folder(path, split)
    elif path.is_file():
        for line, row in _file(path):
            yield str(path), line, row
    elif hub.is_id(path):
        yield from _hub(path)
    else:
        raise UserError(
            f"no data set at {path}. Allowed: a .json, .jsonl or .parquet file in the SWE-bench schema, a synth directory, "
            "a task directory or a folder of them, a hub id"
        )


def _hub(path: Path) -> Iterator[tuple[str, int | None, Any]]:
    """A data set of the hub, by its id or as a folder that was downloaded from there."""
    for part, line, row in hub.held_out(path.as_posix()):
        yield f"{path}/{part}", line, row


def _folder(path: Path, split: Split) -> Iterator[tuple[str, int | None, Any]]:
    generated = path / "tasks" / f"{split}.jsonl"
    tasks = [path] if (path / TASK).is_file() else sorted(found.parent for found in path.glob(f"*/{TASK}"))
    if generated.is_file():
        yield from _rows(generated, split)
    elif tasks:
        for task in tasks:
            yield str(task / TASK), None, _task_directory(task)
    elif next(path.rglob("*.parquet"), None):
        yield from _hub(path)
    else:
        raise UserError(
            f"{path} is a directory without tasks/{split}.jsonl or {TASK}. Make one: harness data synth --domain swe --out {path}"
        )


def _task_directory(folder: Path) -> dict[str, Any]:
    """The row of a task directory.

    Raises:
        ReadError: a file of it cannot be read.
    """
    row = _json(_text(folder / TASK), folder / TASK, None)
    if not isinstance(row, dict):
        raise ReadError(str(folder / TASK), None, f"expected an object with the fields of a row, got {type(row).__name__}")
    row = {"instance_id": folder.resolve().name, "base_commit": "", **row}
    row |= {field: _text(folder / name) for name, field in TEXTS.items() if (folder / name).is_file()}
    if (folder / REPO).is_dir():
        paths = sorted(path for path in (folder / REPO).rglob("*") if path.is_file() and ".git" not in path.parts)
        row["files"] = {path.relative_to(folder / REPO).as_posix(): _text(path) for path in paths}
    elif (folder / DOCKERFILE).is_file() and not row.get("image"):
        row |= {"image": f"{BUILT}:{_digest(folder)}", "build": str(folder.resolve())}
    return row


def _digest(folder: Path) -> str:
    """Of every file that an image could be built of: a change makes another image."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        total.update(f"{path.relative_to(folder)} {path.stat().st_mode & 0o777} {len(data)}\n".encode() + data)
    return total.hexdigest()[:16]


def _file(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix not in _SUFFIXES:
        raise UserError(f"{path}: allowed are {', '.join(_SUFFIXES)} files")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except pyarrow.ArrowException as error:
            raise ReadError(str(path), None, f"not a readable Parquet file: {error}") from None
        yield from enumerate(rows, 1)
        return
    text = _text(path)
    if path.suffix == ".jsonl":
        for line, content in enumerate(text.split("\n"), 1):
            if content.strip():
                yield line, _json(content, path, line)
        return
    whole = _json(text, path, None)
    if not isinstance(whole, list | dict):
        raise ReadError(str(path), None, f"expected a list of rows or a mapping of them, got {type(whole).__name__}")
    yield from enumerate(whole.values() if isinstance(whole, dict) else whole, 1)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReadError(str(path), None, f"not UTF-8 text: {error}") from None
    except OSError as error:
        raise ReadError(str(path), None, f"cannot be read: {error.strerror}") from None


def _json(text: str, path: Path, line: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ReadError(str(path), line, f"not valid JSON: {error}") from None
