"""A model sharded over two processes by torch's fully_shard, on gloo. The reference is the same training in one process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import test_train
import test_train_grpo
import torch
import training_corpus
from forked import Forked
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from harness.generate_hf import load_model
from harness.runs import read_jsonl
from harness.train import processes
from harness.train.config import Memory, Reinforced, Supervised, TinyModel
from harness.train.engine import Engine, completion_seeds
from harness.train.grpo import reinforced_trainer
from harness.train.rollouts import Rollout, Turn
from harness.train.sft import Sequences, sft_trainer
from harness.train.sharding import Replica, is_sharded, whole
from harness.train.tiny import build_model, train_tokenizer

STEPS = 3


class Seeded(test_train_grpo.Rewarded):
    """Samples each completion by a seed of its place."""

    def roll(self, items: Sequence[int], places: Sequence[int], engine: Engine) -> list[list[Rollout]]:
        prompts = [self.samples[item].prompt.ids() for item in items]
        groups = engine.sample(prompts, copies=self.rollouts, seeds=completion_seeds(0, places, self.rollouts))
        rolled = [
            [Rollout(item, (Turn(prompt, *one),), float(sum(one.tokens) % 17) / 17) for one in group]
            for item, prompt, group in zip(items, prompts, groups, strict=True)
        ]
        return [
            group if place % 2 else [one._replace(reward=0.5) for one in group]  # without signal
            for place, group in zip(places, rolled, strict=True)
        ]


class Found(NamedTuple):
    gradients: list[dict[str, torch.Tensor]]
    """Of each step."""
    weights: dict[str, torch.Tensor]
    losses: list[float]
    frontier: int
    kind: str


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **others: Any) -> None:
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        self.found.append({name: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for name, g in found.items()})


def supervised(folder: Path) -> tuple[Trainer, Replica]:
    tokenizer, model, replica = start()
    options = Supervised(batch=8, micro_batch=2, max_steps=STEPS, epochs=100, learning_rate=1e-3, grad_norm=1e9)
    sequences = Sequences(test_train_grpo.samples(folder), tokenizer, options)
    return sft_trainer(model, tokenizer, sequences, options, folder, seed=0, every=100, memory=Memory()), replica


def reinforced(folder: Path, **options: Any) -> tuple[Trainer, Replica]:
    tokenizer, model, replica = start()
    settings = {"prompts": 4, "rollouts": 4, "micro_batch": 4, "max_completion_tokens": 6, "max_steps": STEPS}
    settings |= {"learning_rate": 1e-3, "grad_norm": 1e9, **options}
    source = Seeded(folder, test_train_grpo.by_length)
    source.trajectories = [item // 2 for item in range(source.size)]
    return reinforced_trainer(
        model, tokenizer, source, Reinforced(**settings), folder, seed=0, every=100, memory=Memory(), replica=replica
    ), replica


def start() -> tuple[Any, Any, Replica]:
    tokenizer = train_tokenizer([*test_train_grpo.TEXTS, "user\nassistant\n"], 330)
    model = build_model(TinyModel(hidden=32, layers=2, heads=2, feedforward=64), tokenizer, seed=1)
    replica = Replica(model, "cpu")
    replica.place()
    return tokenizer, model, replica


def checkpointed(folder: Path) -> tuple[Trainer, Replica]:
    trainer, replica = reinforced(folder, share_prefixes=True)
    trainer.model.activation_checkpointing_enable()
    return trainer, replica


CASES: dict[str, Callable[[Path], tuple[Trainer, Replica]]] = {
    "sft": supervised,
    "rl over prefix trees": lambda folder: reinforced(folder, share_prefixes=True),
    "rl, every layer computed twice": checkpointed,
    "rl, two steps of a trajectory at a time": lambda folder: reinforced(folder, steps_per_trajectory=2, micro_batch=8),
    "rl padded, with a reference": lambda folder: reinforced(folder, share_prefixes=False, kl=0.5),
}


def trained(folder: Path) -> dict[str, Found]:
    """By case."""
    results = {}
    for number, (name, build) in enumerate(CASES.items()):
        trainer, replica = build(folder / f"{number}-{os.environ.get('RANK')}")
        gradients = Gradients()
        trainer.add_callback(gradients)
        trainer.train()
        replica.refresh()
        weights = {name: value.clone() for name, value in whole(trainer.model)}
        for own, value in replica.model.named_parameters():
            assert torch.equal(value, weights[own])
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        frontier = trainer.refill.frontier if name != "sft" else 0
        results[name] = Found(gradients.found, weights, losses, frontier, type(trainer.model_wrapped).__name__)
    return results


def work(rank: int, folder: Path) -> None:
    """One of two processes; each writes down what it found."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with processes.together():
        torch.save({name: tuple(found) for name, found in trained(folder).items()}, folder / f"found-{rank}")


