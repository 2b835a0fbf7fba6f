"""`harness data rewrite` as a user runs it, against a `ScriptedServer`: what is kept, dropped, counted, and taken up again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.generate import Completion, ScriptedGenerator
from harness.prompt import Message
from harness.rewrite import BadAnswer, boxed, check, plain, rewrite
from harness.scripted_server import RawAnswer, ScriptedServer
from harness_envs.math import verify
from harness_envs.math_data import final_answer
from harness_trajectories import read

HARNESS = Path(sys.executable).with_name("harness")
GOOD = "1. **Add** We have $1 + 1 = 2$.\n2. **Conclude** So the sum is \\boxed{2}."


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    command = [str(HARNESS), "data", "rewrite", *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def call(*arguments: str | Path, **environment: str) -> tuple[int, Any, str]:
    """Exit code, the JSON document (None where there is none), stderr."""
    with start(*arguments, "--json", **environment) as process:
        stdout, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr, stderr
    return process.returncode, json.loads(stdout) if stdout else None, stderr


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sums(n: int) -> list[dict[str, Any]]:
    """Rows with the field names of s1K-1.1."""
    return [
        {
            "solution": str(2 * k),
            "question": f"What is {k} + {k}?",
            "cot_type": "math",
            "source_type": "sums",
            "metadata": {"level": 1},
            "deepseek_thinking_trajectory": f"Hmm, {k} and {k}. Wait.",
            "deepseek_attempt": f"We add {k} and {k}. The sum is \\boxed{{{2 * k}}}.",
        }
        for k in range(n)
    ]


def question_of(messages: list[Message]) -> str:
    return re.findall(r"What is (\d+) \+ \1\?", messages[-1]["content"])[0]


def right(messages: list[Message]) -> str:
    k = int(question_of(messages))
    return f"1. **Add** We add {k} and {k}.\n\n2. **Conclude** The sum is $\\boxed{{{2 * k}}}$."


def balanced(report: dict[str, Any]) -> bool:
    return bool(report["rows"] == report["written"] + report["already_done"] + sum(report["dropped"].values()) + len(report["errors"]))


def test_rows_of_the_shape_of_s1k_become_readable_steps(tmp_path: Path) -> None:
    rows = sums(20)
    with ScriptedServer(right) as server:
        code, report, _ = call(write(tmp_path / "s1k.jsonl", rows), "--model", server.spec, "--out", tmp_path / "steps.jsonl")
    assert (code, report["rows"], report["written"], report["asked"], report["answer_unchecked"]) == (0, 20, 20, 20, 0)
    assert balanced(report)
    kept = sorted(lines(tmp_path / "steps.jsonl"), key=lambda row: int(row["original_solution"]))
    for old, new in zip(rows, kept, strict=True):
        assert old == {**{name: new[name] for name in old}, "solution": new["original_solution"]}
        assert new["solution"].startswith("1. **Add** We add")
        assert (new["rewrite"]["source"], new["rewrite"]["model"]) == ("deepseek_attempt", "scripted")
    runs = list(read(tmp_path / "steps.jsonl"))
    assert [len(run.turns) for run in runs] == [2] * 20
    assert len({run.id for run in runs}) == 20
    imported = subprocess.run([HARNESS, "data", "import", tmp_path / "steps.jsonl", "--out", tmp_path / "d", "--json"], capture_output=True)
    assert json.loads(imported.stdout)["trajectories"] == 20


@pytest.mark.parametrize(("name", "column"), [("math500_first60", "solution"), ("aime24", "solution"), ("gsm8k_first100", "answer")])
def test_real_solutions_keep_their_answers(shared_data: Path, tmp_path: Path, name: str, column: str) -> None:
    """Reference: the math environment's own reading of an answer, and the answers that the benchmarks record."""

    def reply(messages: list[Message]) -> str:
        solution = messages[-1]["content"].rpartition("Solution:\n")[2]
        parts = [part for part in re.split(r"\n+|(?<=\.)  ?", solution) if part.strip(" .:\t")]
        parts.append(f"Hence \\boxed{{{final_answer(solution)}}}.")
        return "<think>1. **No** step</think>\n" + "\n".join(f"{n}. **Part {n}** {part}" for n, part in enumerate(parts, 1))

    path = shared_data / "math" / f"{name}.jsonl"
    with ScriptedServer(reply) as server:
        code, report, _ = call(path, "--model", server.spec, "--out", tmp_path / "o.jsonl", "--column", column)
    rows = lines(path)
    assert (code, report["written"], report["dropped"], report["errors"]) == (0, len(rows), {}, [])
    kept = lines(tmp_path / "o.jsonl")
    for row in kept:
        old = row["answer"] if column == "answer" else row["original_solution"]
        assert verify(row["solution"], str(row["answer"])) == verify(old, str(row["answer"]))
    assert sum(verify(row["solution"], str(row["answer"])) for row in kept) > 0.6 * len(rows)
    assert len({row["rewrite"]["key"] for row in kept}) == len(rows) == len(list(read(tmp_path / "o.jsonl")))


