"""`harness data rewrite`: worked math solutions, written again by a model as numbered steps `1. **TITLE** BODY`.

OUT holds the rows that came out well: all their columns, the steps as `solution`, the old text as `original_solution`, and under `rewrite`
what was done. Beside it, OUT.dropped.jsonl holds what was given up, with the last answer. Each line is written at once, when it is known,
and both files together say what need not be asked again: the key of a row is the hash of its content.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from harness.generate import Completion, Generator, RequestRefused, Sampling
from harness.progress import Progress
from harness.prompt import Message
from harness_trajectories.errors import ReadError, UserError
from harness_trajectories.formats.numbered import numbered_steps
from harness_trajectories.formats.row import Malformed, Where, reason_of
from harness_trajectories.read import find_files, raw_rows

QUESTIONS = ("question", "problem")
SOLUTIONS = ("deepseek_attempt", "attempt", "solution")
"""Columns with a worked solution, the first that a row has. In s1K rows `solution` is often the bare answer and the attempt the work."""
PROMPT = """\
Below are a math problem and a worked solution. Write the solution again as a numbered list of steps.

Each step is one paragraph or several and begins with its number, a full stop, and a short title between double asterisks, like this:

1. **Name the unknowns** Let $x$ be the price of a pen and $y$ the price of a book.
2. **Set up the equations** From the first sentence, $2x + y = 9$ ...

Rules:
- Number the steps 1, 2, 3 and so on; there are at least two. Every step has a title, and after the title its reasoning.
- Keep each calculation and each argument that the result rests on. Leave out detours, repetitions, and talk about the writing itself.
- Add nothing that the solution does not say, and do not correct it.
- If the solution has a final answer, the last step gives it unchanged in \\boxed{{}}.
- Write the steps and nothing before, between or after them.

Problem:
{question}

Solution:
{solution}"""
COMPLAINT = "\n\nAn earlier attempt was not accepted: {why}. Follow the rules."
_HEAD = re.compile(r"\d+\.\s+\*\*([^*\n]+)\*\*")
_BOX = re.compile(r"\\(?:boxed|framebox|fbox)\s*\{")
_MARKED = re.compile(r"####[ \t]*(\S.*?)\s*\Z")
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|text|mathrm|mbox|textbf|mathbf)(?![a-zA-Z])|\\[,;:! ]|[\s${}]")


class BadAnswer(Exception):
    """The model's text is not what was asked for.

    Args:
        reason: as it is counted.
        why: as it is said to the model.
    """

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Item(NamedTuple):
    """A row that can be rewritten."""

    row: Mapping[str, Any]
    where: Where
    key: str
    question: str
    column: str
    """The column of the solution."""

    @property
    def answer(self) -> str | None:
        """The final answer that must be kept: what stands last in \\boxed{}, behind `####` at the end, or in the row's `answer`."""
        solution = self.row[self.column]
        marked = _MARKED.search(solution)
        known = "" if self.column == "answer" else str(self.row.get("answer") or "").strip()
        return boxed(solution) or (marked[1] if marked else None) or known or None


class Outcome(NamedTuple):
    """What came of an item: a line for one of the two files, or an error, which is not kept."""

    line: dict[str, Any]
    reason: str | None = None
    """Why it is dropped; None: it is not."""
    error: ReadError | None = None
    completions: tuple[Completion, ...] = ()


