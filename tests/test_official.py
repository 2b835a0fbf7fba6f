"""The seam to SWE-bench's own grader. Reference: swebench 5 itself, where the extra is installed; the reports it recorded for real runs."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness import official
from harness.test_logs import PARSERS, REPOSITORIES, TestStatus, parser
from harness.verdict import END, EXIT_CODE, NOT_APPLIED, START, GradeSpec, Verdict, finish, judge
from harness_trajectories.errors import UserError

needs_swebench = pytest.mark.skipif(find_spec("swebench") is None, reason="the extra swebench is not installed")
needs_none = pytest.mark.skipif(find_spec("swebench") is not None, reason="the extra swebench is installed")
STATUSES = TestStatus.__args__
SOUP = (
    " ... ¦ ... ok¦ ... FAIL¦ ... ERROR¦ ... skipped 'x'¦ok¦OK¦FAIL:¦ERROR:¦ PASSED ¦ - ¦a.py::t¦[x]¦[/tmp/a/b]¦[//c]¦[3]¦[100%]"
    "¦test_a¦ (m.C)¦é¦/¦____ a.py:test_b ____¦ .py:¦ E¦ F¦ ¦  ¦_¦...¦\n¦\t¦\x0c¦\x85¦\x1b[32m¦\x1b[0m¦MouseButton.LEFT"
    "¦--version is equivalent¦ to version¦ ... Internal Server Error: /¦\nok\n¦ ... Testing against Django installed in ¦ silenced).\nok\n"
    "¦System check identified no issues (0 silenced)¦ ... System check identified no issues (0 silenced)\nok\n"
    "¦Applying sites.0002_alter_domain_unique...test_no_migrations (m)"
)
SCRIPT = (
    "import signal, sys\n"
    "from harness import official\n"
    "from harness.verdict import GradeSpec, judge\n"
    "spec = GradeSpec(id='i', fail_to_pass=('a',), pass_to_pass=(), test_cmd='pytest')\n"
    "print(official.official(spec, 'nothing'), 'swebench' in sys.modules, flush=True)\n"
)


def spec(fail: list[str], passing: list[str], **more: object) -> GradeSpec:
    return GradeSpec.model_validate({"id": "i", "fail_to_pass": fail, "pass_to_pass": passing, "test_cmd": "pytest -rA", **more})


def log(*lines: str, code: int = 0) -> str:
    return "\n".join(["before", START, *lines, END, f"{EXIT_CODE}: {code}", ""])


def recorded(data: Path) -> list[Path]:
    return sorted((data / "grading").glob("*/logs/*/test_output.txt.gz"))


@needs_swebench
def test_our_parsers_read_all_recorded_logs_as_swebench_does(shared_data: Path) -> None:
    """Each of the 73 outputs by each of the twenty parsers, the fitting one and all others; entries without a status are left out."""
    from swebench.harness.log_parsers import PARSER_REGISTRY

    files = [*recorded(shared_data), *sorted((shared_data / "grading" / "swesmith_logs").rglob("test_output*.txt"))]
    both = {name: parse for name, parse in PARSER_REGISTRY.items() if parser(name)}
    entries = 0
    for file in files:
        text = (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode()
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        for part in {text, text.split(START)[-1].split(END)[0]}:
            for name, theirs in both.items():
                expected = {test: status for test, status in theirs(part, None).items() if status in STATUSES}
                ours = parser(name)
                assert ours is not None
                assert ours(part) == expected, (file, name)
                entries += len(expected)
    assert len(files) == 73
    assert len(both) == 20
    assert entries > 100_000


@needs_swebench
def test_our_parsers_read_soups_of_log_lines_as_swebench_does() -> None:
    from swebench.harness.log_parsers import PARSER_REGISTRY

    pieces = [*STATUSES, "\n", "\n", *SOUP.split("¦")]
    generator = random.Random(7)
    compared = 0
    for _ in range(5000):
        text = "".join(generator.choices(pieces, k=generator.randrange(1, 25)))
        for name, theirs in PARSER_REGISTRY.items():
            ours = parser(name)
            if ours is None:
                continue
            try:
                expected = theirs(text, None)
            except IndexError:  # a bare "FAIL:" is too much for it
                continue
            found = ours(text)
            assert {test: found.get(test) for test, status in expected.items() if status in STATUSES} == {
                test: status for test, status in expected.items() if status in STATUSES
            }, (name, text)
            assert set(found) <= set(expected), (name, text)
            compared += len(found)
    assert compared > 10_000


@needs_swebench
def test_official_verdicts_are_the_recorded_ones(shared_data: Path) -> None:
    verdicts = []
    for file in recorded(shared_data):
        report = json.loads((file.parent / "report.json").read_text())[file.parent.name]
        lists = {kind: report["tests_status"][kind] for kind in ("FAIL_TO_PASS", "PASS_TO_PASS")}
        repository = file.parent.name.rsplit("-", 1)[0].replace("__", "/")
        wanted = spec(*(found["success"] + found["failure"] for found in lists.values()), log_parser=REPOSITORIES[repository])
        text = gzip.decompress(file.read_bytes()).decode()
        theirs = official.official(wanted, text)
        assert theirs == official.Official(report["resolved"], lists), file
        assert (judge(wanted, text).status == "resolved") == theirs.resolved, file
        verdicts.append(theirs.resolved)
    assert (len(verdicts), sum(map(bool, verdicts))) == (69, 47)


@needs_swebench
@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (spec(["a"], ["b"]), log("PASSED a", "PASSED b")),
        (spec(["a"], ["b"]), log("XFAIL a", "SKIPPED b")),
        (spec(["a"], ["b"]), log("SKIPPED a", "PASSED b")),
        (spec(["a"], ["b"]), log("PASSED a", "ERROR b")),
        (spec(["a"], ["b"]), log("PASSED a")),
        (spec(["a"], ["b"]), log("PASSED a", "PASSED b", "FAILED a")),
        (spec(["a"], ["b"]), log("PASSED a\r", "50 %\rPASSED b")),
        (spec(["a"], []), log("nothing")),
        (spec(["a"], []), "PASSED a\n" + log("nothing")),
        (spec(["a"], []), "PASSED a\n" + log("PASSED b")),
        (spec(["a"], []), log("PASSED b", END, "PASSED a")),
        (spec(["a"], []), log("PASSED b", START, "PASSED a")),
        (spec(["a"], []), log("PASSED a", code=1)),
        (spec(["a"], []), log("PASSED a", "FAILED c", code=1)),
        (spec(["a"], []), log("PASSED a") + NOT_APPLIED),
        (spec(["a"], []), log("PASSED a") + ">>>>> Reset Failed"),
        (spec(["a"], []), f"{START}\nPASSED a\n"),
        (spec(["t[log(photon"], []), log("PASSED t[log(photon-1]", "PASSED t[log(photon-2]")),
        (spec(["t[log(photon"], []), log("PASSED t[log(photon-1]", "FAILED t[log(photon-2]")),
        (spec([], ["t[log(photon"]), log("SKIPPED t[log(photon-1]", "FAILED t[log(photon-2]")),
        (spec(["t[x]"], []), log("PASSED t[x]y")),
        (spec(["a"], ["b"], eval_type="fail_only"), log("PASSED other")),
        (spec(["a"], ["b"], eval_type="fail_only"), log("FAILED b", code=1)),
        (spec(["a"], ["b"], eval_type="fail_only"), log("ERROR b", "FAILED c", code=1)),
    ],
)
def test_our_rules_are_the_official_ones(wanted: GradeSpec, text: str) -> None:
    theirs, ours = official.official(wanted, text), judge(wanted, text)
    assert theirs is not None
    assert (theirs.resolved, theirs.tests) == (ours.status == "resolved", ours.tests)


@needs_swebench
def test_where_we_are_stricter() -> None:
    """A line `ERROR: a` makes upstream's grader lose sight of a failed test."""
    text = log("FAILED a", "PASSED b", "ERROR: a", "FAILED c", code=1)
    theirs, ours = official.official(spec(["b"], ["a"]), text), judge(spec(["b"], ["a"]), text)
    assert theirs is not None
    assert (theirs.resolved, ours.status) == (True, "unresolved")


