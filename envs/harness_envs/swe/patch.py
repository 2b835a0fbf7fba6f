"""Patches made and applied by git itself, on texts, without a sandbox: nothing of the repository is executed."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from harness.env import EnvError
from harness.grade import PatchError, touched

_AS_BINARY = "attributes"
_ONE_SIDED = re.compile(r'^diff --git ("?)([ab])/(.*) \1\2/\3$', re.MULTILINE)
"""The header of a file that is on one side only: outside a repository git names that side twice."""

_BINARY = re.compile(r"^(GIT binary patch\n)((?:literal|delta) \d+\n(?:.+\n)*)\n((?:literal|delta) \d+\n(?:.+\n)*)\n", re.MULTILINE)
"""What makes the new content of the old, then what makes the old of the new."""
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)", re.DOTALL)


def git_diff(before: Mapping[str, str | None], after: Mapping[str, str | None]) -> str:
    """The patch between two states of some files, path → text, None where there is none. Equal states give the empty patch.

    Raises:
        EnvError: no git on this machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for side, files in (("a", before), ("b", after)):
            (root / side).mkdir()
            _write(root / side, files)
        (root / _AS_BINARY).write_text("* -diff\n")
        how = ["diff", "--no-index", "--binary", "--no-renames", "--no-color", "--no-ext-diff", "--src-prefix=", "--dst-prefix=", "a", "b"]
        patch = _git(root, *how)
        try:
            text = patch.stdout.decode()
        except UnicodeDecodeError:  # not UTF-8: said as a binary patch, which is plain ASCII
            text = _git(root, "-c", f"core.attributesFile={root / _AS_BINARY}", *how).stdout.decode()
    return _ONE_SIDED.sub(r"diff --git \1a/\3 \1b/\3", text)


def git_apply(files: Mapping[str, str | None], patch: str) -> dict[str, str | None]:
    """The files that a patch touches, as they are after it; None for one that it removes.

    Args:
        files: path → text of at least the files that it touches.

    Raises:
        PatchError: it does not apply.
        EnvError: no git on this machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = touched(patch)
        _write(root, {path: files.get(path) for path in paths})
        ran = _git(root, "apply", "--whitespace=nowarn", "-", stdin=patch.encode("utf-8", "surrogateescape"))
        if ran.returncode:
            raise PatchError(f"the patch does not apply: {ran.stderr.decode(errors='replace').strip()}")
        return {path: _read(root / path) for path in paths}


def reverse(patch: str) -> str:
    """The patch that undoes a git patch.

    Raises:
        ValueError: it copies a file, or names a binary file without its content.
    """
    out: list[str] = []
    removed: list[str] = []
    added: list[str] = []
    old = new = 0  # lines that the hunk still has on either side
    last = out  # where the line before went; `\ No newline at end of file` follows it
    for line in _BINARY.sub(r"\1\3\n\2\n", patch).split("\n"):
        if line.startswith("\\"):
            last.append(line)
        elif (old or new) and line[:1] in ("+", "-"):
            old, new = (old, new - 1) if line[0] == "+" else (old - 1, new)
            last = removed if line[0] == "+" else added
            last.append(("-" if line[0] == "+" else "+") + line[1:])
        else:
            out += [*removed, *added]
            removed, added, last = [], [], out
            if old or new:
                old, new = old - 1, new - 1
            elif hunk := _HUNK.match(line):
                old, new = int(hunk[2] or 1), int(hunk[4] or 1)
                line = f"@@ -{hunk[3]}{_size(hunk[4])} +{hunk[1]}{_size(hunk[2])} @@{hunk[5]}"
            elif line.startswith("+++ "):  # its partner is the line before
                line, out[-1] = f"+++ {out[-1][4:]}".replace("+++ a/", "+++ b/", 1), f"--- {line[4:]}".replace("--- b/", "--- a/", 1)
            elif line.startswith(("rename to ", "new mode ")):  # as well
                what, value = line.split(" ", 2)[::2]
                before = out[-1].split(" ", 2)[2]
                out[-1], line = out[-1].removesuffix(before) + value, line.removesuffix(value) + before
                if what == "rename":
                    at = max(index for index, header in enumerate(out) if header.startswith("diff --git "))
                    out[at] = f"diff --git {_sided('a/', value)} {_sided('b/', before)}"
            elif line.startswith(("copy ", "Binary files ")):
                raise ValueError(f"a patch with {line[:40]!r} cannot be turned round")
            elif line.startswith(("new file mode ", "deleted file mode ")):
                line = line.replace("new", "deleted", 1) if line.startswith("new") else line.replace("deleted", "new", 1)
            else:
                line = re.sub(r"^index (\w+)\.\.(\w+)", r"index \2..\1", line)
            out.append(line)
    return "\n".join([*out, *removed, *added])


def _sided(side: str, path: str) -> str:
    """`a/path`, where git quotes the path `"a/path"`."""
    return f'"{side}{path[1:]}' if path.startswith('"') else side + path


def _size(lines: str | None) -> str:
    return "" if lines is None else f",{lines}"


def _write(root: Path, files: Mapping[str, str | None]) -> None:
    for path, text in files.items():
        if text is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(text.encode("utf-8", "surrogateescape"))


def _read(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() else None


def _git(root: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CEILING_DIRECTORIES": str(root.parent)}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(["git", *arguments], cwd=root, input=stdin, capture_output=True, env=inherited | own, check=False)
    except FileNotFoundError:
        raise EnvError("git is not installed on this machine; it is needed to make patches") from None
