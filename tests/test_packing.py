"""Shared prefixes in the update. References: transformers' own forward on the sequences padded to a batch, and TRL's GRPOTrainer."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from harness.train import packed_loss
from harness.train.packed_loss import accept_trees, tree_logps
from harness.train.packing import PrefixTree, attend_by_rectangles, attend_by_runs, prefix_tree
from harness.train.tiny import train_tokenizer

VOCABULARY = 97
Batch = tuple[list[list[int]], list[list[int]]]


def build(kind: str, tied: bool, kv_heads: int = 2) -> PreTrainedModel:
    config, model = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[kind]
    torch.manual_seed(0)
    options: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    options |= {"num_key_value_heads": kv_heads, "initializer_range": 0.1, "tie_word_embeddings": tied, "vocab_size": VOCABULARY}
    built = model(config(**options, pad_token_id=0, eos_token_id=1)).float()
    for name, parameter in built.named_parameters():
        if name.endswith("bias"):  # new models start with none
            torch.nn.init.normal_(parameter, std=0.1)
    return built.train()


def words(rng: random.Random, count: int) -> list[int]:
    return rng.choices(range(2, VOCABULARY), k=count)


def one_group(rng: random.Random) -> Batch:
    prompt = words(rng, 70)
    return [prompt] * 4, [words(rng, count) for count in (9, 1, 20, 13)]


def groups_of_other_lengths(rng: random.Random) -> Batch:
    start = words(rng, 30)
    prompts = [[*start, *words(rng, 5)]] * 3 + [[*start, *words(rng, 41)]] * 3 + [words(rng, 12)] * 2
    return prompts, [words(rng, rng.randint(1, 9)) for _ in prompts]


def nothing_shared(rng: random.Random) -> Batch:
    return [[2, *words(rng, 4)], [3, *words(rng, 40)], [4]], [words(rng, 3), words(rng, 6), words(rng, 2)]


def one_completion(rng: random.Random) -> Batch:
    return [words(rng, 33)], [words(rng, 7)]


def steps(rng: random.Random) -> Batch:
    """Every prompt goes on where the last one ended. One completion is the start of another, two are the same and in the next prompt."""
    prompt, prompts, completions = words(rng, 40), [], []
    for _ in range(3):
        said = words(rng, 6)
        prompts += [prompt] * 4
        completions += [said, said, said[:3], words(rng, 8)]
        prompt = [*prompt, *said, *words(rng, 10)]
    order = rng.sample(range(12), 12)
    return [prompts[i] for i in order], [completions[i] for i in order]


BATCHES = [one_group, groups_of_other_lengths, nothing_shared, one_completion, steps]


def padded(prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Ids, mask and the width of the completions: padded as TRL does. (B, P + C)"""
    before, after = max(map(len, prompts)), max(map(len, completions))
    rows = [[0] * (before - len(p)) + p + c + [0] * (after - len(c)) for p, c in zip(prompts, completions, strict=True)]
    masks = [[0] * (before - len(p)) + [1] * len(p + c) + [0] * (after - len(c)) for p, c in zip(prompts, completions, strict=True)]
    return torch.tensor(rows), torch.tensor(masks), after


def reference(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, keep: int, temperature: float = 1.0) -> torch.Tensor:
    """From the logits of the whole padded batch; 0 at padding. (B, keep)"""
    logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, :-1]
    every = torch.log_softmax(logits.float() / temperature, -1).gather(-1, ids[:, 1:, None])[..., 0]
    return every[:, -keep:] * mask[:, -keep:]


