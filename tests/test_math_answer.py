"""Answers against references. What an answer is worth is known by hand, by recorded verdicts, or by the published solutions."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.pool import Pool
from harness_envs import math_answer
from harness_envs.math import MathConfig, MathEnv, verify
from harness_envs.math_answer import LONGEST, judge

GRADING = Path(__file__).parents[1] / "docs/math-grading.md"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"so it is $\boxed{\frac{3}{4}}$.", r"\dfrac34"),
        (r"\boxed{12\frac{3}{5}}", "63/5"),
        (r"\boxed{-\frac{1}{2}}", "-0.5"),
        (r"\boxed{10{,}000}", "10,000"),
        (r"The answer is: \$1,250.00", "1250"),
        ("#### 18", "18"),
        ("**Answer:** 42", "$42$"),
        ("step one: 3\nstep two: 3 + 4 = 7", "7"),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3,\frac{\pi}{2})"),
        (r"\boxed{2,1}", "1, 2"),
        (r"\boxed{5 \text{ or } 6}", "5,6"),
        (r"\boxed{x=5}", "5"),
        (r"\boxed{[-2,7]}", r"x \in [-2,7]"),
        (r"\boxed{90^\circ}", "90"),
        (r"\boxed{25\%}", "25"),
        (r"\boxed{42 \text{ cm}}", "42"),
        (r"\boxed{\text{Evelyn}}", "evelyn"),
        (r"\boxed{C}", r"\text{(C)}"),
        (r"\boxed{11\sqrt2}", r"11\sqrt{2}"),
        (r"\boxed{(x+1)^2}", r"x^2+2x+1"),
        (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"first \boxed{3}, then \boxed{4}", "4"),
        (r"\framebox{204}, \boxed {204}", "204"),
        ("073", "73"),
        (r"\boxed{0.333333}", "1/3"),
        (r"\boxed{4.5 \times 10^{33} \text{ erg/s}}", "4.5e33"),
        (r"\boxed{1.54 \cdot 10^{-10}}", "1.54e-10"),
    ],
)
def test_equal(answer: str, gold: str) -> None:
    assert verify(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\boxed{4}", "5"),
        (r"\boxed{(1,2)}", "(2,1)"),
        (r"\boxed{(1,2)}", "[1,2]"),
        (r"\boxed{1,2}", "1"),
        (r"\boxed{12", "12"),
        (r"\boxed{\frac{1}{0}}", "0"),
        ("", "0"),
        ("no number at all in these words", "0"),
        (r"\boxed{3} and 5", "5"),
        (r"\boxed{}", "0"),
        (r"\boxed{25}", "0.25"),
        (r"\boxed{\frac{1}{3}}", "0.33"),
        (r"\boxed{x}", "y"),
        (r"\boxed{B}", "A"),
        (r"\boxed{0}", "1.54e-10"),
        (r"\boxed{1.1 \times 10^{-10}}", "1.54e-10"),
    ],
)
def test_different(answer: str, gold: str) -> None:
    assert not verify(answer, gold)


def test_recorded_verdicts(shared_data: Path) -> None:
    """400 answers of Qwen2.5-Math with the verdicts of its grader. Every disagreement stands in docs/math-grading.md, with who is right."""
    differing = []
    count = 0
    with gzip.open(shared_data / "math" / "qwen25math_cot_outputs_with_verdicts_50.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            for number, (code, score) in enumerate(zip(row["code"], row["score"], strict=True), 1):
                count += 1
                ours = judge(code, row["gt"])
                if (ours.status == "resolved") != score:
                    differing.append(f"| {row['idx']}, {number} | `{row['gt']}` | `{ours.answer}` | {right(score)} | {right(not score)} |")
    assert count == 400
    assert differing == [line.rpartition(" | ")[0] + " |" for line in GRADING.read_text().splitlines() if re.match(r"\| \d+, ", line)]


def right(verdict: bool) -> str:
    return "right" if verdict else "wrong"


def test_published_solutions_give_their_answers(shared_data: Path) -> None:
    lines = (shared_data / "math" / "math500_first60.jsonl").read_text().splitlines()
    assert all(verify(row["solution"], row["answer"]) for row in map(json.loads, lines))


HOSTILE = {
    "a million digits": r"\boxed{" + "7" * 10**6 + "}",
    "a thousand digits to that power": r"\boxed{" + "9" * 1000 + "^{" + "9" * 1000 + "}}",
    "a tower": r"\boxed{9^{9^{9^{9^{9}}}}}",
    "a factorial": r"\boxed{99999999!}",
    "a binomial": r"\boxed{\binom{10^{10}}{10^9}}",
    "a sum": r"\boxed{\sum_{k=1}^{10^{9}} k^{k}}",
    "nested fractions": r"\boxed{" + r"\frac{1}{" * 5000 + "2" + "}" * 5000 + "}",
    "nested braces": r"\boxed{" + "{" * 20000 + "5" + "}" * 20000 + "}",
    "boxes in boxes": r"\boxed{" * 10**5 + "5" + "}" * 10**5,
    "boxes beside boxes": r"\boxed{5}" * 10**5,
    "open boxes": r"\boxed{" * 9000 + "5",
    "open brackets": r"\[" * 30000 + "5",
    "open answers": "answer is " * 6000,
    "code": r"\boxed{__import__('os').system('touch pwned')}",
    "a program": "import os\nos.system('touch pwned')\nos._exit(0)\n",
    "characters": "\\boxed{\x00\ud800\u202e5\ufffd}",
}


@pytest.fixture
def two_seconds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with Pool(math_answer.prepare, 4, 2.0) as pool:
        monkeypatch.setattr(math_answer, "_pool", pool)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: judge("5", "5"), range(8)))
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("two_seconds")
def test_a_hostile_answer_costs_its_limit_at_most_and_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, answer in HOSTILE.items():
        judge("5", "5")  # a process is ready again
        start = time.monotonic()
        verdict = judge(answer, "5")
        spent = time.monotonic() - start
        assert verdict.status != "resolved", name
        assert spent < 4, name  # twice the limit
        assert verdict.note or verdict.status == "unresolved", name
        assert len(verdict.answer or "") <= math_answer.SHOWN
    assert list(tmp_path.iterdir()) == []
    assert judge(HOSTILE["a tower"], "5").note == "verifying the answer took more than 2 s"


@pytest.mark.usefixtures("two_seconds")
def test_many_threads_and_a_hostile_one_among_them() -> None:
    answers = [HOSTILE["a tower"] if n == 20 else rf"\boxed{{{n % 7}}}" for n in range(200)]
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda answer: judge(answer, "5").status, answers))
    assert found == ["timeout" if n == 20 else "resolved" if n % 7 == 5 else "unresolved" for n in range(200)]


def test_the_answer_that_counts_is_shown() -> None:
    assert judge("It is 3, so\n\\boxed{ \\frac12 }.", "1/2") == ("resolved", r"\frac12", "")
    assert judge("The answer is 12.", "13")[:2] == ("unresolved", "12")
    assert judge("who knows", "13") == ("unresolved", None, "")
    assert judge("x" * (LONGEST + 1), "13").note == f"the answer has {LONGEST + 1} characters; {LONGEST} are looked at"
    assert judge(r"\boxed{no}", "{{").note == "the reference is no formula to math-verify, and compared as text"


def test_a_grade_names_answer_and_reference() -> None:
    env = MathEnv(MathConfig(), lambda: pytest.fail("math needs no sandbox"))
    env.reset(next(iter(MathEnv.tasks(MathConfig(), "test"))))
    nothing = env.grade()
    assert (nothing.score, nothing.notes) == (0, ("no answer",))
    env.answer(r"\boxed{-3.5}")
    grade = env.grade()
    assert (grade.score, grade.status, grade.notes) == (0, "unresolved", ("answer: -3.5", f"reference: {env.task.gold_answer}"))
