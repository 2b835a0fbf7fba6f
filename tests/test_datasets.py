"""Every schema of SWE data sets. References: the recorded evaluations of SWE-bench (which command was really run), git (what a patch does),
pytest in containers (gold resolves, null does not)."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from docker import DockerClient
from real_patches import old_sides

from harness.base_image import base_image
from harness.env import Status
from harness.evaluate import evaluate
from harness.plan import EvalConfig, prepare
from harness.sandbox_docker import DockerSandboxes, connect
from harness.sandbox_prepared import LABEL
from harness.test_logs import parser
from harness_envs.swe.dataset import load_tasks
from harness_envs.swe.excerpt import excerpts
from harness_envs.swe.patch import git_diff, reverse
from harness_envs.swe.repositories import REPOSITORIES, SWE_GYM, command
from harness_envs.swe.repository import Repository
from harness_envs.swe.schemas import SCHEMAS, plain
from harness_envs.swe.task import DATE, SweTask, base_commit
from harness_trajectories.errors import UserError

WRONG, RIGHT = (f"def add(a, b):\n    return a {sign} b\n\n\ndef same(a):\n    return a\n" for sign in "-+")
OLD_TEST = "from calc import same\n\n\ndef test_same():\n    assert same(3) == 3\n"
NEW_TEST = OLD_TEST.replace("import same", "import add, same") + "\n\ndef test_add():\n    assert add(1, 2) == 3\n"
HIDDEN_TEST = NEW_TEST.replace(
    "def test_same():\n    assert same(3) == 3\n", "class TestSame:\n    def test_it(self):\n        assert same(3) == 3\n"
)
FIX = git_diff({"calc.py": WRONG}, {"calc.py": RIGHT})
BUG = git_diff({"calc.py": RIGHT}, {"calc.py": WRONG})
TEST_PATCH = git_diff({"tests/test_calc.py": OLD_TEST}, {"tests/test_calc.py": NEW_TEST})
BROKEN = {"calc.py": WRONG, "conftest.py": "", "tests/test_calc.py": OLD_TEST}
CLEAN = {"calc.py": RIGHT, "conftest.py": "", "tests/test_calc.py": NEW_TEST}
COMMIT = (
    f"git init -q && git add -A && GIT_AUTHOR_DATE='{DATE} +0000' GIT_COMMITTER_DATE='{DATE} +0000' "
    "git -c user.name=harness -c user.email=harness@localhost commit -q -m base"
)
"""Of `BROKEN`, it has the hash that generated tasks of the same files have."""
ADD, SAME = "tests/test_calc.py::test_add", "tests/test_calc.py::test_same"
IMAGES = "srl-harness-test-datasets"
"""Repository of the images that are built here: `broken` at /testbed with R2E-Gym's tests, `clean` at /testbed, `app` broken at /app."""

ROW = {
    "repo": "pallets/flask",
    "base_commit": base_commit(BROKEN),
    "patch": FIX,
    "test_patch": TEST_PATCH,
    "problem_statement": "add(1, 2) is -1, it should be 3.",
    "hints_text": "",
    "version": "2.3",
    "FAIL_TO_PASS": json.dumps([ADD]),
    "PASS_TO_PASS": json.dumps([SAME]),
}
LISTS = {"FAIL_TO_PASS": [ADD], "PASS_TO_PASS": [SAME]}
EVAL_SCRIPT = f"""#!/bin/bash
set -uxo pipefail
cd /testbed
git checkout {base_commit(BROKEN)} tests/test_calc.py
git apply -v - <<'EOF_OF_TESTS'
{TEST_PATCH}EOF_OF_TESTS
: '>>>>> Start Test Output'
pytest -rA tests/test_calc.py
echo ">>>>> Test Exit Code: $?"
: '>>>>> End Test Output'
git checkout {base_commit(BROKEN)} tests/test_calc.py
"""
CLASSIC_IMAGE = f"{IMAGES}:broken"
"""By the template: classic rows name no image."""


