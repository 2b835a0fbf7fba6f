"""Decoding against transformers' own `generate`, and the generator that batches requests of several threads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from harness.generate import Sampling, load_generator
from harness.generate_decode import decode, decode_chunks, uniforms
from harness.generate_hf import TransformersGenerator, end_tokens, load_model, load_tokenizer, prompt_ids
from harness.prompt import CHAT_TEMPLATE, Message
from harness.train.config import TinyModel
from harness.train.tiny import build_model, train_tokenizer
from harness_trajectories.errors import UserError

TEXTS = [
    "<think></think>\n<function=bash>\n<parameter=command>ls -la</parameter>\n</function>",
    "def add(a, b):\n    return a + b\n",
    "the loop ends one too early: use <= instead of <",
]


def conversations() -> list[list[Message]]:
    return [[Message(role="user", content=text * n)] for n, text in enumerate([*TEXTS, "x = 1", "why?"], 1)]


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    tokenizer = train_tokenizer(TEXTS * 3, 400)
    model = build_model(TinyModel(hidden=32, layers=2, heads=2, feedforward=64), tokenizer, seed=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that the distribution of a random model is not flat
    return tokenizer, model


@pytest.fixture(scope="module")
def checkpoint(tiny: tuple[PreTrainedTokenizerBase, PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny[1].save_pretrained(folder)
    tiny[0].save_pretrained(folder)
    return folder


def test_greedy_decoding_equals_transformers_generate(tiny: tuple[PreTrainedTokenizerBase, PreTrainedModel]) -> None:
    tokenizer, model = tiny
    end = end_tokens(tokenizer, model)
    prompts = [prompt_ids(tokenizer, conversation) for conversation in conversations()]
    together = decode(model, prompts, end, tokenizer.pad_token_id, 24)
    for prompt, ours in zip(prompts, together, strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=end)
        assert ours.tokens == theirs[0, len(prompt) :].tolist()
        assert ours.tokens == decode(model, [prompt], end, tokenizer.pad_token_id, 24)[0].tokens


def test_whoever_loads_the_checkpoint_reads_the_same_ids(tiny: tuple[PreTrainedTokenizerBase, PreTrainedModel], checkpoint: Path) -> None:
    """Reference: transformers' AutoTokenizer, which rebuilds Qwen2's own class from the saved files."""
    texts = [*TEXTS, "<function=bash>\n<parameter=command>ls  -la\t/tmp</parameter>\n</function>", "żółw 🐢 2024 it's\r\n\n   x+=1"]
    theirs, loaded = AutoTokenizer.from_pretrained(checkpoint), load_tokenizer(str(checkpoint))
    for text in texts:
        ids = tiny[0](text)["input_ids"]
        assert theirs(text)["input_ids"] == loaded(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    conversation = conversations()[1]
    assert theirs.apply_chat_template(conversation, add_generation_prompt=True)["input_ids"] == prompt_ids(tiny[0], conversation)


def test_decoding_stops_at_an_end_token_and_drops_finished_rows(tiny: tuple[PreTrainedTokenizerBase, PreTrainedModel]) -> None:
    tokenizer, model = tiny
    prompts = [prompt_ids(tokenizer, conversation) for conversation in conversations()]
    free = decode(model, prompts, [], tokenizer.pad_token_id, 24)
    end = [free[0].tokens[2], free[1].tokens[5]]
    stopped = decode(model, prompts, end, tokenizer.pad_token_id, 24)
    for (whole, _), (part, logprobs) in zip(free, stopped, strict=True):
        cut = next((place + 1 for place, token in enumerate(whole) if token in end), len(whole))
        assert part == whole[:cut]
        assert len(logprobs) == cut


def test_copies_share_one_prompt_and_chunks_keep_the_order(tiny: tuple[PreTrainedTokenizerBase, PreTrainedModel]) -> None:
    tokenizer, model = tiny
    prompts = [prompt_ids(tokenizer, conversation) for conversation in conversations()]
    options = {"end": end_tokens(tokenizer, model), "pad": tokenizer.pad_token_id, "max_tokens": 8}
    single = [one.tokens for one in decode(model, prompts, **options)]
    assert [one.tokens for one in decode(model, prompts, copies=3, **options)] == [tokens for tokens in single for _ in range(3)]
    chunks = decode_chunks(model, prompts, 4, copies=2, **options)
    assert {i: [one.tokens for one in group] for i, group in chunks} == {i: [tokens, tokens] for i, tokens in enumerate(single)}
    sampled = decode(model, prompts[:1], copies=8, temperature=1.0, **options)
    assert len({tuple(one.tokens) for one in sampled}) > 1


def test_a_seeded_completion_depends_on_nothing_else_in_its_batch(tiny: tuple[PreTrainedTokenizerBase, PreTrainedModel]) -> None:
    tokenizer, model = tiny
    prompts = [prompt_ids(tokenizer, conversation) for conversation in conversations()]
    options = {"end": end_tokens(tokenizer, model), "pad": tokenizer.pad_token_id, "max_tokens": 8, "temperature": 1.0}
    seeds = list(range(70, 70 + 2 * len(prompts)))
    for index, group in decode_chunks(model, prompts, 4, copies=2, seeds=seeds, **options):
        alone = [decode(model, [prompts[index]], seeds=[seed], **options)[0].tokens for seed in seeds[2 * index :][:2]]
        assert [one.tokens for one in group] == alone


def test_completions_that_grow_side_by_side_end_at_any_time_and_leave(tiny: tuple[PreTrainedTokenizerBase, PreTrainedModel]) -> None:
    """A third of the tokens end a completion; each is what it is alone. The reference is `decode` on one completion."""
    tokenizer, model = tiny
    prompts = [prompt_ids(tokenizer, conversation) for conversation in conversations()]
    options = {"end": range(0, len(tokenizer), 3), "pad": tokenizer.pad_token_id, "max_tokens": 24, "temperature": 1.0}
    shapes: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(lambda module, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True)
    found = [one.tokens for one in decode(model, prompts, copies=6, seeds=range(30), **options)]
    hook.remove()
    assert found == [decode(model, [prompts[number // 6]], seeds=[number], **options)[0].tokens for number in range(30)]
    assert len({len(tokens) for tokens in found}) > 5
    sizes = [rows * width for rows, width in shapes[1:]]
    assert sizes[0] == 30
    assert sizes[-1] < 8
    assert sizes == sorted(sizes, reverse=True)


def test_a_model_with_a_sliding_window_samples_each_completion_in_a_row_of_its_own() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = MistralForCausalLM(MistralConfig(**sizes, vocab_size=90, sliding_window=5, initializer_range=0.3)).eval()
    prompts = [[3, 4, 5, 6, 7, 8, 9, 10, 11], [12, 13]]
    for prompt, first in zip(prompts, (0, 3), strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=[1])[0, len(prompt) :].tolist()
        assert [one.tokens for one in decode(model, prompts, [1], 0, 12, copies=3)[first : first + 3]] == [theirs] * 3


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probabilities_are_those_of_a_plain_forward(tiny: tuple[PreTrainedTokenizerBase, PreTrainedModel], temperature: float) -> None:
    tokenizer, model = tiny
    prompts = [prompt_ids(tokenizer, conversation) for conversation in conversations()]
    sampled = decode(model, prompts, end_tokens(tokenizer, model), tokenizer.pad_token_id, 12, temperature, copies=2)
    for number, (tokens, logprobs) in enumerate(sampled):
        prompt = prompts[number // 2]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / (temperature or 1.0), -1)[torch.arange(len(tokens)), torch.tensor(tokens)]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seeds", [None, range(4000)])
def test_sampling_follows_the_model_distribution(tiny: tuple[PreTrainedTokenizerBase, PreTrainedModel], seeds: range | None) -> None:
    tokenizer, model = tiny
    prompt = prompt_ids(tokenizer, conversations()[3])
    torch.manual_seed(0)
    sampled = decode(model, [prompt], [], tokenizer.pad_token_id, 1, temperature=1.0, copies=4000, seeds=seeds)
    counts = torch.bincount(torch.tensor([one.tokens[0] for one in sampled]), minlength=len(tokenizer)) / 4000
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([prompt])).logits[0, -1], -1)
    assert float((counts - expected).abs().sum()) < 2.5 * float((expected * (1 - expected) / 4000).sqrt().sum())
    top = decode(model, [prompt], [], tokenizer.pad_token_id, 1, temperature=1.0, top_p=1e-6, copies=20)
    assert {one.tokens[0] for one in top} == {int(expected.argmax())}
    assert all(one.logprobs == [0.0] for one in top)


def test_seeds_are_those_of_splitmix64() -> None:
    """The first numbers of the published generator (Vigna's splitmix64.c) for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    found = uniforms([0, 1234567, 1234567 - 2**64], 5, torch.device("cpu"))
    assert found[1].tolist() == found[2].tolist() == [number // 2**11 / 2**53 for number in published]
    many = uniforms(range(1000), 200, torch.device("cpu")).flatten()
    assert many.min() >= 0
    assert many.max() < 1
    assert abs(float(many.mean()) - 0.5) < 0.005
    assert len(many.unique()) == len(many)


def test_requests_of_threads_equal_single_requests(checkpoint: Path) -> None:
    generator = load_generator(str(checkpoint))
    sampling = Sampling(max_tokens=16)
    single = [generator.generate([conversation], sampling)[0] for conversation in conversations()]
    with ThreadPoolExecutor(5) as pool:
        threaded = list(pool.map(lambda conversation: generator.generate([conversation], sampling)[0], conversations() * 4))
    assert threaded == single * 4
    assert generator.generate(conversations(), sampling) == single
    assert [completion.prompt_tokens for completion in single] == [generator.count(conversation) for conversation in conversations()]
    assert all(completion.tokens == 16 for completion in single if completion.finish == "length")
    generator.close()


def test_seeds_make_sampling_independent_of_the_batch(checkpoint: Path) -> None:
    generator = TransformersGenerator(checkpoint)
    sampling = Sampling(max_tokens=12, temperature=1.0, top_p=0.9, seed=7)
    first = generator.generate(conversations()[:1], sampling)[0]
    assert generator.generate(conversations(), sampling)[0] == first
    assert generator.generate(conversations()[:1], sampling.model_copy(update={"seed": 8}))[0].text != first.text
    generator.close()


def test_a_failure_reaches_the_thread_that_waits(checkpoint: Path) -> None:
    generator = TransformersGenerator(checkpoint)
    del generator._model.model
    with pytest.raises(AttributeError):
        generator.generate(conversations()[:1], Sampling(max_tokens=2))
    generator.close()


def test_the_saved_tokenizer_is_the_trained_one(checkpoint: Path, tiny: tuple[PreTrainedTokenizerBase, PreTrainedModel]) -> None:
    loaded = load_tokenizer(str(checkpoint))
    for text in [*TEXTS, "ünïcode ✓ \n\n\t x"]:
        assert loaded(text)["input_ids"] == tiny[0](text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.tokenize("<parameter=command>")[0].startswith("<parameter=command>")


def test_the_real_qwen_tokenizer(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "tokenizer"))
    for case in json.loads((shared_data / "tokenizer" / "expected_ids.json").read_text()):
        assert tokenizer(case["text"], add_special_tokens=False)["input_ids"] == case["ids"]
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") == 151644
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_no_weights_no_tokenizer_no_folder(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(UserError, match="no model can be loaded"):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="not a hub id"):
        load_model(str(tmp_path / "nothing" / "here"))
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
