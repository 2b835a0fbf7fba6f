"""Supervised fine-tuning on whole trajectories. References: the prompts that the agent loop sends, and TRL's own loss on the same steps as
sequences of their own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from test_agent import no_sandbox

from harness.agent import Limits, run
from harness.generate import Sampling, ScriptedGenerator
from harness.generate_hf import prompt_ids
from harness.prompt import Message, PromptPolicy, completion
from harness.train.config import Memory, Supervised, TinyModel
from harness.train.data import Sample, make_samples
from harness.train.prompts import Prompts
from harness.train.sft import Sequences, Trajectories, sft_trainer
from harness.train.tiny import build_model, train_tokenizer
from harness_sql import SqlEnv
from harness_trajectories import Trajectory
from harness_trajectories.errors import UserError
from harness_trajectories.steps import ContextPolicy, step_examples

FULL = PromptPolicy(context=ContextPolicy(kind="full"))


def played(count: int) -> tuple[list[Trajectory], list[list[Message]]]:
    """Episodes of a model that plays gold, with thoughts and one invalid output, and what it read before each valid one."""
    seen: list[list[Message]] = []
    episodes = []
    config = SqlEnv.Config()
    for task in list(SqlEnv.tasks(config, "train"))[:count]:
        env, known = SqlEnv(config, no_sandbox), SqlEnv(config, no_sandbox)
        known.reset(task)
        said = [completion(f"thought {n}", [action], "calls") for n, action in enumerate(known.gold() or [])]
        texts = iter([said[0], "no call at all", *said[1:]])

        def reply(prompt: list[Message], texts: Any = texts) -> str:
            text = next(texts)
            if text.startswith("<think>"):
                seen.append(prompt)
            return text

        episodes.append(run(env, task, ScriptedGenerator(reply), Limits(), FULL, Sampling()).trajectory)
    return episodes, seen


def prepared(folder: Path, trajectories: list[Trajectory], limit: int = 4000) -> tuple[Any, list[Sample]]:
    steps = [step for one in trajectories for step in step_examples(one, FULL.context, "all")]
    system = SqlEnv.system_prompt(SqlEnv.Config())
    texts = [f"{step.prompt}{step.thought}{[exchange.observation for exchange in step.history]}" for step in steps]
    tokenizer = train_tokenizer([*texts, system, "user\nassistant\nsystem\n"], 400)
    return tokenizer, make_samples(steps, {"calls": system}, Prompts(tokenizer, folder / "tokens"), limit, Counter())


def test_targets_are_read_after_what_the_agent_loop_shows(tmp_path: Path) -> None:
    """But for the complaint about the invalid output, which is not part of the history: the turn after it is left out of the comparison."""
    trajectories, seen = played(3)
    tokenizer, samples = prepared(tmp_path, trajectories)
    found = Trajectories(samples, tokenizer, Supervised(unit="trajectory"))
    assert (len(found), found.dropped) == (3, 0)
    batch = found.batch([0, 1, 2])
    sent = [prompt_ids(tokenizer, conversation) for conversation in seen]
    clean = ["not valid" not in conversation[-1]["content"] for conversation in seen]
    assert len(batch["prompts"]) == len(sent) == 9
    assert sum(clean) == 6
    assert [ids for ids, kept in zip(batch["prompts"], clean, strict=True) if kept] == [i for i, k in zip(sent, clean, strict=True) if k]
    texts = [tokenizer.decode(ids) for ids in batch["completions"]]
    assert all(text.startswith("<think>thought ") and text.endswith("</function><|im_end|>") for text in texts)
    assert not any("no call at all" in text for text in [*texts, *map(tokenizer.decode, batch["prompts"])])
    assert batch["labels"].tolist()[0][1:] == [token for ids in batch["completions"] for token in ids]


def test_loss_and_gradient_are_those_of_trl_on_the_steps(tmp_path: Path) -> None:
    tokenizer, samples = prepared(tmp_path, played(2)[0])
    found = []
    for unit, kind, batch in (("steps", Sequences, 6), ("trajectory", Trajectories, 2)):
        options = Supervised(unit=unit, batch=batch, micro_batch=batch, max_steps=1)
        model = build_model(TinyModel(hidden=32, layers=2, heads=2, feedforward=64), tokenizer, seed=1)
        sequences = kind(samples, tokenizer, options)
        trainer = sft_trainer(model, tokenizer, sequences, options, tmp_path / unit, seed=0, every=10, memory=Memory())
        rows = next(iter(trainer.get_train_dataloader()))
        count = trainer._get_num_items_in_batch([rows], torch.device("cpu"))
        assert int(count) == sum(len(tokenizer(sample.completion)["input_ids"]) + 1 for sample in samples)
        loss = trainer.compute_loss(model, rows, num_items_in_batch=count)
        found.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    (expected, gradients), (loss, own) = found
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    assert max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(own, gradients, strict=True)) <= 1e-5


def test_a_trajectory_that_does_not_fit_is_left_out_whole(tmp_path: Path) -> None:
    trajectories, _ = played(3)
    long = trajectories[1].model_copy(
        update={
            "steps": tuple(s.model_copy(update={"message": s.message * 40}) if s.source == "user" else s for s in trajectories[1].steps)
        }
    )
    tokenizer, samples = prepared(tmp_path, [trajectories[0], long, trajectories[2]])
    lengths = Trajectories(samples, tokenizer, Supervised(unit="trajectory")).lengths
    kept = Trajectories(samples, tokenizer, Supervised(unit="trajectory", max_tokens=max(lengths) - 1))
    assert (len(kept), kept.dropped) == (2, 1)
    assert kept.batch([0, 1])["prompts"] == [sample.prompt.ids() for sample in samples if long.id not in sample.id]
    with pytest.raises(UserError, match="all 3 trajectories"):
        Trajectories(samples, tokenizer, Supervised(unit="trajectory", max_tokens=20))

    cut = max(sample.prompt_tokens for sample in samples if long.id in sample.id) - 20
    tokenizer, samples = prepared(tmp_path / "cut", [trajectories[0], long, trajectories[2]], limit=cut)
    assert any(sample.cut for sample in samples)
    assert Trajectories(samples, tokenizer, Supervised(unit="trajectory")).dropped == 1
