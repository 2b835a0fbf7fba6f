"""Generated swe tasks against tools that nobody here wrote: pytest's own output in a plain run, git, and the SWE-bench grading rules."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from harness.sandbox_open import Sandboxes
from harness.test_logs import parser
from harness_envs.splits import quotas
from harness_envs.swe.agent import SweAgentEnv
from harness_envs.swe.dataset import load_tasks
from harness_envs.swe.env import SweConfig
from harness_envs.swe.oracle import SweOracleEnv
from harness_envs.swe.patch import git_apply, git_diff
from harness_envs.swe.repository import Repository
from harness_envs.swe.synth import generate
from harness_envs.swe.synth.batch import TEST_COMMAND, Executor, Job
from harness_envs.swe.synth.build import Dropped, candidate
from harness_envs.swe.synth.mutate import choose
from harness_envs.swe.synth.programs import Call, package
from harness_envs.swe.synth.teacher import shortest_edit
from harness_envs.swe.synth.unified import diff
from harness_trajectories import read
from harness_trajectories.errors import UserError
from harness_trajectories.export import to_swesmith

FILES = ("tasks/train.jsonl", "tasks/val.jsonl", "tasks/test.jsonl", "trajectories.jsonl", "oracle.jsonl")


@pytest.fixture(scope="module")
def sandboxes(docker_engine: None) -> Iterator[Sandboxes]:
    opened = Sandboxes()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def plain(sandboxes: Sandboxes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain")
    generate(50, 0, out, "plain", sandboxes)
    return out


@pytest.fixture(scope="module")
def tiny(sandboxes: Sandboxes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    generate(20, 0, out, "tiny", sandboxes)
    return out


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_diff_equals_git() -> None:
    for seed in range(25):
        rng = Random(seed)
        for path, text in package(rng).files.items():
            mutant = choose(rng, text)
            if mutant is not None:
                assert diff(path, mutant.source, text) == git_diff({path: mutant.source}, {path: text})
            longer = text + f"\n\ndef test_{seed}():\n    assert f({seed}) == 2\n"
            assert diff(path, text, longer) == git_diff({path: text}, {path: longer})


def test_splits_come_from_the_program_whatever_the_seed() -> None:
    splits: dict[str, set[str]] = {}
    for profile in ("plain", "tiny"):
        for seed in (0, 1):
            for index in range(150):
                one = candidate(profile, seed, index)  # type: ignore[arg-type]
                splits.setdefault(repr(sorted(one.program.files.items())), set()).add(one.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "val", "test"}


def test_quotas() -> None:
    assert quotas(3) == {"train": 1, "val": 1, "test": 1}
    assert quotas(1000) == {"train": 800, "val": 100, "test": 100}
    with pytest.raises(UserError, match="at least 3"):
        quotas(2)


def test_unknown_profile(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="plain, tiny"):
        generate(10, 0, tmp_path, "large", lambda image=None: None)  # type: ignore[arg-type, return-value]


@pytest.mark.docker
@pytest.mark.parametrize("profile", ["plain", "tiny"])
def test_same_seed_same_bytes(profile: str, sandboxes: Sandboxes, tmp_path: Path) -> None:
    for name, seed, workers in (("a", 5, 1), ("b", 5, 3), ("c", 6, 2)):
        generate(12, seed, tmp_path / name, profile, sandboxes, workers)
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes()


@pytest.mark.docker
def test_splits_share_nothing(plain: Path) -> None:
    seen: dict[str, str] = {}
    for split, count in (("train", 40), ("val", 5), ("test", 5)):
        records = rows(plain / "tasks" / f"{split}.jsonl")
        assert len(records) == count
        for record in records:
            assert seen.setdefault(record["instance_id"], split) == split
            assert seen.setdefault(record["patch"] + repr(record["files"]), record["instance_id"]) == record["instance_id"]
    taught = [row["instance_id"] for row in rows(plain / "trajectories.jsonl")]
    assert taught == [row["instance_id"] for row in rows(plain / "oracle.jsonl")]
    assert {seen[identity] for identity in taught} == {"train", "val"}


@pytest.mark.docker
def test_outcomes_equal_a_plain_pytest_run(plain: Path, sandboxes: Sandboxes) -> None:
    """Reference: `python -m pytest -rA` on a tree that git made from the patches, its output read by the SWE-bench parser."""
    parse = parser("pytest")
    assert parse is not None
    with sandboxes() as sandbox:
        for record in rows(plain / "tasks" / "train.jsonl")[:8]:
            tested = {**record["files"], **git_apply(record["files"], record["test_patch"])}
            fixed = {**tested, **git_apply(tested, record["patch"])}
            outcomes = []
            for tree in (tested, fixed):
                sandbox.exec(f"rm -rf {sandbox.root}/*")
                for path, text in tree.items():
                    sandbox.write(f"{sandbox.root}/{path}", str(text).encode())
                ran = sandbox.exec(f"cd {sandbox.root} && {TEST_COMMAND}")
                assert ran.exit_code == (1 if tree is tested else 0)
                outcomes.append(parse(ran.output))
            before, after = outcomes
            assert set(after.values()) == {"PASSED"}
            assert record["FAIL_TO_PASS"] == [test for test in after if before.get(test) != "PASSED"]
            assert record["PASS_TO_PASS"] == [test for test in after if before.get(test) == "PASSED"]


@pytest.mark.docker
def test_failing_tests_are_not_in_the_base_tree(plain: Path) -> None:
    for task in load_tasks(plain, split="train"):
        tests = next(text for path, text in task.files.items() if "test_" in path)
        names = [identity.rpartition("::")[2] for identity in task.fail_to_pass]
        assert all(f"def {name}(" not in tests for name in names)
        assert all(f"def {identity.rpartition('::')[2]}(" in tests for identity in task.pass_to_pass if not identity.endswith("_again"))


@pytest.mark.docker
@pytest.mark.slow
def test_gold_resolves_and_null_does_not(plain: Path, sandboxes: Sandboxes) -> None:
    statuses: dict[str, list[str]] = {"gold": [], "null": []}
    tasks = [task for split in ("train", "val", "test") for task in load_tasks(plain, split=split)]  # type: ignore[arg-type]
    assert len(tasks) == 50
    for task in tasks[::3]:
        for name, patch in (("gold", task.patch), ("null", "")):
            env = SweAgentEnv(SweConfig(grade_empty_patch=True), sandboxes)
            env.task = task
            env.load_prediction(patch)
            statuses[name].append(env.grade().status)
            env.close()
    assert statuses == {"gold": ["resolved"] * 17, "null": ["unresolved"] * 17}


@pytest.mark.docker
@pytest.mark.parametrize("profile", ["plain", "tiny"])
def test_trajectories_are_what_the_environment_gives(profile: str, sandboxes: Sandboxes, request: pytest.FixtureRequest) -> None:
    """The recorded prompts and observations are those of the environment in a real sandbox, and the end state is the gold patch."""
    folder: Path = request.getfixturevalue(profile)
    tasks = {task.id: task for task in load_tasks(folder, split="train")}
    for trajectory in list(read(folder / "trajectories.jsonl"))[:4]:
        task = tasks[trajectory.instance_id]
        config = SweConfig(brief=profile == "tiny")
        env = SweAgentEnv(config, sandboxes)
        assert trajectory.steps[0].message == SweAgentEnv.system_prompt(config)
        assert trajectory.steps[1].message == env.reset(task)
        for step in trajectory.turns:
            (action,) = step.actions
            observed = env.step(action)
            assert [found.content for found in step.observations] == [observed]
        assert env.result() == task.patch == trajectory.patch
        env.close()


@pytest.mark.docker
def test_oracle_rows_solve_their_tasks(tiny: Path, sandboxes: Sandboxes) -> None:
    tasks = {task.id: task for task in load_tasks(tiny, split="train")}
    for trajectory in list(read(tiny / "oracle.jsonl"))[:5]:
        task = tasks[trajectory.instance_id]
        env = SweOracleEnv(SweConfig(brief=True), sandboxes)
        assert (trajectory.steps[0].message, trajectory.steps[1].message) == (env.system_prompt(env.config), env.reset(task))
        env.step(trajectory.turns[0].actions[0])
        assert env.grade().status == "resolved"
        env.close()


@pytest.mark.docker
def test_rows_survive_reading(plain: Path) -> None:
    """Written and read again: same messages. The reader is that of SWE-smith's public rows."""
    for row, trajectory in zip(rows(plain / "trajectories.jsonl"), read(plain / "trajectories.jsonl"), strict=True):
        assert to_swesmith(trajectory)["messages"] == row["messages"]
        assert [step.actions[0].tool for step in trajectory.turns] == ["str_replace_editor", "bash", "str_replace_editor", "bash", "submit"]
        assert trajectory.resolved is True


