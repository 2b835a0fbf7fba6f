"""Figures of a model: validation by greedy decoding of steps, and the gate before RL."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.generate_decode import decode_chunks
from harness.generate_hf import end_tokens
from harness.reward import Reward, Scored
from harness.reward_pool import RewardPool
from harness.train import processes
from harness.train.config import Gate, StepWise
from harness.train.data import Baselines, Sample
from harness.train.failure import GateClosed
from harness.train.rollouts import Rollout, Source
from harness.train.sampling import PromptStream


def summary(scored: Sequence[Scored], clipped: Sequence[bool], kind: Reward) -> dict[str, float]:
    """Means over completions; over nothing it is 0. `reward` is what is trained on. `similarity`, and `edit_similarity` in which `edits` of
    them were compared as edits, are over those of good format alone. Of a completion whose scoring hung or crashed nothing is known."""
    known = [score for score in scored if score.failure not in ("slow", "crashed")]
    usable = [score for score in scored if score.reward is not None]
    good = [score for score in usable if score.penalty is None]
    return {
        "reward": _mean([score.paid(kind) for score in usable]),
        "format_ok": _mean([score.format_ok for score in known]),
        "exact": _mean([score.exact for score in known]),
        "similarity": _mean([score.paid("similarity") for score in good]),
        "edit_similarity": _mean([score.paid("edit") for score in good]),
        "edits": sum(score.edit is not None for score in good),
        "clipped": _mean(clipped),
        **{f"penalty_{kind}": sum(score.penalty == kind for score in scored) for kind in ("format", "length", "work")},
        "unscorable": sum(score.reward is None for score in scored),
    }


def baseline_means(samples: Sequence[Sample], baselines: Baselines) -> dict[str, float]:
    """Mean similarity of the constant action and of the last action on these samples."""
    scores = [baselines.scores(sample) for sample in samples]
    return {"baseline_constant": _mean([constant for constant, _ in scores]), "baseline_copy": _mean([copy for _, copy in scores])}


def validate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample], options: StepWise, pool: RewardPool, batch: int
) -> dict[str, float]:
    """Greedy decoding of every sample, `batch` at once; with several wire formats, the exact-action rate of each besides."""
    end = end_tokens(tokenizer, model)
    part = processes.mine(samples)
    prompts = [sample.prompt.ids() for sample in part]
    limits = {"end": end, "pad": tokenizer.pad_token_id, "max_tokens": options.max_completion_tokens}
    said = {index: tokens for index, ((tokens, _),) in decode_chunks(model, prompts, batch, **limits)}
    texts = [tokenizer.decode(said[index], skip_special_tokens=True) for index in range(len(part))]
    scored = processes.gathered(pool.score([one.candidate(text) for one, text in zip(part, texts, strict=True)]))
    figures = summary(scored, processes.gathered([tokens[-1] not in end for tokens in said.values()]), options.reward)
    wires = sorted({sample.wire for sample in samples})
    if len(wires) > 1:
        figures |= {f"exact_{w}": _mean([scored[i].exact for i, sample in enumerate(samples) if sample.wire == w]) for w in wires}
    return figures


def check_gate(
    source: Source, roll_out: Callable[[list[int], list[int]], list[list[Rollout]]], options: Gate, seed: int
) -> dict[str, float]:
    """Roll out a few groups as RL would and look at them.

    Raises:
        GateClosed: too little of what the model wrote has the format, or too few groups have rewards that differ.
    """
    stream = PromptStream(source.size, seed)
    count = min(options.groups, source.size)
    groups = roll_out([stream[place] for place in range(count)], [-1 - place for place in range(count)])
    source.note(0, groups)
    figures = {**source.figures, "varied_groups": 1 - source.figures["zero_variance"], "groups": len(groups)}
    if figures["format_ok"] < options.min_format_rate or figures["varied_groups"] < options.min_varied_groups:
        raise GateClosed(
            f"RL does not start: of {len(groups)} groups of {source.rollouts} sampled, {figures['format_ok']:.1%} of the outputs have the "
            f"format (gate.min_format_rate {options.min_format_rate:.0%}), and {figures['varied_groups']:.1%} of the groups differ in "
            f"reward (gate.min_varied_groups {options.min_varied_groups:.0%}); mean reward {figures['reward']:.3f}, clipped "
            f"{figures['clipped']:.1%}. Warm up longer (--warmup.epochs=N), or start from a model that follows the format and is right at "
            "times"
        )
    return figures


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