def test_bad_answers_are_asked_for_again_then_dropped_and_counted(tmp_path: Path) -> None:
    flaws: dict[str, Callable[[str], str]] = {
        "0": lambda text: text,
        "1": lambda text: "The sum is 2.",
        "2": lambda text: f"Here you are:\n{text}",
        "3": lambda text: text.replace("2. **", "3. **"),
        "4": lambda text: text.partition("\n\n")[0],
        "5": lambda text: text.replace("We add 5 and 5.", ""),
        "6": lambda text: text.replace("boxed{12}", "boxed{13}"),
        "7": lambda text: text.replace("\\boxed{14}", "14"),
    }

    def reply(messages: list[Message]) -> str:
        k = question_of(messages)
        cured = k == "3" and "the numbers of the steps must run 1, 2, 3" in messages[-1]["content"]
        return right(messages) if cured else flaws[k](right(messages))

    rows: list[Any] = [*sums(8), sums(1)[0], {"question": "What?"}, {"solution": "2"}, 7]
    source = write(tmp_path / "in.jsonl", rows)
    source.write_text(source.read_text() + '{"question": "torn')
    out = tmp_path / "out.jsonl"
    with ScriptedServer(reply) as server:
        code, report, stderr = call(source, "--model", server.spec, "--out", out, "--tries", "2")
        asked = Counter(question_of(request["messages"]) for request in server.requests)
        again = call(source, "--model", server.spec, "--out", out, "--tries", "2")[1]
        assert len(server.requests) == report["asked"] == 15
    assert code == 0
    assert asked == {"0": 1, **dict.fromkeys("1234567", 2)}
    assert (report["rows"], report["written"]) == (13, 2)
    assert report["dropped"] == {"format": 2, "one_step": 1, "empty_step": 1, "answer_changed": 1, "answer_missing": 1, "duplicate": 1}
    assert [error["line"] for error in report["errors"]] == [10, 11, 12, 13]
    assert f"{source}:10: no text under deepseek_attempt or attempt or solution; the row has: question" in stderr
    assert balanced(report)
    assert (again["written"], again["already_done"], again["asked"], len(again["errors"])) == (0, 9, 0, 4)
    assert balanced(again)
    dropped = {row["line"]: row for row in lines(tmp_path / "out.dropped.jsonl")}
    assert sorted(dropped) == [2, 3, 5, 6, 7, 8]
    assert dropped[7]["reason"] == "answer_changed"
    assert "\\boxed{13}" in dropped[7]["answer"]
    assert dropped[7]["why"] == "the final answer is 13, and that of the solution is 12"


def test_killed_in_the_middle_nothing_is_lost_or_asked_twice(tmp_path: Path) -> None:
    rows, out, gone = sums(120), tmp_path / "out.jsonl", tmp_path / "out.dropped.jsonl"
    source = write(tmp_path / "in.jsonl", rows)

    free = [0]  # rows that are answered at once; the others wait until the process is killed
    killed = threading.Event()

    def reply(messages: list[Message]) -> str:
        if int(question_of(messages)) >= free[0]:
            killed.wait(60)
        return "no" if int(question_of(messages)) % 5 == 0 else right(messages)

    def done() -> set[str]:
        return {row["question"] for row in lines(out)} | {rows[row["line"] - 1]["question"] for row in lines(gone)}

    def asked() -> Counter[str]:
        return Counter(f"What is {k} + {k}?" for k in (question_of(request["messages"]) for request in server.requests))

    with ScriptedServer(reply) as server:
        arguments = (source, "--model", server.spec, "--out", out, "--tries", "1", "--workers", "4")
        for target in (10, 40, 70):
            killed.clear()
            free[0] = target + target // 4 + 10
            process = start(*arguments)
            deadline = time.monotonic() + 60
            while (out.read_bytes().count(b"\n") if out.exists() else 0) < target and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed.set()
            finished, before = done(), asked()
            assert target < len(finished) < 120
            assert finished <= set(before)
            with out.open("a") as stream:
                stream.write('{"question": "What is 3 + 3?", "rewrite": {"ke')  # as if it had been killed in the middle of a line
        code, report, _ = call(*arguments)
    assert code == 0
    assert balanced(report)
    assert report["already_done"] == len(finished) == 120 - report["asked"]
    assert all(asked()[question] == before[question] for question in finished)
    assert sum(asked().values()) - 120 <= 3 * 8  # under way or not yet written when it was killed: two for each worker at most
    assert Counter(row["question"] for row in lines(out)) == Counter(row["question"] for k, row in enumerate(rows) if k % 5)
    assert sorted(row["line"] for row in lines(gone)) == list(range(1, 121, 5))