@pytest.mark.docker
def test_runner_survives_hostile_trees(sandboxes: Sandboxes) -> None:
    endless = "def f():\n    while True:\n        pass\n"
    dies = "import os\n\n\ndef f():\n    os._exit(0)\n"
    jobs = [Job({"m.py": text}, calls=(Call("m", "f", ""),)) for text in (endless, dies, "def f():\n    return 3\n", "def f(:\n")]
    jobs.append(
        Job({"test_m.py": "def test_a():\n    pass\n\n\ndef test_b():\n    assert 1 == 2\n"}, tests=True, commands=("echo hi; exit 3",))
    )
    with Executor(sandboxes, 2) as executor:
        results = executor.run(jobs)
    assert [result.calls for result in results[:4]] == [None, None, [["value", "3", "3\n"]], None]
    assert results[4].tests == {"test_m.py::test_a": "PASSED", "test_m.py::test_b": "FAILED"}
    assert results[4].commands == [["hi\n", 3]]


def test_git_accepts_the_patches(tmp_path: Path) -> None:
    one = candidate("plain", 3, 0)
    for path, text in one.broken.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    patch = diff(one.path, one.mutant.source, one.program.files[one.path])
    subprocess.run(["git", "apply", "-"], input=patch.encode(), cwd=tmp_path, check=True)
    assert (tmp_path / one.path).read_text() == one.program.files[one.path]


