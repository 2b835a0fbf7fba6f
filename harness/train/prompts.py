"""Steps → prompts as token slices: a message is tokenised once, a prompt is put together when a batch needs it.

A ChatML message begins with a special token, where every tokenizer starts anew: the tokens of a prompt are those of its messages, one
after the other. That is proven, not trusted: the template is probed, the text of every trajectory is compared with what the template
renders, and of some prompts in all the ids. What is not proven is tokenised as whole prompts, which costs more and is said.

The text of a special token inside a message (`<|im_end|>` in an observation) becomes that token, as wherever rendered prompts are
tokenised: training reads what evaluation reads.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import tokenizers
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from harness.generate_hf import prompt_ids
from harness.prompt import NOTE, Message, Shown, Wire, messages, shorten
from harness_trajectories.errors import UserError
from harness_trajectories.steps import Exchange, StepExample
from harness_trajectories.tokens import Encode, TokenStore

START, END = "<|im_start|>", "<|im_end|>\n"
PROVED = 8
"""Prompts of which the ids are compared, with at most `PROVED_EXCHANGES` of their last exchanges: more would be more of the same."""
PROVED_EXCHANGES = 4


class Prompt(NamedTuple):
    """A prompt of a step, not yet put together."""

    store: TokenStore
    parts: tuple[int, ...]

    def ids(self) -> list[int]:
        """What the model reads, generation prompt included."""
        ids: list[int] = self.store.join(self.parts).tolist()
        return ids


class Unframed(ValueError):
    """A template or tokenizer whose prompts are not their messages, one after the other."""


class Framing(NamedTuple):
    """What a ChatML template writes around the messages."""

    first: dict[str, str]
    """Role of the first message → what stands before it (Qwen's own system prompt where none is given)."""
    last: str
    """The generation prompt."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Framing:
        """Found by probing: conversations with and without a system prompt, of several lengths, with white space at every edge.

        Raises:
            Unframed: the template is no plain ChatML, or its tokens are no special ones.
            UserError: the template refuses such conversations.
        """
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values() if tokenizer.is_fast else ()
        if tokenizer.split_special_tokens:
            raise Unframed("the tokenizer splits special tokens")
        if not any(token.content == START and not (token.lstrip or token.normalized or token.single_word) for token in added):
            raise Unframed(f"{START} is no special token of the tokenizer")
        found: dict[str, set[tuple[str, str]]] = {}
        for system in ("", " \n system\n "):
            for length in range(3):
                history = [Message(role=role, content=f"\n {role} {n}\n ") for n in range(length) for role in ("assistant", "user")]
                probe = [*_system(system), Message(role="user", content=" \ntask\n "), *history]
                text = _rendered(tokenizer, probe)
                before, body, after = text.partition("".join(map(_framed, probe)))
                if not body:
                    raise Unframed("the chat template writes messages in another way than ChatML, or not all alike")
                found.setdefault(probe[0]["role"], set()).add((before, after))
        openings = {role: before for role, edges in found.items() for before, _ in edges}
        endings = {after for edges in found.values() for _, after in edges}
        if any(len(edges) > 1 for edges in found.values()) or len(endings) > 1 or not endings <= {f"{START}assistant\n"}:
            raise Unframed("what the chat template writes around the messages depends on them")
        return cls(openings, endings.pop())

    def text(self, conversation: list[Message]) -> str:
        """The prompt of a conversation."""
        return "".join([self.first[conversation[0]["role"]], *map(_framed, conversation), self.last])


class Prompts:
    """Makes prompts of steps.

    Args:
        directory: of the token store.
        read_only: another process has made the prompts of the same steps there.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, directory: Path, read_only: bool = False) -> None:
        self._tokenizer = tokenizer
        encode = encoder(tokenizer)
        self.store = TokenStore(directory, encode, _identity(tokenizer), len(tokenizer), read_only)
        self._framing: Framing | None = None
        try:
            self._framing = Framing.of(tokenizer)
        except (Unframed, UserError) as reason:
            print(f"every prompt is tokenised whole, which takes longer than message by message: {reason}", file=sys.stderr)
        self._splits_note = self._framing is not None and _splits_note(encode)
        self._whole: set[tuple[str, Wire]] = set()
        self._beginnings: dict[tuple[str, str, int], tuple[int, ...]] = {}
        self._exchanges: dict[int, tuple[Exchange, tuple[int, ...]]] = {}  # by identity; the value keeps the exchange alive

    def tokenize(self, steps: Sequence[StepExample], systems: dict[Wire, str]) -> None:
        """Tokenise all that the steps show, in large batches, and prove that prompts may be put together from it.

        Raises:
            UserError: the chat template refuses such conversations.
        """
        unlike = 0
        for (_, wire), group in groupby(steps, lambda step: (step.trajectory_id, step.wire)):
            unlike += not self._tokenize(list(group), systems[wire]) and wire == "calls"
        if unlike and self._framing is not None:
            print(f"prompts of {unlike} trajectories are tokenised whole: the chat template changes a message of theirs", file=sys.stderr)
        chosen = [(step, systems[step.wire], _end(step)) for step in steps[:: max(1, len(steps) // PROVED)]]
        texts = [_rendered(self._tokenizer, _messages(step, shown, system)) for step, system, shown in chosen]
        whole = self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        if [self.store.join(self._parts(step, shown, system)).tolist() for step, system, shown in chosen] != whole:
            assert self._framing is not None, "tokens of a batch are not those of its texts"
            print("every prompt is tokenised whole: the tokens of its messages are not those of the prompt", file=sys.stderr)
            self._framing = None
            self.tokenize(steps, systems)

    def _tokenize(self, steps: list[StepExample], system: str) -> bool:
        """Tokenise what the steps of one trajectory show; whether it could be done message by message.

        The prompts of bare-text steps share no message but the system's, and are tokenised whole.
        """
        if self._framing is not None and steps[0].wire == "calls":
            exchanges = {id(exchange): exchange for step in steps for exchange in step.history}
            conversation = messages(system, steps[0].prompt, list(exchanges.values()), "calls")
            if _rendered(self._tokenizer, conversation) == self._framing.text(conversation):
                parts = map(self.store.add, map(_framed, conversation[-2 * len(exchanges) :]))
                for name, exchange in exchanges.items():
                    self._exchanges[name] = exchange, (next(parts), next(parts))
                for step in steps:
                    self._beginning(system, step.prompt, step.omitted)
                return True
        self._whole.add((steps[0].trajectory_id, steps[0].wire))
        for step in steps:
            self._parts(step, _shown(step), system)
        return False

    def fit(self, step: StepExample, system: str, max_tokens: int) -> tuple[Prompt, Counter[str]]:
        """A step's prompt, at most `max_tokens` long, and what was cut: `harness.prompt.fit` without tokenising anything twice.

        Raises:
            ValueError: the system prompt alone does not fit.
        """
        lengths: dict[int, tuple[Exchange, int]] = {}

        def length(exchange: Exchange) -> int:
            if (known := lengths.get(id(exchange))) is None:
                stored = self._exchanges.get(id(exchange))  # a cut one is counted alone: most are tried and not shown
                tokens = self.store.length(stored[1]) if stored else sum(map(self.store.count, _turns(exchange)))
                known = lengths[id(exchange)] = exchange, tokens
            return known[1]

        def count(shown: Shown) -> int:
            if shown.prompt == step.prompt:
                beginning = self.store.length(self._beginning(system, shown.prompt, shown.omitted))
            else:
                beginning = sum(map(self.store.count, self._first_texts(system, shown.prompt, shown.omitted)))
            return beginning + sum(map(length, shown.history)) + self.store.length(self._ending)

        def count_whole(shown: Shown) -> int:
            return len(prompt_ids(self._tokenizer, _messages(step, shown, system)))

        shown, cuts = shorten(_shown(step), max_tokens, count_whole if self._is_whole(step) else count)
        return Prompt(self.store, self._parts(step, shown, system)), cuts

    def _parts(self, step: StepExample, shown: Shown, system: str) -> tuple[int, ...]:
        """The texts that a prompt consists of."""
        if self._is_whole(step):
            return (self.store.add(_rendered(self._tokenizer, _messages(step, shown, system))),)
        exchanges = [part for exchange in shown.history for part in self._exchange(exchange)]
        return (*self._beginning(system, shown.prompt, shown.omitted), *exchanges, *self._ending)

    def _exchange(self, exchange: Exchange) -> tuple[int, ...]:
        if (known := self._exchanges.get(id(exchange))) is not None:
            return known[1]
        return tuple(map(self.store.add, _turns(exchange)))

    @property
    def _ending(self) -> tuple[int]:
        assert self._framing is not None
        return (self.store.add(self._framing.last),)

    def _beginning(self, system: str, prompt: str, omitted: int) -> tuple[int, ...]:
        if (system, prompt, omitted) not in self._beginnings:
            self._beginnings[system, prompt, omitted] = tuple(map(self.store.add, self._first_texts(system, prompt, omitted)))
        return self._beginnings[system, prompt, omitted]

    def _first_texts(self, system: str, prompt: str, omitted: int) -> list[str]:
        """System prompt and task. The number of omitted steps is a text of its own: so a task is stored once, not once for each number."""
        assert self._framing is not None
        conversation = messages(system, prompt, [], "calls", omitted)
        texts = [_framed(message) for message in conversation]
        if omitted and self._splits_note:
            head, _, tail = texts.pop().rpartition(f"{NOTE[0]}{omitted}{NOTE[1]}")
            texts += [head + NOTE[0], str(omitted), NOTE[1] + tail]
        texts[0] = self._framing.first[conversation[0]["role"]] + texts[0]
        return texts

    def _is_whole(self, step: StepExample) -> bool:
        return self._framing is None or (step.trajectory_id, step.wire) in self._whole


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Token ids of a batch of texts, on all cores, as calling the tokenizer gives them.

    It works on a copy: a fast tokenizer is not to be used while another thread sets padding on it.
    """
    if not tokenizer.is_fast:
        return lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return lambda texts: [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that ids depend on. Padding and truncation, which others may have left set, are not part of it."""
    if not tokenizer.is_fast:
        return json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    definition = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    return json.dumps([tokenizers.__version__, tokenizer.split_special_tokens, definition])


def _splits_note(encode: Encode) -> bool:
    """Whether the number in the note below the task has tokens of its own, whatever number it is and whatever the task ends with."""
    cases = [("x", number) for number in range(1, 1000)]
    cases += [(end, number) for end in ("(", ".", "9", "\n", " ", "é", "\u0301") for number in (1, 20, 456, 1234)]
    parts = [(f"{START}user\n{end}{NOTE[0]}", str(number), f"{NOTE[1]}{END}") for end, number in cases]
    whole = encode(["".join(part) for part in parts])
    pieces = [encode(list(piece)) for piece in zip(*parts, strict=True)]
    return all(list(ids) == [*a, *b, *c] for ids, a, b, c in zip(whole, *pieces, strict=True))


def _rendered(tokenizer: PreTrainedTokenizerBase, conversation: list[Message]) -> str:
    """The text of a prompt.

    Raises:
        UserError: the template refuses it.
    """
    try:
        text: str = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise UserError(f"the model's chat template refuses a conversation of {[m['role'] for m in conversation]}: {error}") from None
    return text


def _framed(message: Message) -> str:
    return f"{START}{message['role']}\n{message['content']}{END}"


def _turns(exchange: Exchange) -> list[str]:
    """The call and the observation, as framed messages."""
    return [_framed(message) for message in messages("", "", [exchange], "calls")[1:]]


def _system(text: str) -> list[Message]:
    return [Message(role="system", content=text)] if text else []


def _shown(step: StepExample) -> Shown:
    return Shown(step.prompt, step.history, step.omitted)


def _end(step: StepExample) -> Shown:
    """What a step shows, without its older exchanges."""
    history = step.history[-PROVED_EXCHANGES:]
    return Shown(step.prompt, history, step.omitted + len(step.history) - len(history))


def _messages(step: StepExample, shown: Shown, system: str) -> list[Message]:
    return messages(system, shown.prompt, shown.history, step.wire, shown.omitted, step.heading)