def r2e_commit() -> str:
    def diff(path: str, before: str, after: str) -> dict[str, Any]:
        return {"header": {"file": {"path": path}, "misc_line": None}, "old_file_content": before, "new_file_content": after, "hunks": []}

    return json.dumps(
        {"file_diffs": [diff("calc.py", WRONG, RIGHT), diff("tests/test_calc.py", OLD_TEST, NEW_TEST)], "new_commit_hash": "c"}
    )


ROWS: dict[str, dict[str, Any]] = {
    "swe-bench classic": {**ROW, "instance_id": "pallets__flask-1"},
    "swe-bench 5.x": {
        **{**ROW, "FAIL_TO_PASS": [ADD], "PASS_TO_PASS": [SAME]},
        "instance_id": "pallets__flask-2",
        "image": f"{IMAGES}:broken",
        "eval_script": EVAL_SCRIPT,
        "log_parser": "parse_log_flask",
        "eval_type": "pass_and_fail",
    },
    "swe-gym": {**ROW, **LISTS, "instance_id": "iterative__dvc-1", "repo": "iterative/dvc", "version": "1.0"},
    "swe-smith": {
        "instance_id": "me__calc.0123abcd.func_basic__x1y2z3",
        "repo": "swesmith/me__calc.0123abcd",
        "image_name": f"{IMAGES}:clean",
        "patch": BUG,
        "problem_statement": ROW["problem_statement"],
        **LISTS,
    },
    "swe-rebench": {
        **{**ROW, **LISTS},
        "instance_id": "me__calc-3",
        "repo": "me/calc",
        "docker_image": f"{IMAGES}:broken",
        "install_config": {"python": "3.11", "test_cmd": "pytest --no-header -rA --color=no", "log_parser": "parse_log_pytest"},
    },
    "r2e-gym": {
        "repo_name": "calc",
        "docker_image": f"{IMAGES}:broken",
        "commit_hash": "0123456789abcdef",
        "parsed_commit_content": r2e_commit(),
        "expected_output_json": json.dumps({"\u001b[1mTestSame.test_it\u001b[0m": "PASSED", "test_add": "PASSED", "test_never": "FAILED"}),
        "problem_statement": f"[ISSUE]\n{ROW['problem_statement']}\n[/ISSUE]",
    },
    "swe-bench pro": {
        **{key: value for key, value in ROW.items() if not key.isupper()},
        "instance_id": "instance_me__calc-4",
        "repo": "me/calc",
        "repo_language": "python",
        "dockerhub_tag": f"{IMAGES}:app",
        "requirements": "- add adds",
        "fail_to_pass": f"['{ADD}']",
        "pass_to_pass": f"['{SAME}']",
        "selected_test_files_to_run": "['tests/test_calc.py']",
        "before_repo_set_cmd": "git checkout 1234 -- tests/test_calc.py",
    },
}
SCHEMA = dict(zip(ROWS, ("classic", "plain", "swe_gym", "swe_smith", "swe_rebench", "r2e_gym", "swe_bench_pro"), strict=True))


def task_directory(folder: Path, base: str | None) -> Path:
    """`folder/by-hand`: of a Dockerfile on `base`, or with its base tree beside it."""
    task = folder / "by-hand"
    (task / "source" / "tests").mkdir(parents=True)
    for name, text in (("issue.md", ROW["problem_statement"]), ("patch.diff", FIX), ("test.patch", TEST_PATCH)):
        (task / name).write_text(text)
    for path, text in BROKEN.items():
        (task / "source" / path).write_text(text)
    (task / "task.json").write_text(json.dumps({"fail_to_pass": [ADD], "pass_to_pass": [SAME], "test_cmd": "python3 -m pytest -rA"}))
    if base is None:
        (task / "source").rename(task / "repo")
    else:
        (task / "Dockerfile").write_text(f"FROM {base}\nCOPY source /testbed\nRUN cd /testbed && {COMMIT}\n")
    return task


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_recognised(name: str, tmp_path: Path) -> None:
    chosen = next(schema for recognise, schema in SCHEMAS if recognise(ROWS[name]))
    # A 5.x row of a known repository goes through `classic`; what it says itself wins.
    assert chosen.__name__ == ("classic" if name == "swe-bench 5.x" else SCHEMA[name])
    (task,) = load_tasks(write(tmp_path / "t.jsonl", ROWS[name]), CLASSIC_IMAGE)
    assert task.image is not None
    assert task.image.startswith(IMAGES)
    assert (task.test_cmd is None) is (name == "swe-bench 5.x")
    assert "[ISSUE]" not in task.prompt
    assert task.prompt.startswith("add(1, 2) is -1")
    if name != "r2e-gym":
        assert (task.fail_to_pass, task.pass_to_pass) == ((ADD,), (SAME,))


