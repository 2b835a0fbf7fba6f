"""Estimates against figures from elsewhere: transformers' and peft's counts, what autograd and optimizers keep, a measured peak."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
)

from harness.train import estimate
from harness.train.config import Memory, Reinforced, TinyModel
from harness.train.estimate import CARDS, Shape, Work, shape_of
from harness.train.packing import prefix_tree
from harness.train.tiny import build_model, train_tokenizer
from harness_trajectories.errors import UserError

QWEN_7B = Qwen2Config(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)
FULL, LORA = Memory(), Memory(lora_rank=16)


def small(**options: int) -> Qwen2Config:
    given = {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        **options,
    }
    return Qwen2Config(**given, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def qwen() -> Shape:
    return shape_of(QWEN_7B, "all-linear")


def test_parameters_are_those_of_the_model_card_and_by_hand(qwen: Shape) -> None:
    """Qwen2.5-7B: 7.61B, 6.53B without embeddings."""
    layer = 3584 * (3584 + 512 + 512) + (3584 + 512 + 512) + 3584 * 3584 + 3 * 3584 * 18944 + 2 * 3584
    assert qwen.parameters == 2 * 152064 * 3584 + 28 * layer + 3584 == 7_615_616_512
    assert round((qwen.parameters - qwen.embedding - qwen.head) / 1e9, 2) == 6.53
    assert (qwen.layers, qwen.query, qwen.key, qwen.head) == (28, 3584, 512, 152064 * 3584)


def test_parameters_of_the_tiny_model_are_those_it_is_built_with() -> None:
    model = build_model(TinyModel(), train_tokenizer(["some text <function=x>"], 400), seed=0)
    shape = shape_of(model.config, "all-linear")
    assert shape.parameters == model.num_parameters()
    assert shape.head == shape.embedding  # tied


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*mlp\.(up|down)_proj"])
@pytest.mark.parametrize("config", [small(num_hidden_layers=3), LlamaConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2)])
def test_adapters_are_those_that_peft_makes(config: PretrainedConfig, targets: str | list[str]) -> None:
    shape = shape_of(config, targets)
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=6, target_modules=targets, task_type="CAUSAL_LM"))
    trained, every = model.get_nb_trainable_parameters()
    assert estimate.trained_parameters(shape, Memory(lora_rank=6)) == trained
    assert shape.parameters == every - trained


def test_what_is_no_dense_decoder_is_refused() -> None:
    for config in (MixtralConfig(), T5Config()):
        with pytest.raises(UserError, match="dense decoders"):
            shape_of(config, "all-linear")


def test_adamw_of_7_billion_in_full_needs_122_gb(qwen: Shape) -> None:
    parts = estimate.update_memory(qwen, FULL, True, 1, 1, True, False, False)
    assert sum(parts[name] for name in ("weights", "gradients", "optimizer")) == pytest.approx(122e9, rel=0.005)
    with_adapters = estimate.update_memory(qwen, LORA, True, 1, 1, True, False, True)
    assert with_adapters["weights"] == 2 * qwen.parameters + 4 * 40_370_176
    assert "reference" not in with_adapters
    assert estimate.vllm_memory(qwen, True, 0.3, 80e9, (8192, 2048)) == {"vLLM": 24e9}
    assert estimate.vllm_memory(qwen, True, 0.1, 80e9, (8192, 2048))["vLLM"] == 2 * qwen.parameters + 10240 * 57344
    assert estimate.standing_memory(qwen, FULL, True, True)["reference"] == 4 * qwen.parameters


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_optimizer_states_are_those_that_the_optimizer_keeps(optimizer: str) -> None:
    config = small(num_hidden_layers=2)
    model = Qwen2ForCausalLM(config)
    if optimizer == "adamw":
        made = torch.optim.AdamW(model.parameters())
    else:
        bitsandbytes = pytest.importorskip("bitsandbytes")
        manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
        manager.register_module_override(model.get_input_embeddings(), "weight", {"optim_bits": 32})  # as transformers does
        made = bitsandbytes.optim.AdamW8bit(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    kept = [
        value for states in made.state.values() for name, value in states.items() if isinstance(value, torch.Tensor) and "qmap" not in name
    ]
    measured = sum(value.numel() * value.element_size() for value in kept)
    estimated = estimate.standing_memory(shape_of(config, "all-linear"), Memory(optimizer=optimizer), False, False)["optimizer"]
    assert estimated == pytest.approx(measured, rel=0.02)


@dataclass
class Case:
    adapters: bool
    gpu: bool
    """As on a GPU: autocast to bfloat16, frozen weights in bfloat16."""


@pytest.mark.parametrize("case", [Case(False, False), Case(True, False), Case(False, True), Case(True, True)], ids=str)
def test_activations_are_what_autograd_keeps(case: Case) -> None:
    """The difference between three layers and two, so that neither embeddings nor the last norm count."""
    tokens, rank = 512, 4
    found = []
    for layers in (2, 3):
        model = Qwen2ForCausalLM(small(num_hidden_layers=layers)).to(torch.bfloat16 if case.gpu and case.adapters else torch.float32)
        body = model.model
        if case.adapters:
            get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
        kept: dict[int, int] = {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept, weights: set[int] = weights) -> torch.Tensor:
            if tokens in tensor.shape and tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=case.gpu):
                hidden = body(input_ids=torch.randint(512, (1, tokens)), use_cache=False).last_hidden_state
        found.append(sum(kept.values()) / tokens)
        del hidden
    shape = shape_of(small(num_hidden_layers=3), "all-linear")
    assert estimate.layer_activations(shape, case.adapters, case.gpu) == pytest.approx(found[1] - found[0], rel=0.02)


def test_the_cache_is_what_generation_keeps() -> None:
    shape = shape_of(small(num_hidden_layers=3), "all-linear")
    for memory, gpu in ((FULL, False), (FULL, True), (LORA, True)):
        model = Qwen2ForCausalLM(small(num_hidden_layers=3)).to(torch.bfloat16 if memory.lora_rank else torch.float32)
        cache = DynamicCache(config=model.config)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=gpu):
            model(input_ids=torch.randint(512, (2, 50)), past_key_values=cache, use_cache=True)
        held = sum(tensor.numel() * tensor.element_size() for layer in cache.layers for tensor in (layer.keys, layer.values))
        assert held == 2 * 50 * estimate.cached_bytes(shape, memory, gpu)


MEASURED = """
import sys, torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from harness.train.packed_loss import accept_trees, tree_logps
checkpointed = sys.argv[1] == "1"
torch.manual_seed(0)
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=512, hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
                                     num_key_value_heads=2, tie_word_embeddings=False)).train()
