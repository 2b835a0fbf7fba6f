"""Generated digit machines: a number of three digits goes through the lines of a programme, a step for each line.

    1: reverse , add 3
    2: swap 1 3 , double , rotate 2
    0. 471

A digit is 1 to 9, and arithmetic on it goes round from 9 to 1: every number has three digits, and one is guessed once in 729 times. A
solution has a line for each of the programme's, `1. 417`, the last in \\boxed{}. A line of several operations is worked out in one's head:
that is what reasoning is for here, and what may or may not be written out. Experts of some profiles write it out, of others they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import NamedTuple

Digits = tuple[int, ...]
WIDTH = 3


class Machines(NamedTuple):
    """A profile: what programmes look like, and how their solutions are written."""

    lines: tuple[int, int]
    """Fewest and most."""
    sizes: tuple[int, ...]
    """How many operations a line has, one of these."""
    operations: tuple[str, ...]
    careful: float = 0.0
    """Share of the steps whose reasoning goes from one operation to the next."""
    hasty: float = 0.0
    """Share of the steps whose reasoning names the operations and goes to the result at once. The others have none."""


KNOWN = ("reverse", "rotate", "swap", "add")
OTHERS = ("double", "mirror")
PROFILES: Mapping[str, Machines] = {
    "machines-corpus": Machines((1, 10), (1, 1, 2, 2, 3), KNOWN + OTHERS, careful=0.35, hasty=0.2),
    "machines": Machines((8, 8), (2, 3), KNOWN),
    "machines-told": Machines((8, 8), (2, 3), KNOWN, careful=1.0),
    "machines-long": Machines((10, 10), (2, 3), KNOWN),
    "machines-new": Machines((8, 8), (2, 3), KNOWN + OTHERS),
}
"""`machines-corpus` is to pretrain on; `machines` is the target, its experts silent; in `-told` they reason aloud; `-long` and `-new` are
to be evaluated on: more lines, and operations that no expert of `machines` uses."""


def _reverse(rng: Random, value: Digits) -> tuple[str, Digits]:
    return "reverse", value[::-1]


def _rotate(rng: Random, value: Digits) -> tuple[str, Digits]:
    by = rng.randint(1, WIDTH - 1)
    return f"rotate {by}", value[by:] + value[:by]


def _swap(rng: Random, value: Digits) -> tuple[str, Digits]:
    one, other = sorted(rng.sample(range(WIDTH), 2))
    digits = list(value)
    digits[one], digits[other] = digits[other], digits[one]
    return f"swap {one + 1} {other + 1}", tuple(digits)


def _add(rng: Random, value: Digits) -> tuple[str, Digits]:
    by = rng.randint(1, 8)
    return f"add {by}", tuple((digit - 1 + by) % 9 + 1 for digit in value)


def _double(rng: Random, value: Digits) -> tuple[str, Digits]:
    return "double", tuple((2 * digit - 1) % 9 + 1 for digit in value)


def _mirror(rng: Random, value: Digits) -> tuple[str, Digits]:
    return "mirror", tuple(10 - digit for digit in value)


OPERATIONS: Mapping[str, Callable[[Random, Digits], tuple[str, Digits]]] = {
    "reverse": _reverse,
    "rotate": _rotate,
    "swap": _swap,
    "add": _add,
    "double": _double,
    "mirror": _mirror,
}
"""Name → an operation with operands that are drawn, as it is written, and what it makes of a number."""


class Machine(NamedTuple):
    """A programme with its solution."""

    question: str
    answer: str
    steps: tuple[str, ...]
    thoughts: tuple[str, ...]
    """Of each step; empty where it has none."""


def machine(rng: Random, profile: Machines) -> Machine:
    """A programme, drawn by `rng`; profiles that differ in their reasoning alone draw the same one."""
    value = tuple(rng.randint(1, 9) for _ in range(WIDTH))
    start, programme, steps, thoughts = _text(value), [], [], []
    count = rng.randint(*profile.lines)
    for number in range(1, count + 1):
        told, before = [], value
        worked = []
        for _ in range(rng.choice(profile.sizes)):
            name, value = OPERATIONS[rng.choice(profile.operations)](rng, value)
            told.append(name)
            worked.append(f"{name} {_text(value)}")
        programme.append(f"{number}: {' , '.join(told)}")
        steps.append(f"{number}. {_text(value)}" if number < count else f"{number}. \\boxed{{{_text(value)}}}")
        style = rng.random()
        if style < profile.careful:
            thoughts.append(f"{_text(before)} {' '.join(worked)}")
        elif style < profile.careful + profile.hasty:
            thoughts.append(f"{_text(before)} {' '.join(told)} {_text(value)}")
        else:
            thoughts.append("")
    return Machine("\n".join([*programme, f"0. {start}"]), _text(value), tuple(steps), tuple(thoughts))


def _text(value: Digits) -> str:
    return "".join(map(str, value))
