"""Math problems: benchmarks by name, files, data sets of the hub, and folders of `harness data synth`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.env import Split, Task
from harness.rewrite import boxed
from harness_trajectories import hub
from harness_trajectories.errors import ReadError, UserError
from harness_trajectories.formats.row import SUFFIXES, Where, reason_of
from harness_trajectories.read import raw_rows


class OnHub(NamedTuple):
    """Where a benchmark lives."""

    id: str
    config: str | None = None


BENCHMARKS = {
    "amc23": OnHub("math-ai/amc23"),
    "aime24": OnHub("math-ai/aime24"),
    "aime25": OnHub("math-ai/aime25"),
    "minerva": OnHub("math-ai/minervamath"),
    "math500": OnHub("HuggingFaceH4/MATH-500"),
    "gsm8k": OnHub("openai/gsm8k", "main"),
}
QUESTIONS = ("question", "problem", "prompt")
ANSWERS = ("answer", "solution")
"""Columns, in upper or lower case; the first that a row has."""
_NAMES = ("unique_id", "id")


class MathTask(Task):
    """A question and its answer."""

    gold_answer: str
    benchmark: str
    """The name under which reports count it: the benchmark's, or that of the file, folder or data set without its owner."""


def load_tasks(sources: str, split: Split) -> list[MathTask]:
    """The problems of one source or of several, separated by commas: a name of `BENCHMARKS`, a file, a hub id, or a folder of either kind.

    All that a source has are its test split, but for a folder of `harness data synth`, which has all three.

    Raises:
        UserError: no such source, an unreadable row (the message says which), two rows of one id.
    """
    tasks: dict[str, MathTask] = {}
    for source in filter(None, (part.strip() for part in sources.split(","))):
        name = source if source in BENCHMARKS else Where(source.rstrip("/").partition(":")[0], None).name
        for place, line, row in _rows(source, split):
            task = _task(row, name, place, line)
            if task.id in tasks:
                raise ReadError(place, line, f"id {task.id!r} occurs twice")
            tasks[task.id] = task
    return list(tasks.values())


def _rows(source: str, split: Split) -> Iterator[tuple[str, int | None, Any]]:
    """Rows with the file or data set and the 1-based line (JSONL) or number that they come from."""
    path = Path(source)
    generated = path / "tasks" / f"{split}.jsonl"
    if generated.is_file():
        path = generated
    elif split != "test":
        return
    if path.is_file():
        yield from ((str(path), line, row) for line, row in raw_rows(path))
    elif source in BENCHMARKS or path.is_dir() or hub.is_id(path):
        name, config = BENCHMARKS.get(source, OnHub(source))
        yield from ((f"{name}/{part}", number, row) for part, number, row in hub.held_out(name, config))
    else:
        raise UserError(
            f"no math data set at {path}. Allowed: {', '.join(BENCHMARKS)}; a {', '.join(SUFFIXES)} file with a question and its answer; "
            "a hub id owner/name; a folder of harness data synth. Several are separated by commas"
        )


def _task(row: Any, benchmark: str, place: str, line: int | None) -> MathTask:
    if isinstance(row, BaseException):
        raise ReadError(place, line, reason_of(row))
    fields = {name.lower(): value for name, value in row.items()} if isinstance(row, Mapping) else {}
    question, answer = (next((fields[name] for name in names if fields.get(name) is not None), None) for names in (QUESTIONS, ANSWERS))
    if not isinstance(question, str) or not isinstance(answer, str | int | float):
        raise ReadError(place, line, f"expected an object with {' or '.join(QUESTIONS)}, and {' or '.join(ANSWERS)}")
    name = next((fields[name] for name in _NAMES if fields.get(name) is not None), line)
    identity = str(fields.get("instance_id") or f"{benchmark}-{name}")
    return MathTask(id=identity, prompt=question, gold_answer=final_answer(answer), benchmark=benchmark)


def final_answer(answer: str | float) -> str:
    """The reference as text: what a worked solution boxes or ends with behind `####`, a whole float without its point."""
    if isinstance(answer, float) and answer.is_integer():
        return str(int(answer))
    text = str(answer)
    return (boxed(text) or text.rpartition("####")[2]).strip()
