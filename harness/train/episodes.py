"""Episodes played with the model that is trained: many threads act in environments, the caller's thread samples for all of them.

Only the caller's thread touches the engine: its device, its autograd state and Ctrl-C stay where training has them. Between two batches it
waits until every thread that plays wants tokens, or a moment.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from harness.agent import Episode
from harness.env import OpenSandbox, Task
from harness.generate import Completion, Sampled, Sampling
from harness.generate_hf import completion_of, prompt_ids
from harness.plan import Item, Plan
from harness.play import Interrupted, persist, play
from harness.prompt import Message
from harness.train.engine import Engine
from harness.train.phases import Phases
from harness.train.rollouts import Turn

LINGER = 0.02
"""Seconds that a batch waits for one more request."""


class Start(NamedTuple):
    """An episode to be played."""

    task: Task
    sampling: Sampling


class Played(NamedTuple):
    """An episode that was played."""

    episode: Episode
    """Without the files of its grade."""
    turns: tuple[Turn, ...]
    """What the model read and wrote in it."""
    clipped: int
    """Turns that reached the limit of tokens."""
    tries: int
    """How often it was begun: the infrastructure failed before."""


class _Request(NamedTuple):
    prompt: list[int]
    sampling: Sampling
    answer: Future[Sampled]

    @property
    def kind(self) -> tuple[int, bool]:
        """What all that are sampled together have alike: the limit of tokens, and whether it is greedy."""
        return self.sampling.max_tokens, self.sampling.temperature == 0


class Players:
    """Plays episodes as `harness eval` does.

    Args:
        plan: how; its tasks do not matter.
        end: tokens that end a completion.
        workers: episodes at a time.
        close_sandboxes: ends all that run in sandboxes.
    """

    def __init__(
        self,
        plan: Plan,
        tokenizer: PreTrainedTokenizerBase,
        end: Sequence[int],
        workers: int,
        open_sandbox: OpenSandbox,
        close_sandboxes: Callable[[], None],
    ) -> None:
        self.tokenizer = tokenizer
        self.tokenizing = threading.Lock()
        self.end = frozenset(end)
        self.plan = plan
        self._workers = workers
        self._open_sandbox = open_sandbox
        self._close_sandboxes = close_sandboxes
        self._queue: queue.SimpleQueue[_Request | Future[Played]] = queue.SimpleQueue()
        self._stop = threading.Event()

    def play(self, starts: Sequence[Start], engine: Engine, phases: Phases) -> list[Played]:
        """Play these episodes, in whatever order; returned in theirs.

        Args:
            phases: what is not sampling is waiting for the `environment`.

        Raises:
            BaseException: whatever ended them early, after the threads have let go of their sandboxes.
        """
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="episode")
        futures = [pool.submit(self._one, start) for start in starts]
        for future in futures:
            future.add_done_callback(self._queue.put)
        left = len(futures)
        requests: list[_Request] = []
        try:
            while left:
                with phases("environment"):
                    left -= self._wait(requests, left)
                self._answer(requests, engine)
        except BaseException:
            self._stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            self._close_sandboxes()
            for request in requests:
                request.answer.set_exception(Interrupted())
            while not all(future.done() for future in futures):
                if isinstance(asked := self._queue.get(), _Request):
                    asked.answer.set_exception(Interrupted())
            raise
        finally:
            pool.shutdown()
        return [future.result() for future in futures]

    def ask(self, prompt: list[int], sampling: Sampling) -> Sampled:
        """From the thread of an episode: a completion."""
        answer: Future[Sampled] = Future()
        self._queue.put(_Request(prompt, sampling, answer))
        return answer.result()

    def _one(self, start: Start) -> Played:
        config = self.plan.config.model_copy(update={"sampling": start.sampling})
        plan, policy = self.plan._replace(config=config), _Policy(self)

        def attempt() -> tuple[Episode, list[str]]:
            nonlocal policy
            policy = _Policy(self)
            return play(plan, Item(start.task, None), policy, self._open_sandbox, self._saved)

        episode, _, tries = persist(attempt, start.task.id, self._stop)
        grade = episode.grade.model_copy(update={"files": {}}) if episode.grade else None
        return Played(episode.model_copy(update={"grade": grade}), tuple(policy.turns), policy.clipped, tries)

    def _saved(self, episode: Episode) -> None:
        if self._stop.is_set():
            raise Interrupted

    def _wait(self, requests: list[_Request], left: int) -> int:
        """Gather requests that can be answered together. Returns how many of the episodes that were `left` ended meanwhile.

        Raises:
            Exception: what ended an episode that has no verdict.
        """
        over = 0
        while over < left and len(requests) < min(self._workers, left - over):
            try:
                asked = self._queue.get(timeout=LINGER if requests else None)
            except queue.Empty:
                break
            if isinstance(asked, _Request):
                requests.append(asked)
            else:
                asked.result()
                over += 1
        return over

    def _answer(self, requests: list[_Request], engine: Engine) -> None:
        """Sample what is asked for; answered requests leave the list."""
        while requests:
            kind = max_tokens, greedy = requests[0].kind
            some = [one for one in requests if one.kind == kind]
            seeds = None if greedy else [one.sampling.seed for one in some]
            sampled = engine.sample([one.prompt for one in some], max_tokens=max_tokens, seeds=seeds, greedy=greedy)
            requests[:] = [one for one in requests if one.kind != kind]
            for one, (completion,) in zip(some, sampled, strict=True):
                one.answer.set_result(completion)


class _Policy:
    """The model as the `Generator` of one episode. It keeps the tokens."""

    def __init__(self, players: Players) -> None:
        self.name = players.plan.label
        self.turns: list[Turn] = []
        self.clipped = 0
        self._players = players

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling) -> list[Completion]:
        completions = []
        for conversation in prompts:
            prompt = self._ids(conversation)
            sampled = self._players.ask(prompt, sampling)
            self.turns.append(Turn(prompt, *sampled))
            completions.append(completion_of(self._players.tokenizer, self._players.end, prompt, sampled.tokens))
            self.clipped += completions[-1].finish == "length"
        return completions

    def count(self, messages: list[Message]) -> int:
        return len(self._ids(messages))

    def close(self) -> None:
        """Nothing to free."""

    def _ids(self, messages: list[Message]) -> list[int]:
        with self._players.tokenizing:
            return prompt_ids(self._players.tokenizer, messages)
