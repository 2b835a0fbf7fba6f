"""Trajectories → samples: what the model reads, what it is to write, what its action is compared with."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import ValidationError

from harness.edit_reward import EditStep, edit_step
from harness.env import Env
from harness.prompt import Message, Wire, completion, messages
from harness.reward import expert_text, similarity
from harness.reward_pool import Candidate
from harness.train.config import TrainConfig
from harness.train.prompts import Prompt, Prompts
from harness_trajectories import Trajectory
from harness_trajectories.errors import UserError
from harness_trajectories.steps import ContextPolicy, StepExample, split_by_instance, step_examples
from harness_trajectories.store import open_data

CANDIDATES = 30
JUDGED = 200
LONGEST_CONSTANT = 4096


class Sample(NamedTuple):
    """One step, ready for either method."""

    id: str
    """Trajectory and index of the step in it."""
    instance_id: str
    wire: Wire
    prompt: Prompt
    prompt_tokens: int
    completion: str
    """What supervised training has the model write, without the end token."""
    expert: str
    """The compared text of the expert's action."""
    previous: str
    """The compared text of the action before it; empty at the first step."""
    cut: bool = False
    """Something of the prompt was cut to fit."""
    edit: EditStep | None = None
    """Where the expert edits what the context shows."""

    def candidate(self, text: str) -> Candidate:
        """A completion to be scored."""
        return Candidate(self.id, text, self.expert, self.wire, self.edit)

    @property
    def trajectory(self) -> tuple[str, Wire]:
        """Which one it is a step of."""
        return self.id.rpartition("#")[0], self.wire


@dataclass
class Examples:
    """The steps of the data, split by instance, and what became of its rows."""

    train: list[StepExample] = field(default_factory=list)
    val: list[StepExample] = field(default_factory=list)
    systems: dict[Wire, str] = field(default_factory=dict)
    """The system prompt by wire format."""
    env: dict[str, Any] = field(default_factory=dict)
    """Options of the environment that the data decide."""
    edits: dict[tuple[str, Wire, int], EditStep] = field(default_factory=dict)
    """By trajectory, wire and index: the steps whose expert edits what was seen of a file before, in the whole run and not in the kept
    context alone."""
    counts: Counter[str] = field(default_factory=Counter)
    """`trajectories`, `errors`, `dropped:…`, `target`, and turns that are no targets by reason."""

    @property
    def instances(self) -> set[str]:
        """Every instance that the weights will have seen; validation too, since it chooses the checkpoint."""
        return {example.instance_id for example in [*self.train, *self.val]}


