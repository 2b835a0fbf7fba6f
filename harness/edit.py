"""SEARCH/REPLACE answers: parsed, applied, and made from a known change.

An answer is one or more blocks::

    path/to/file.py
    <<<<<<< SEARCH
    lines that stand in the file, exactly and only once
    =======
    lines to put there
    >>>>>>> REPLACE

Code fences and prose around the blocks are ignored. A block without a path belongs to the file of the block before it, or to the only file
that was shown. Lines are compared without their line ending and keep the file's own (LF or CRLF); nothing else is forgiven.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import PurePosixPath
from typing import NamedTuple

from harness.grade import PatchError

SEARCH, DIVIDER, REPLACE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"


class EditError(PatchError):
    """The answer cannot be parsed or applied. The message names the block and what to do about it."""


class Edit(NamedTuple):
    """One block. Lines have no line endings; an empty `search` makes a new file."""

    path: str | None
    search: tuple[str, ...]
    replace: tuple[str, ...]


def parse_edits(text: str) -> list[Edit]:
    """The blocks of an answer, in order.

    Raises:
        EditError: no block, a block that is not closed, a search equal to its replacement.
    """
    edits: list[Edit] = []
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    position = previous = 0
    while position < len(lines):
        if lines[position].rstrip() != SEARCH:
            position += 1
            continue
        number = len(edits) + 1
        divider = _find(lines, position + 1, DIVIDER, number)
        end = _find(lines, divider + 1, REPLACE, number)
        edit = Edit(_path(lines[previous:position]), tuple(lines[position + 1 : divider]), tuple(lines[divider + 1 : end]))
        if DIVIDER in edit.replace:
            raise EditError(f"block {number} has more than one {DIVIDER} line")
        if edit.search == edit.replace:
            raise EditError(f"block {number} changes nothing: its search and its replacement are equal")
        edits.append(edit)
        position = previous = end + 1
    if not edits:
        raise EditError(f"no edit found: expected a path, then {SEARCH}, {DIVIDER} and {REPLACE}, each on a line of its own")
    return edits


def _find(lines: Sequence[str], start: int, mark: str, number: int) -> int:
    for index in range(start, len(lines)):
        line = lines[index].rstrip()
        if line == mark:
            return index
        if line == SEARCH:
            break
    raise EditError(f"block {number} has no {mark} line")


def _path(lines: Sequence[str]) -> str | None:
    """The path above a block: the last line before it that is neither blank nor a code fence; None where that is prose or nothing."""
    for line in reversed(lines):
        if line.strip() and not line.lstrip().startswith("```"):
            path = line.strip().strip("#*`: ")
            return path if path and not re.search(r"\s", path) else None
    return None


def apply_edits(edits: Sequence[Edit], read: Callable[[str], str | None], root: str, shown: Sequence[str] = ()) -> dict[str, str]:
    """The files that the edits change: path relative to the root → new text. Nothing is written.

    Args:
        read: a file's text by its relative path, None where there is no such file.
        root: the repository's absolute path; a path below it may be given absolutely.
        shown: the files that the prompt showed; where it is one, its path may be left out.

    Raises:
        EditError: a search that does not occur or occurs more than once, a path outside the repository, a new file that exists.
    """
    changed: dict[str, str] = {}

    def current(path: str) -> str | None:
        return changed[path] if path in changed else read(path)

    path = shown[0] if len(shown) == 1 else None
    for number, edit in enumerate(edits, 1):
        if edit.path is not None:
            path = _inside(edit.path, root, current, number)
        if path is None:
            raise EditError(f"block {number} names no file: put its path on the line above {SEARCH}")
        try:
            changed[path] = _replace(current(path), edit)
        except EditError as error:
            raise EditError(f"block {number}, {path}: {error}") from None
    return changed


def _inside(path: str, root: str, read: Callable[[str], str | None], number: int) -> str:
    """`path` relative to the root, without `./`; `a/` and `b/` fall away unless such a directory holds the file."""
    if path.startswith("/"):
        if not path.startswith(root + "/"):
            raise EditError(f"block {number}: {path} lies outside the repository")
        path = path[len(root) :].lstrip("/")
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or parts[0] == ".git":
        raise EditError(f"block {number}: {path} lies outside the repository")
    path = str(PurePosixPath(path))
    stripped = path.removeprefix(path[:2]) if path.startswith(("a/", "b/")) else path
    return stripped if read(path) is None and read(stripped) is not None else path


def _replace(text: str | None, edit: Edit) -> str:
    if not any(edit.search) and not text:
        return "".join(line + "\n" for line in edit.replace)
    if text is None:
        raise EditError("there is no such file; an empty search makes a new one")
    if not edit.search:
        raise EditError("the file exists; an empty search is for a new one")
    lines = _lines(text)
    start, *more = _occurrences(_bare(lines), edit.search)
    if start < 0:
        raise EditError("the search does not occur in the file")
    if more:
        places = ", ".join(str(index + 1) for index in (start, *more[:4]))
        raise EditError(f"the search occurs {len(more) + 1} times (at lines {places}); add lines until it is unique")
    end = start + len(edit.search)
    ending = "\r\n" if lines[start].endswith("\r\n") else "\n"
    new = [line + ending for line in edit.replace]
    if new and end == len(lines) and not lines[-1].endswith("\n"):
        new[-1] = new[-1].removesuffix(ending)
    return "".join([*lines[:start], *new, *lines[end:]])


def _lines(text: str) -> list[str]:
    """Lines with their endings. Only a newline ends a line, as for git and for the editor."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _bare(lines: Sequence[str]) -> list[str]:
    return [line.removesuffix("\n").removesuffix("\r") for line in lines]


def _occurrences(lines: Sequence[str], search: Sequence[str]) -> list[int]:
    """Where `search` starts; [-1] where it does not occur."""
    size = len(search)
    wanted = list(search)
    return [i for i in range(len(lines) - size + 1) if lines[i] == wanted[0] and lines[i : i + size] == wanted] or [-1]


def edits_between(before: Mapping[str, str | None], after: Mapping[str, str]) -> str | None:
    """An answer that turns `before` into `after`, each search as short as it can be; None where no answer can.

    A deleted file, a change of line endings alone, or text that holds the markers cannot be written as blocks.

    Args:
        before: path → text of the files that change; None where there is no file yet.
        after: path → text.
    """
    blocks: list[str] = []
    for path, new in after.items():
        for edit in _edits(before.get(path), new):
            blocks.append("\n".join([path, SEARCH, *edit.search, DIVIDER, *edit.replace, REPLACE]))
    answer = "\n\n".join(blocks)
    try:
        made = apply_edits(parse_edits(answer), before.get, "/")
    except EditError:
        return None
    return answer if made == dict(after) else None


def _edits(old: str | None, new: str) -> list[Edit]:
    target = _bare(_lines(new))
    if not old:
        return [Edit(None, (), tuple(target))]
    current = _bare(_lines(old))
    edits: list[Edit] = []
    shift = 0
    for tag, start, end, new_start, new_end in SequenceMatcher(None, current[:], target, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        low, high = start + shift, end + shift
        above = below = 0
        while not (search := current[low - above : high + below]) or len(_occurrences(current, search)) > 1:
            if high + below < len(current) and (below <= above or low - above == 0):
                below += 1
            else:
                above += 1
        replace = [*current[low - above : low], *target[new_start:new_end], *current[high : high + below]]
        edits.append(Edit(None, tuple(search), tuple(replace)))
        current[low:high] = target[new_start:new_end]
        shift += (new_end - new_start) - (end - start)
    return edits
