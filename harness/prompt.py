"""Messages → model input and model output → action. Training and evaluation both go through here, so that they cannot differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from harness_trajectories import Action, ParseError, parse, render
from harness_trajectories.steps import ContextPolicy, Exchange

Wire = Literal["calls", "text"]
POLICY_FILE = "harness_prompt.json"

FORMAT = {
    "calls": (
        "First think about the next step between <think> and </think>. After </think> write exactly one function call and nothing else:\n"
        "<function=NAME>\n<parameter=PARAMETER>value</parameter>\n</function>"
    ),
    "text": "First think between <think> and </think>. After </think> write your answer and nothing else.",
}
"""What every full system prompt says about the output, by wire format."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, for a tokenizer that brings no template of its own."""

OBSERVATION = "OBSERVATION:\n"
NOTE = ("\n\n(", " earlier steps are not shown.)")
"""Stands below the task, with the number of omitted exchanges between its parts."""
NEXT = "The next step: "
_SMALLEST = 200


class Message(TypedDict):
    role: str
    content: str


class FormatError(ValueError):
    """The model's text is not `<think>…</think>` followed by one action."""


class Output(NamedTuple):
    thought: str
    action: Action


class PromptPolicy(BaseModel):
    """Everything besides the weights that decides what the model reads. Saved in the checkpoint, obeyed by evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: ContextPolicy = ContextPolicy()
    max_prompt_tokens: int = Field(default=8192, ge=16)
    env: dict[str, Any] = Field(default_factory=dict)
    """The environment's options that change the prompt (the swe environments' `brief`)."""

    def save(self, directory: Path) -> None:
        (directory / POLICY_FILE).write_text(self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> PromptPolicy | None:
        """The policy of a checkpoint; None where it has none, as a model that was not trained here."""
        path = directory / POLICY_FILE
        return cls.model_validate_json(path.read_text()) if path.is_file() else None


def messages(system: str, prompt: str, history: Sequence[Exchange], wire: Wire, omitted: int = 0, heading: str = "") -> list[Message]:
    """The conversation before the next action.

    With `calls`, an exchange is an assistant turn (the call) and a user turn (the observation). With `text`, earlier steps of the solution
    stand below the task in the one user turn: they are not answers to anything. Below them stands the heading of the next one, where it is
    to be shown.
    """
    if wire == "text":
        steps = "\n".join(render(action, wire) for exchange in history for action in exchange.actions)
        content = "\n\n".join(part for part in (prompt, steps, f"{NEXT}{heading}" if heading else "") if part)
        return [*([Message(role="system", content=system)] if system else []), Message(role="user", content=content)]
    note = f"{NOTE[0]}{omitted}{NOTE[1]}" if omitted else ""
    conversation = [*([Message(role="system", content=system)] if system else []), Message(role="user", content=prompt + note)]
    for exchange in history:
        conversation.append(Message(role="assistant", content="\n".join(render(action) for action in exchange.actions)))
        conversation.append(Message(role="user", content=OBSERVATION + exchange.observation))
    return conversation


class Fitted(NamedTuple):
    messages: list[Message]
    cuts: Counter[str]
    """What was cut to fit: `observation`, `exchange` (a whole one dropped), `task`; empty where nothing was."""


class Shown(NamedTuple):
    """What a prompt shows of a task and its history."""

    prompt: str
    history: Sequence[Exchange]
    omitted: int


def fit(
    system: str,
    prompt: str,
    history: Sequence[Exchange],
    wire: Wire,
    omitted: int,
    max_tokens: int,
    count: Callable[[list[Message]], int],
) -> Fitted:
    """The conversation within `max_tokens`, cut by `shorten`.

    Args:
        count: tokens of a conversation as the model will see it, generation prompt included.

    Raises:
        ValueError: the system prompt alone does not fit.
    """

    def built(shown: Shown) -> list[Message]:
        return messages(system, shown.prompt, shown.history, wire, shown.omitted)

    shown, cuts = shorten(Shown(prompt, history, omitted), max_tokens, lambda shown: count(built(shown)))
    return Fitted(built(shown), cuts)


def shorten(shown: Shown, max_tokens: int, count: Callable[[Shown], int]) -> tuple[Shown, Counter[str]]:
    """What fits into `max_tokens`, and the cuts: long observations lose their middle, then the oldest exchanges go, then the task's middle.

    Args:
        count: tokens of the prompt that shows this much.

    Raises:
        ValueError: the system prompt alone does not fit.
    """
    prompt, history, omitted = shown
    kept = list(history)
    cuts: Counter[str] = Counter()
    while (tokens := count(Shown(prompt, kept, omitted))) > max_tokens:
        longest = max(range(len(kept)), key=lambda i: len(kept[i].observation), default=None)
        if longest is not None and len(kept[longest].observation) > _SMALLEST:
            text = kept[longest].observation
            kept[longest] = kept[longest].model_copy(update={"observation": cut_middle(text, max(_SMALLEST, len(text) // 2))})
            cuts["observation"] += 1
        elif kept:
            kept.pop(0)
            omitted += 1
            cuts["exchange"] += 1
        elif len(prompt) > _SMALLEST:
            prompt = cut_middle(prompt, max(_SMALLEST, len(prompt) * 3 // 4))
            cuts["task"] += 1
        else:
            raise ValueError(f"the prompt does not fit into {max_tokens} tokens even without history: it has {tokens}")
    return Shown(prompt, kept, omitted), cuts


def cut_middle(text: str, limit: int) -> str:
    """Head and tail of `text`, `limit` characters in all with the mark between them."""
    if len(text) <= limit:
        return text
    mark = f"\n[... {len(text) - limit} characters cut ...]\n"
    keep = max(0, limit - len(mark))
    return text[: keep - keep // 2] + mark + text[len(text) - keep // 2 :]


def completion(thought: str, actions: Sequence[Action], wire: Wire) -> str:
    """The text that the model is to write: the thought in its span (empty where there is none), then the action."""
    return f"<think>{thought}</think>\n" + "\n".join(render(action, wire) for action in actions)


def parse_output(text: str, wire: Wire) -> Output:
    """Thought and action of a model's text. Everything after the first `</think>` is the action.

    Raises:
        FormatError: no closed think span at the start, or what follows is not one action.
    """
    stripped = text.lstrip()
    if not stripped.startswith("<think>"):
        raise FormatError("the answer must start with <think>")
    thought, closed, rest = stripped.removeprefix("<think>").partition("</think>")
    if not closed:
        raise FormatError("<think> is never closed with </think>")
    try:
        return Output(thought, parse(rest, wire))
    except ParseError as error:
        raise FormatError(f"after </think>: {error}") from None