@needs_swebench
def test_a_log_that_breaks_the_official_parser_is_not_resolved() -> None:
    graded = finish("", log("a ... ok", "FAIL:"), Verdict("resolved", {}), spec(["a"], [], log_parser="django"))
    assert graded.official_resolved is False
    assert graded.notes == ("the SWE-bench grader failed: IndexError: list index out of range",)


@needs_swebench
def test_formats_that_only_swebench_reads() -> None:
    wanted = spec(["TestA"], ["TestB"], log_parser="parse_log_gotest", test_cmd="go test -v ./...")
    wanted.check()
    assert judge(wanted, log("--- PASS: TestA (0.00s)", "--- SKIP: TestB (0.00s)")).status == "resolved"
    assert judge(wanted, log("--- FAIL: TestA (0.00s)", code=1)).tests["FAIL_TO_PASS"]["failure"] == ["TestA"]
    assert judge(wanted, log("nothing")).notes == ("no test result in the output",)


@needs_swebench
def test_both_verdicts_stand_in_the_grade() -> None:
    wanted = spec(["a"], [])
    assert finish("", log("PASSED a"), judge(wanted, log("PASSED a")), wanted).official_resolved is True
    assert finish("", log("FAILED a"), judge(wanted, log("FAILED a")), wanted).official_resolved is False
    assert finish("", "", Verdict("empty_patch", {}), wanted).official_resolved is None
    assert official.official(spec(["a"], [], log_parser="unittest"), log("a ... ok")) is None


