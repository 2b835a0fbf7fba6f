"""A wheel built from the tree works away from it. The environment is clean; the dependencies are linked into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `harness` script of an environment that holds the wheel and links to the dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True
    )
    (wheel,) = folder.glob("srl_harness-*.whl")
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"harness", "harness_envs", "harness_trajectories"}
    venv.create(folder / "env", with_pip=False, symlinks=True)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "srl_harness" not in entry.name and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    python = folder / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    return folder / "env" / "bin" / "harness"


def call(script: Path, cwd: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run([script, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_and_env_list(installed: Path, tmp_path: Path) -> None:
    assert str(installed.parents[1]) in call(installed.with_name("python"), tmp_path, "-c", "import harness; print(harness.__file__)")
    assert "train" in call(installed, tmp_path, "--help")
    listed = json.loads(call(installed, tmp_path, "env", "list", "--json"))
    assert {row["name"] for row in listed["environments"]} == {"swe", "math"}


def test_synth_math(installed: Path, tmp_path: Path) -> None:
    report = json.loads(call(installed, tmp_path, "data", "synth", "--domain", "math", "-n", "5", "--out", "data", "--json"))
    assert report["trajectories"] == len((tmp_path / "data" / "trajectories.jsonl").read_text().splitlines())


@pytest.mark.docker
def test_synth_swe(installed: Path, tmp_path: Path, docker_engine: None) -> None:
    report = json.loads(call(installed, tmp_path, "data", "synth", "--domain", "swe", "-n", "8", "--out", "data", "--json"))
    assert report["trajectories"] > 0
    assert (tmp_path / "data" / "tasks" / "test.jsonl").is_file()