def load_examples(config: TrainConfig, env: type[Env]) -> Examples:
    """Read, filter, split and decompose the data.

    Raises:
        UserError: nothing usable in it, or steps that the domain's environment cannot take.
    """
    if not config.data:
        raise UserError("no expert steps to train on: give --data an imported folder, files or a hub id")
    examples = Examples()
    trajectories: dict[tuple[str, Wire], Trajectory] = {}
    for source in (file for given in config.data for file in _sources(given)):
        found, report = open_data(source)
        errors = report.get("errors") or []
        examples.counts["errors"] += len(errors)
        if errors:
            print(f"{source}: {len(errors)} rows cannot be read; the first: {errors[0]}", file=sys.stderr)
        for trajectory in found:
            reason = _dropped(trajectory, config) or ("duplicate" if (trajectory.id, trajectory.wire) in trajectories else None)
            if reason:
                examples.counts[f"dropped:{reason}"] += 1
            else:
                trajectories[trajectory.id, trajectory.wire] = trajectory
    examples.counts["trajectories"] = len(trajectories)
    if not trajectories:
        raise UserError(f"no trajectories to train on in {', '.join(config.data)}: {dict(examples.counts)}")
    if "stepwise" in env.Config.model_fields:
        steps = any(len(trajectory.turns) > 1 for trajectory in trajectories.values())
        examples.env = {"stepwise": config.env.get("stepwise", steps)}
        config = config.model_copy(update={"env": config.env | examples.env})
    instances = {trajectory.instance_id for trajectory in trajectories.values()}
    held_out = 0 if len(instances) == 1 else min(config.validation.instances, max(1, len(instances) // 10))
    train, val = split_by_instance(list(trajectories.values()), held_out, config.seed)
    for part, into in ((train, examples.train), (val, examples.val)):
        for trajectory in part:
            into += step_examples(trajectory, config.context, config.targets, examples.counts)
            for step in step_examples(trajectory, ContextPolicy(kind="full"), config.targets):
                if (edit := edit_step(step)) is not None:
                    examples.edits[step.trajectory_id, step.wire, step.index] = edit
    if not examples.train:
        raise UserError(f"no training steps in {', '.join(config.data)}: {dict(examples.counts)}")
    if config.context.title and not any(example.heading for example in examples.train):
        raise UserError(f"context.title: no step in {', '.join(config.data)} has a title, as in `1. **TITLE** BODY`; leave it out")
    examples.systems = {wire: system_prompt(env, wire, config) for wire in sorted({e.wire for e in [*examples.train, *examples.val]})}
    return examples


def _sources(source: str) -> list[str]:
    """The files of expert steps in a folder of `harness data synth`; anything else stands for itself."""
    files = [Path(source) / name for name in ("trajectories.jsonl", "oracle.jsonl")]
    return [str(file) for file in files if file.is_file()] or [source]


def _dropped(trajectory: Trajectory, config: TrainConfig) -> str | None:
    if config.only_resolved and not trajectory.resolved:
        return "not_resolved"
    if config.teacher is not None and trajectory.model != config.teacher:
        return "other_teacher"
    return None


def system_prompt(env: type[Env], wire: Wire, config: TrainConfig) -> str:
    """The system prompt that evaluation uses for such steps: the environment's own, or for bare text that of its oracle mode.

    Raises:
        UserError: the domain takes no such steps, or its options are wrong.
    """
    if env.wire() != wire:
        if wire == "calls":
            raise UserError(f"domain {config.domain!r} takes bare text answers, and the data holds tool calls; was another --domain meant?")
        env = env.for_mode("oracle", "")
    known = {name: value for name, value in config.env.items() if name in env.Config.model_fields or wire == "calls"}
    try:
        return env.system_prompt(env.Config.model_validate(known))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"env.{'.'.join(map(str, first['loc']))}: {first['msg']}; options: {', '.join(env.Config.model_fields)}") from None


def corpus(examples: Examples) -> Iterator[str]:
    """Every text that the model will read or write, each once and with its role, for a tokenizer to be trained on."""
    seen: set[str] = set()
    for example in examples.train:
        system = examples.systems[example.wire]
        conversation = messages(system, example.prompt, example.history, example.wire, example.omitted, example.heading)
        answer = Message(role="assistant", content=completion(example.thought, example.target, example.wire))
        for message in (*conversation, answer):
            text = f"{message['role']}\n{message['content']}"
            if text not in seen:
                seen.add(text)
                yield text


def make_samples(
    steps: Sequence[StepExample],
    systems: dict[Wire, str],
    prompts: Prompts,
    max_tokens: int,
    cuts: Counter[str],
    edits: Mapping[tuple[str, Wire, int], EditStep] = MappingProxyType({}),
) -> list[Sample]:
    """The steps within the prompt's limit. `cuts` gains what was cut, and `prompts`: how many prompts that touched.

    Args:
        edits: of `Examples`.

    Raises:
        UserError: the system prompt alone does not fit.
    """
    prompts.tokenize(steps, systems)
    samples = []
    for step in steps:
        try:
            prompt, cut = prompts.fit(step, systems[step.wire], max_tokens)
        except ValueError as error:
            raise UserError(f"{step.trajectory_id}, step {step.index}: {error}. Raise --max_prompt_tokens=N") from None
        cuts.update(cut)
        cuts["prompts"] += bool(cut)
        samples.append(
            Sample(
                f"{step.trajectory_id}#{step.index}",
                step.instance_id,
                step.wire,
                prompt,
                prompt.store.length(prompt.parts),
                completion(step.thought, step.target, step.wire),
                expert_text(step.target),
                expert_text(step.history[-1].actions) if step.history else "",
                bool(cut),
                edits.get((step.trajectory_id, step.wire, step.index)),
            )
        )
    prompts.store.save()
    return samples


class Baselines:
    """What one would score without a model: always the same action, or the last action again.

    The constant is, for each wire format, the expert action of the training data that is on average most similar to a sample of the others.
    """

    def __init__(self, samples: Sequence[Sample], seed: int) -> None:
        rng = random.Random(seed)
        self.constant: dict[Wire, str] = {}
        for wire in sorted({sample.wire for sample in samples}):
            texts = [sample.expert for sample in samples if sample.wire == wire and len(sample.expert) <= LONGEST_CONSTANT] or [""]
            judged = rng.sample(texts, min(JUDGED, len(texts)))
            candidates = [text for text, _ in Counter(texts).most_common(CANDIDATES // 2)]
            candidates = list(dict.fromkeys([*candidates, *rng.sample(texts, min(CANDIDATES // 2, len(texts)))]))
            self.constant[wire] = max(candidates, key=lambda text: sum(similarity(text, other) for other in judged))

    def scores(self, sample: Sample) -> tuple[float, float]:
        """Similarity of the constant action, and of the last action (0 where there is none), to the expert's."""
        if len(sample.expert) > LONGEST_CONSTANT:
            return 0.0, 0.0
        previous = sample.previous[:LONGEST_CONSTANT]
        return similarity(self.constant[sample.wire], sample.expert), similarity(previous, sample.expert) if previous else 0.0


def step_count(samples: int, batch: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of so many epochs, at most `max_steps`."""
    steps = max(1, ceil(epochs * samples / batch))
    return min(steps, max_steps) if max_steps else steps


def order(lengths: Sequence[int], batch: int, steps: int, seed: int) -> list[int]:
    """Which sample stands at which place of the whole run: seeded permutations, one after the other, `batch × steps` places.

    Written out in advance, so that a resumed run goes on at the same place, in whichever epoch it is. Within a batch the samples are sorted
    by length, so that a micro-batch has little padding while each batch stays a random one.
    """
    rng = random.Random(seed)
    places: list[int] = []
    while len(places) < batch * steps:
        permutation = list(range(len(lengths)))
        rng.shuffle(permutation)
        places += permutation
    batches = (places[start : start + batch] for start in range(0, batch * steps, batch))
    return [index for part in batches for index in sorted(part, key=lambda index: lengths[index])]
