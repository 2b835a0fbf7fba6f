"""Adapters and 8-bit optimizers on a tiny model, through the real command.

References: peft's own merge, transformers' loading of what was exported, an uninterrupted run, and TRL's KL term by hand.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import test_train
import test_train_grpo
import torch
import training_corpus
from forked import Forked
from safetensors.torch import load_file

from harness.generate_hf import load_model
from harness.prompt import PromptPolicy
from harness.runs import read_jsonl
from harness.train.adapters import merge, whole_weights
from harness.train.checkpoint import Companions, export
from harness.train.config import Memory

LORA = "--memory.lora_rank=4"
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / name / "model.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def train(monkeypatch: pytest.MonkeyPatch, data: Path, run: Path, *options: str) -> None:
    command = ("train", "--domain", "swe", "--model", "tiny", "--data", data, "--out", run, *training_corpus.SMALL)
    assert test_train.harness(monkeypatch, *command, *options, *test_train.OPEN_GATE) == 0


def test_supervised_stages_train_adapters_alone_and_export_whole_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, options = tmp_path / "run", ("--warmup.learning_rate=1e-2", "--srl.kl=0.1", "--validation.instances=0")
    train(monkeypatch, training_corpus.write(tmp_path), run, LORA, *test_train.SRL, *options)
    names = {name for name in weights(run, "base") if name.split(".")[-2] in ADAPTED and name.endswith(".weight")}
    assert changed(weights(run, "base"), weights(run, "warmup")) == names
    assert changed(weights(run, "warmup"), weights(run, "final")) <= names
    steps = [row for row in read_jsonl(run / "metrics.jsonl") if row["stage"] == "srl" and "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]


def test_rl_steps_train_adapters_alone(tmp_path: Path) -> None:
    trainer = test_train_grpo.trainer_with(test_train_grpo.by_length, tmp_path, memory=Memory(lora_rank=4), learning_rate=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert trainer.state.global_step == 2
    assert changed(before, after) == {name for name in before if ".lora_" in name}
    assert {name.split(".")[-4] for name in before if ".lora_" in name} == set(ADAPTED)


def test_an_exported_checkpoint_gives_the_logits_of_the_model_with_its_adapters(tmp_path: Path) -> None:
    trainer = test_train_grpo.trainer_with(test_train_grpo.by_length, tmp_path, memory=Memory(lora_rank=4, lora_alpha=3.0))
    model = trainer.model
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".lora_" in name)
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    bare, _ = whole_weights(model)
    before = {name: tensor.clone() for name, tensor in bare.state_dict().items()}
    export(model, Companions(trainer.processing_class, PromptPolicy(), frozenset()), tmp_path / "checkpoint")
    assert all(torch.equal(tensor, before[name]) for name, tensor in bare.state_dict().items())
    loaded = load_model(str(tmp_path / "checkpoint"))
    ids = torch.randint(bare.config.vocab_size, (2, 12))
    expected = model(input_ids=ids).logits
    with model.disable_adapter():
        assert (model(input_ids=ids).logits - expected).abs().max() > 0.1
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
    merge(model)
    assert not [name for name, _ in bare.named_parameters() if "lora" in name]
    assert all(torch.allclose(tensor, loaded.state_dict()[name], atol=1e-6) for name, tensor in bare.state_dict().items())


@pytest.mark.parametrize("share", [True, False], ids=["as a prefix tree", "padded"])
def test_the_kl_reference_is_the_model_without_its_adapters(tmp_path: Path, share: bool) -> None:
    options = {"kl": 0.5, "share_prefixes": share, "max_sampler_gap": 100.0}  # the weights are changed below
    trainer = test_train_grpo.trainer_with(test_train_grpo.by_length, tmp_path, memory=Memory(lora_rank=4), **options)
    inputs = test_train_grpo.batch_of(trainer)
    mask = inputs["completion_mask"]
    at_first = test_train_grpo.log_probabilities(trainer, mask.shape[1]).detach()
    torch.testing.assert_close(inputs["ref_per_token_logps"] * mask, at_first, atol=1e-5, rtol=1e-5)
    assert trainer.ref_model is None
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    logps = test_train_grpo.log_probabilities(trainer, mask.shape[1])
    apart = at_first - logps
    kl = torch.exp(apart) - apart - 1
    per_token = -inputs["advantages"][:, None] + 0.5 * kl  # on-policy: the ratio is 1
    expected = ((per_token * mask).sum(1) / mask.sum(1)).mean()
    assert (kl * mask).sum() > 0.01
    inputs["old_per_token_logps"] = logps.detach()
    torch.testing.assert_close(trainer.compute_loss(trainer.model, inputs), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("share", [True, False], ids=["as a prefix tree", "padded"])
def test_gradient_checkpointing_gives_adapters_the_same_gradients(tmp_path: Path, share: bool) -> None:
    found = []
    for on in (False, True):
        memory = Memory(lora_rank=4, gradient_checkpointing=on)
        trainer = test_train_grpo.trainer_with(test_train_grpo.by_length, tmp_path, memory=memory, share_prefixes=share)
        if on:
            trainer.model.gradient_checkpointing_enable()
        assert trainer.args.gradient_checkpointing == on
        torch.manual_seed(3)
        inputs = test_train_grpo.batch_of(trainer)
        loss = trainer.compute_loss(trainer.model, inputs)
        trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        found.append(torch.autograd.grad(loss, trained))
    assert any(gradient.abs().max() > 1e-4 for gradient in found[0])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-6, rtol=1e-4)


SRL = (
    "--warmup.max_steps=40",
    "--warmup.batch=8",
    "--warmup.micro_batch=8",
    "--warmup.epochs=100",
    "--warmup.learning_rate=1e-2",
    "--srl.max_steps=24",
    "--srl.prompts=2",
    "--srl.rollouts=4",
    "--srl.micro_batch=8",
    "--srl.max_completion_tokens=48",
    *test_train.OPEN_GATE,
)


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_weights(tmp_path: Path, forked: Forked) -> None:
    """With an 8-bit optimizer; and with adapters, from the first run's warmed-up model, which gets rewards that differ."""
    pytest.importorskip("bitsandbytes")
    data = training_corpus.write(tmp_path)
    warm = str(tmp_path / "adamw_8bit" / "checkpoints" / "warmup")
    adapters = (LORA, "--model", warm, "--warmup.epochs=0", "--srl.learning_rate=1e-2", "--srl.kl=0.05")
    for name, options in (("adamw_8bit", ("--memory.optimizer=adamw_8bit",)), ("lora", adapters)):
        whole, killed = tmp_path / name, tmp_path / f"{name}-killed"
        done = forked.run(*test_train._command(data, whole, *SRL), *options)
        assert done.returncode == 0, done.stderr
        child = forked.start([*test_train._command(data, killed, *SRL), *options], tmp_path / "log")
        test_train._wait_for_step(killed, 7, forked.running, stage="srl")
        os.kill(child, signal.SIGKILL)
        assert forked.wait() == -signal.SIGKILL
        done = forked.run(*test_train._command(data, killed, *SRL), *options)
        assert done.returncode == 0, done.stderr
        assert "resuming from" in done.stderr
        first = load_file(Path(warm) / "model.safetensors")
        assert changed(first, weights(whole, "final"))
        for tensor, again in zip(weights(whole, "final").values(), weights(killed, "final").values(), strict=True):
            assert (tensor - again).abs().max() < 1e-6


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_8_bit_optimizer_states_take_a_byte_each(tmp_path: Path, optimizer: str) -> None:
    pytest.importorskip("bitsandbytes")
    trainer = test_train_grpo.trainer_with(test_train_grpo.by_length, tmp_path, memory=Memory(optimizer=optimizer), feedforward=128)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    loss = trainer.compute_loss(trainer.model, test_train_grpo.batch_of(trainer))
    loss.backward()
    trainer.optimizer.step()
    model = trainer.model
    for weight, kind in ((model.model.layers[0].mlp.up_proj.weight, torch.uint8), (model.model.embed_tokens.weight, torch.float32)):
        states = trainer.optimizer.state[weight]
        assert {states[name].dtype for name in ("state1", "state2")} == {kind}
    assert any((parameter - old).abs().max() > 0 for parameter, old in zip(trainer.model.parameters(), before, strict=True))


def test_a_missing_package_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data = training_corpus.write(tmp_path)
    finder = type("Missing", (PathFinder,), {"find_spec": classmethod(_find_others)})
    monkeypatch.setattr(sys, "meta_path", [finder if one is PathFinder else one for one in sys.meta_path])
    run = tmp_path / "run"
    for option, package in ((LORA, "peft"), ("--memory.optimizer=adamw_8bit", "bitsandbytes"), ("--report_to=[wandb]", "wandb")):
        monkeypatch.delitem(sys.modules, package, raising=False)
        command = ("train", "--domain", "swe", "--model", "tiny", "--data", data, option, "--out", run)
        assert test_train.harness(monkeypatch, *command) == 2
        captured = capsys.readouterr()
        assert f"pip install {package}" in captured.err
        assert "Traceback" not in captured.err
        assert not run.exists()


def _find_others(cls: type, name: str, path: object = None, target: object = None) -> object:
    """What a machine without these packages finds."""
    return None if name in ("peft", "bitsandbytes", "wandb") else PathFinder.find_spec(name, path, target)
