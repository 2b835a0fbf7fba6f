"""Our environments in TRL. References: transformers' own reading of a tool (`get_json_schema`), and TRL's GRPOTrainer, unchanged."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from datasets import Dataset
from transformers.utils import get_json_schema
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen2_5_chat_template

from harness import Env, Task, tool
from harness.env import Split
from harness.train.config import TinyModel
from harness.train.tiny import build_model, train_tokenizer
from harness.trl_env import OVER, environment_factory, rows
from harness_envs.swe import SweAgentEnv
from harness_sql import SqlEnv
from harness_trajectories.errors import UserError


class Oven(Env):
    """Bake."""

    system = "You bake."
    closed = 0

    @classmethod
    def tasks(cls, config: Any, split: Split) -> Iterable[Task]:
        yield Task(id=f"bread-{split}", prompt="Bake bread.")
        yield Task(id=f"ash-{split}", prompt="Bake ash.")

    def reset(self, task: Task) -> str:
        if task.id.startswith("ash"):
            raise OSError("no flour")
        self.heat = 0
        return task.prompt

    def grade(self) -> float:
        return float(self.heat == 200)

    def close(self) -> None:
        type(self).closed += 1

    @tool
    def bake(self, heat: int, mode: Literal["air", "grill"] = "air", trays: list[int] | None = None) -> str:
        """Bake what is
        in the oven.

        heat: in degrees,
          not too much
        mode: how
        trays: which
        """
        if heat > 500:
            raise MemoryError("the oven melted")
        self.heat = heat
        return f"{mode} at {heat} {trays}"

    @tool
    def look(self) -> str:
        """Look into the oven.

        Returns:
            what is seen
        """
        return "bread"

    @tool
    def note(self, text: str) -> str:
        """Write down.

        Args:
            text: what to write

        """
        return text


def oven() -> Any:
    return environment_factory(Oven, Oven.Config())()


def test_tools_are_described_as_transformers_reads_them() -> None:
    made = oven()
    schema = get_json_schema(made.bake)["function"]
    assert (schema["name"], schema["description"]) == ("bake", "Bake what is in the oven.")
    assert schema["parameters"] == {
        "type": "object",
        "properties": {
            "heat": {"type": "integer", "description": "in degrees, not too much"},
            "mode": {"type": "string", "enum": ["air", "grill"], "description": "how"},
            "trays": {"type": "array", "items": {"type": "integer"}, "nullable": True, "description": "which"},
        },
        "required": ["heat"],
    }
    assert get_json_schema(made.look)["function"]["description"] == "Look into the oven."
    note = get_json_schema(made.note)["function"]
    assert (note["description"], note["parameters"]["properties"]["text"]["description"]) == ("Write down.", "what to write")
    public = {name for name in dir(type(made)) if not name.startswith("_")}
    assert public == {"reset", "get_reward", *Oven.tool_names()}


def test_an_episode_is_the_environments_own() -> None:
    made = oven()
    row, _ = rows(Oven, Oven.Config())
    assert row == {"prompt": [{"role": "system", "content": "You bake."}, {"role": "user", "content": ""}], "task": "bread-train"}
    assert made.reset(**row) == "Bake bread."
    assert made.bake(heat="hot").startswith("ERROR: parameter 'heat'")
    assert made.bake(heat=200, trays=[1]) == "air at 200 [1]"
    assert made.answer(text="done") == ""
    assert made.bake(heat=0) == OVER
    before = Oven.closed
    assert (made.get_reward(), made.get_reward()) == (1.0, 1.0)
    assert Oven.closed == before + 1
    made.reset(**row)
    assert made.get_reward() == 0.0


def test_a_fault_of_the_environment_has_no_reward(capsys: pytest.CaptureFixture[str]) -> None:
    made = oven()
    bread, ash = rows(Oven, Oven.Config())
    made.reset(**bread)
    assert made.bake(heat=501) == OVER
    assert made.bake(heat=200) == OVER
    assert made.get_reward() is None
    assert made.reset(**ash) == "Bake ash."
    assert made.get_reward() is None
    told = capsys.readouterr().err
    assert "bread-train: the environment failed, no reward: tool 'bake' failed: MemoryError" in told
    assert "ash-train: the environment failed, no reward: reset() failed: OSError: no flour" in told


class Reserved(Oven):
    @tool
    def get_reward(self) -> str:
        """Take it."""
        return ""


class Undescribed(Oven):
    @tool
    def shake(self, how: str) -> str:
        """Shake."""
        return how


def test_what_trl_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="get_reward: TRL gives this name"):
        environment_factory(Reserved, Reserved.Config())
    with pytest.raises(UserError, match="'how' is not described"):
        environment_factory(Undescribed, Undescribed.Config())
    with pytest.raises(UserError, match=r"column 'task' is 'None'.*harness\.trl_env\.rows"):
        oven().reset(prompt=[])
    record = tmp_path / "one.jsonl"
    record.write_text('{"instance_id": "a", "problem_statement": "p", "base_commit": "c", "patch": "", "image": "x"}\n')
    config = SweAgentEnv.Config(dataset=record)
    made = environment_factory(SweAgentEnv, config)()
    made.reset(**rows(SweAgentEnv, config)[0])
    assert made.bash(command="ls") == OVER
    with pytest.raises(UserError, match="needs a sandbox"):
        made.get_reward()


def spoken(make: Any, row: dict[str, Any], said: str | None) -> list[dict[str, Any]]:
    """The conversation of the gold run, with another final answer where one is given."""
    made = make()
    conversation = [*row["prompt"][:-1], {"role": "user", "content": made.reset(**row)}]
    for action in made._env.gold():
        arguments = {"text": said} if said and action.tool == "answer" else action.arguments
        call = {"type": "function", "function": {"name": action.tool, "arguments": arguments}}
        conversation.append({"role": "assistant", "content": "", "tool_calls": [call]})
        conversation.append({"role": "tool", "name": action.tool, "content": getattr(made, action.tool)(**arguments)})
    return [*conversation, {"role": "assistant", "content": "done"}]


def test_trls_own_trainer_plays_the_tools_and_takes_the_grade(tmp_path: Path) -> None:
    """A model that knows one task's gold run by heart, and as well one with a wrong answer: TRL parses its calls, runs them in one database
    a rollout, and what it logs as the environment's reward is what the answers it read were worth."""
    config = SqlEnv.Config()
    make = environment_factory(SqlEnv, config)
    row = rows(SqlEnv, config)[0]
    right, wrong = spoken(make, row, None), spoken(make, row, "0")
    answer = right[-3]["tool_calls"][0]["function"]["arguments"]["text"]
    tokenizer = train_tokenizer([str(right), str(wrong)], 500)
    tokenizer.chat_template = qwen2_5_chat_template
    model = build_model(TinyModel(hidden=64, layers=2, heads=2, feedforward=128), tokenizer, seed=0)
    tools = [getattr(make(), name) for name in sorted(SqlEnv.tool_names())]  # TRL lists methods by name
    options = {"tools": tools, "return_dict": True, "return_tensors": "pt"}
    given, *whole = (tokenizer.apply_chat_template(one, **options)["input_ids"] for one in (right[:2], right, wrong))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss = sum(model(input_ids=ids, labels=ids.index_fill(1, torch.arange(given.shape[1]), -100)).loss for ids in whole)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def by_text(completions: list[list[dict[str, Any]]], **_: Any) -> list[float]:
        calls = [[call["function"] for message in one for call in message.get("tool_calls", [])] for one in completions]
        return [float(one[-1:] == [{"name": "answer", "arguments": {"text": answer}}]) for one in calls]

    options = {"max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 8, "max_completion_length": 300, "temperature": 0.5}
    quiet = {"output_dir": str(tmp_path), "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    with warnings.catch_warnings(action="ignore"):
        trainer = GRPOTrainer(
            model,
            reward_funcs=by_text,
            args=GRPOConfig(**options, **quiet, logging_steps=1, use_cpu=True, bf16=False, gradient_checkpointing=False, seed=0),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([row]),
            environment_factory=make,
        )
        trainer.train()
    logged = trainer.state.log_history[0]
    assert (logged["tools/call_frequency"], logged["tools/failure_frequency"]) == (3.0, 0.0)
    assert 0 < logged["rewards/SqlEnv/mean"] < 1
    assert logged["rewards/SqlEnv/mean"] == logged["rewards/by_text/mean"]
    assert logged["grad_norm"] > 0
