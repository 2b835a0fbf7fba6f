"""The agent loop, with the shipped scripted model.

References: the state that SQLite itself reports, and the required fields of Harbor's RFC 0001 (ATIF 1.4), also by Harbor's own models where
they are installed (`pip install harbor`, Python ≥ 3.12; checked with 0.25.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import pytest
from test_agentless import PLAIN

from harness import Env, Grade, Task, tool
from harness.agent import Episode, Limits, NoGold, replay, run, submit
from harness.env import EnvError, Split
from harness.generate import Sampling, ScriptedGenerator
from harness.prompt import Message, PromptPolicy, completion
from harness.sandbox_local import LocalSandbox
from harness_envs.swe import SweAgentEnv
from harness_envs.swe.env import SweConfig
from harness_sql import SqlEnv, SqlTask
from harness_trajectories import Action
from harness_trajectories.errors import UserError
from harness_trajectories.steps import ContextPolicy, step_examples


def no_sandbox(*_: Any) -> Any:
    raise AssertionError("needs no sandbox")


def sql() -> tuple[SqlEnv, SqlTask]:
    config = SqlEnv.Config()
    return SqlEnv(config, no_sandbox), next(iter(SqlEnv.tasks(config, "test")))


def script(*texts: str) -> tuple[ScriptedGenerator, list[list[Message]]]:
    """A model that says these texts in turn (the last one for ever), and the prompts that it got."""
    seen: list[list[Message]] = []

    def reply(prompt: list[Message]) -> str:
        seen.append(prompt)
        return texts[min(len(seen), len(texts)) - 1]

    return ScriptedGenerator(reply), seen


def say(action: Action, thought: str = "") -> str:
    return completion(thought, [action], "calls")


def play(texts: Iterable[str], save: Callable[[Episode], None] | None = None, policy: PromptPolicy | None = None, **limits: Any) -> Any:
    env, task = sql()
    model, seen = script(*texts)
    episode = run(env, task, model, Limits(**limits), policy or PromptPolicy(), Sampling(), save)
    return episode, seen, env


def gold_texts() -> list[str]:
    env, task = sql()
    env.reset(task)
    return [say(action, f"step {n}") for n, action in enumerate(env.gold())]


SELECT = Action(tool="query", arguments={"sql": "SELECT COUNT(*) FROM account"})
NONSENSE = "I would rather not."


def test_a_model_that_plays_gold_is_resolved() -> None:
    episode, seen, env = play(gold_texts())
    assert episode.exit == "done"
    assert episode.grade == Grade(score=1.0, status="resolved")
    assert (episode.turns, episode.format_errors, len(seen)) == (3, 0, 3)
    task = env.task
    assert dict(env.db.execute("SELECT name, balance FROM account"))[task.receiver] == task.balances[task.receiver] + task.amount
    assert episode.trajectory.resolved is True
    assert [step.source for step in episode.trajectory.steps] == ["system", "user", "agent", "agent", "agent"]
    assert episode.trajectory.steps[2].reasoning == "step 0"


def test_context_is_the_shape_of_training() -> None:
    """What the model reads equals what `step_examples` makes of the same run, context policy included."""
    policy = PromptPolicy(context=ContextPolicy(k=1))
    episode, seen, _ = play(gold_texts(), policy=policy)
    from harness.prompt import messages

    examples = list(step_examples(episode.trajectory, policy.context, "all"))
    system = episode.trajectory.steps[0].message
    assert seen == [messages(system, e.prompt, e.history, "calls", e.omitted) for e in examples]
    assert [e.omitted for e in examples] == [0, 0, 1]


def test_nonsense_is_answered_counted_and_ended() -> None:
    episode, seen, _ = play([NONSENSE], max_format_errors=3)
    assert (episode.exit, episode.format_errors, episode.turns) == ("format_errors", 3, 3)
    assert episode.grade is not None
    assert episode.grade.score == 0.0
    first, second = seen[0], seen[1]
    assert [m["role"] for m in second] == ["system", "user"]
    assert second[1]["content"].startswith(first[1]["content"])
    assert "must start with <think>" in second[1]["content"]
    assert "<function=NAME>" in second[1]["content"]
    assert NONSENSE not in second[1]["content"]
    bad = episode.trajectory.steps[2]
    assert (bad.message, bad.actions, bad.excluded) == (NONSENSE, (), "format_error")
    assert episode.trajectory.turns == ()


def test_the_complaint_goes_away_with_the_next_valid_action() -> None:
    gold = gold_texts()
    episode, seen, _ = play([gold[0], NONSENSE, NONSENSE, gold[1], NONSENSE, gold[2]], max_format_errors=3)
    assert episode.exit == "done"
    assert episode.grade is not None
    assert episode.grade.score == 1.0
    assert episode.format_errors == 3
    complained = ["not valid" in "".join(message["content"] for message in prompt) for prompt in seen]
    assert complained == [False, False, True, True, False, True]
    assert all([m["role"] for m in prompt[1:]] == ["user"] + ["assistant", "user"] * ((len(prompt) - 2) // 2) for prompt in seen)


@pytest.mark.parametrize(
    ("limits", "exit"),
    [({"max_turns": 4}, "turn_limit"), ({"max_tokens": 60}, "token_limit"), ({"max_seconds": 1e-9}, "time_limit")],
)
def test_a_model_that_loops_is_stopped_and_graded(limits: dict[str, Any], exit: str) -> None:
    episode, seen, _ = play([say(SELECT)], **limits)
    assert episode.exit == exit
    assert episode.grade == Grade(score=0.0, status="unresolved")
    if exit == "turn_limit":
        assert len(seen) == episode.turns == 4


def test_the_last_turn_gets_only_the_tokens_that_are_left() -> None:
    allowed: list[int] = []
    seeds: list[int] = []

    class Watching(ScriptedGenerator):
        def generate(self, prompts: Any, sampling: Sampling) -> Any:
            allowed.append(sampling.max_tokens)
            seeds.append(sampling.seed)
            return super().generate(prompts, sampling)

    env, task = sql()
    run(env, task, Watching(lambda _: say(SELECT)), Limits(max_tokens=60), PromptPolicy(), Sampling(max_tokens=50))
    assert len({*seeds}) == len(seeds) > 2
    spent = max(1, len(say(SELECT)) // 4)
    assert allowed == [50, *(60 - spent * n for n in range(1, len(allowed)))]


def test_mistakes_of_the_agent_are_observations() -> None:
    episode, *_ = play([say(Action(tool="query", arguments={"sql": "DROP everything"})), say(Action(tool="dig")), *gold_texts()])
    observed = [step.observations[0].content for step in episode.trajectory.turns]
    assert observed[0].startswith("ERROR: near")
    assert observed[1] == "ERROR: there is no tool 'dig'. Tools: query, answer"
    assert episode.grade is not None
    assert episode.grade.score == 1.0


class Typed(Env):
    """A tool with a number and a list."""

    answer = None  # type: ignore[assignment]

    @classmethod
    def tasks(cls, config: Any, split: Split) -> Iterable[Task]:
        yield Task(id="t", prompt="Take three.")

    def reset(self, task: Task) -> str:
        return task.prompt

    def grade(self) -> float:
        return float(self.done)

    @tool
    def take(self, count: int, names: list[str] | None = None) -> str:
        """Take."""
        self.done = count == 3
        return "taken"


@pytest.mark.parametrize(
    ("output", "answer", "calls"),
    [
        ("take 3", "must start with <think>", 0),
        ("<think>take", "<think> is never closed with </think>", 0),
        ("<think></think>take 3", "expected exactly one <function=…> call, found 0", 0),
        (f"<think></think>{2 * '<function=take></function>'}", "expected exactly one <function=…> call, found 2", 0),
        ("<think></think><function=take><parameter=count>3", "<parameter=count> at character 15 is never closed", 0),
        ("<think></think><function=take>3</function>", "is not followed by parameters and </function>", 0),
        (say(Action(tool="give")), "there is no tool 'give'. Tools: take", 1),
        (say(Action(tool="take")), "parameter 'count' is missing. Parameters: count, names", 1),
        (say(Action(tool="take", arguments={"count": 3, "all": 1})), "unknown parameter 'all'. Parameters: count, names", 1),
        (say(Action(tool="take", arguments={"count": "three"})), "parameter 'count': Input should be a valid integer", 1),
        (say(Action(tool="take", arguments={"count": 3, "names": "a"})), "parameter 'names': Input should be a valid list, got 'a'", 1),
        (say(Action(tool="take", arguments={"count": "x" * 9000})), "got 'xxx", 1),
    ],
)
def test_what_was_wrong_and_what_is_allowed_is_said(output: str, answer: str, calls: int) -> None:
    model, seen = script(output, say(Action(tool="take", arguments={"count": 3})))
    env = Typed(Typed.Config(), no_sandbox)
    episode = run(env, Task(id="t", prompt="p"), model, Limits(), PromptPolicy(), Sampling())
    told = seen[1][-1]["content"].removeprefix(seen[0][-1]["content"])
    assert answer in told
    assert len(told) < 500
    assert "<function=NAME>" in told or "Parameters: " in told or "Tools: " in told or "should be" in told
    assert (episode.format_errors, episode.invalid_calls) == (1 - calls, calls)
    assert (episode.exit, episode.turns, len(seen)) == ("done", 2, 2)
    assert episode.grade is not None
    assert episode.grade.score == 1.0


def test_long_output_keeps_its_head_and_tail_and_is_counted() -> None:
    texts = [say(Action(tool="bash", arguments={"command": f"seq {n}"})) for n in (10, 50_000, 60_000)]
    model, seen = script(*texts, say(Action(tool="submit")))
    with closing(SweAgentEnv(SweConfig(max_observation=1000), LocalSandbox)) as env:
        episode = run(env, PLAIN, model, Limits(), PromptPolicy(), Sampling(), grade=False)
    assert episode.cuts == {"tool_output": 2}
    short, long, _ = (turn.observations[0].content for turn in episode.trajectory.turns[:3])
    assert short == "\n".join(map(str, range(1, 11)))
    head, _, tail = long.partition("\n[... ")
    whole = "\n".join(map(str, range(1, 50_001)))
    cut = int(tail.split(" ")[0])
    tail = tail.partition(" characters cut ...]\n")[2]
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(long) <= 1000 < len(head) + len(tail) + 60
    assert cut == len(whole) - 1000
    assert long in seen[2][-1]["content"]
    assert episode.atif()["extra"]["cuts"] == {"tool_output": 2}


def test_saved_after_every_step() -> None:
    saved: list[Episode] = []
    episode, *_ = play(gold_texts(), save=saved.append)
    assert [found.turns for found in saved] == [0, 1, 2, 3]
    assert {found.exit for found in saved} == {"unfinished"}
    assert saved[-1].trajectory.steps == episode.trajectory.steps


def test_what_save_raises_ends_the_run() -> None:
    def save(_: Episode) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(gold_texts(), save=save)


def test_cuts_are_counted_and_a_hopeless_limit_is_refused() -> None:
    long = say(Action(tool="query", arguments={"sql": "SELECT a.name, b.name, c.name FROM account a, account b, account c"}))
    size = len(SqlEnv.system_prompt(SqlEnv.Config())) // 4
    policy = PromptPolicy(context=ContextPolicy(kind="full"), max_prompt_tokens=size + 250)
    episode, seen, _ = play([long], policy=policy, max_turns=4)
    assert episode.cuts["observation"] > 0
    assert max(ScriptedGenerator(str).count(prompt) for prompt in seen) <= size + 250
    with pytest.raises(UserError, match="max_prompt_tokens"):
        play([long], policy=PromptPolicy(max_prompt_tokens=16))


class Broken(Env):
    """Breaks where it is told to."""

    def __init__(self, where: str) -> None:
        super().__init__(self.Config(), no_sandbox)
        self.where = where

    @classmethod
    def tasks(cls, config: Any, split: Split) -> Iterable[Task]:
        yield Task(id="t", prompt="p")

    def fall(self, place: str) -> None:
        if place == self.where:
            raise OSError("disk full") if place != "step" else EnvError("container died")

    def reset(self, task: Task) -> str:
        self.fall("reset")
        return task.prompt

    def grade(self) -> float:
        self.fall("grade")
        return 1.0

    @tool
    def act(self) -> str:
        """Act."""
        self.fall("step")
        self.done = True
        return "acted"


@pytest.mark.parametrize("where", ["reset", "step", "grade"])
def test_a_failing_environment_is_never_scored(where: str) -> None:
    model, _ = script(say(Action(tool="act")))
    episode = run(Broken(where), Task(id="t", prompt="p"), model, Limits(), PromptPolicy(), Sampling())
    assert (episode.exit, episode.grade) == ("infra_error", None)
    assert episode.error is not None
    assert "EnvError" in episode.error
    assert ("container died" if where == "step" else "disk full") in episode.error


class OneAnswer(Env):
    """Say seven."""

    @classmethod
    def tasks(cls, config: Any, split: Split) -> Iterable[Task]:
        yield Task(id="t", prompt="3 + 4?")

    def reset(self, task: Task) -> str:
        return task.prompt

    def grade(self) -> float:
        return float(self.answered == "7")


@pytest.mark.parametrize(
    ("text", "score", "exit"), [("<think>easy</think>\n7", 1.0, "done"), ("<think></think>8", 0.0, "done"), ("7", 0.0, "format_errors")]
)
def test_bare_text_has_one_turn(text: str, score: float, exit: str) -> None:
    model, seen = script(text)
    episode = run(OneAnswer(OneAnswer.Config(), no_sandbox), Task(id="t", prompt="3 + 4?"), model, Limits(), PromptPolicy(), Sampling())
    assert episode.grade is not None
    assert (episode.grade.score, episode.exit, len(seen)) == (score, exit, 1)


def test_replay_plays_gold_or_nothing() -> None:
    env, task = sql()
    assert replay(env, task).grade == Grade(score=1.0, status="resolved")
    env, task = sql()
    untouched = replay(env, task, ())
    assert (untouched.grade, untouched.turns) == (Grade(score=0.0, status="unresolved"), 0)
    with pytest.raises(NoGold, match="OneAnswer"):
        replay(OneAnswer(OneAnswer.Config(), no_sandbox), Task(id="t", prompt="p"))


def test_patches_are_refused_where_they_mean_nothing() -> None:
    env, task = sql()
    with pytest.raises(UserError, match="takes no patches"):
        submit(env, task, "diff --git a/x b/x", "somebody")


def test_atif_has_what_the_rfc_requires() -> None:
    gold = gold_texts()
    episode, *_ = play([NONSENSE, *gold])
    document = episode.atif()
    assert document["schema_version"] == "ATIF-v1.4"
    assert isinstance(document["session_id"], str)
    assert {"name", "version"} <= set(document["agent"])
    assert [step["step_id"] for step in document["steps"]] == list(range(1, len(document["steps"]) + 1))
    for step in document["steps"]:
        assert step["source"] in ("system", "user", "agent")
        assert isinstance(step["message"], str)
        ids = {call["tool_call_id"] for call in step.get("tool_calls", ())}
        assert step["source"] == "agent" or not {"reasoning_content", "tool_calls", "metrics", "model_name"} & set(step)
        for result in step.get("observation", {}).get("results", ()):
            assert isinstance(result["content"], str)
            assert result["source_call_id"] is None or result["source_call_id"] in ids
    assert document["final_metrics"]["total_completion_tokens"] == episode.tokens > 0
    assert document["extra"]["exit"] == "done"
    assert document["extra"]["grade"]["score"] == 1.0
    harbor = pytest.importorskip("harbor.models.trajectories.trajectory", reason="Harbor's own models are not installed")
    harbor.Trajectory.model_validate(document)
