"""SEARCH/REPLACE. References: git's own diff and apply, and gold patches of real repositories."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.edit import Edit, EditError, apply_edits, edits_between, parse_edits
from harness.grade import PatchError, touched
from harness_envs.swe.dataset import load_tasks
from harness_envs.swe.patch import git_apply, git_diff

LINES = st.lists(st.sampled_from(["", "a", "b", "    x = 1", "é", "=" * 8, "# <<<<<<<", "\t"]), max_size=12)


def block(path: str, search: str, replace: str) -> str:
    return f"{path}\n<<<<<<< SEARCH\n{search}=======\n{replace}>>>>>>> REPLACE"


def apply(answer: str, files: dict[str, str], shown: tuple[str, ...] = ()) -> dict[str, str]:
    return apply_edits(parse_edits(answer), files.get, "/testbed", shown)


@given(old=LINES, new=LINES, crlf=st.booleans(), end=st.booleans())
@settings(max_examples=400)
def test_an_answer_made_from_a_change_reproduces_it(old: list[str], new: list[str], crlf: bool, end: bool) -> None:
    ending = "\r\n" if crlf else "\n"
    before, after = ({"p/f.py": ending.join(lines) + (ending if end or not lines else "")} for lines in (old, new))
    assume(before != after)
    answer = edits_between(before, after)
    assert answer is None or apply(answer, before) == after
    if not crlf and end and old:
        assert answer is not None


@given(old=LINES, new=LINES, old_end=st.booleans(), new_end=st.booleans())
@settings(max_examples=25)
def test_git_patches_of_any_texts_apply(old: list[str], new: list[str], old_end: bool, new_end: bool) -> None:
    before = {'d/é "x".py': "\n".join(old) + ("\n" if old_end else ""), "gone.py": "1\n", "empty": ""}
    after = {'d/é "x".py': "\n".join(new) + ("\n" if new_end else ""), "new/file": "no newline", "empty2": ""}
    patch = git_diff(before, after)
    assert git_apply(before, patch) == {name: after.get(name) for name in {**before, **after} if before.get(name) != after.get(name)}


def test_git_patches_of_bytes_that_are_no_text_apply() -> None:
    latin = {"l.txt": b"caf\xe9\n".decode("utf-8", "surrogateescape")}
    patch = git_diff({}, latin)
    assert patch.isascii()
    assert git_apply({}, patch) == latin
    assert git_diff(latin, latin) == ""
    with pytest.raises(PatchError, match="does not apply"):
        git_apply({}, git_diff(latin, {}))


def test_gold_patches_of_real_repositories_become_answers(shared_data: Path) -> None:
    """The repositories are not at hand: each file is rebuilt from the hunks of the gold patch, the lines between them unique."""
    done = 0
    for task in load_tasks(shared_data / "instances" / "swebench_verified_vexp100" / "instances.jsonl"):
        before = rebuilt(task.patch)
        after = git_apply(before, task.patch)
        answer = edits_between(before, {path: text for path, text in after.items() if text is not None})
        if None in after.values():
            continue
        assert answer is not None, task.id
        assert apply(answer, before) == after
        assert git_apply(before, git_diff(before, after)) == after
        done += 1
    assert done == 45


def rebuilt(patch: str) -> dict[str, str]:
    files: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in patch.split("\n"):
        if line.startswith("--- a/"):
            lines = files.setdefault(line[6:], [])
        elif header := re.match(r"@@ -(\d+)", line):
            lines += [f"line {number} between" for number in range(len(lines) + 1, int(header.group(1)))]
        elif line.startswith((" ", "-")) and not line.startswith("--- "):
            lines.append(line[1:])
    return {path: "".join(line + "\n" for line in lines) for path, lines in files.items()}


def test_the_form_of_an_answer() -> None:
    answer = "Prose.\n```python\n### a/f.py\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n```\nMore prose."
    assert parse_edits(answer) == [Edit("a/f.py", ("x",), ("y",))]
    assert apply(answer, {"f.py": "w\nx\nz"}) == {"f.py": "w\ny\nz"}
    two = block("f.py", "1\n", "one\n") + "\n" + block("", "2\n", "two\n")
    assert apply(two, {"f.py": "1\n2\n"}) == {"f.py": "one\ntwo\n"}
    assert apply(block("", "1\n", ""), {"f.py": "1\n2\n"}, ("f.py",)) == {"f.py": "2\n"}
    assert apply(block("`/testbed/./f.py`:", "1\r\n", "3\r\n4\r\n"), {"f.py": "1\r\n2\r\n"}) == {"f.py": "3\r\n4\r\n2\r\n"}
    assert apply(block("b/new.py", "", "1\n"), {}) == {"b/new.py": "1\n"}
    assert apply(block("a/f.py", "1\n", "2\n"), {"a/f.py": "1\n", "f.py": "1\n"}) == {"a/f.py": "2\n"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("no edit at all", "no edit found"),
        ("f.py\n<<<<<<< SEARCH\n1\n", "block 1 has no ======= line"),
        ("f.py\n<<<<<<< SEARCH\n1\n=======\n2\n", "block 1 has no >>>>>>> REPLACE line"),
        ("f.py\n<<<<<<< SEARCH\n1\n" + block("f.py", "2\n", "3\n"), "block 1 has no ======= line"),
        (block("f.py", "1\n", "=======\n2\n"), "more than one ======= line"),
        (block("f.py", "1\n", "1\n"), "block 1 changes nothing"),
        (block("", "1\n", "2\n"), "block 1 names no file"),
        (block("This is prose", "1\n", "2\n"), "block 1 names no file"),
        (block("f.py", "9\n", "2\n"), r"block 1, f\.py: the search does not occur"),
        (block("f.py", "1 \n", "2\n"), "the search does not occur"),
        (block("f.py", "2\n", "3\n"), r"the search occurs 2 times \(at lines 2, 3\)"),
        (block("f.py", "1\n", "x\n") + "\n" + block("f.py", "1\n", "y\n"), "block 2, f.py: the search does not occur"),
        (block("f.py", "", "2\n"), "the file exists"),
        (block("g.py", "1\n", "2\n"), "there is no such file"),
        (block("/etc/passwd", "", "2\n"), "outside the repository"),
        (block("/testbed2/f.py", "", "2\n"), "outside the repository"),
        (block("x/../../f.py", "", "2\n"), "outside the repository"),
        (block(".git/hooks/pre-commit", "", "2\n"), "outside the repository"),
    ],
)
def test_what_cannot_be_applied_is_said(answer: str, message: str) -> None:
    with pytest.raises(EditError, match=message):
        apply(answer, {"f.py": "1\n2\n2\n"})


def test_touched_paths_of_odd_patches() -> None:
    patch = (
        'diff --git "a/\\303\\251 x.py" "b/\\303\\251 x.py"\nnew file mode 100644\n--- /dev/null\n+++ "b/\\303\\251 x.py"\n@@ -0,0 +1 @@\n'
        "+++ b/not-this\n--- a/nor-this\n"
        "diff --git a/old name b/new name\nsimilarity index 100%\nrename from old name\nrename to new name\n"
        "diff --git a/e/empty b/e/empty\nnew file mode 100644\nindex 0..e69de29\n"
        "diff --git a/gone b/gone\ndeleted file mode 100644\n--- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n"
    )
    assert touched(patch) == ["é x.py", "old name", "new name", "e/empty", "gone"]
