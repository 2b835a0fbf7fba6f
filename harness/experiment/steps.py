"""Step accuracy of a checkpoint on held-out expert steps: the right action after the expert's own history."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from harness.env import load_env
from harness.generate_decode import decode_chunks
from harness.generate_hf import end_tokens, load_model, load_tokenizer
from harness.prompt import FormatError, PromptPolicy, Wire, parse_output
from harness.reward import Scored
from harness.reward_pool import RewardPool
from harness.runs import write_json
from harness.score import pass_at
from harness.train.config import TrainConfig
from harness.train.data import Sample, load_examples, make_samples
from harness.train.engine import completion_seeds
from harness.train.measure import summary
from harness.train.prompts import Prompts

BATCH = 256


def measure_steps(checkpoint: str, domain: str, data: str, limit: int, samples: int, max_tokens: int, out: Path) -> None:
    """Write step figures to `out`: `greedy` and `sampled` at temperature 1, each of the same steps, `limit` at most.

    Both have the figures of `harness.train.measure.summary`, and share and accuracy of outputs with a thought (`thought_…`) and without
    (`silent_…`); `greedy` also `right`, a character 0 or 1 for each step, and `sampled` pass@samples.
    """
    policy = PromptPolicy.load(Path(checkpoint)) or PromptPolicy()
    config = TrainConfig.model_validate(
        {"domain": domain, "model": checkpoint, "data": (data,), "targets": "all", "env": policy.env, "context": policy.context}
    )
    examples = load_examples(config, load_env(domain))
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint)
    store = out.with_suffix(".tokens")
    prompts = Prompts(tokenizer, store)
    steps = (examples.val + examples.train)[:limit]
    every = make_samples(steps, examples.systems, prompts, policy.max_prompt_tokens, Counter())
    found: dict[str, Any] = {"n": len(every)}
    with RewardPool() as pool:
        for name, copies, temperature in (("greedy", 1, 0.0), ("sampled", samples, 1.0)):
            seeds = completion_seeds(0, list(range(len(every))), copies)
            limits = {"end": end_tokens(tokenizer, model), "pad": tokenizer.pad_token_id, "max_tokens": max_tokens}
            said = dict(decode_chunks(model, [one.prompt.ids() for one in every], BATCH, copies, seeds, temperature=temperature, **limits))
            texts = [tokenizer.decode(one.tokens, skip_special_tokens=True) for index in range(len(every)) for one in said[index]]
            repeated = [sample for sample in every for _ in range(copies)]
            scored = pool.score([sample.candidate(text) for sample, text in zip(repeated, texts, strict=True)])
            found[name] = _figures(texts, scored, repeated, copies)
    shutil.rmtree(store)
    write_json(out, found)


def _figures(texts: list[str], scored: list[Scored], samples: list[Sample], copies: int) -> dict[str, Any]:
    right = [bool(score.exact) for score in scored]
    thoughts = [_thought(text, sample.wire) for text, sample in zip(texts, samples, strict=True)]
    parts = {
        "thought": [ok for ok, thought in zip(right, thoughts, strict=True) if thought],
        "silent": [ok for ok, thought in zip(right, thoughts, strict=True) if thought == ""],
    }
    figures: dict[str, Any] = summary(scored, [False] * len(scored), "similarity")
    for name, found in parts.items():
        figures |= {f"{name}_share": len(found) / len(right), f"{name}_exact": sum(found) / len(found) if found else None}
    if copies == 1:
        return figures | {"right": "".join(str(int(ok)) for ok in right)}
    groups = [sum(right[start : start + copies]) for start in range(0, len(right), copies)]
    return figures | {"k": copies, "pass_at_k": sum(pass_at(copies, copies, count) for count in groups) / len(groups)}


def _thought(text: str, wire: Wire) -> str | None:
    """None where the format is wrong."""
    try:
        return parse_output(text, wire).thought.strip()
    except FormatError:
        return None
