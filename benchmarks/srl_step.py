"""A whole SRL step against stock GRPOTrainer's: sampling, scoring, log-probs, loss, backward, clipping, optimizer.

Both sides train the same weights on the same prompts, score by the same pool, and write completions of one fixed length (the token that
would end them is one that the model lacks). Stock generates with transformers; ours is the trainer as shipped. With `--steps` of more
than one, the prompts are consecutive steps of one trajectory with the full history: ours packs them into one micro-batch, stock takes a
group at a time. On a GPU both train LoRA adapters, so that two models fit one card. Both run `trainer.train()` in turns; a speedup is
the median over pairs of neighbours.

The floor is counted in token-forwards, a backward pass being two: each different prompt token once to sample and three times to train,
each completion token four times. The seconds it would take are those of the model's plain forward of the last prompt, by token. A GPU
decodes far from that rate, since it reads all weights for each token.

    python benchmarks/srl_step.py [--case cpu|gpu] [--steps N] [--rounds N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import transformers
import trl
from training_case import CASES, TOKENIZER, Case, build_model, our_trainer, step_prompts, stock_trainer
from transformers import PreTrainedModel, Trainer, TrainerCallback

from harness.reward_pool import Candidate, RewardPool
from harness.train.config import Memory
from harness.train.engine import Engine
from harness.train.packing import prefix_tree
from harness.train.phases import Phases
from harness.train.rollouts import Rollout, Turn

WORDS = ["".join(random.Random(n).choices("abcdefghij ", k=4)) for n in range(512)]
"""What a completion's tokens are scored as, so that its text is as long as an action's."""
PHASES = ("sampling", "scoring", "update", "optimizer")


def text(tokens: Sequence[int]) -> str:
    return "".join(WORDS[token % len(WORDS)] for token in tokens)


class Clock:
    """Seconds by phase of the last step.

    Args:
        device: waited for at the end of each phase.
    """

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device

    def now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def measured(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, its time added to a phase."""

        def timed(*args: Any, **options: Any) -> Any:
            started = self.now()
            result = call(*args, **options)
            self.seconds[phase] += self.now() - started
            return result

        return timed


class Step(TrainerCallback):
    """Times a trainer's step; what is neither sampling, scoring nor optimizer is the update."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_step_begin(self, *args: Any, **others: Any) -> None:
        self._clock.seconds.clear()
        self._begin = self._clock.now()

    def on_pre_optimizer_step(self, *args: Any, **others: Any) -> None:
        self._computed = self._clock.now()

    def on_step_end(self, *args: Any, **others: Any) -> None:
        seconds = self._clock.seconds
        seconds["update"] = self._computed - self._begin - seconds["sampling"] - seconds["scoring"]
        seconds["optimizer"] = self._clock.now() - self._computed


class Steps:
    """A `Source` of prompts whose completions are scored by `score`."""

    def __init__(self, prompts: list[str], rollouts: int, score: Callable[[list[list[int]]], list[float]]) -> None:
        self.size = len(prompts)
        self.trajectories = [0] * self.size
        self.rollouts = rollouts
        self.figures: dict[str, float] = {}
        self.phases = Phases()
        self._prompts = TOKENIZER(prompts)["input_ids"]
        self._score = score

    def name(self, item: int) -> str:
        return f"step {item}"

    def roll(self, items: Sequence[int], places: Sequence[int], engine: Engine) -> list[list[Rollout]]:
        groups = engine.sample([self._prompts[item] for item in items], copies=self.rollouts)
        rewards = iter(self._score([one.tokens for group in groups for one in group]))
        return [
            [Rollout(item, (Turn(self._prompts[item], *one),), next(rewards)) for one in group]
            for item, group in zip(items, groups, strict=True)
        ]

    def note(self, step: int, groups: Sequence[Sequence[Rollout]]) -> None:
        return


def token_forwards(case: Case, prompts: list[str]) -> dict[str, int]:
    """By what is counted in the module's docstring."""
    ids = TOKENIZER(prompts)["input_ids"]
    assert [len(prompt) for prompt in ids] == [len(prompt) for prompt in prompts]
    rng = random.Random(0)
    apart = [prompt for prompt in ids for _ in range(case.group)]
    tree = prefix_tree(apart, [rng.choices(range(case.vocabulary), k=case.completion) for _ in apart])
    distinct = len(prefix_tree(ids, [[] for _ in ids]).tokens)
    said = len(apart) * case.completion
    longest = max(map(len, ids))
    return {
        "tokens_stock": longest * len(apart) + said + 3 * (longest * len(apart) + said),
        "tokens_ours": sum(map(len, ids)) + said + 3 * len(tree.tokens),
        "tokens_floor": distinct + said + 3 * (distinct + said),
    }