def test_images_by_field_and_by_template(tmp_path: Path) -> None:
    def image(row: dict[str, Any], template: str | None = None) -> str | None:
        return load_tasks(write(tmp_path / "t.jsonl", row), template)[0].image

    unnamed = {name: {k: v for k, v in row.items() if k not in ("image", "image_name", "docker_image")} for name, row in ROWS.items()}
    assert image(unnamed["swe-bench classic"]) == "swebench/sweb.eval.x86_64.pallets_1776_flask-1:latest"
    assert image(unnamed["swe-gym"]) == "xingyaoww/sweb.eval.x86_64.iterative_s_dvc-1:latest"
    assert image(unnamed["swe-smith"]) == "swebench/swesmith.x86_64.me_1776_calc.0123abcd:latest"
    assert image(unnamed["swe-rebench"]) == "swerebench/sweb.eval.x86_64.me_1776_calc-3:latest"
    assert image({**ROWS["swe-bench pro"], "dockerhub_tag": "me.calc-x"}) == "jefzda/sweap-images:me.calc-x"
    for name in ("swe-bench classic", "swe-gym", "swe-smith", "swe-rebench"):
        assert image(unnamed[name], "mine:1") == "mine:1"
    assert image(ROWS["swe-smith"], "mine:1") == f"{IMAGES}:clean"


def test_swe_smith_is_the_other_way_round(tmp_path: Path) -> None:
    """The gold patch is what git makes of the tree with the bug to the tree without."""
    (task,) = load_tasks(write(tmp_path / "t.jsonl", {**ROWS["swe-smith"], "PASS_TO_PASS": [SAME, "tests/test_other.py::test_x"]}))
    assert (task.patch, task.bug) == (FIX, BUG)
    assert task.hidden == ("tests/test_calc.py",)
    assert task.pass_to_pass == (SAME,)  # the other file is not run
    assert str(task.test_cmd).endswith("\npytest --disable-warnings --color=no --tb=no --verbose tests/test_calc.py")


def test_swe_smith_command_is_the_recorded_one(shared_data: Path) -> None:
    for folder in sorted((shared_data / "grading" / "swesmith_logs").glob("*.*")):
        log = (folder / "test_output.txt").read_text(errors="replace")
        (recorded,) = re.findall(r"^\+ (.*pytest .*)$", log.split(">>>>> Start Test Output")[1], re.MULTILINE)
        tested = shlex.split(recorded)[-1]
        row = {**ROWS["swe-smith"], "instance_id": f"{folder.name}.x", "FAIL_TO_PASS": [f"{tested}::test_x"]}
        derived = next(schema for recognise, schema in SCHEMAS if recognise(row))(row, None)
        assert derived["test_cmd"].splitlines()[-1] == recorded


def test_r2e_gym_takes_sources_and_what_must_pass(tmp_path: Path) -> None:
    (task,) = load_tasks(write(tmp_path / "t.jsonl", ROWS["r2e-gym"]))
    assert task.id == "calc__0123456789"
    assert task.patch == FIX
    assert task.fail_to_pass == ("TestSame.test_it", "test_add")
    assert "/r2e_tests" in task.hidden


def test_swe_rebench_second_version_runs_whole_commands(tmp_path: Path) -> None:
    row = {**ROWS["swe-rebench"], "language": "go", "install_config": json.dumps({"test_cmd": ["go build", "go test"], "log_parser": "x"})}
    (task,) = load_tasks(write(tmp_path / "t.jsonl", row))
    assert (task.test_cmd, task.root, task.log_parser) == ("go build\ngo test", "/calc", "x")