@pytest.mark.docker
def test_base_commit_is_what_git_makes(tiny: Path, sandboxes: Sandboxes) -> None:
    task = load_tasks(tiny, split="test")[0]
    with sandboxes() as sandbox:
        Repository(sandbox, task)
        assert sandbox.exec("git rev-parse HEAD").output.strip() == task.base_commit


def test_the_tiny_teacher_replaces_the_shortest_unique_text() -> None:
    """Reference: brute force over every run of whole pieces of the line."""
    seen = 0
    for index in range(300):
        try:
            one = candidate("tiny", 7, index)
        except Dropped:
            continue
        fixed = one.program.files[one.path]
        old, new = shortest_edit(one.mutant.source, fixed, one.mutant.line)
        assert one.mutant.source.count(old) == 1
        assert one.mutant.source.replace(old, new) == fixed
        line = one.mutant.source.splitlines()[one.mutant.line - 1]
        pieces = list(re.finditer(r"\w+|[^\w\s]+", line))
        for first, last in itertools.combinations_with_replacement(range(len(pieces)), 2):
            text = line[pieces[first].start() : pieces[last].end()]
            place = one.mutant.source.find(text)
            if one.mutant.source.count(text) == 1 and last - first + 1 < len(re.findall(r"\w+|[^\w\s]+", old)):
                # A shorter unique run never reaches the fix: what is around it stays as it was.
                head, tail = one.mutant.source[:place], one.mutant.source[place + len(text) :]
                assert not (fixed.startswith(head) and fixed.endswith(tail) and len(fixed) >= len(head) + len(tail))
        seen += 1
    assert seen > 200
