"""The math domain: a question, one answer in bare text, verified by value."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from harness.env import Env, Grade, OpenSandbox, Split, tool
from harness.prompt import FORMAT
from harness.rewrite import boxed
from harness_envs import math_answer, math_data, math_synth
from harness_envs.math_data import MathTask
from harness_trajectories import Action
from harness_trajectories.schema import ANSWER
from harness_trajectories.steps import ContextPolicy

BUILT_IN = 100
"""Generated tasks of all splits where no data set is given."""


class MathConfig(Env.Config):
    """Options of the math environment, `--env.x=y`."""

    dataset: str | None = None
    """Benchmarks by name, files, hub ids, separated by commas, or a folder of `harness data synth` (`math_data.load_tasks`); None: a few
    generated tasks."""
    stepwise: bool = False
    """An answer is one step of the solution; the model is asked again, with the steps so far, until one holds \\boxed{}. Training on
    solutions whose steps are messages of their own sets it in the checkpoint."""
    brief: bool = False
    """A one-line system prompt, for models of a few million parameters."""


class MathEnv(Env):
    """A question, answered in bare text: the whole solution at once, or step by step."""

    Config = MathConfig
    config: MathConfig
    context = ContextPolicy(kind="full")
    system = (
        "You solve math problems step by step. Write every step as a line of its own, `1. **TITLE** BODY`, and in the last step the "
        "answer in \\boxed{}."
    )
    stepwise = (
        "You solve math problems step by step. Below the problem stand the steps that are done. Write the next one only, as a line "
        "`1. **TITLE** BODY` with its number. The last step has the answer in \\boxed{}."
    )

    def __init__(self, config: MathConfig, open_sandbox: OpenSandbox) -> None:
        super().__init__(config, open_sandbox)
        self.task: MathTask
        self.steps: list[str] = []

    @classmethod
    def system_prompt(cls, config: MathConfig) -> str:
        if config.brief:
            return "Solve it step by step."
        return f"{cls.stepwise if config.stepwise else cls.system}\n\n{FORMAT[cls.wire()]}"

    @classmethod
    def tasks(cls, config: MathConfig, split: Split) -> Iterable[MathTask]:
        if config.dataset is not None:
            return math_data.load_tasks(config.dataset, split)
        problems = math_synth.problems(BUILT_IN, 0, "tiny" if config.brief else "plain")[split]
        return [MathTask(id=one.id, prompt=one.question, gold_answer=one.answer, benchmark="generated") for one in problems]

    @classmethod
    def synth(cls, config: Any, n: int, seed: int, out: Path, profile: str, open_sandbox: OpenSandbox) -> dict[str, JsonValue]:
        return math_synth.generate(n, seed, out, profile, cls.system_prompt(MathConfig(brief=profile != "plain")))

    def reset(self, task: MathTask) -> str:
        self.task, self.steps = task, []
        return task.prompt

    @tool
    def answer(self, text: str) -> str:
        """Give the solution, or its next step.

        text: the solution, or one step
        """
        self.steps.append(text)
        if not self.config.stepwise or boxed(text) is not None:
            super().answer("\n".join(self.steps))
        return ""

    def grade(self) -> Grade:
        if self.answered is None:
            return Grade(score=0, status="unresolved", notes=("no answer",))
        status, answer, note = math_answer.judge(self.answered, self.task.gold_answer)
        shown = f"answer: {answer}", f"reference: {self.task.gold_answer}"
        return Grade(score=float(status == "resolved"), status=status, notes=(*shown, note) if note else shown)

    def gold(self) -> list[Action]:
        return [Action(tool=ANSWER, arguments={"text": f"\\boxed{{{self.task.gold_answer}}}"})]


def verify(answer_text: str, gold: str) -> bool:
    """Whether an answer has the value of the reference (`math_answer.judge`)."""
    return math_answer.judge(answer_text, gold).status == "resolved"
