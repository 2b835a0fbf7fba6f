"""The edit-aware step reward (`srl.reward: edit`): where the expert edits a file, what edits do is compared, not how they are worded.

The file's text is what was seen of it before the step: `cat -n` views, snippets after edits, what was created, or the files of a prompt
that asks for one answer. Both edits are applied to it and reduced to the lines that they change. Two edits with the same result earn 1.0,
however much context they quote; else it is the same Ratcliff–Obershelp ratio 2M/T, over tool, path and changed lines, in which only lines
at a place that both change can match. An edit that fails on that text changes nothing. Where the text is not known, or the model does not
edit, the paper's similarity stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from posixpath import join, normpath, relpath
from typing import NamedTuple

from harness.edit import EditError, apply_edits, parse_edits
from harness.sandbox import Sandbox
from harness.similarity import matched_characters
from harness_trajectories import Action
from harness_trajectories.schema import ANSWER
from harness_trajectories.steps import StepExample

EDITOR = "str_replace_editor"
UNSEEN = "\0"
"""Stands for a line that was not shown."""
FILE = re.compile(r'^<file path="([^"\n]+)">\n(.*?)\n</file>$', re.MULTILINE | re.DOTALL)
NUMBERED = re.compile(r"^ *(\d{1,6})\t(.*?)\r?$", re.MULTILINE)

Files = Mapping[str, str]
"""Path below the repository's root → text, with a line `UNSEEN` for each that is not known."""


class EditStep(NamedTuple):
    """A step whose expert action is an edit of known text."""

    action: Action
    files: Files
    """Before the edit: those that the expert changes; a new one is missing."""


class Hunk(NamedTuple):
    """Lines that an edit changes, and none around them."""

    path: str
    start: int
    removed: list[str]
    added: list[str]

    @property
    def text(self) -> str:
        return "".join([f"@{self.start}\n", *(f"-{line}\n" for line in self.removed), *(f"+{line}\n" for line in self.added)])

    def meets(self, other: Hunk) -> bool:
        """Whether both change a line, or one adds where the other changes."""
        first, last = max(self.start, other.start), min(self.start + len(self.removed), other.start + len(other.removed))
        return self.path == other.path and (first < last or (first == last and not (self.removed and other.removed)))


def edit_step(example: StepExample) -> EditStep | None:
    """None where the expert does not edit, or not what its task and history show."""
    (target, *more) = example.target
    if more or _effect(target, {}) is None:
        return None
    shown = {_place(path): text for path, text in FILE.findall(example.prompt)}
    for action, observation in ((action, past.observation) for past in example.history for action in past.actions):
        path = _place(action.arguments.get("path"))
        if (done := _effect(action, shown)) is not None:
            shown = dict(done[0])
        if action.arguments.get("command") == "undo_edit" or (done and not done[1]):
            shown.pop(path, None)  # also after an edit of what was not seen: the lines that were may have moved
        if action.tool != EDITOR or observation.startswith("<NOTE>"):  # an answer that leaves lines out
            continue
        if "cat -n" in observation and (seen := {int(number): line for number, line in NUMBERED.findall(observation)}):
            lines = shown.get(path, UNSEEN).split("\n")
            lines += [UNSEEN] * (max(seen) - len(lines))
            shown[path] = "\n".join(seen.get(number, line) for number, line in enumerate(lines, 1))
        elif action.arguments.get("command") == "view" and "view_range" not in action.arguments:
            shown[path] = observation  # brief: the bare file
    done = _effect(target, shown)
    return EditStep(target, {hunk.path: shown[hunk.path] for hunk in done[1] if hunk.path in shown}) if done and done[1] else None


def edit_similarity(model: Action, step: EditStep, longest: int, max_work: float) -> float | None:
    """The reward of the model's action, in [0, 1]; None where it does not edit, or what is compared is longer than `longest` characters or
    costs more than `max_work` cells."""
    mine, theirs = _effect(model, step.files), _effect(step.action, step.files)
    assert theirs is not None
    if mine is None:
        return None
    if mine[0] == theirs[0]:
        return 1.0
    head, expected = ("" if one.tool == ANSWER else f"{one.tool}\n{_place(one.arguments.get('path'))}\n" for one in (model, step.action))
    pairs, left = [(head, expected)], mine[1]
    for hunk in theirs[1]:
        pairs.append(("".join(one.text for one in left if one.meets(hunk)), hunk.text))
        left = [one for one in left if not one.meets(hunk)]
    sizes = [sum(map(len, side)) for side in zip(*pairs, strict=True)]
    sizes[0] += sum(len(hunk.text) for hunk in left)
    if max(sizes) > longest:
        return None
    matched = [matched_characters(ours, other, max_work / len(pairs)) for ours, other in pairs]
    return None if None in matched else 2.0 * sum(filter(None, matched)) / sum(sizes)


def _effect(action: Action, files: Files) -> tuple[Files, list[Hunk]] | None:
    """The files after an action and what it changes; None where it is no edit. An edit that fails changes nothing."""
    after, hunks = dict(files), list[Hunk]()
    try:
        if action.tool == ANSWER:
            shown = list(files)
            for block in parse_edits(str(action.arguments.get("text"))):
                ((path, text),) = apply_edits([block], after.get, Sandbox.root, shown).items()
                shown = [path]
                _change(after, hunks, path, text)
        elif action.tool == EDITOR and action.arguments.get("command") in ("str_replace", "insert", "create"):
            path = _place(action.arguments.get("path"))
            _change(after, hunks, path, _edited(action, files.get(path)))
        else:
            return None
    except EditError:
        return files, []
    return after, hunks


def _edited(action: Action, text: str | None) -> str:
    """What the editor makes of a file. Raises: EditError: it refuses."""
    command, old, line = (action.arguments.get(name) for name in ("command", "old_str", "insert_line"))
    new = str(action.arguments.get("file_text" if command == "create" else "new_str", ""))
    if command == "create" and text is None:
        return new
    if command == "insert" and text is not None and isinstance(line, int) and 0 <= line <= text.count("\n") + 1:
        lines = text.split("\n")
        return "\n".join([*lines[:line], new, *lines[line:]])
    if command == "str_replace" and text and isinstance(old, str) and old and old != new and text.count(old) == 1:
        return text.replace(old, new)
    raise EditError("the editor refuses it")


def _change(files: dict[str, str], hunks: list[Hunk], path: str, text: str) -> None:
    """Write a file, and note the lines that this changes, at the place that they had before all hunks."""
    before, after = files[path].split("\n") if path in files else [], text.split("\n")
    files[path] = text
    shorter, start, end = min(len(before), len(after)), 0, 0
    while start < shorter and before[start] == after[start]:
        start += 1
    while end < shorter - start and before[-1 - end] == after[-1 - end]:
        end += 1
    removed, added, place = before[start : len(before) - end], after[start : len(after) - end], start
    for hunk in reversed(hunks):
        if hunk.path == path and place > hunk.start:
            place = max(hunk.start, place - len(hunk.added) + len(hunk.removed))
    hunks.append(Hunk(path, place, removed, added))


def _place(path: object) -> str:
    return relpath(normpath(join(Sandbox.root, str(path))), Sandbox.root)