def patches(shared_data: Path) -> list[str]:
    rows = (shared_data / "instances/swebench_verified_vexp100/instances.jsonl").read_text().splitlines()
    return [json.loads(row)[field] for row in rows for field in ("patch", "test_patch")]


def test_reverse_is_what_git_says_for_the_other_direction(tmp_path: Path) -> None:
    """`git diff -R`, section by section: renames, quoted names, modes, new, removed and binary files, missing ends of lines."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    lines = "".join(f"{number}\n" for number in range(30))
    for name, text in (
        ("old name", lines),
        ("ä", lines * 2),
        ("mode", "m\n"),
        ("gone", "y\nz"),
        ("tail", "1\n2"),
        ("dashes", "-- a\n++ b\n"),
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "icon").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "old.bin").write_bytes(b"\0gone")
    git("add", "-A")
    before = git("write-tree").strip()
    (tmp_path / "old name").rename(tmp_path / "new")
    (tmp_path / "ä").rename(tmp_path / 'q"é')
    (tmp_path / "mode").chmod(0o755)
    (tmp_path / "gone").unlink()
    for name, text in (("new", lines.replace("15\n", "x\n")), ("tail", "1\n3\n"), ("dashes", "++ b\n-- c\n"), ("added", "a")):
        (tmp_path / name).write_text(text)
    (tmp_path / "icon").write_bytes(bytes(range(256)) * 8 + b"end")
    (tmp_path / "old.bin").unlink()
    (tmp_path / "new.bin").write_bytes(b"\0new")
    git("add", "-A")
    patch = git("diff", "--cached", "-M", "--binary", before)
    assert all(kind in patch for kind in ("rename from", "new mode", "new file", "deleted file", '"a/', "No newline", "delta", "literal"))
    wanted = git("diff", "--cached", "-M", "-R", "--binary", "--src-prefix=b/", "--dst-prefix=a/", before)
    sections = re.compile(r"^(?=diff --git )", re.MULTILINE)
    assert sorted(sections.split(reverse(patch))) == sorted(sections.split(wanted))


def test_reverse_undoes_what_git_applies(shared_data: Path, tmp_path: Path) -> None:
    """Real patches: `git apply` of a patch and then of its reverse leaves the files as they were; twice reversed is the patch itself."""
    made = {"a/new": (None, "x\n"), "gone": ("y\nz", None), "tail": ("1\n2", "1\n3\n"), "dashes": ("-- a\n++ b\n", "++ b\n-- c\n")}
    own = git_diff({k: v[0] for k, v in made.items()}, {k: v[1] for k, v in made.items()})
    for number, patch in enumerate([own, *patches(shared_data)]):
        if "GIT binary patch" in patch:
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        for path, lines in old_sides(patch).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(lines.encode())
        before = tree(folder)
        for text in (patch, reverse(patch)):
            done = subprocess.run(["git", "apply", "--whitespace=nowarn", "-"], cwd=folder, input=text.encode(), capture_output=True)
            assert done.returncode == 0, done.stderr.decode()
        assert tree(folder) == before
        assert reverse(reverse(patch)) == patch
    with pytest.raises(ValueError, match="cannot be turned round"):
        reverse("diff --git a/x b/y\nsimilarity index 100%\ncopy from x\ncopy to y\n")
    with pytest.raises(ValueError, match="'Binary files a/x and b/x differ' cannot be turned round"):
        reverse("diff --git a/x b/x\nindex 1..2 100644\nBinary files a/x and b/x differ\n")


def test_excerpts_are_the_old_side_of_a_patch(shared_data: Path) -> None:
    for patch in patches(shared_data):
        files = old_sides(patch)
        found = excerpts(patch)
        assert found.keys() == files.keys()
        for path, excerpt in found.items():
            lines = files[path].splitlines(keepends=True)
            for first, text in excerpt.pieces:
                assert text.splitlines(keepends=True) == lines[first - 1 : first - 1 + text.count("\n")]
            assert excerpt.diff(path, excerpt.text()) == ""


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def recorded_commands(shared_data: Path, runs: str) -> Iterator[tuple[str, list[str], str]]:
    """Of each recorded evaluation: the instance, the command after the start marker as the shell traced it, and what came before."""
    for file in sorted((shared_data / "grading" / runs).rglob("test_output.txt*")):
        log = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        setup, _, output = log.decode(errors="replace").partition(">>>>> Start Test Output")
        traced = re.findall(r"^\+ (.*)$", output, re.MULTILINE)
        words = [word for line in traced[:2] for word in shlex.split(line)] if traced[0].startswith("PYTHONW") else shlex.split(traced[0])
        yield file.parent.name, words, setup


def test_the_table_runs_what_swe_bench_ran(shared_data: Path) -> None:
    tasks = {task.id: task for task in load_tasks(shared_data / "instances/swebench_verified_vexp100/instances.jsonl")}
    seen = {}
    for instance, words, setup in recorded_commands(shared_data, "vexp_claude-opus-4-5"):
        command = str(tasks[instance].test_cmd)
        assert shlex.split(command.splitlines()[-1]) == words, instance
        assert ("localedef" in command) is ("locale-gen" in setup), instance
        seen[instance] = tasks[instance].repo
    assert seen.keys() == tasks.keys()
    assert len(set(seen.values())) == 10


def test_the_table_starts_as_swe_bench_did_elsewhere(shared_data: Path) -> None:
    """Of the instances whose records are not there: the command without its files."""
    count = 0
    for instance, words, _ in recorded_commands(shared_data, "swe4cc_oracle_claude-sonnet-4-5"):
        repo = instance.rsplit("-", 1)[0].replace("__", "/")
        start = shlex.split(REPOSITORIES[repo]("").command)
        assert words[: len(start)] == start, instance
        count += 1
    assert count > 20


def test_tables_are_whole() -> None:
    twelve = "astropy django flask matplotlib pylint pytest requests scikit-learn seaborn sphinx sympy xarray"
    assert sorted(name.split("/")[1] for name in REPOSITORIES) == twelve.split()
    for repo, runner in {**REPOSITORIES, **SWE_GYM}.items():
        for version in ("", "0.1", "1.9", "3.0", "v5.3", "2022.03"):
            subprocess.run(["bash", "-nc", command(repo, runner(version), TEST_PATCH)], check=True)
    mypy = "+++ b/test-data/unit/check.test\n@@ -1 +1,3 @@\n [case testOld]\n+[case testNew]\n"
    assert shlex.split(command("python/mypy", SWE_GYM["python/mypy"](""), mypy).splitlines()[-1])[-1] == "testOld or testNew"
    assert "--parallel" not in REPOSITORIES["django/django"]("1.8").command


def test_parsers_of_the_tables_are_known(tmp_path: Path) -> None:
    rows = [{**ROWS["swe-bench classic"], "repo": repo, "instance_id": f"x-{n}"} for n, repo in enumerate(REPOSITORIES)]
    for task in load_tasks(write(tmp_path / "t.jsonl", *rows, *ROWS.values())):
        assert parser(str(task.log_parser)) is not None, task


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROWS["swe-rebench"], "install_config": {}}, r"t\.jsonl:1: install_config must hold test_cmd"),
        ({**ROWS["swe-rebench"], "install_config": "{"}, r"t\.jsonl:1: "),
        ({**ROWS["r2e-gym"], "expected_output_json": "[1"}, r"t\.jsonl:1: expected_output_json is not valid JSON"),
        ({**ROWS["r2e-gym"], "expected_output_json": []}, r"t\.jsonl:1: expected_output_json must be a mapping"),
        ({**ROWS["r2e-gym"], "parsed_commit_content": None}, r"t\.jsonl:1: field 'patch' or 'parsed_commit_content' is missing"),
        ({**ROWS["r2e-gym"], "parsed_commit_content": '{"file_diffs": [{}]}'}, r"t\.jsonl:1: parsed_commit_content: expected file_diffs"),
        ({**ROWS["swe-smith"], "patch": "copy from a\n"}, r"t\.jsonl:1: a patch with 'copy from a' cannot be turned round"),
        ({**ROWS["swe-bench classic"], "test_cmd": 3}, r"t\.jsonl:1: test_cmd must be a shell command or a list of them, got '3'"),
        ({**ROWS["swe-bench classic"], "image": 3}, r"t\.jsonl:1: field 'image' must be text, got '3'"),
        ({**ROWS["swe-bench pro"], "fail_to_pass": "[1, 2]"}, r"t\.jsonl:1: fail_to_pass must be a list of test ids"),
        ({**ROWS["swe-bench pro"], "problem_statement": None}, r"t\.jsonl:1: field 'problem_statement' is missing"),
    ],
)
def test_a_bad_row_of_any_schema_is_named_by_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_tasks(write(tmp_path / "t.jsonl", row))


def test_task_directories(tmp_path: Path) -> None:
    folder = task_directory(tmp_path, None)
    (task,) = load_tasks(folder)
    assert (task.id, task.patch, task.test_patch, task.image) == ("by-hand", FIX, TEST_PATCH, None)
    assert task.files == BROKEN
    assert load_tasks(tmp_path) == [task]
    for mode, status in (("gold", "resolved"), ("null", "unresolved")):
        report = evaluate(prepare(EvalConfig(mode=mode, dataset=str(folder), sandbox="local")), tmp_path / "runs" / mode)  # type: ignore[arg-type]
        assert report["instances"]["by-hand"]["status"] == status
    (folder / "issue.md").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"issue\.md: not UTF-8"):
        load_tasks(tmp_path)
    (folder / "issue.md").unlink()
    with pytest.raises(UserError, match=r"task\.json: field 'problem_statement' is missing"):
        load_tasks(tmp_path)
    (folder / "task.json").write_text("[]")
    with pytest.raises(UserError, match=r"task\.json: expected an object"):
        load_tasks(tmp_path)
    with pytest.raises(UserError, match=r"without tasks/test\.jsonl or task\.json"):
        load_tasks(folder / "repo")


def test_a_hub_id_is_read(tmp_path: Path) -> None:
    """As a folder in the hub's layout, which `datasets` reads as it reads the hub; the test split is read."""
    made = tmp_path / "owner" / "name" / "data"
    made.mkdir(parents=True)
    for split, number in (("train", 1), ("test", 2)):
        row = {**ROWS["swe-bench classic"], "instance_id": f"pallets__flask-{number}"}
        datasets.Dataset.from_list([row]).to_parquet(made / f"{split}-00000-of-00001.parquet")
    code = "from harness_envs.swe.dataset import load_tasks; print(*(task.id for task in load_tasks('owner/name')))"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == "pallets__flask-2\n", done.stderr
    absent = code.replace("owner/name", "owner/absent")
    done = subprocess.run([sys.executable, "-c", absent], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "owner/absent: no such file or folder, and no data set of this name can be had from the hub" in done.stderr


def test_a_changed_task_directory_is_another_image(tmp_path: Path) -> None:
    folder = task_directory(tmp_path, "base:1")
    (first,) = load_tasks(folder)
    assert first.build == str(folder)
    (folder / "source" / "calc.py").write_text(RIGHT)
    (second,) = load_tasks(folder)
    assert first.image != second.image


@pytest.fixture(scope="module")
def client(docker_engine: None) -> Iterator[DockerClient]:
    """With the images of this file, which are removed again with all that was prepared of them."""
    opened = connect()
    base = base_image(opened)
    files = {f"repo/{path}": text for path, text in BROKEN.items()}
    hidden = {"run/run_tests.sh": "python3 -W ignore -m pytest -rA r2e_tests\n", "r2e/test_1.py": HIDDEN_TEST}
    build(opened, "broken", f"FROM {base}\nCOPY repo /testbed\nRUN {COMMIT}\nCOPY run /testbed\nCOPY r2e /r2e_tests\n", files | hidden)
    clean = {f"repo/{path}": text for path, text in CLEAN.items()}
    build(opened, "clean", f"FROM {base}\nCOPY repo /testbed\nRUN {COMMIT}\n", clean)
    build(opened, "app", f"FROM {base}\nCOPY repo /app\nWORKDIR /app\nRUN {COMMIT}\n", files)
    yield opened
    for tag in ("broken", "clean", "app"):
        remove(opened, f"{IMAGES}:{tag}")
    opened.close()


def build(client: DockerClient, tag: str, dockerfile: str, files: dict[str, str]) -> None:
    client.images.build(fileobj=context({"Dockerfile": dockerfile, **files}), custom_context=True, tag=f"{IMAGES}:{tag}", rm=True)


def context(files: dict[str, str]) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    packed.seek(0)
    return packed


def remove(client: DockerClient, name: str) -> None:
    for prepared in client.images.list(filters={"label": f"{LABEL}={client.images.get(name).id}"}):
        client.images.remove(str(prepared.id), force=True)
    client.images.remove(name, force=True)


@pytest.fixture(scope="module")
def verdicts(client: DockerClient, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Status]]:
    """Mode → schema → status, of one record of each schema in one file."""
    folder = tmp_path_factory.mktemp("datasets")
    data = write(folder / "rows.jsonl", *ROWS.values())
    names = dict(zip([task.id for task in load_tasks(data)], ROWS, strict=True))
    found: dict[str, dict[str, Status]] = {}
    for mode in ("gold", "null"):
        plan = prepare(EvalConfig(mode=mode, dataset=str(data), image_template=CLASSIC_IMAGE))  # type: ignore[arg-type]
        report = evaluate(plan, folder / mode, workers=2)
        found[mode] = {names[instance]: row["status"] for instance, row in report["instances"].items()}
    return found


