"""Whether an answer has the value of the reference, as math-verify says, in processes of their own under a time limit.

An answer is hostile until proven otherwise: sympy computes what it is told to, `9^{9^{9^9}}` too. What is late, or ends its process, is
wrong; the caller waits no longer than the limit. Any number of threads may ask.
"""

from __future__ import annotations

import logging
import math
import os
import re
import resource
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from harness.pool import Crashed, Late, Pool
from harness.rewrite import boxed

LIMIT = 5.0
"""Seconds for one answer; honest ones take milliseconds."""
LONGEST = 65_536
"""Characters of an answer that is looked at."""
MEMORY = 2 << 30
"""Bytes that a process may address."""
SHOWN = 200
_SCIENTIFIC = re.compile(r"(?<=\d)[eE](?=[+-]?\d)([+-]?\d+)")


class Verdict(NamedTuple):
    """What became of one answer."""

    status: Literal["resolved", "unresolved", "timeout"]
    answer: str | None
    """The part of the text that counts, cut to `SHOWN` characters; None where there is nothing like an answer."""
    note: str = ""
    """Why it could not be compared by value."""


def judge(text: str, gold: str) -> Verdict:
    """The verdict on an answer. What stands in its last `\\boxed{}` counts, else what math-verify finds: what follows `answer is`, the last
    formula, the last number.

    Args:
        gold: the reference, as LaTeX or plain; it is trusted.

    Raises:
        RuntimeError: no process can be started.
    """
    if len(text) > LONGEST:
        return Verdict("unresolved", None, f"the answer has {len(text)} characters; {LONGEST} are looked at")
    box = boxed(text)
    try:
        return _pool.call(text if box is None else None, box, gold)
    except (Late, Crashed) as error:
        shown = box[:SHOWN] if box is not None else None
        return Verdict("timeout" if isinstance(error, Late) else "unresolved", shown, f"verifying the answer {error}")


def prepare() -> Callable[[str | None, str | None, str], Verdict]:
    """What a process of the pool does first."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time limit of its own here
    import math_verify

    def parse(text: str) -> list[Any]:
        found: list[Any] = math_verify.parse(text, parsing_timeout=None)
        return found

    @lru_cache(maxsize=256)
    def reference(gold: str) -> list[Any]:
        return parse(f"${_plain(gold).strip('$')}$")

    def judge(text: str | None, box: str | None, gold: str) -> Verdict:
        wanted = reference(gold)
        found = parse(f"\\boxed{{{_plain(box)}}}" if box is not None else str(text).replace("\\$", "$"))
        answer = box if box is not None else next((part for part in found if isinstance(part, str)), None)
        right = math_verify.verify(wanted, found, float_rounding=_decimals(wanted), timeout_seconds=None)
        note = (
            "" if any(not isinstance(part, str) for part in wanted) else "the reference is no formula to math-verify, and compared as text"
        )
        return Verdict("resolved" if right else "unresolved", answer[:SHOWN] if answer is not None else None, note)

    judge("1", None, "1")  # the grammar is compiled before any answer's time runs
    return judge


def _plain(formula: str) -> str:
    """`4.5e33`, which as LaTeX would be 4.5 · e · 33, as a power of ten."""
    return _SCIENTIFIC.sub(r"\\times 10^{\1}", formula)


def _decimals(wanted: list[Any]) -> int:
    """Decimals to which floats are compared: math-verify's own six, and four digits of a reference that is small, lest 1.5e-10 equal 0."""
    try:
        size = abs(float(wanted[0]))
        return max(6, 3 - math.floor(math.log10(size)))
    except (TypeError, ValueError, IndexError, OverflowError, ArithmeticError):
        return 6


_pool = Pool(prepare, min(8, os.cpu_count() or 1), LIMIT)
