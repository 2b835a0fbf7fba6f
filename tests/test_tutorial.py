"""docs/tutorial.md is done as it stands there, in an empty folder: its file is written, its commands are run one by one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = (ROOT / "docs/tutorial.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TUTORIAL, re.DOTALL)
CODE = ("harness", "envs", "trajectories")


def sources() -> dict[Path, bytes]:
    return {path: path.read_bytes() for name in CODE for path in (ROOT / name).rglob("*.py")}


def test_at_most_forty_lines_are_written() -> None:
    (written,) = (text for kind, text in BLOCKS if kind == "python")
    assert "Put them into `demo/demo.py`:\n\n```python" in TUTORIAL
    assert len([line for line in written.splitlines() if line.strip()]) <= 40
    assert {kind for kind, _ in BLOCKS} == {"sh", "python", "text"}


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    before = sources()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    printed = ""
    for kind, text in BLOCKS:
        if kind == "python":
            (tmp_path / "demo/demo.py").write_text(text)
        elif kind == "sh":
            printed = ""
            for line in text.splitlines():
                done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
                printed += done.stdout
        else:
            assert [line for line in text.splitlines() if line not in printed] == []
    assert sources() == before, "a file of the harness was changed"
    rows = [json.loads(line) for line in (tmp_path / "runs/demo/metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["stage"] == "srl" and "format_ok" in row]
    assert [row["step"] for row in steps] == list(range(1, 11))
    assert any(row["grad_norm"] > 0 and row["zero_variance"] < 1 for row in steps), "SRL had nothing to learn from"
    resolved = {name: json.loads((tmp_path / f"runs/demo-{name}/report.json").read_text())["resolved"] for name in ("eval", "gold", "null")}
    assert (resolved["gold"], resolved["null"]) == (60, 0)
    assert resolved["eval"] > 30, "no better than the same colour always"