def forward_seconds(model: PreTrainedModel, prompt: str, clock: Clock) -> float:
    """Of a token in the plain forward of a prompt."""
    ids = torch.tensor(TOKENIZER([prompt])["input_ids"], device=model.device)
    started = clock.now()
    with torch.no_grad():
        model(input_ids=ids, logits_to_keep=1, use_cache=False)
    return (clock.now() - started) / ids.shape[1]


def measure(case: Case, steps: int, rounds: int) -> dict[str, Any]:
    """All figures."""
    prompts = step_prompts(case, steps, "full")
    clock = Clock(case.device)
    expert = text(random.Random(1).choices(range(case.vocabulary), k=case.completion))
    with RewardPool() as pool:

        def score(completions: list[list[int]]) -> list[float]:
            candidates = [Candidate(str(n), f"<think></think>\n{text(tokens)}", expert, "text") for n, tokens in enumerate(completions)]
            return [float(one.reward) for one in pool.score(candidates)]

        scoring = clock.measured("scoring", score)
        memory = Memory(lora_rank=case.lora_rank, gradient_checkpointing=case.checkpointed)
        stock = stock_trainer(case, build_model(case), prompts, lambda completion_ids, **columns: scoring(completion_ids), memory)
        stock._generate = clock.measured("sampling", stock._generate)
        ours = our_trainer(case, build_model(case), Steps(prompts, case.group, scoring), memory)
        ours.engine.sample = clock.measured("sampling", ours.engine.sample)

        def run(trainer: Trainer) -> dict[str, float]:
            trainer.train()
            return dict(clock.seconds)

        for trainer in (stock, ours):
            trainer.add_callback(Step(clock))
            run(trainer)
        pairs, token_seconds = [], []
        for _ in range(rounds):
            pairs.append((run(stock), run(ours)))
            token_seconds.append(forward_seconds(ours.model, prompts[-1], clock))
    totals = [(sum(theirs.values()), sum(own.values())) for theirs, own in pairs]
    tokens = token_forwards(case, prompts)
    floors = [tokens["tokens_floor"] * seconds for seconds in token_seconds]
    reading = [sum(map(len, prompts)) * seconds for seconds in token_seconds]
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if case.device == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}",
        "steps": steps,
        "stock_s": statistics.median(theirs for theirs, _ in totals),
        "ours_s": statistics.median(own for _, own in totals),
        "step_speedup": statistics.median(theirs / own for theirs, own in totals),
        "step_speedup_least": min(theirs / own for theirs, own in totals),
        "step_speedup_most": max(theirs / own for theirs, own in totals),
    }
    for side, name in enumerate(("stock", "ours")):
        for phase in PHASES:
            figures[f"{name}_{phase}_share"] = statistics.median(pair[side][phase] / totals[n][side] for n, pair in enumerate(pairs))
    return figures | {
        "ours_prefill_share": statistics.median(part / own for part, (_, own) in zip(reading, totals, strict=True)),
        **tokens,
        "tokens_over_floor": tokens["tokens_ours"] / tokens["tokens_floor"],
        "floor_s": statistics.median(floors),
        "seconds_over_floor": statistics.median(own / floor for floor, (_, own) in zip(floors, totals, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=sorted(CASES), default="cpu")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(CASES[options.case], options.steps, options.rounds)
    if options.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        target = "   (at least 2)" if key == "step_speedup" else ""
        print(f"{key:28} {value if isinstance(value, str | int) else format(value, '.4g')}{target}")


if __name__ == "__main__":
    main()