def completion_logps(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`tree_logps` of a padded batch, 0 where it is masked. (B, keep) each"""
    seen = mask.bool()
    parts = [
        [row[real].tolist() for row, real in zip(ids[:, cut], seen[:, cut], strict=True)] for cut in (slice(-keep), slice(-keep, None))
    ]
    empty = torch.zeros(seen[:, -keep:].shape)
    logps, entropies = (empty.masked_scatter(seen[:, -keep:], found) for found in tree_logps(model, *parts))
    return logps, entropies


def gradients(logps: torch.Tensor, model: torch.nn.Module) -> list[torch.Tensor]:
    """Of a sum in which every completion token has a weight of its own."""
    weights = torch.linspace(-1, 2, logps.numel()).view_as(logps)
    model.zero_grad()
    (logps * weights).sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference in a parameter's gradient, relative to the largest entry of that gradient."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_log_probabilities_and_gradients_are_those_of_the_padded_batch(kind: str, tied: bool, batch: Any) -> None:
    model = build(kind, tied)
    ids, mask, keep = padded(*batch(random.Random(1)))
    expected = reference(model, ids, mask, keep, 0.7)
    expected_gradients = gradients(expected, model)
    accept_trees(model, 0.7)
    logps, entropies = completion_logps(model, ids, mask, keep)
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)
    assert error(gradients(logps, model), expected_gradients) <= 1e-5
    assert (entropies[mask[:, -keep:] == 0] == 0).all()


def test_completions_that_are_masked_wholly_give_zeros() -> None:
    """As TRL masks truncated ones, perhaps all of a micro-batch; backward still works."""
    model = build("qwen2", tied=True)
    ids, mask, keep = padded(*one_group(random.Random(1)))
    mask[1:, -keep:] = 0
    expected = reference(model, ids, mask, keep)
    accept_trees(model, 1.0)
    logps, _ = completion_logps(model, ids, mask, keep)
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)
    mask[:, -keep:] = 0
    logps, _ = completion_logps(model, ids, mask, keep)
    assert not logps.any()
    assert not any(gradient.any() for gradient in gradients(logps, model))


def visible(tree: PrefixTree) -> torch.Tensor:
    """What the rectangles of the runs cover: query i, key j. (N, N)"""
    seen = torch.zeros(len(tree.tokens), len(tree.tokens), dtype=torch.int)
    for start, stop, end in tree.runs:
        seen[start:stop, start:stop] += torch.ones(stop - start, stop - start, dtype=torch.int).tril()
        seen[stop:end, start:stop] += 1
    return seen


def test_every_prefix_stands_once_and_sees_exactly_its_own_beginnings() -> None:
    rng = random.Random(3)
    for _ in range(60):
        prompts = [rng.choices(range(2), k=rng.randint(1, 5)) for _ in range(rng.randint(1, 7))]
        completions = [rng.choices(range(2), k=rng.randint(0, 4)) for _ in prompts]
        tree = prefix_tree(prompts, completions)
        seen = visible(tree)
        assert seen.max() <= 1
        prefixes = [tuple(tree.tokens[seen[i].bool()].tolist()) for i in range(len(tree.tokens))]
        whole = [tuple(p + c) for p, c in zip(prompts, completions, strict=True)]
        assert sorted(prefixes) == sorted({sequence[:n] for sequence in whole for n in range(1, len(sequence) + 1)})
        assert tree.positions.tolist() == [len(prefix) - 1 for prefix in prefixes]
        cut = [(s[:n], s[n]) for s, p in zip(whole, prompts, strict=True) for n in range(len(p), len(s))]
        assert [(prefixes[row], target) for row, target in zip(tree.rows.tolist(), tree.targets.tolist(), strict=True)] == cut
        assert tree.unshared == sum(map(len, whole))


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_the_ways_of_attending_agree(kv_heads: int) -> None:
    tree = prefix_tree(*groups_of_other_lengths(random.Random(2)))
    torch.manual_seed(0)
    parts = [torch.randn(1, heads, len(tree.tokens), 16, requires_grad=True) for heads in (4, kv_heads, kv_heads)]
    mask = visible(tree).bool()
    expected = torch.nn.functional.scaled_dot_product_attention(*parts, mask, scale=0.3, enable_gqa=True)
    weights = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), parts)
    for attend in (attend_by_rectangles, attend_by_runs):
        found = attend(*parts, tree.runs, 0.3)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        for ours, theirs in zip(torch.autograd.grad((found * weights).sum(), parts), expected_gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


class Packed(GRPOTrainer):
    """TRL's trainer with the log-probs of a tree."""

    def _get_per_token_logps_and_entropies(self, model: Any, ids: Any, mask: Any, keep: int, **options: Any) -> tuple[Any, ...]:
        return *completion_logps(model, ids, mask, keep), None


def trainer_of(kind: type[GRPOTrainer], model: PreTrainedModel, folder: Path, **options: Any) -> GRPOTrainer:
    arguments = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_generations=4,
        temperature=0.8,
        loss_type="grpo",
        use_cpu=True,
        bf16=False,
        report_to="none",
        **options,
    )
    trainer = kind(
        model=model,
        reward_funcs=lambda **columns: [0.0],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["text"] * 4}),
        processing_class=train_tokenizer(["text"], 300),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.mark.parametrize("checkpointed", [True, False])
@pytest.mark.parametrize("batch", [one_group, steps])
def test_loss_gradients_and_entropy_are_those_of_trl(tmp_path: Path, batch: Any, checkpointed: bool) -> None:
    """Also with gradient checkpointing, which computes every layer twice."""
    model = build("qwen2", tied=True)
    prompts, completions = batch(random.Random(4))
    ids, mask, keep = padded(prompts, completions)
    inputs = {"prompt_ids": ids[:, :-keep], "prompt_mask": mask[:, :-keep], "completion_ids": ids[:, -keep:]}
    inputs |= {"completion_mask": mask[:, -keep:], "advantages": torch.linspace(-1, 1, len(ids))}
    losses, found, figures = [], [], []
    for kind in (GRPOTrainer, Packed):
        trainer = trainer_of(kind, copy.deepcopy(model), tmp_path, activation_checkpointing=checkpointed)
        if kind is Packed:
            accept_trees(trainer.model, trainer.temperature)
        calls = [0]
        trainer.model.base_model.layers[1].self_attn.q_proj.register_forward_hook(
            lambda module, given, got, calls=calls: calls.__setitem__(0, calls[0] + 1)
        )
        if checkpointed:
            trainer.model.activation_checkpointing_enable()
        trainer.model.train()
        losses.append(trainer.compute_loss(trainer.model, inputs))
        found.append(list(torch.autograd.grad(losses[-1], list(trainer.model.parameters()))))
        figures.append(trainer._metrics["train"]["entropy"])
        assert calls == [2 if checkpointed else 1]
    torch.testing.assert_close(losses[1], losses[0], atol=1e-6, rtol=1e-5)
    assert error(found[1], found[0]) <= 1e-5
    assert figures[1] == pytest.approx(figures[0], rel=1e-5)


