"""SRL's rollouts: after a prefix of an expert's run the model takes one step, rewarded by its similarity to the expert's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from harness.prompt import FormatError, parse_output
from harness.reward import Scored
from harness.reward_pool import RewardPool
from harness.runs import write_text
from harness.train.config import StepWise
from harness.train.data import Baselines, Sample
from harness.train.engine import Engine, completion_seeds
from harness.train.measure import baseline_means, summary
from harness.train.phases import Phases
from harness.train.rollouts import Rollout, Turn
from harness.train.sampling import has_signal
from harness_trajectories import comparable


class Detail(NamedTuple):
    """Of one completion."""

    text: str
    scored: Scored
    clipped: bool
    """It reached the limit of tokens."""


class StepRollouts:
    """A `Source` of single steps.

    Args:
        end: tokens that end a completion.
        folder: where the completions of each step are kept, `logged` of them.
        seed: of the sampling.
        pool: scores completions; one that hangs or crashes there has no reward, and is named.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        baselines: Baselines,
        tokenizer: PreTrainedTokenizerBase,
        end: Sequence[int],
        options: StepWise,
        folder: Path,
        logged: int,
        seed: int,
        pool: RewardPool,
        phases: Phases,
    ) -> None:
        self.size = len(samples)
        self.trajectories = [sample.trajectory for sample in samples]
        self.rollouts = options.rollouts
        self.figures: dict[str, float] = {}
        self._samples = samples
        self._baselines = baselines
        self._tokenizer = tokenizer
        self._end = frozenset(end)
        self._options = options
        self._folder = folder
        self._logged = logged
        self._seed = seed
        self._pool = pool
        self.phases = phases
        self._step = 0
        self._groups: list[Sequence[Rollout]] = []  # of the present step

    def name(self, item: int) -> str:
        return self._samples[item].id

    def roll(self, items: Sequence[int], places: Sequence[int], engine: Engine) -> list[list[Rollout]]:
        """A group for each sample; equal completions of a sample are scored once."""
        prompts = [self._samples[item].prompt.ids() for item in items]
        sampled = engine.sample(prompts, copies=self.rollouts, seeds=completion_seeds(self._seed, places, self.rollouts))
        texts = [self._tokenizer.batch_decode([one.tokens for one in group], skip_special_tokens=True) for group in sampled]
        different = list(dict.fromkeys((item, text) for item, group in zip(items, texts, strict=True) for text in group))
        given = [self._samples[item].candidate(text) for item, text in different]
        with self.phases("scoring"):
            scores = dict(zip(different, self._pool.score(given), strict=True))
        return [
            [
                self._rollout(item, Turn(prompt, *one), Detail(text, scores[item, text], one.tokens[-1] not in self._end))
                for one, text in zip(group, written, strict=True)
            ]
            for item, prompt, group, written in zip(items, prompts, sampled, texts, strict=True)
        ]

    def note(self, step: int, groups: Sequence[Sequence[Rollout]]) -> None:
        """Figures of all completions that were sampled for the step, since the kept groups alone are no fair sample."""
        if step != self._step:
            self._step, self._groups = step, []
        self._groups += groups
        every = [one for group in self._groups for one in group]
        details: list[Detail] = [one.detail for one in every]
        varied = [has_signal([one.reward for one in group], self._options.min_deviation) for group in self._groups]
        self.figures = {
            **summary([one.scored for one in details], [one.clipped for one in details], self._options.reward),
            **baseline_means([self._samples[group[0].item] for group in self._groups], self._baselines),
            "zero_variance": 1 - sum(varied) / len(varied),
        }
        if self._logged:
            rows = [_row(self._samples[one.item], one) for one in every[: self._logged]]
            write_text(self._folder / f"step-{step:05}.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))

    def _rollout(self, item: int, turn: Turn, detail: Detail) -> Rollout:
        reward = detail.scored.paid(self._options.reward)
        return Rollout(item, (turn,), float("nan") if reward is None else reward, detail)


def _row(sample: Sample, rollout: Rollout) -> dict[str, Any]:
    """A line of completions/: what was given for what, the model's action beside the expert's as they were compared."""
    detail: Detail = rollout.detail
    try:
        action = comparable(parse_output(detail.text, sample.wire).action)
    except FormatError:
        action = None
    figures = {**detail.scored._asdict(), "clipped": detail.clipped, "tokens": len(rollout.tokens)}
    return {"sample": sample.id, **figures, "action": action, "expert": sample.expert, "completion": detail.text}