def error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference in a tensor, relative to the largest entry of that tensor."""
    return max(float((found[name] - value).abs().max() / value.abs().max()) for name, value in expected.items())


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, gradients, weights and the stream's frontier, with groups dropped on the way."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    one = trained(tmp_path)
    for rank in range(2):
        two = {name: Found(*found) for name, found in torch.load(tmp_path / f"found-{rank}").items()}
        for name, expected in one.items():
            found = two[name]
            assert expected.kind == "Qwen2ForCausalLM"
            assert found.kind == "FSDPQwen2ForCausalLM"
            assert found.losses == pytest.approx(expected.losses, rel=1e-5, abs=1e-7), name
            assert error(found.gradients[0], expected.gradients[0]) <= 1e-5, name
            assert apart(found.weights, expected.weights) <= 1e-5, name  # three steps of 1e-3
            assert found.frontier == expected.frontier, name
            assert name == "sft" or found.frontier > STEPS * 4, name
            assert any(gradient.abs().max() > 1e-3 for gradient in expected.gradients[0].values())


OPTIONS = (
    "--tiny.layers=2",
    "--checkpoint_every=2",
    "--warmup.max_steps=40",
    "--warmup.batch=8",
    "--warmup.micro_batch=2",
    "--warmup.epochs=100",
    "--warmup.learning_rate=1e-2",
    "--srl.max_steps=12",
    "--srl.prompts=4",
    "--srl.rollouts=4",
    "--srl.micro_batch=8",
    "--srl.steps_per_trajectory=2",
    "--srl.max_completion_tokens=48",
    *test_train.OPEN_GATE,
)
"""Small steps: where weights differ by float noise, a completion differs once a random number falls between two sums of probabilities."""


@pytest.mark.slow
def test_a_sharded_run_that_is_killed_ends_with_the_weights_of_one_process(tmp_path: Path, forked: Forked) -> None:
    """And with the same rewards on the way. Once one process is killed, once all are interrupted."""
    data = training_corpus.write(tmp_path)
    whole_run, killed = tmp_path / "whole", tmp_path / "killed"
    done = forked.run(*test_train._command(data, whole_run, *OPTIONS))
    assert done.returncode == 0, done.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "harness"]
    command = [*torchrun, *test_train._command(data, killed, *OPTIONS)]
    for step in (4, 8):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        test_train._wait_for_step(killed, step, lambda p=process: p.poll() is None, stage="srl")
        if step == 4:
            children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout.split()
            os.kill(int(children[1]), signal.SIGKILL)
            assert "SIGKILL" in process.communicate(timeout=180)[1]
        else:
            process.send_signal(signal.SIGINT)
            assert "the same command resumes it" in process.communicate(timeout=180)[1]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    rows = [
        [row for row in read_jsonl(run / "metrics.jsonl") if row["stage"] == "srl" and "frontier" in row] for run in (whole_run, killed)
    ]
    assert len(rows[0]) == 12
    for name in ("step", "frontier", "reward"):
        assert [row[name] for row in rows[1]] == pytest.approx([row[name] for row in rows[0]]), name
    for checkpoint in ("base", "warmup", "final"):  # `best` may be another step's: near a tie greedy decoding follows float noise
        weights = [load_file(run / "checkpoints" / checkpoint / "model.safetensors") for run in (whole_run, killed)]
        assert apart(*weights) <= 1e-4, checkpoint
        assert not is_sharded(load_model(str(killed / "checkpoints" / checkpoint)))
