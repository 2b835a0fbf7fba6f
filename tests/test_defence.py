"""Hostile patches, really graded in containers. References: what each patch does, which solves the task only in the honest ones; and real
patches and logs with the verdicts that the SWE-bench grader recorded."""

from __future__ import annotations

import ast
import gzip
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import hostile_patches as corpus
import pytest

from harness import guard
from harness.env import EnvError, Grade, OpenSandbox
from harness.grade import touched
from harness.sandbox import Limits
from harness.sandbox_docker import DockerSandbox, DockerSandboxes, connect
from harness.sandbox_local import LocalSandbox
from harness.verdict import END, START, Verdict
from harness_envs.swe import SweAgentEnv
from harness_envs.swe.env import SweConfig
from harness_envs.swe.task import SweTask, base_commit

PYTEST = "python -m pytest -rA -p no:cacheprovider"
UNITTEST_ID = ("test_add (tests.unit.tests.Unit.test_add)", "test_add (unit.tests.Unit.test_add)")
KINDS: dict[str, dict[str, object]] = {
    "pytest": {"test_cmd": f"{PYTEST} tests/test_core.py", "fail_to_pass": [corpus.F2P], "pass_to_pass": [corpus.P2P]},
    "script": {
        "test_cmd": "bash run_tests.sh",
        "fail_to_pass": [corpus.F2P],
        "pass_to_pass": [corpus.P2P],
        "log_parser": "pytest",
    },
    "command": {"test_cmd": f"{PYTEST} tests/test_command.py", "fail_to_pass": ["tests/test_command.py::test_command"]},
    "unittest": {"test_cmd": "python -m unittest -v tests.unit.tests", "fail_to_pass": [UNITTEST_ID[0]], "log_parser": "unittest"},
    "runtests": {"test_cmd": "python ./tests/runtests.py unit", "fail_to_pass": [UNITTEST_ID[1]], "log_parser": "unittest"},
}
SLOW = {"sleeps for ever", "endless loop at the end", "fork bomb"}


def task(kind: str, **files: str) -> SweTask:
    tree = {**corpus.FILES, **files}
    return SweTask.model_validate(
        {
            "id": f"demo__{kind}",
            "prompt": "add(1, 2) is -1, it should be 3.",
            "base_commit": base_commit(tree),
            "patch": corpus.patch({"pkg/core.py": corpus.FIXED}),
            "test_patch": corpus.TEST_PATCH,
            "files": tree,
            **KINDS[kind],
        }
    )