def rewrite(
    path: Path,
    generator: Generator,
    out: Path,
    column: str | None = None,
    tries: int = 3,
    workers: int = 16,
    sampling: Sampling | None = None,
) -> dict[str, Any]:
    """Rewrite the rows of `path` that `out` does not have yet. What `--json` prints is returned:
    rows = written + dropped + errors + already_done.

    Args:
        column: of the solution; None: the first of `SOLUTIONS` that a row has.
        tries: answers to a row before it is dropped; from the second on, the model is told what was wrong.
        workers: rows at a time.

    Raises:
        UserError: nothing to read, `out` is not of an earlier call with this model and column, or the model cannot be asked. What was
            written stays.
        KeyboardInterrupt: Ctrl-C; likewise.
    """
    name = generator.name.rpartition("#")[2]
    journal = Journal(out, {"model": name, "column": column})
    files = find_files([path])
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    errors: list[ReadError] = []
    todo: set[str] = set()
    for found in _items(files, column):
        counts["rows"] += 1
        if isinstance(found, ReadError):
            errors.append(found)
        elif found.key in journal.before:
            counts["already_done"] += 1
        elif found.key in todo:
            dropped["duplicate"] += 1
        else:
            todo.add(found.key)

    def work(item: Item) -> Outcome:
        return rewrite_item(item, generator, tries, sampling or Sampling())

    with journal, Progress(len(todo) + counts["already_done"], "rewrite") as progress:
        progress.resume_at(counts["already_done"])
        for item, outcome in _together(work, _chosen(_items(files, column), todo), workers):
            if outcome.error is not None:
                errors.append(outcome.error)
            elif outcome.reason is not None:
                journal.drop({"key": item.key, **outcome.line})
                dropped[outcome.reason] += 1
            else:
                journal.write(item, outcome.line)
                counts["written"] += 1
                counts["unchecked"] += item.answer is None
            counts["asked"] += len(outcome.completions)
            counts["tokens"] += sum(completion.tokens for completion in outcome.completions)
            progress.advance(written=counts["written"], dropped=sum(dropped.values()), errors=len(errors))
    return {
        **{key: counts[key] for key in ("rows", "written", "already_done")},
        "dropped": dict(dropped),
        "errors": [{"file": error.file, "line": error.line, "error": error.reason} for error in errors],
        "answer_unchecked": counts["unchecked"],
        "asked": counts["asked"],
        "generated_tokens": counts["tokens"],
        "model": name,
        "out": str(out),
        "dropped_file": str(journal.dropped) if journal.dropped.exists() else None,
    }


def rewrite_item(item: Item, generator: Generator, tries: int, sampling: Sampling) -> Outcome:
    """Ask for the steps of one solution until they are well formed or the tries are used up."""
    prompt = PROMPT.format(question=item.question.strip(), solution=item.row[item.column].strip())
    completions: list[Completion] = []
    bad = BadAnswer("", "")
    for attempt in range(tries):
        complaint = COMPLAINT.format(why=bad) if attempt else ""
        asked = sampling.model_copy(update={"seed": sampling.seed + attempt})
        try:
            completions += generator.generate([[Message(role="user", content=prompt + complaint)]], asked)
        except RequestRefused as error:
            return Outcome({}, error=item.where.error(str(error)), completions=tuple(completions))
        try:
            return Outcome({"solution": check(completions[-1], item.answer), "tries": attempt + 1}, completions=tuple(completions))
        except BadAnswer as error:
            bad = error
    line = {"file": item.where.file, "line": item.where.line, "reason": bad.reason, "why": str(bad), "answer": completions[-1].text}
    return Outcome(line, reason=bad.reason, completions=tuple(completions))


def check(completion: Completion, answer: str | None) -> str:
    """The numbered steps of a completion, with thinking in front of them taken away.

    Args:
        answer: the final answer that they must have; None: any or none.

    Raises:
        BadAnswer: they are not well formed, or have another final answer.
    """
    text = completion.text.rpartition("</think>")[2].replace("\r\n", "\n").strip()
    if completion.finish == "length":
        raise BadAnswer("cut_off", f"it was cut off after {completion.tokens} tokens; be shorter")
    try:
        steps = numbered_steps(text)
    except Malformed as error:
        raise BadAnswer("format", str(error).partition(";")[0]) from None
    if len(steps) < 2:
        raise BadAnswer("one_step", "there is only one step, and there must be at least two")
    for number, step in enumerate(steps, 1):
        head = _HEAD.match(step)
        if head is None or not head[1].strip() or not step[head.end() :].strip(" \t\n:."):
            raise BadAnswer("empty_step", f"step {number} lacks its title or its reasoning")
    found = boxed(steps[-1])
    if answer is not None and found is None:
        raise BadAnswer("answer_missing", "the last step has no final answer in \\boxed{}")
    if answer is not None and found is not None and plain(found) != plain(answer):
        raise BadAnswer("answer_changed", f"the final answer is {found}, and that of the solution is {answer}")
    return "\n".join(steps)


def boxed(text: str) -> str | None:
    """What stands in the last \\boxed{}; None where there is none, or it is never closed."""
    start = max((opening.end() for opening in _BOX.finditer(text)), default=len(text))
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end].strip()
    return None


def plain(answer: str) -> str:
    """An answer as it is compared: without layout (blanks, braces, dollars, \\text, \\left), thousands commas, the final full stop, and
    brackets around a single value.
    """
    answer = re.sub(r"\\[dt]frac", r"\\frac", answer).replace("{,}", "").replace("\\%", "%")
    answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    return re.sub(r"^\(([^(),]*)\)$", r"\1", _LAYOUT.sub("", answer).rstrip("."))


