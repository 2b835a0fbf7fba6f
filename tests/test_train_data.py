"""Samples, orders, baselines and the tiny preset's tokenizer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import training_corpus

from harness.config import resolve
from harness.env import load_env
from harness.generate_hf import load_tokenizer
from harness.prompt import messages, parse_output
from harness.reward import similarity
from harness.train.config import TINY_MODEL, Supervised, TrainConfig, defaults, is_tiny
from harness.train.data import Baselines, corpus, load_examples, make_samples, order, step_count
from harness.train.prompts import Prompts
from harness.train.sft import IGNORED, Sequences
from harness.train.tiny import train_tokenizer
from harness_trajectories.errors import UserError


def config(data: Path, **options: object) -> TrainConfig:
    return TrainConfig.model_validate({"domain": "swe", "model": "tiny", "data": [str(data)], "env": {"brief": True}, **options})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return training_corpus.write(tmp_path)


def test_published_values_are_the_defaults() -> None:
    options = TrainConfig(domain="swe", model="m", data=("d",))
    srl, sft = options.srl, options.sft
    assert (srl.prompts, srl.rollouts, srl.learning_rate, srl.warmup_ratio, srl.temperature, srl.grad_norm, srl.kl, srl.epochs) == (
        512,
        8,
        5e-7,
        0.0,
        1.0,
        1.0,
        0.0,
        30.0,
    )
    assert (sft.batch, sft.learning_rate, sft.schedule, sft.warmup_ratio, sft.epochs) == (64, 5e-6, "cosine", 0.3, 3.0)
    assert (options.context.kind, options.context.k, options.targets, options.warmup.epochs) == ("last_k", 2, "all_but_last", 0)


def test_examples_split_and_filter(data: Path) -> None:
    examples = load_examples(config(data, targets="all_but_last"), load_env("swe"))
    assert len(examples.instances) == 36
    assert not {e.instance_id for e in examples.train} & {e.instance_id for e in examples.val}
    assert len({e.instance_id for e in examples.val}) == 3
    assert len(examples.train) == 33 * 2
    verified = load_examples(config(data, only_resolved=True), load_env("swe"))
    assert verified.counts["dropped:not_resolved"] == 6
    with pytest.raises(UserError, match="no trajectories to train on"):
        load_examples(config(data, teacher="nobody"), load_env("swe"))


def test_samples_are_what_the_model_reads_and_writes(data: Path, tmp_path: Path) -> None:
    examples = load_examples(config(data, targets="all"), load_env("swe"))
    tokenizer = train_tokenizer(corpus(examples), 600)
    cuts: Counter[str] = Counter()
    samples = make_samples(examples.train, examples.systems, Prompts(tokenizer, tmp_path / "tokens"), 200, cuts)
    assert not cuts["prompts"]
    for sample, example in zip(samples, examples.train, strict=True):
        assert (parse_output(sample.completion, "calls").action,) == example.target
        conversation = messages(examples.systems["calls"], example.prompt, example.history, "calls", example.omitted)
        assert tokenizer.apply_chat_template(conversation, add_generation_prompt=True)["input_ids"] == sample.prompt.ids()
        assert len(sample.prompt.ids()) == sample.prompt_tokens
    assert samples[0].previous == ""
    assert samples[1].previous == samples[0].expert
    sequences = Sequences(samples, tokenizer, Supervised(max_tokens=200))
    ids, labels = sequences[1]["input_ids"], sequences[1]["labels"]
    answer = [token for token in labels if token != IGNORED]
    assert tokenizer.decode(answer) == f"{samples[1].completion}<|im_end|>"
    assert ids == [*samples[1].prompt.ids(), *answer]
    assert labels == [IGNORED] * samples[1].prompt_tokens + answer
    assert sequences.lengths == [len(sequences[n]["input_ids"]) for n in range(len(sequences))]
    short = Sequences(samples, tokenizer, Supervised(max_tokens=sequences.lengths[0]))
    assert short.dropped + len(short) == len(samples)
    assert short.dropped > 0
    assert Sequences(samples, tokenizer, Supervised(max_tokens=200, prompt_loss=True))[1] == {"input_ids": ids, "labels": ids}


def test_long_prompts_are_cut_and_counted_never_silently(data: Path, tmp_path: Path) -> None:
    examples = load_examples(config(data, targets="all"), load_env("swe"))
    tokenizer = train_tokenizer(corpus(examples), 600)
    cuts: Counter[str] = Counter()
    prompts = Prompts(tokenizer, tmp_path / "tokens")
    whole = make_samples(examples.train, examples.systems, prompts, 500, Counter())
    limit = max(sample.prompt_tokens for sample in whole) - 1
    cut = make_samples(examples.train, examples.systems, prompts, limit, cuts)
    assert max(sample.prompt_tokens for sample in cut) <= limit
    assert cuts["prompts"] == sum(sample.prompt_tokens > limit for sample in whole) > 0
    with pytest.raises(UserError, match="max_prompt_tokens"):
        make_samples(examples.train, examples.systems, prompts, 16, Counter())


def test_wire_tags_and_names_are_single_tokens(data: Path, tmp_path: Path) -> None:
    examples = load_examples(config(data, targets="all"), load_env("swe"))
    tokenizer = train_tokenizer(corpus(examples), 600)
    assert tokenizer.tokenize("<parameter=old_str>north</parameter>\n") == ["<parameter=old_str>", "north", "</parameter>\n"]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(str(tmp_path / "saved")).tokenize("way = north") == tokenizer.tokenize("way = north")


def test_baselines_are_similarities_of_known_texts(data: Path, tmp_path: Path) -> None:
    examples = load_examples(config(data, targets="all"), load_env("swe"))
    prompts = Prompts(train_tokenizer(corpus(examples), 400), tmp_path / "tokens")
    samples = make_samples(examples.train, examples.systems, prompts, 500, Counter())
    baselines = Baselines(samples, 0)
    constant, copy = baselines.scores(samples[1])
    assert constant == similarity(baselines.constant["calls"], samples[1].expert)
    assert copy == similarity(samples[0].expert, samples[1].expert)
    assert baselines.scores(samples[0])[1] == 0.0
    mean = sum(similarity(baselines.constant["calls"], sample.expert) for sample in samples) / len(samples)
    submit = sum(similarity("submit", sample.expert) for sample in samples) / len(samples)
    assert mean > submit


def test_orders_are_permutations_in_a_row_sorted_within_each_batch() -> None:
    lengths = [n % 7 for n in range(10)]
    places = order(lengths, batch=5, steps=8, seed=0)
    assert len(places) == 40
    assert all(sorted(places[start : start + 10]) == list(range(10)) for start in range(0, 40, 10))
    for start in range(0, 40, 5):
        batch = [lengths[index] for index in places[start : start + 5]]
        assert batch == sorted(batch)
    assert places[:10] != places[10:20]
    assert order(lengths, 5, 4, 0) == places[:20]
    assert len(order([1, 1], 5, 3, 0)) == 15
    assert step_count(100, 8, 2.0, None) == 25
    assert step_count(100, 8, 2.0, 7) == 7
    assert step_count(3, 8, 1.0, None) == 1


def test_the_tiny_preset_and_what_a_checkpoint_brings(tmp_path: Path) -> None:
    assert is_tiny(TINY_MODEL)
    assert not is_tiny("Qwen/Qwen2.5-Coder-7B-Instruct")
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    assert is_tiny(str(tmp_path))
    swe, math = load_env("swe"), load_env("math")
    assert "warmup" in defaults(swe, TINY_MODEL)
    started = defaults(swe, str(tmp_path))
    assert "warmup" not in started
    assert started["env"] == {"brief": True}
    assert defaults(math, TINY_MODEL)["context"]["kind"] == "full"
    assert defaults(swe, "Qwen/Qwen2.5-Coder-7B-Instruct") == {"context": {"kind": "last_k", "k": 2, "title": False}}


def test_the_recipes_are_valid_and_say_the_defaults() -> None:
    for file in sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")):
        base = {"data": ["steps"], "model": TINY_MODEL}
        options = resolve(TrainConfig, file, [f"--domain={file.stem.partition('-')[0]}"], base)
        if file.stem.count("-") == 1:  # a third part names a machine
            assert options.srl == TrainConfig(domain="d", model="m", data=("s",)).srl
            assert options.sft == TrainConfig(domain="d", model="m", data=("s",)).sft
            assert options.method == file.stem.partition("-")[2]
