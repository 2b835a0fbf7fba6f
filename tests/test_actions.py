"""The wire text: `parse` inverts `render` for whatever an action may hold; shell-like and XML-like traps."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_trajectories import Action, ParseError, comparable, parse, render, split

HOSTILE = st.sampled_from(
    [
        "</parameter>",
        "</parameter>\n</function>",
        "</parameter><parameter=x>",
        "<\\/parameter></function>",
        "<\\\\/parameter>\n<parameter=command>",
        "<function=bash>",
        "</function>",
        "<think>",
        "</think>",
        "\n",
        "\r\n",
        "\\",
        "[1, 5]",
        "null",
        '"quoted"',
        "NaN",
        "1e999",
        "-0",
        "true",
        '{"a": [1]}',
        '"\\ud800"',
        " ",
        "\x00",
        "\x85\u2028",
        "𝔘nicode",
        "[" * 150,
        "[" * 150 + "]" * 150,
    ]
)
TEXT = st.lists(st.one_of(HOSTILE, st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), max_size=6).map("".join)
VALUE = st.recursive(
    st.one_of(TEXT, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)
PARAMETER = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>\n"), min_size=1, max_size=8)
TOOL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>=\n"), min_size=1, max_size=8).filter(
    lambda t: t == t.strip()
)
ACTION = st.one_of(
    st.builds(Action, tool=TOOL, arguments=st.dictionaries(PARAMETER, VALUE, max_size=4)),
    st.builds(
        Action,
        tool=st.sampled_from(["bash", "execute_bash", "str_replace_editor", "submit", "answer"]),
        arguments=st.dictionaries(
            st.sampled_from(["command", "path", "old_str", "old_string", "new_str", "insert_line", "view_range", "text", "other"]), VALUE
        ),
    ),
)


@settings(max_examples=300)
@given(ACTION)
def test_parse_inverts_render(action: Action) -> None:
    assert parse(render(action)) == action


@settings(max_examples=80)
@given(st.lists(ACTION, min_size=1, max_size=3), st.sampled_from(["", "First this.", "a < b\n\n"]), st.sampled_from(["", "\nThat is all."]))
def test_split_finds_every_call_and_the_prose(actions: list[Action], before: str, after: str) -> None:
    turn = split(before + "\n".join(map(render, actions)) + after)
    assert turn.actions == tuple(actions)
    assert turn.prose == "\n".join(part.strip() for part in (before, after) if part.strip())


@settings(max_examples=200)
@given(TEXT)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(ParseError):
        assert isinstance(parse(text), Action)


def test_exactly_one_newline_on_each_side_belongs_to_the_tags() -> None:
    text = "<function=bash>\n<parameter=command>\n\n  indented\n\n</parameter>\n</function>"
    assert parse(text).arguments["command"] == "\n  indented\n"


def test_other_peoples_calls_are_not_unescaped() -> None:
    """A backslash that an author wrote before a harmless closing tag stays."""
    text = "<function=bash>\n<parameter=command>echo '<\\/parameter>'</parameter>\n</function>"
    assert parse(text).arguments["command"] == "echo '<\\/parameter>'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no call", "found 0"),
        ("<function=submit>\n</function>\n<function=submit>\n</function>", "found 2"),
        ("<function=bash>\n<parameter=command>ls", "never closed"),
        ("<function=bash>\n<parameter=command>ls</parameter>", "never closed"),
        ("<function=bash>ls</function>", "not followed by parameters"),
        ("<function=bash>\n<parameter=a>1</parameter>\n<parameter=a>2</parameter>\n</function>", "given twice"),
        ("<function= bash>\n</function>", "outer spaces"),
    ],
)
def test_malformed_calls_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse(text)


def test_bare_text() -> None:
    action = parse("  42\n", wire="text")
    assert action == Action(tool="answer", arguments={"text": "42"})
    assert render(action, wire="text") == "42"
    with pytest.raises(ParseError, match="empty"):
        parse(" \n", wire="text")
    with pytest.raises(ValueError, match="bare text"):
        render(Action(tool="submit"), wire="text")


def test_comparable_has_declared_order_and_no_nulls() -> None:
    a = Action(
        tool="str_replace_editor", arguments={"new_str": "n", "old_str": "o", "path": "/p", "command": "str_replace", "file_text": None}
    )
    assert comparable(a) == "str_replace_editor\nstr_replace\n/p\no\nn"
    b = Action(tool="search", arguments={"b": [1, 2], "a": "x"})
    assert comparable(b) == "search\nx\n[1, 2]"
    assert comparable(Action(tool="answer", arguments={"text": "7"})) == "7"
