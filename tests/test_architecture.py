"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "harness": ROOT / "harness",
    "harness_envs": ROOT / "envs/harness_envs",
    "harness_trajectories": ROOT / "trajectories/harness_trajectories",
}
SOURCES = [path for folder in PACKAGES.values() for path in sorted(folder.rglob("*.py"))]
HEAVY = ("torch", "trl", "vllm", "docker", "swebench", "ray")

BLOCKED = f"""
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ImportError(f"{{name}} is blocked here")
sys.meta_path.insert(0, Block())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def module_name(path: Path) -> str:
    for package, folder in PACKAGES.items():
        if path.is_relative_to(folder):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            return ".".join(part for part in parts if part != "__init__")
    raise AssertionError(path)


def may_import_heavy(path: Path) -> bool:
    relative = path.relative_to(ROOT).as_posix()
    return relative.startswith(
        (
            "harness/train/",
            "harness/experiment/child",
            "harness/experiment/steps",
            "harness/generate",
            "harness/sandbox",
            "harness/docker_",
            "harness/grade",
            "envs/harness_envs/swe/",
        )
    )


def test_other_modules_import_without_torch_trl_vllm_docker() -> None:
    names = [module_name(path) for path in SOURCES if not may_import_heavy(path)]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_dependencies_run_one_way() -> None:
    above = {"harness_trajectories": ("harness", "harness_envs"), "harness": ("harness_envs",), "harness_envs": ()}
    wrong = []
    for path in SOURCES:
        package = module_name(path).split(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            wrong += [f"{path.relative_to(ROOT)}:{node.lineno} imports {name}" for name in names if name.split(".")[0] in above[package]]
    assert not wrong


def test_swebench_is_imported_in_one_place_and_late() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                found += [(path.name, node.col_offset > 0) for name in names if name.split(".")[0] == "swebench"]
    assert set(found) == {("official.py", True)}


def test_no_python_file_shadows_the_docker_sdk() -> None:
    assert not list((ROOT / "docker").rglob("*.py"))


def test_files_stay_readable() -> None:
    long = {path.name: n for path in SOURCES if (n := len(path.read_text().splitlines())) > 400}
    assert not long
    drawers = {"utils.py", "helpers.py", "misc.py", "common.py"}
    assert not [path for path in SOURCES if path.name in drawers]


def test_the_command_answers_without_heavy_imports() -> None:
    code = (
        "import sys; sys.argv = ['harness', '--help']\n"
        "from harness import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"loaded = [name for name in {HEAVY!r} + ('transformers', 'datasets', 'pyarrow', 'matplotlib', 'openai') if name in sys.modules]\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