def test_adapters_get_the_same_gradients() -> None:
    """peft's LoRA, on a frozen model."""
    base = build("llama", tied=False)
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)).train()
    ids, mask, keep = padded(*groups_of_other_lengths(random.Random(5)))
    expected = gradients(reference(model, ids, mask, keep), model)
    accept_trees(model.get_base_model(), 1.0)
    found = gradients(completion_logps(model, ids, mask, keep)[0], model)
    assert error(found, expected) <= 1e-5
    assert any(gradient.abs().max() > 1e-2 for gradient in expected)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_stays_as_near_to_float32_as_padding_does(autocast: bool) -> None:
    exact = build("qwen2", tied=True)
    ids, mask, keep = padded(*steps(random.Random(6)))
    expected = reference(exact, ids, mask, keep)
    model = copy.deepcopy(exact) if autocast else copy.deepcopy(exact).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        rounded = reference(model, ids, mask, keep)
        accept_trees(model, 1.0)
        logps, _ = completion_logps(model, ids, mask, keep)
    assert logps.dtype == torch.float32
    assert (logps - expected).abs().mean() <= 1.5 * (rounded - expected).abs().mean()
    assert (rounded - expected).abs().mean() > 0
    for ours, theirs in zip(gradients(logps, model), gradients(expected, exact), strict=True):
        assert torch.nn.functional.cosine_similarity(ours.float().flatten(), theirs.flatten(), 0) > 0.99


def sharded(rank: int, file: Path) -> None:
    """One of two processes; the first writes down what it found."""
    torch.distributed.init_process_group("gloo", init_method=file.with_name("meeting").as_uri(), rank=rank, world_size=2)
    ids, mask, keep = padded(*steps(random.Random(9)))
    model = build("qwen2", tied=True)
    accept_trees(model, 1.0)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    logps, _ = completion_logps(model, ids, mask, keep)
    whole = [gradient.full_tensor() for gradient in gradients(logps, model)]
    if rank == 0:
        torch.save((type(model).__name__, logps.detach(), whole), file)
    torch.distributed.barrier()  # one that leaves first may take the other down
    torch.distributed.destroy_process_group()


def test_a_model_sharded_over_two_processes_gives_the_same(tmp_path: Path) -> None:
    """torch's fully_shard."""
    torch.multiprocessing.spawn(sharded, (tmp_path / "found",), nprocs=2)
    kind, logps, found = torch.load(tmp_path / "found")
    model = build("qwen2", tied=True)
    ids, mask, keep = padded(*steps(random.Random(9)))
    expected = reference(model, ids, mask, keep)
    assert kind == "FSDPQwen2ForCausalLM"
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)
    assert error(found, gradients(expected, model)) <= 1e-5


def test_logits_in_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("qwen2", tied=True)
    accept_trees(model, 1.0)
    tree = prefix_tree(*one_group(random.Random(7)))
    whole = model(tree=tree)
    expected = gradients(whole[0], model)
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda module, given, logits: sizes.append(len(logits)))
    monkeypatch.setattr(packed_loss, "LOGITS_AT_ONCE", 10 * VOCABULARY)
    chunked = model(tree=tree)
    torch.testing.assert_close(chunked, whole)
    assert error(gradients(chunked[0], model), expected) <= 1e-5
    assert sum(sizes) == 2 * len(tree.targets)
    assert max(sizes) == 10


def test_generation_and_the_saved_model_stay_as_they_were(tmp_path: Path) -> None:
    model = build("qwen2", tied=True).eval()
    ids, mask, keep = padded(*groups_of_other_lengths(random.Random(8)))
    given = {"input_ids": ids[:, :-keep], "attention_mask": mask[:, :-keep], "max_new_tokens": 8, "do_sample": False}
    before = model.generate(**given)
    model.save_pretrained(tmp_path / "before")
    accept_trees(model, 1.0)
    assert model.generate(**given).tolist() == before.tolist()
    model.save_pretrained(tmp_path / "after")
    assert (tmp_path / "after/config.json").read_text() == (tmp_path / "before/config.json").read_text()


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        prefix_tree([[5], []], [[1], [2]])
    config = Qwen2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=VOCABULARY)
    config.attention_dropout = 0.1
    model = Qwen2ForCausalLM(config).train()
    accept_trees(model, 1.0)
    with pytest.raises(ValueError, match=r"dropout 0\.1"):
        model(tree=prefix_tree([[5]], [[1]]))