@pytest.mark.docker
@pytest.mark.parametrize("name", ROWS)
def test_gold_resolves_and_null_does_not(name: str, verdicts: dict[str, dict[str, Status]]) -> None:
    assert (verdicts["gold"][name], verdicts["null"][name]) == ("resolved", "unresolved")


@pytest.mark.docker
def test_a_task_directory_is_built_and_resolves(client: DockerClient, tmp_path: Path) -> None:
    folder = task_directory(tmp_path, base_image(client))
    (task,) = load_tasks(folder)
    try:
        for mode, status in (("gold", "resolved"), ("null", "unresolved")):
            report = evaluate(prepare(EvalConfig(mode=mode, dataset=str(folder))), tmp_path / mode)  # type: ignore[arg-type]
            assert report["instances"]["by-hand"]["status"] == status
    finally:
        remove(client, str(task.image))


@pytest.mark.docker
def test_a_swe_smith_sandbox_holds_the_bug_and_nothing_else(client: DockerClient, tmp_path: Path) -> None:
    """What the model sees: the bug is in, no commit or object has the fix, the hidden tests are gone and are not part of its patch."""
    (task,) = load_tasks(write(tmp_path / "t.jsonl", ROWS["swe-smith"]))
    with DockerSandboxes() as sandboxes, sandboxes.open(task.image) as sandbox:
        repository = Repository(sandbox, task, hide=True)
        assert sandbox.read("/testbed/calc.py").decode() == WRONG
        assert sandbox.exec("ls tests").output.split() == []
        objects = "git cat-file --batch-all-objects --batch --buffer"
        assert "return a + b" not in sandbox.exec(f"{objects}; git log -p --all --reflog").output
        assert "return a - b" in sandbox.exec(objects).output
        assert repository.diff() == ""
        sandbox.write("/testbed/calc.py", RIGHT.encode())
        assert repository.diff().split("\n")[4:] == FIX.split("\n")[4:]


@pytest.mark.docker
def test_hidden_tests_of_r2e_gym_are_not_in_the_models_sandbox(client: DockerClient, tmp_path: Path) -> None:
    (task,) = load_tasks(write(tmp_path / "t.jsonl", ROWS["r2e-gym"]))
    with DockerSandboxes() as sandboxes, sandboxes.open(task.image) as sandbox:
        Repository(sandbox, task, hide=True)
        assert sandbox.exec("ls -d /r2e_tests run_tests.sh; git status --short").output.count("No such file") == 2


def test_common_fields_are_read_alike() -> None:
    for row in (ROWS["swe-bench classic"], ROWS["swe-gym"], ROWS["swe-bench pro"]):
        task = SweTask(**plain(row, None))
        assert (task.patch, task.test_patch, task.fail_to_pass) == (FIX, TEST_PATCH, (ADD,))