def test_ctrl_c_does_not_wait_for_the_server(tmp_path: Path) -> None:
    leave, entered = threading.Event(), threading.Event()

    def reply(messages: list[Message]) -> str:
        if int(question_of(messages)) >= 5:
            entered.set()
            leave.wait(300)
        return right(messages)

    source, out = write(tmp_path / "in.jsonl", sums(40)), tmp_path / "out.jsonl"
    with ScriptedServer(reply) as server:
        process = start(source, "--model", server.spec, "--out", out, "--workers", "4")
        assert entered.wait(60)
        while not out.exists() or len(out.read_bytes().splitlines()) < 5:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "the same command takes it up again" in stderr
        assert "Traceback" not in stderr
        leave.set()
        report = call(source, "--model", server.spec, "--out", out)[1]
    assert (report["written"], report["already_done"]) == (35, 5)
    assert len(lines(out)) == 40


def test_busy_and_refusing_servers(tmp_path: Path) -> None:
    """Refused rows are errors and are asked again by the next call; a busy server is asked again at once."""
    seen: Counter[str] = Counter()

    def reply(messages: list[Message]) -> str:
        k = question_of(messages)
        seen[k] += 1
        if k == "3" and seen[k] == 1:
            raise RawAnswer(400, '{"error": {"message": "9000 tokens are more than 8192"}}')
        if k == "4" and seen[k] <= 2:
            raise RawAnswer(429 if seen[k] == 1 else 500, "later", {"Retry-After-Ms": "5"})
        return right(messages)

    source, out = write(tmp_path / "in.jsonl", sums(6)), tmp_path / "out.jsonl"
    with ScriptedServer(reply) as server:
        code, report, stderr = call(source, "--model", server.spec, "--out", out)
        assert (code, report["written"], len(report["errors"])) == (0, 5, 1)
        assert "in.jsonl:4: " in stderr
        assert "9000 tokens are more than 8192" in stderr
        assert balanced(report)
        report = call(source, "--model", server.spec, "--out", out)[1]
    assert (report["written"], report["already_done"], report["errors"]) == (1, 5, [])
    assert seen == {"0": 1, "1": 1, "2": 1, "3": 2, "4": 3, "5": 1}