if checkpointed:
    model.gradient_checkpointing_enable()
accept_trees(model, 1.0)
optimizer = torch.optim.AdamW(model.parameters())
prompt = list(range(2, 300))
def step(size):
    logps, _ = tree_logps(model, [prompt[:size]] * 4, [[7 + i] * size for i in range(4)])
    logps.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
step(8)
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
step(1)
prompt *= 4
step(1000)
print((peak() - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointed", "factor"), [(False, 1.15), (True, 1.6)])
def test_the_peak_of_an_update_is_at_most_what_was_estimated(checkpointed: bool, factor: float) -> None:
    """The growth of a process from a small step, after which weights, gradients and states are there, to one of 5,000 tokens. With
    checkpointing the parts are not at their largest together. The C library is made to give memory back at once."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"}
    done = subprocess.run([sys.executable, "-c", MEASURED, str(int(checkpointed))], capture_output=True, text=True, env=environment)
    measured = float(done.stdout)
    config = small(num_hidden_layers=8)
    parts = estimate.update_memory(shape_of(config, "all-linear"), FULL, False, 5000, 4000, checkpointed, True, False)
    estimated = parts["activations"] + parts["logits"]
    print(f"measured {measured / 1e6:.0f} MB, estimated {estimated / 1e6:.0f} MB")
    assert measured * 0.95 <= estimated <= measured * factor


SAMPLED = """
import sys, torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from harness.generate_decode import decode
prompt, completion, prompts, copies = map(int, sys.argv[1:])
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=512, hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
                                     num_key_value_heads=2, tie_word_embeddings=False))
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
def sample(prompt, completion):
    decode(model, [[3 + i] * prompt for i in range(prompts)], [600], 0, completion, temperature=1.0, copies=copies)
