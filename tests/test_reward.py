"""The step reward against the standard library's difflib, which nobody here wrote."""

from __future__ import annotations

import difflib
import json
import random
from pathlib import Path

import pytest

from harness import reward
from harness.reward import Scored, expert_text, similarity, step_reward
from harness_trajectories import Action, comparable, render, split

BASH = Action(tool="bash", arguments={"command": "ls -la src"})
EDIT = Action(
    tool="str_replace_editor",
    arguments={"command": "str_replace", "path": "a.py", "old_str": "x = 1", "new_str": "x = 2"},
)


def reference(model: str, expert: str) -> float:
    return difflib.SequenceMatcher(None, model, expert, autojunk=False).ratio()


def random_text(rng: random.Random) -> str:
    kind = rng.randrange(5)
    length = rng.randrange(40)
    if kind == 0:
        return "".join(rng.choice("ab") for _ in range(length))
    if kind == 1:
        return rng.choice(["a", "ab", "abc", "aab", " ", "\n"]) * rng.randrange(12)
    if kind == 2:
        return "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x2500, 0x2520), 0x1F600])) for _ in range(length))
    words = ["return", "x", "y", "+", "-", "1", "self.", "(", ")", "\n    ", "if", "<", "<="]
    text = " ".join(rng.choice(words) for _ in range(rng.randrange(12)))
    if kind == 3:
        return text
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(words) + text[at + 1 :]


def test_similarity_equals_difflib_on_random_pairs() -> None:
    rng = random.Random(0)
    for _ in range(20_000):
        model, expert = random_text(rng), random_text(rng)
        value = reference(model, expert)
        assert similarity(model, expert) == value, (model, expert)


def test_similarity_equals_difflib_on_long_and_repetitive_pairs() -> None:
    rng = random.Random(1)
    pairs = [("a" * 300, "ab" * 150), ("", "x"), ("", ""), ("x" * 400, "x" * 200), ("ab" * 120, "ba" * 130)]
    pairs += [("".join(rng.choice("abc \n") for _ in range(250)), "".join(rng.choice("abc \n") for _ in range(260))) for _ in range(20)]
    for model, expert in pairs:
        assert similarity(model, expert) == reference(model, expert)


def test_similarity_equals_difflib_on_real_actions(shared_data: Path) -> None:
    file = shared_data / "trajectories/swesmith_sft_xml_claude-3-7-sonnet/ft_xml_example.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    texts = []
    for row in rows:
        messages = json.loads(row["messages"]) if isinstance(row["messages"], str) else row["messages"]
        for message in messages:
            if message["role"] == "assistant":
                content = message["content"]
                content = content if isinstance(content, str) else "".join(block["text"] for block in content)
                texts += [comparable(action) for action in split(content).actions]
    assert len(texts) > 50
    rng = random.Random(2)
    short = [text for text in texts if len(text) < 1500]
    for _ in range(150):
        model, expert = rng.choice(short), rng.choice(short)
        assert similarity(model, expert) == reference(model, expert)


def test_the_expert_action_earns_one_and_a_near_miss_less() -> None:
    expert = expert_text([EDIT])
    right = step_reward(f"<think>fix</think>\n{render(EDIT)}", expert, "calls")
    assert right == Scored(1.0, True, True, None)
    near = EDIT.model_copy(update={"arguments": {**EDIT.arguments, "new_str": "x = 3"}})
    scored = step_reward(f"<think></think>{render(near)}", expert, "calls")
    assert scored.reward == reference(comparable(near), expert)
    assert scored.format_ok
    assert not scored.exact


@pytest.mark.parametrize(
    "text",
    [
        render(BASH),
        "<think>never closed",
        "<think></think>",
        "<think></think>\nno call",
        f"<think></think>{render(BASH)}{render(BASH)}",
        "<think></think><function=bash><parameter=command>ls</function>",
    ],
)
def test_bad_format_earns_the_penalty(text: str) -> None:
    assert step_reward(text, expert_text([BASH]), "calls") == Scored(-1.0, False, False, "format")


def test_bare_text_actions_are_scored_as_text() -> None:
    assert step_reward("<think>1+1</think>\n 2 ", "2", "text") == Scored(1.0, True, True, None)
    assert step_reward("<think>1+1</think>\n ", "2", "text").penalty == "format"


def test_an_overlong_action_earns_the_counted_penalty() -> None:
    expert = expert_text([BASH])
    at_limit = Action(tool="bash", arguments={"command": "x" * (4096 - len("bash\n"))})
    beyond = Action(tool="bash", arguments={"command": "x" * (4097 - len("bash\n"))})
    assert step_reward(f"<think></think>{render(at_limit)}", expert, "calls").penalty is None
    assert step_reward(f"<think></think>{render(beyond)}", expert, "calls") == Scored(-1.0, True, False, "length")


def test_a_degenerate_comparison_earns_the_counted_penalty_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward, "MAX_WORK", 1e7)
    scored = step_reward("<think></think>" + "a" * 1000, "ab" * 500, "text")
    assert scored == Scored(-1.0, True, False, "work")


def test_a_sample_without_a_usable_expert_action_is_unscorable() -> None:
    assert step_reward("<think></think>x", "", "text") == Scored(None, True, False, None, "expert")
    assert step_reward("<think></think>x", "y" * 20_000, "text") == Scored(None, True, False, None, "expert")


def test_several_expert_calls_are_compared_as_one_text() -> None:
    assert expert_text([BASH, EDIT]) == f"{comparable(BASH)}\n{comparable(EDIT)}"


def test_the_exact_reward_pays_the_expert_action_alone() -> None:
    expert = expert_text([Action(tool="answer", arguments={"text": "1. 4719"})])
    scores = [step_reward(f"<think></think>{text}", expert, "text") for text in ("1. 4719", "1. 4718", "")]
    assert [score.paid("exact") for score in scores] == [1.0, 0.0, -1.0]
    assert step_reward("<think></think>x", "", "text").paid("exact") is None