class Journal:
    """OUT and OUT.dropped.jsonl: what is done, line by line.

    Args:
        made: what must be the same in all lines, the model and the column; it is written into each.

    Raises:
        UserError: one of the files is not ours, or of another model or column.
    """

    def __init__(self, out: Path, made: dict[str, Any]) -> None:
        if out.is_dir():
            raise UserError(f"--out {out} is a folder; it must be a file, as {out / 'steps.jsonl'}")
        self.out = out
        self.dropped = dropped_file(out)
        self._made = made
        self.before = {*self._keys(out, "rewrite"), *self._keys(self.dropped, None)}
        """Keys of the rows that earlier calls are done with."""
        self._files: dict[Path, int] = {}

    def write(self, item: Item, line: Mapping[str, Any]) -> None:
        """Keep a rewritten row."""
        columns = dict(item.row)
        if "solution" in columns:
            columns["original_solution"] = columns["solution"]
        if not columns.get("instance_id") and not columns.get("id"):
            columns["instance_id"] = f"{item.where._replace(line=None).name}-{item.key[:12]}"
        columns["solution"] = line["solution"]
        columns["rewrite"] = {**self._made, "key": item.key, "source": item.column, "tries": line["tries"]}
        self._append(self.out, columns)

    def drop(self, line: Mapping[str, Any]) -> None:
        """Keep what was given up."""
        self._append(self.dropped, {**self._made, **line})

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            os.close(file)

    def _append(self, path: Path, line: Mapping[str, Any]) -> None:
        if path not in self._files:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        left = memoryview(json.dumps(line, default=str).encode() + b"\n")
        while left:
            left = left[os.write(self._files[path], left) :]

    def _keys(self, path: Path, place: str | None) -> Iterator[str]:
        if not path.exists():
            return
        with path.open("rb+") as stream:
            for number, raw in enumerate(stream, 1):
                if not raw.endswith(b"\n") and number > 1:  # a killed writer's last line: its row is asked for again
                    stream.truncate(stream.tell() - len(raw))
                    return
                try:
                    row = json.loads(raw)
                    made = row[place] if place else row
                    key, others = made["key"], {name: made[name] for name in self._made}
                except (ValueError, KeyError, TypeError):
                    raise ReadError(str(path), number, "not a line of `harness data rewrite`; give another --out, or --fresh") from None
                if others != self._made:
                    changes = ", ".join(f"{name} {others[name]!r}, not {value!r}" for name, value in self._made.items())
                    raise ReadError(str(path), number, f"written with {changes}; use the same, another --out, or --fresh")
                yield key


def dropped_file(out: Path) -> Path:
    """The file beside `out` with what was given up."""
    return out.with_name(out.name.removesuffix(".jsonl") + ".dropped.jsonl")


def _items(files: Sequence[Path], column: str | None) -> Iterator[Item | ReadError]:
    for file in files:
        for line, row in raw_rows(file):
            where = Where(str(file), line)
            if isinstance(row, BaseException):
                yield where.error(reason_of(row))
            elif not isinstance(row, dict):
                yield where.error("a row must be an object")
            else:
                yield _item(row, where, column)


def _item(row: dict[str, Any], where: Where, column: str | None) -> Item | ReadError:
    wanted = SOLUTIONS if column is None else (column,)
    question, solution = (
        next((name for name in names if isinstance(row.get(name), str) and row[name].strip()), None) for names in (QUESTIONS, wanted)
    )
    if question is None or solution is None:
        lacking = QUESTIONS if question is None else wanted
        return where.error(f"no text under {' or '.join(lacking)}; the row has: {', '.join(sorted(row)[:12]) or 'nothing'} (--column)")
    key = hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()
    return Item(row, where, key, row[question], solution)


def _chosen(rows: Iterator[Item | ReadError], keys: set[str]) -> Iterator[Item]:
    """The items of the keys, each once."""
    for item in rows:
        if isinstance(item, Item) and item.key in keys:
            keys.remove(item.key)
            yield item


def _together(work: Callable[[Item], Outcome], items: Iterator[Item], workers: int) -> Iterator[tuple[Item, Outcome]]:
    """Outcomes as they come, `workers` at a time; where the caller ends early, what is under way is left to itself."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="rewrite")
    waiting: dict[Future[Outcome], Item] = {}
    try:
        while True:
            for item in islice(items, 2 * workers - len(waiting)):
                waiting[pool.submit(work, item)] = item
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                item = waiting.pop(future)
                yield item, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