sample(4, 2)
before = peak()
sample(prompt, completion)
print((peak() - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("prompt", "completion", "prompts", "copies"), [(2000, 4, 8, 4), (200, 150, 4, 8)])
def test_the_peak_of_sampling_is_at_most_what_was_estimated(prompt: int, completion: int, prompts: int, copies: int) -> None:
    """Where reading prompts needs most, and where what was sampled does; no completion ends by itself."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"}
    given = map(str, (prompt, completion, prompts, copies))
    done = subprocess.run([sys.executable, "-c", SAMPLED, *given], capture_output=True, text=True, env=environment)
    measured = float(done.stdout)
    shape = shape_of(small(num_hidden_layers=8), "all-linear")
    parts = estimate.sampling_memory(shape, FULL, False, prompts, prompts * copies, (prompt, completion), False)
    estimated = parts["cache"] + parts["a layer's work"] + parts["logits"]
    print(f"measured {measured / 1e6:.0f} MB, estimated {estimated / 1e6:.0f} MB")
    assert measured * 0.95 <= estimated <= measured * 1.35


def test_floors_for_a_thousand_items_of_8000_tokens(qwen: Shape) -> None:
    """Figures worked out by hand at 790 TFLOP/s and 4.8 TB/s: P = 8192, C = 500, G = 8."""
    prompt, card = 8192, CARDS[1]
    matmul = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert qwen.matmul == matmul
    reading = 2 * matmul * prompt + 2 * 28 * 3584 * prompt**2
    once = estimate.forward_operations(qwen, Work(prompt, prompt**2 / 2, 0))
    assert once == reading
    assert 8000 * once / card.matmul == pytest.approx(1219, rel=0.01)
    stock = Reinforced(prompts=1000, rollouts=8, micro_batch=8)
    found = {}
    for shared in (False, True):
        step = estimate.reinforced_step([prompt], [500], stock, shared)
        found[shared] = estimate.step_seconds(qwen, card, step, FULL, False)
    assert found[False]["update"] == pytest.approx((4000, 741), rel=0.05)
    assert found[True]["update"] == pytest.approx((741, 741), rel=0.05)
    assert found[True]["reading"] == pytest.approx((152, 152), rel=0.01)
    assert found[True]["decoding"][1] == pytest.approx(470, rel=0.05)
    assert found[True]["decoding"][0] > 1.4 * found[True]["decoding"][1]  # keys in float32, a smaller batch
    beside = estimate.reinforced_step([prompt], [500], stock.model_copy(update={"sampler": "vllm", "vllm_memory": 0.5}), True)
    with_vllm = estimate.step_seconds(qwen, card, beside, FULL, False)["decoding"]
    assert found[True]["decoding"][0] > with_vllm[0] > with_vllm[1] == found[True]["decoding"][1]
    elsewhere = estimate.reinforced_step([prompt], [500], stock.model_copy(update={"sampler": "http://other:8000"}), True)
    assert estimate.step_seconds(qwen, card, elsewhere, FULL, False) == {"update": found[True]["update"]}
    again = estimate.step_seconds(qwen, card, step, FULL, True)["update"]
    assert again == pytest.approx((4 / 3 * found[True]["update"][0], found[True]["update"][1]))
    frozen = estimate.step_seconds(qwen, card, step, LORA, False)["update"]
    assert frozen == pytest.approx(tuple(2 / 3 * value for value in found[True]["update"]))


def test_a_group_in_several_micro_batches_is_shared_within_each(qwen: Shape) -> None:
    options = Reinforced(prompts=3, rollouts=8, micro_batch=2, sample_batch=64)
    step = estimate.reinforced_step([100, 300], [10, 30], options, True)
    assert step.forwarded.tokens == 3 * 4 * (200 + 2 * 20)
    assert step.unshared.tokens == 3 * 8 * (200 + 20)
    assert step.shared.tokens == 3 * (200 + 8 * 20)
    assert (step.sampled, step.read.tokens, step.batch) == (3 * 8 * 20, 3 * 200, 24)
    trajectory = estimate.supervised_step([100, 300], [10, 30], [340], 2)
    assert (trajectory.forwarded.tokens, trajectory.unshared.tokens, trajectory.forwarded.scored) == (2 * 340, 2 * 440, 2 * 40)
    supervised = estimate.supervised_step([100, 300], [10, 30], [110, 330], 64)
    assert supervised.forwarded.tokens == 64 * 220
    assert supervised.forwarded.scored == 64 * 20
    assert supervised.sampled == 0


def test_tokens_of_a_tree_are_those_that_are_forwarded() -> None:
    prompts, completions = [[1, 2, 3]] * 4, [[5, 6], [7, 8], [9, 4], [6, 6]]
    made = prefix_tree(prompts, completions)
    work = estimate.tree(3, 2, 4)
    assert (work.tokens, work.scored) == (len(made.tokens), len(made.targets))
    assert estimate.sequences(3, 2, 4).tokens == made.unshared
