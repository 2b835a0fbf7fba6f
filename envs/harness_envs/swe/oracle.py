"""Oracle editing: the files that the gold patch changes are shown whole, one answer of SEARCH/REPLACE blocks edits them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar

from harness.edit import DIVIDER, REPLACE, SEARCH, apply_edits, edits_between, parse_edits
from harness.grade import PatchError, touched
from harness.sandbox import ImageMissing, NoEngine
from harness_envs.swe.env import SweEnv
from harness_envs.swe.excerpt import Excerpt, excerpts
from harness_envs.swe.patch import git_apply, git_diff
from harness_envs.swe.repository import Repository
from harness_envs.swe.task import SweTask
from harness_trajectories import Action
from harness_trajectories.schema import ANSWER

ROOT = "/testbed"
NEWLINE = "\n"
PROMPT = """\
Solve the following issue by editing the files below.

<issue>
{issue}
</issue>

{files}

Answer with one or more edits, each of this form:

path/of/the/file.py
{search}
lines that stand in the file exactly like this, and only once
{divider}
the lines to put in their place
{replace}

Indentation and blank lines count. An empty search part makes a new file."""


class SweOracleEnv(SweEnv):
    """The task as one answer. The answer is applied to the base tree, and the patch is what git sees then."""

    system = "You are a software engineer. You solve an issue by editing files."
    brief_system = "Fix the bug."
    prompts: ClassVar[tuple[str, ...]] = (PROMPT,)
    needs_image = False
    excerpts: Mapping[str, Excerpt] = MappingProxyType({})
    """What is shown of files where the image that holds them is not here."""

    def reset(self, task: SweTask) -> str:
        self.task = task
        return self.show(touched(task.patch))

    def show(self, paths: Iterable[str]) -> str:
        """The prompt that asks to edit these files, those of them that exist. What does not fit is cut from the longest, and counted."""
        self.shown = {path: text for path in paths if (text := self._text(path)) is not None}
        longest = max(map(len, self.shown.values()), default=0)
        limit = most(longest, lambda limit: self.fits(self._prompt({p: head_and_tail(text, limit)[0] for p, text in self.shown.items()})))
        parts = {path: head_and_tail(text, limit) for path, text in self.shown.items()}
        self.cuts["file"] += sum(left > 0 for _, left in parts.values())
        self.cuts["file_line"] += sum(left for _, left in parts.values())
        return self._prompt({path: text for path, (text, _) in parts.items()})

    def _prompt(self, files: Mapping[str, str]) -> str:
        if self.config.brief:
            return "\n".join([self.task.prompt, *(part for path, text in files.items() for part in (path, text))])
        blocks = "\n\n".join(f'<file path="{path}">\n{text.rstrip(NEWLINE)}\n</file>' for path, text in files.items())
        return PROMPT.format(issue=self.task.prompt.strip(), files=blocks, search=SEARCH, divider=DIVIDER, replace=REPLACE)

    def result(self) -> str:
        if self.answered is None:
            return ""
        edits = parse_edits(self.answered)
        try:
            changed = apply_edits(edits, self._text, ROOT, list(self.shown))
            parts = [self.excerpts[path].diff(path, text) for path, text in changed.items() if path in self.excerpts]
            whole = {path: text for path, text in changed.items() if path not in self.excerpts}
            return "".join([*parts, git_diff({path: self._text(path) for path in whole}, whole)])
        except PatchError:
            raise
        except (OSError, ValueError) as error:  # a name that is too long or holds a NUL, a file where a directory is
            raise PatchError(f"the edited files cannot be written: {error}") from None

    def gold(self) -> list[Action] | None:
        """The gold patch as one answer; None where blocks cannot say it, as of a removed or renamed file."""
        before = {path: self._text(path) for path in touched(self.task.patch)}
        after = {path: text for path, text in git_apply(before, self.task.patch).items() if text is not None}
        answer = edits_between(before, after) if after.keys() == before.keys() else None
        return None if answer is None else [Action(tool=ANSWER, arguments={"text": answer})]

    def _text(self, path: str) -> str | None:
        """A file of the base tree. Of a generated task it is in the record; else a sandbox is opened to read it. Where its image is not
        here, which `harness eval` allows if nothing is graded, it is what the gold patch shows of it."""
        if self.task.files:
            return self.task.files.get(path)
        if not self.excerpts:
            try:
                return self._opened_repository().text(path)
            except (ImageMissing, NoEngine):
                self.excerpts = excerpts(self.task.patch)
                self.cuts["file_not_here"] += len(self.excerpts)
        return self.excerpts[path].text() if path in self.excerpts else None

    def _opened_repository(self) -> Repository:
        if self.repository is None:
            self.repository = self.open_repository()
        return self.repository


def most(wanted: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `wanted` that fits, to within a hundredth, where all below one that fits do too; 0 where none is found.

    It is looked for from below: to count the tokens of far more than fits would take longest.
    """
    low, high = 0, min(wanted, 256)
    while fits(high):
        if high == wanted:
            return wanted
        low, high = high, min(wanted, 2 * high)
    while high - low > 1 + low // 100:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def head_and_tail(text: str, limit: int) -> tuple[str, int]:
    """First and last lines of `text`, `limit` characters of them, with a mark between; and how many lines are missing there."""
    if len(text) <= limit:
        return text, 0
    lines = text.split("\n")
    head = tail = 0
    while (room := limit - len(lines[-1 - tail] if head > tail else lines[head]) - 1) >= 0:
        head, tail = (head, tail + 1) if head > tail else (head + 1, tail)
        limit = room
    left = len(lines) - head - tail
    return "\n".join([*lines[:head], f"[... {left} lines are not shown ...]", *lines[len(lines) - tail :]]), left