@needs_swebench
@pytest.mark.slow
def test_a_log_that_the_official_grader_does_not_come_to_the_end_of_costs_only_its_own_verdict() -> None:
    hostile = log(*["x ... Testing against Django installed in "] * 100_000, "a ... ok")
    wanted = spec(["a"], [], log_parser="django")
    started = time.perf_counter()
    graded = finish("", hostile, judge(wanted, hostile), wanted)
    assert time.perf_counter() - started < official.SECONDS + 60
    assert (graded.status, graded.official_resolved) == ("resolved", None)
    assert graded.notes == (f"the SWE-bench grader did not come to an end within {official.SECONDS} s, or of memory",)
    assert finish("", log("a ... ok"), Verdict("resolved", {}), wanted).official_resolved is True


@needs_swebench
def test_the_grader_stays_out_of_this_process_and_ends_with_it() -> None:
    process = subprocess.Popen([sys.executable, "-P", "-c", SCRIPT + "signal.pause()\n"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "Official(resolved=False, tests={}, note='') False\n"
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split(")")[1]:
        assert time.monotonic() < deadline, "the grader's process is still there"
        time.sleep(0.05)


@needs_swebench
def test_a_grader_that_was_killed_is_started_again() -> None:
    wanted = spec(["a"], [])
    assert official.official(wanted, log("PASSED a")) is not None
    for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        if "harness.official" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(int(child), signal.SIGKILL)
    theirs = official.official(wanted, log("PASSED a"))
    assert theirs is not None
    assert theirs.resolved is True


def test_an_unusable_swebench_is_said_once_and_done_without(tmp_path: Path) -> None:
    (tmp_path / "swebench").mkdir()
    (tmp_path / "swebench" / "__init__.py").write_text("__version__ = '4.0'\n")
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT * 2], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout == "None False\n" * 2
    assert done.stderr == (
        "the installed swebench cannot be used, so there is no official_resolved: ModuleNotFoundError: No module named 'swebench.harness'\n"
    )


@needs_none
def test_without_the_extra_there_is_no_official_verdict() -> None:
    wanted = spec(["a"], [])
    assert official.parsers() == frozenset()
    assert finish("", log("PASSED a"), judge(wanted, log("PASSED a")), wanted).official_resolved is None
    with pytest.raises(UserError, match=r"'parse_log_gotest' is not known.*pip install 'srl-harness\[swebench\]'"):
        spec(["a"], [], log_parser="parse_log_gotest").check()


def test_names_of_parsers_are_swebenchs() -> None:
    ours = {"pytest_verbose", "unittest", "junit", "r2e"}
    assert {name for name in PARSERS if not official.parsers() or name not in official.parsers()} >= ours
    assert not official.parsers() or set(PARSERS) - ours <= official.parsers()