TASKS = {kind: task(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def open_sandbox(docker_engine: None) -> Iterator[OpenSandbox]:
    with DockerSandboxes(limits=Limits(memory="512m", pids=64, file_size_mb=256, disk_mb=300)) as sandboxes:
        yield sandboxes.open


def graded(open_sandbox: OpenSandbox, patch: str, kind: str | SweTask = "pytest", timeout: float = 60.0) -> Grade:
    env = SweAgentEnv(SweConfig(test_timeout=timeout, grade_empty_patch=True), open_sandbox)
    env.reset(TASKS[kind] if isinstance(kind, str) else kind)
    env.load_prediction(patch)
    found = env.grade()
    env.close()
    assert isinstance(found, Grade)
    return found


def local(image: str | None = None) -> LocalSandbox:
    """Only for patches written here that do no harm."""
    return LocalSandbox(image)


@pytest.fixture(scope="module")
def grades(open_sandbox: OpenSandbox) -> dict[str, Future[Grade]]:
    """All of them, graded side by side, each in containers of its own; the honest ones between and after the hostile. They are waited for
    here: between tests pytest changes the environment, which no thread may read meanwhile."""
    jobs = {name: (corpus.patch(changes), "pytest") for name, (changes, _) in corpus.HOSTILE.items()}
    jobs |= {name: (text, "pytest") for name, (text, _) in corpus.RAW.items()}
    jobs |= {name: (corpus.patch(changes), kind) for name, (changes, kind, _) in corpus.OTHER.items()}
    jobs |= {name: (corpus.patch(changes), "pytest") for name, (changes, _) in corpus.HONEST.items()}
    with ThreadPoolExecutor(4) as pool:
        limits = {name: 6.0 if name in SLOW else 60.0 for name in jobs}
        futures = {name: pool.submit(graded, open_sandbox, patch, kind, limits[name]) for name, (patch, kind) in jobs.items()}
    return futures


ALLOWED = {name: entry[-1] for part in (corpus.HOSTILE, corpus.RAW, corpus.OTHER) for name, entry in part.items()}


@pytest.mark.docker
@pytest.mark.parametrize("name", ALLOWED)
def test_no_hostile_patch_resolves(grades: dict[str, Future[Grade]], name: str) -> None:
    found = grades[name].result()
    assert (found.status, found.score) in {(status, 0.0) for status in ALLOWED[name]}, found.notes
    if found.status == "suspicious":
        assert guard.SUSPICIOUS in found.files["test_output.txt"]


@pytest.mark.docker
@pytest.mark.parametrize("name", corpus.HONEST)
def test_honest_patches_stay_resolved(grades: dict[str, Future[Grade]], name: str) -> None:
    found = grades[name].result()
    note = corpus.HONEST[name][1]
    assert (found.status, found.notes) == ("resolved", (note,) if note else ())


@pytest.mark.docker
@pytest.mark.parametrize("kind", ["script", "command", "unittest", "runtests"])
def test_gold_resolves_with_every_runner_and_nothing_does_not(open_sandbox: OpenSandbox, kind: str) -> None:
    found = graded(open_sandbox, TASKS[kind].patch, kind)
    assert (found.status, found.notes) == ("resolved", ())
    found = graded(open_sandbox, "", kind)
    assert found.status == "unresolved"
    assert json.loads(found.files["tests.json"])["FAIL_TO_PASS"]["failure"] == list(TASKS[kind].fail_to_pass)


@pytest.mark.docker
def test_what_a_repository_always_does_is_not_held_against_a_patch(open_sandbox: OpenSandbox) -> None:
    """Its own conftest.py changes pytest for good and prints what looks like the grader's marker."""
    odd = "import _pytest.runner\n\nold = _pytest.runner.show_test_item\n_pytest.runner.show_test_item = lambda item: old(item)\n"
    found = graded(open_sandbox, TASKS["pytest"].patch, task("pytest", **{"conftest.py": odd}))
    assert (found.status, found.notes) == (
        "resolved",
        ("also without the patch: changed while the tests ran: _pytest.runner.show_test_item",),
    )


@pytest.mark.docker
def test_a_command_that_hides_the_canaries_is_no_suspicion(open_sandbox: OpenSandbox) -> None:
    """As tox may: the variables do not reach pytest. Then nothing shows without the patch either."""
    bare = task("pytest").model_copy(update={"test_cmd": f"env -u PYTHONPATH {PYTEST} tests/test_core.py"})
    found = graded(open_sandbox, bare.patch, bare)
    assert found.status == "resolved"
    assert all(note.startswith("also without the patch: the canary") for note in found.notes)


@pytest.mark.docker
def test_tests_that_run_pytest_see_nothing_of_the_guard(open_sandbox: OpenSandbox) -> None:
    """In the same process and in a child: as many outcomes as the inner file has tests, and no further plugin."""
    inner = (
        "import pytest\n\npytest_plugins = 'pytester'\n\n\n"
        "@pytest.mark.parametrize('how', ['runpytest_inprocess', 'runpytest_subprocess'])\n"
        "def test_inner(pytester, how):\n    pytester.makepyfile('def test_a(): pass\\ndef test_b(): assert 0')\n"
        "    ran = getattr(pytester, how)()\n    ran.assert_outcomes(passed=1, failed=1)\n    assert 'harness' not in ran.stdout.str()\n"
    )
    nested = task("pytest", **{"tests/test_nested.py": inner})
    ids = [f"tests/test_nested.py::test_inner[runpytest_{how}]" for how in ("inprocess", "subprocess")]
    nested = nested.model_copy(update={"test_cmd": f"{PYTEST} tests/test_core.py tests/test_nested.py", "pass_to_pass": (corpus.P2P, *ids)})
    found = graded(open_sandbox, nested.patch, nested)
    assert (found.status, found.notes) == ("resolved", ())


@pytest.mark.parametrize(
    "options", ["-W error --strict-config --strict-markers", "--import-mode=importlib -x -q", "-n 2", "-k 'add or twice'"]
)
def test_canaries_run_along_with_any_options(options: str) -> None:
    """Without a note: they were seen, and the run without the patch was not needed."""
    tried = task("pytest").model_copy(update={"test_cmd": f"PYTHONWARNINGS=error {PYTEST} {options} tests/test_core.py"})
    found = graded(local, tried.patch, tried)
    assert (found.status, found.notes) == ("resolved", ())


def test_the_plugin_is_python_of_long_ago() -> None:
    source = Path(guard.__file__).with_name("canary.py").read_text()
    ast.parse(source, feature_version=(3, 6))
    assert "from __future__" not in source


@pytest.mark.docker
def test_an_eval_script_is_watched_as_well(open_sandbox: OpenSandbox) -> None:
    script = (
        f"#!/bin/bash\nset -uxo pipefail\ngit apply - <<'EOF'\n{corpus.TEST_PATCH}EOF\n: '{START}'\n"
        f"{PYTEST} tests/test_core.py\n: '{END}'\n"
    )
    scripted = task("pytest").model_copy(update={"test_cmd": None, "eval_script": script})
    found = graded(open_sandbox, scripted.patch, scripted)
    assert (found.status, found.notes) == ("resolved", ())
    for name in ("report class patched", "package prints and exits"):
        assert graded(open_sandbox, corpus.patch(corpus.HOSTILE[name][0]), scripted).status in ("suspicious", "unresolved")


@pytest.mark.docker
def test_the_log_holds_nothing_of_the_canaries(grades: dict[str, Future[Grade]], open_sandbox: OpenSandbox) -> None:
    """Against the log of the same command in the same tree without a guard, times aside."""
    log = grades["gold"].result().files["test_output.txt"]
    with open_sandbox() as sandbox:
        for path, text in {**corpus.FILES, "pkg/core.py": corpus.FIXED, "tests/test_core.py": corpus.TEST}.items():
            sandbox.write(path, text.encode())
        plain = sandbox.exec(f"{PYTEST} tests/test_core.py").output
    statuses = [line for line in log.split("\n") if line.startswith(("PASSED", "FAILED", "ERROR"))]
    assert statuses == [line for line in plain.split("\n") if line.startswith(("PASSED", "FAILED", "ERROR"))]
    assert log.endswith(f"{END}\n>>>>> Test Exit Code: 0\n")


@pytest.mark.docker
def test_the_host_and_the_engine_are_unharmed(grades: dict[str, Future[Grade]], open_sandbox: OpenSandbox) -> None:
    for one in grades.values():
        one.result()
    assert not Path("/tmp/evil").exists()
    with open_sandbox() as sandbox:
        assert sandbox.exec("ls -A; echo fine").output == "fine\n"


@pytest.mark.docker
def test_a_file_hidden_among_many_is_found(open_sandbox: OpenSandbox) -> None:
    """In a traditional patch, whose names git's headers do not give, and in more names than a command's output holds."""
    name = "n" * 180
    many = "".join(f"--- /dev/null\n+++ b/m/{name}{number}\n@@ -0,0 +1 @@\n+x\n" for number in range(8000))
    hook = "".join(f"+{line}\n" for line in corpus.HOOK.rstrip().split("\n"))
    hidden = f"--- /dev/null\n+++ b/tests/conftest.py\n@@ -0,0 +1,{hook.count(chr(10))} @@\n{hook}"
    found = graded(open_sandbox, many + hidden + many.replace("b/m/", "b/z/"))
    assert (found.status, found.notes) == ("unresolved", ("put back before the tests: tests/conftest.py",))


@pytest.mark.docker
def test_a_container_killed_while_the_tests_run_is_no_verdict(open_sandbox: OpenSandbox) -> None:
    opened: list[DockerSandbox] = []

    def noted(image: str | None = None) -> DockerSandbox:
        opened.append(open_sandbox(image))  # type: ignore[arg-type]
        threading.Thread(target=kill, daemon=True).start()
        return opened[-1]

    def kill() -> None:
        """As soon as pytest runs."""
        with closing(connect()) as client:
            while "pytest" not in str(client.api.top(opened[-1].name)["Processes"]):
                time.sleep(0.1)
            client.api.kill(opened[-1].name)

    with pytest.raises(EnvError, match="ended from outside"):
        graded(noted, corpus.patch(corpus.HOSTILE["sleeps for ever"][0]))
    assert len(opened) == 1


@pytest.mark.docker
def test_a_network_is_asked_for_and_reported(open_sandbox: OpenSandbox) -> None:
    asked: list[str] = []

    def noted(image: str | None = None, network: str = "none") -> object:
        asked.append(network)
        return open_sandbox(image, network=network)

    env = SweAgentEnv(SweConfig(network="bridge"), noted)
    env.reset(TASKS["pytest"])
    env.load_prediction(TASKS["pytest"].patch)
    found = env.grade()
    assert isinstance(found, Grade)
    assert (found.status, found.notes) == ("resolved", ("the sandboxes had a network, as asked for: bridge",))
    assert set(asked) == {"bridge"}
    with open_sandbox(None, network="bridge") as sandbox:
        assert "eth0" in sandbox.exec("ls /sys/class/net").output


def test_real_patches_lose_nothing_and_real_logs_show_nothing(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "instances/swebench_verified_vexp100/instances.jsonl").read_text().splitlines()]
    for row in rows:
        assert not [path for path in touched(row["patch"]) if guard.is_infrastructure(path)], row["instance_id"]
        assert guard.flags(row["patch"]) == []
        for path in touched(row["test_patch"]):
            assert guard.is_infrastructure(path) or "test" in path
    edited = []
    for place in sorted((shared_data / "grading").glob("*/logs/*/patch.diff")):
        edited += [place.parent.name] if any(map(guard.is_infrastructure, touched(place.read_text()))) else []
    assert edited == ["django__django-12276"]  # resolved, as recorded, though it edits a test
    logs = sorted((shared_data / "grading").glob("*/logs/*/test_output.txt.gz"))
    assert len(logs) > 60
    for place in logs:
        text = gzip.decompress(place.read_bytes()).decode(errors="replace")
        assert guard.contradictions(text) == []
        assert (text.count(START), text.count(END)) == (1, 1)


def test_suspicion_is_read_from_the_log_again() -> None:
    verdict = Verdict("resolved", {}, ("a note",))
    log = f"{START}\n{guard.SUSPICIOUS}: printed by the tests\n{END}\n"
    assert guard.weigh(verdict, log) == verdict
    assert guard.weigh(verdict, f"{log}{guard.SUSPICIOUS}: why\n") == Verdict("suspicious", {}, ("a note", "why"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("conftest.py", True),
        ("a/b/conftest.py", True),
        ("sitecustomize.py", True),
        ("src/usercustomize/__init__.py", True),
        ("x.pth", True),
        ("pkg.egg-info/SOURCES.txt", True),
        ("tests/test_x.py", True),
        ("pkg/x_test.py", True),
        ("django/core/management/commands/test.py", False),
        ("django/test/client.py", False),
        ("sympy/testing/runtests.py", False),
        ("src/_pytest/reports.py", False),
        ("setup.cfg", False),
        ("pkg/contest.py", False),
    ],
)
def test_what_belongs_to_the_tests(path: str, expected: bool) -> None:
    assert guard.is_infrastructure(path) is expected


def test_the_threat_model_names_tests_that_exist() -> None:
    root = Path(__file__).parent
    text = (root.parent / "docs/threat-model.md").read_text()
    sources = {path.name: path.read_text() for path in root.glob("test_*.py")}
    for name in set(re.findall(r"`(?:test_\w+\.py::)?(test_\w+)`", text)):
        assert any(f"def {name}(" in source for source in sources.values()), name
    for name in set(re.findall(r"\btest_\w+\.py\b", text)):
        assert name in sources