def test_endpoints_that_cannot_be_asked(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", sums(3)), tmp_path / "out.jsonl"

    def reply(messages: list[Message]) -> str:
        raise RawAnswer(200, "<html>Welcome</html>", {"Content-Type": "text/html"})

    with ScriptedServer(reply, key="sk-s3cret") as server:
        for spec, key, words in [
            ("http://127.0.0.1:9/v1#m", "sk-s3cret", "http://127.0.0.1:9/v1 cannot be reached"),
            (f"{server.url}#other", "sk-s3cret", "It serves: scripted"),
            (server.spec, "sk-wrong", "OPENAI_API_KEY"),
            (server.spec, "sk-s3cret", "no chat completion in JSON, but with <html>Welcome</html>"),
        ]:
            code, document, stderr = call(source, "--model", spec, "--out", out, OPENAI_API_KEY=key)
            assert (code, document, len(stderr.splitlines())) == (2, None, 1), stderr
            assert words in stderr
            assert "s3cret" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_the_key_is_written_nowhere(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", sums(3)), tmp_path / "out.jsonl"
    with ScriptedServer(lambda messages: "no" if "0 + 0" in messages[0]["content"] else right(messages), key="sk-s3cret") as server:
        code, report, stderr = call(source, "--model", server.spec, "--out", out, OPENAI_API_KEY="sk-s3cret")
    assert (code, report["written"], report["dropped"]) == (0, 2, {"format": 1})
    assert not [path for path in tmp_path.iterdir() if b"s3cret" in path.read_bytes()]
    assert "s3cret" not in json.dumps(report) + stderr


def test_what_lies_at_out_is_never_damaged(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", sums(3)), tmp_path / "out.jsonl"
    with ScriptedServer(right) as server, ScriptedServer(right, model="another") as other:
        assert call(source, "--model", server.spec, "--out", source)[0] == 2
        assert call(source, "--model", server.spec, "--out", tmp_path)[0] == 2
        for text in ('{"mine": 1}', '{"mine": 1}\n{"mine": 2}', "notes\n", '{"rewrite": {"key": 1}}\n'):
            out.write_text(text)
            code, _, stderr = call(source, "--model", server.spec, "--out", out)
            assert (code, out.read_text()) == (2, text)
            assert f"{out}:1: not a line of" in stderr
        assert call(source, "--model", server.spec, "--out", out, "--fresh")[1]["written"] == 3
        code, _, stderr = call(source, "--model", other.spec, "--out", out)
        assert code == 2
        assert "written with model 'scripted', not 'another'" in stderr
        assert call(source, "--model", other.spec, "--out", out, "--fresh")[1]["written"] == 3
    assert lines(source) == sums(3)
    assert len(list(tmp_path.glob("out.jsonl.*"))) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        (f"<think>let me see\n1. **No**</think>\n\n{GOOD}\n", None),
        (GOOD.replace("\n", "\r\n"), None),
        (GOOD.replace("\n", "\n\nA second paragraph.\n1. a plain list\n2. inside\n\n"), None),
        (GOOD.replace("\\boxed{2}", "$\\boxed{ 2. }$"), None),
        ("", "format"),
        (f"<think>{GOOD}", "format"),
        (GOOD.replace("1. **", "**"), "format"),
        (GOOD.replace("2. **", "1. **"), "format"),
        (GOOD.replace("1. **", "0. **").replace("2. **", "1. **"), "format"),
        (f"{GOOD}\n4. **Check** It is right, \\boxed{{2}}.", "format"),
        (GOOD.replace("\n2. **Conclude**", ""), "one_step"),
        (GOOD.replace("**Add**", "** **"), "empty_step"),
        (GOOD.replace(" We have $1 + 1 = 2$.", " :"), "empty_step"),
        (GOOD.replace("\\boxed{2}", "2"), "answer_missing"),
        (GOOD.replace("\\boxed{2}", "\\boxed{2"), "answer_missing"),
        (GOOD.replace("\\boxed{2}", "\\boxed{2} or \\boxed{3}"), "answer_changed"),
        (GOOD.replace("\\boxed{2}", "\\boxed{-2}"), "answer_changed"),
    ],
)
def test_the_format_check(text: str, reason: str | None) -> None:
    completion = Completion(text, 1, 1, "stop")
    if reason is None:
        steps = check(completion, "2")
        assert steps.startswith("1. **Add** We have")
        assert steps.endswith(".")
    else:
        with pytest.raises(BadAnswer) as raised:
            check(completion, "2")
        assert raised.value.reason == reason
    with pytest.raises(BadAnswer, match="cut off"):
        check(completion._replace(finish="length"), "2")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"\dfrac{1}{2}", r"\frac12", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\tfrac{\pi}{2})", True),
        ("1,234", "1234", True),
        (r"10{,}080", "10080", True),
        (r"\text{even}", "even", True),
        (r"50\%", "50%", True),
        ("x = 5", "5", False),
        (r"\frac{1}{2}", r"\frac{2}{1}", False),
        (r"\leftarrow", "arrow", False),
        ("(1,2)", "(12)", False),
        ("12", "21", False),
        ("A", "a", False),
        (r"\textbf{(C) }", "C", True),
        ("(1,2)", "1,2", False),
    ],
)
def test_answers_are_compared_without_layout(one: str, other: str, same: bool) -> None:
    assert (plain(one) == plain(other)) is same


def test_boxes_nest() -> None:
    assert boxed(r"first \boxed{1}, then $\boxed{\frac{1}{\sqrt{2}}}$.") == r"\frac{1}{\sqrt{2}}"
    assert boxed("no box") is boxed(r"\boxed{1}, then \boxed{never closed") is None


def test_any_generator_will_do_and_proofs_have_no_answer(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"problem": "Show that 1 + 1 is even.", "solution": "It is twice one."}])
    text = "1. **Add** It is two.\n2. **Divide** Two is twice one."
    report = rewrite(source, ScriptedGenerator(lambda messages: text), tmp_path / "out.jsonl")
    assert (report["written"], report["answer_unchecked"], report["model"]) == (1, 1, "scripted")
    assert lines(tmp_path / "out.jsonl")[0]["solution"] == text
