"""The step reward: format, then the similarity of the model's action to the expert's. Pure functions of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from harness.edit_reward import EditStep, edit_similarity
from harness.prompt import FormatError, Wire, parse_output
from harness.similarity import matched_characters
from harness_trajectories import Action, comparable

PENALTY = -1.0
"""The reward of an answer that cannot be scored for the model's own fault (arXiv 2510.25992, section 3)."""
LONGEST = 16_384
"""Characters that a compared action may have."""
MAX_WORK = 4e9
"""Cells of the comparison, a fifth of a second; two ordinary texts of `LONGEST` need a fifth of it, only degenerate ones
("aaaa…" against "abab…", which is cubic) more."""

Reward = Literal["similarity", "edit", "exact"]
Penalty = Literal["format", "length", "work"]
Failure = Literal["expert", "slow", "crashed"]


class Scored(NamedTuple):
    """The verdict on one completion."""

    reward: float | None
    """In [0, 1], or −1 with `penalty` set; None, with `failure` set: no fault of the model's, the sample must not be trained on."""
    format_ok: bool
    """A closed think span, then one well-formed action."""
    exact: bool
    """The action is the expert's, as compared texts."""
    penalty: Penalty | None
    failure: Failure | None = None
    """The expert's action is empty or too long to compare; or a scoring process (`harness/reward_pool.py`) was too slow or died."""
    edit: float | None = None
    """What stands in place of `reward` where edits are compared by what they do; None where they are not compared so."""

    def paid(self, kind: Reward) -> float | None:
        """The reward of this kind. Penalties are those of the similarity in each."""
        if kind == "exact" and self.reward is not None and self.penalty is None:
            return float(self.exact)
        return self.reward if kind != "edit" or self.edit is None else self.edit


def similarity(model_text: str, expert_text: str) -> float:
    """Ratcliff–Obershelp similarity 2M/T: exactly `difflib.SequenceMatcher(None, model_text, expert_text, autojunk=False).ratio()`.

    Autojunk is off because it makes the value jump where the expert text passes 200 characters. The work is not bounded here: the cost
    of degenerate texts is cubic.
    """
    value = _bounded_similarity(model_text, expert_text, float("inf"))
    assert value is not None
    return value


def expert_text(target: Sequence[Action]) -> str:
    """What the model's action is compared with: the compared texts of the expert's calls, each from a new line."""
    return "\n".join(comparable(action) for action in target)


def step_reward(completion: str, expert: str, wire: Wire, edit: EditStep | None = None) -> Scored:
    """Score what the model wrote for one step.

    −1 is given for a bad format or an unparseable call, for an action longer than `min(max(4 × expert, 4096), 16384)` characters, and for
    a comparison beyond `MAX_WORK`: the value is exact or it is the counted penalty.

    Args:
        completion: the whole text, think span included.
        expert: from `expert_text`.
        edit: the step, where the expert edits text that is known.
    """
    try:
        action = parse_output(completion, wire).action
    except FormatError:
        return Scored(PENALTY, False, False, "format")
    model = comparable(action)
    if not expert or len(expert) > LONGEST:
        return Scored(None, True, model == expert, None, "expert")
    if len(model) > min(max(4 * len(expert), 4096), LONGEST):
        return Scored(PENALTY, True, False, "length")
    effect = edit_similarity(action, edit, LONGEST, MAX_WORK) if edit else None
    if model == expert:
        return Scored(1.0, True, True, None, edit=effect)
    value = _bounded_similarity(model, expert, MAX_WORK)
    return Scored(PENALTY, True, False, "work") if value is None else Scored(value, True, False, None, edit=effect)


def _bounded_similarity(model: str, expert: str, max_work: float) -> float | None:
    """`similarity`, or None once the comparison exceeds `max_work` cells. The arithmetic is difflib's: the same float, not a near one."""
    matched = matched_characters(model, expert, max_work)
    if matched is None:
        return None
    length = len(model) + len(expert)
    return 2.0 * matched / length if length else 1.0
