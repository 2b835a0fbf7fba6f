"""Solutions step by step: what training reads is what evaluation reads, token by token; whose steps decide it; titles."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.agent import Episode, Limits, run
from harness.config import resolve
from harness.env import load_env
from harness.evaluate import evaluate
from harness.generate import Sampling, ScriptedGenerator
from harness.generate_hf import prompt_ids
from harness.plan import EvalConfig, prepare
from harness.prompt import Message, PromptPolicy, messages
from harness.train.config import TrainConfig, defaults
from harness.train.data import Examples, corpus, load_examples, make_samples
from harness.train.prompts import Prompts
from harness.train.tiny import train_tokenizer
from harness_envs.math import MathConfig, MathEnv
from harness_envs.math_synth import generate
from harness_trajectories import Trajectory, read
from harness_trajectories.errors import UserError
from harness_trajectories.steps import ContextPolicy, step_examples

FULL = ContextPolicy(kind="full")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated problems with solutions of two to six steps."""
    path = tmp_path_factory.mktemp("math")
    generate(40, 0, path, "plain", "Solve.")
    return path


def training(folder: Path, **options: Any) -> tuple[TrainConfig, Examples]:
    given = {"domain": "math", "data": [str(folder)], "targets": "all", **options}
    config = TrainConfig.model_validate(defaults(load_env("math"), "some/model") | {"model": "some/model"} | given)
    return config, load_examples(config, MathEnv)


def play(example_of: Trajectory, policy: PromptPolicy, count: Any) -> tuple[Episode, list[list[Message]]]:
    """The expert's solution, played by the agent loop as a model's; and what that model reads before each step."""
    seen: list[list[Message]] = []
    texts = [str(turn.actions[0].arguments["text"]) for turn in example_of.turns]

    def reply(conversation: list[Message]) -> str:
        seen.append(conversation)
        return f"<think>hm</think>\n{texts[len(seen) - 1]}\n"

    generator = ScriptedGenerator(reply)
    generator.count = count  # type: ignore[method-assign]
    task = next(task for task in all_tasks(policy) if task.id == example_of.instance_id)
    env = MathEnv(MathConfig(**policy.env), lambda: pytest.fail("math needs no sandbox"))
    return run(env, task, generator, Limits(), policy, Sampling()), seen


def all_tasks(policy: PromptPolicy) -> list[Any]:
    return [task for split in ("train", "val") for task in MathEnv.tasks(MathConfig(**policy.env), split)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("context", "limit", "cut"),
    [(FULL, 500, False), (FULL, 230, True), (ContextPolicy(k=1), 500, False)],
    ids=["whole", "cut to the limit", "the last step only"],
)
def test_training_and_evaluation_read_the_same_tokens(folder: Path, tmp_path: Path, context: ContextPolicy, limit: int, cut: bool) -> None:
    config, examples = training(folder, context=context, max_prompt_tokens=limit)
    tokenizer = train_tokenizer(corpus(examples), 600)
    cuts: Counter[str] = Counter()
    steps = [*examples.train, *examples.val]
    trained = make_samples(steps, examples.systems, Prompts(tokenizer, tmp_path / "tokens"), limit, cuts)
    assert bool(cuts["prompts"]) == cut
    expected = {sample.id: sample.prompt.ids() for sample in trained}
    policy = PromptPolicy(context=config.context, max_prompt_tokens=limit, env={**examples.env, "dataset": str(folder)})
    assert policy.env["stepwise"] is True
    for trajectory in read(folder / "trajectories.jsonl"):
        episode, seen = play(trajectory, policy, lambda conversation: len(prompt_ids(tokenizer, conversation)))
        read_by_model = {f"{trajectory.id}#{at}": prompt_ids(tokenizer, conversation) for at, conversation in enumerate(seen)}
        assert read_by_model == {name: ids for name, ids in expected.items() if name.startswith(f"{trajectory.id}#")}
        assert (episode.exit, episode.turns) == ("done", len(trajectory.turns))
        assert episode.grade is not None
        assert episode.grade.status == "resolved"
        again = list(step_examples(episode.trajectory, context, "all"))  # as it is imported from the run's folder
        theirs = list(step_examples(trajectory, context, "all"))
        assert [(one.prompt, one.history, one.target) for one in again] == [(one.prompt, one.history, one.target) for one in theirs]


def test_the_data_decide_and_an_option_wins(folder: Path, tmp_path: Path) -> None:
    _, examples = training(folder)
    assert examples.env == {"stepwise": True}
    assert examples.systems["text"].startswith(MathEnv.stepwise)
    assert training(folder, env={"stepwise": False, "brief": True})[1].env == {"stepwise": False}
    whole = []
    for row in map(json.loads, (folder / "trajectories.jsonl").read_text().splitlines()):
        said = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        whole.append({**row, "messages": [*row["messages"][:2], {"role": "assistant", "content": "\n".join(said)}]})
    (tmp_path / "whole.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
    _, examples = training(tmp_path / "whole.jsonl")
    assert examples.env == {"stepwise": False}
    assert examples.systems["text"].startswith(MathEnv.system)


def test_a_checkpoint_is_evaluated_as_it_was_trained(folder: Path, tmp_path: Path) -> None:
    PromptPolicy(context=FULL, env={"stepwise": True}).save(tmp_path)
    given: dict[str, Any] = {"domain": "math", "model": str(tmp_path), "dataset": str(folder)}
    assert prepare(EvalConfig(**given)).env_config.stepwise is True  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"env.stepwise True, not False"):
        prepare(EvalConfig(**given, env={"stepwise": False}))
    plain = prepare(EvalConfig(domain="math", dataset=str(folder)), "some model")
    assert plain.policy.context == FULL
    assert plain.env_config.stepwise is False  # type: ignore[attr-defined]


def test_a_solution_that_never_ends_is_no_answer(folder: Path, tmp_path: Path) -> None:
    plan = prepare(EvalConfig(domain="math", dataset=str(folder), env={"stepwise": True}, limits=Limits(max_turns=3)), "loop")
    report = evaluate(plan, tmp_path / "run", generator=ScriptedGenerator(lambda _: "<think></think>1. **AGAIN** and 5"))
    assert (report["n"], report["resolved"], report["exits"], report["turns"]) == (4, 0, {"turn_limit": 4}, 12)
    assert {tuple(row["notes"]) for row in report["instances"].values()} == {("no answer",)}


def test_titles_stand_below_the_steps(folder: Path) -> None:
    _, examples = training(folder, context={"kind": "full", "title": True})
    for example in examples.train:
        text = str(example.target[0].arguments["text"])
        assert text.startswith(example.heading)
        assert example.heading.endswith("**")
        user = messages("", example.prompt, example.history, "text", 0, example.heading)[-1]["content"]
        before = messages("", example.prompt, example.history, "text")[-1]["content"]
        assert user == f"{before}\n\nThe next step: {example.heading}"
    assert all(example.heading == "" for example in training(folder)[1].train)


def test_titles_where_there_are_none(tmp_path: Path) -> None:
    row = {"instance_id": "a", "wire": "text", "messages": [{"role": role, "content": role} for role in ("user", "assistant", "assistant")]}
    (tmp_path / "plain.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"context.title: no step in .*plain.jsonl has a title"):
        training(tmp_path / "plain.jsonl", context={"title": True})


def test_s1k_rows_are_steps_and_sixty_questions_are_held_out(tmp_path: Path) -> None:
    """1,000 rows in the schema of s1K-1.1, rewritten to numbered steps, under the published recipe."""
    solution = "1. **ADD** one\n2. **ADD AGAIN** two\n3. **ANSWER** \\boxed{3}"
    rows = [{"question": f"q {n}", "solution": solution, "cot_type": "math", "deepseek_attempt": "x"} for n in range(1000)]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = Path(__file__).parents[1] / "configs/math-srl.yaml"
    config = resolve(TrainConfig, file, ["--domain=math", f'--data=["{tmp_path / "steps.jsonl"}"]'])
    examples = load_examples(config, MathEnv)
    assert len({example.instance_id for example in examples.val}) == 60
    assert (len(examples.train), len(examples.val), examples.counts["last"]) == (1880, 120, 1000)
    assert [str(example.target[0].arguments["text"]) for example in examples.train[:2]] == ["1. **ADD** one", "2. **ADD AGAIN** two"]
    assert examples.env == {"stepwise": True}
