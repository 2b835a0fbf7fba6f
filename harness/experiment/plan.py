"""An experiment as jobs. Where everything lies:

RUN/data/{corpus-B, experts-S-PROFILE, test-NAME}/
RUN/base-B/{train-1/, steps.json, eval-NAME/, samples/}     a base; `samples`: episodes at temperature 1 on the first test
RUN/seed-S/ARM/{train-N/, steps.json, eval-NAME/}         an arm of a seed, its stages, its figures
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from harness.experiment.config import Arm, Experiment
from harness.experiment.jobs import Job
from harness.runs import write_text

BASE = "base"
DATA = "harness.experiment.data"


class Model(NamedTuple):
    """Something to be measured."""

    arm: str
    """`BASE`, or a name of `Experiment.arms`."""
    seed: int
    """Of the experiment; of a base its own."""
    folder: Path

    def checkpoint(self, stages: int) -> Path:
        """Of its last stage, the best on validation."""
        return self.folder / f"train-{stages}" / "checkpoints" / "best"


def base_seed(seed: int, count: int) -> int:
    """Which of `count` bases a seed starts from."""
    return (seed - 1) % count + 1


class Layout(NamedTuple):
    """The folder of an experiment."""

    path: Path
    experiment: Experiment

    def base(self, seed: int) -> Model:
        """That a seed of the experiment starts from."""
        number = base_seed(seed, self.experiment.base.count)
        return Model(BASE, number, self.path / f"base-{number}")

    @property
    def bases(self) -> list[Model]:
        return list(dict.fromkeys(self.base(seed) for seed in self.seeds))

    @property
    def seeds(self) -> range:
        return range(1, self.experiment.seeds + 1)

    def arm(self, name: str, seed: int) -> Model:
        return Model(name, seed, self.path / f"seed-{seed}" / name)

    def data(self, name: str) -> Path:
        return self.path / "data" / name


def base_jobs(layout: Layout) -> Iterator[Job]:
    """Data, the bases, and what the gate is judged by."""
    experiment, first = layout.experiment, next(iter(layout.experiment.tests))
    for name, test in experiment.tests.items():
        folder = layout.data(f"test-{name}")
        arguments = (experiment.domain, test.profile, test.n, folder)
        yield Job(f"data-test-{name}", folder / "tasks.jsonl", (), call=(f"{DATA}:make_test", arguments))
    for base in layout.bases:
        corpus = layout.data(f"corpus-{base.seed}")
        yield Job(f"data-corpus-{base.seed}", corpus / "synth.json", (), call=(f"{DATA}:make_corpus", (experiment, base.seed, corpus)))
        options = {"method": "sft", "model": "tiny", "targets": "all", **experiment.base.train}
        yield _training(layout, base, 1, options, corpus, None, corpus / "synth.json")
        yield from _measuring(layout, base, 1)
        sampled = (f"--samples={experiment.samples}", "--sampling.temperature=1")
        yield _evaluation(layout, base, 1, first, "samples", sampled)


def arm_jobs(layout: Layout) -> Iterator[Job]:
    """All arms, seed after seed; the ablations when all else is done."""
    for seed in layout.seeds:
        yield from _expert_jobs(layout, seed)
    for last in (False, True):
        for seed in layout.seeds:
            for name, arm in layout.experiment.arms.items():
                if (arm.kind == "ablation") is last:
                    yield from _arm(layout, layout.arm(name, seed), arm)


def _expert_jobs(layout: Layout, seed: int) -> Iterator[Job]:
    experiment = layout.experiment
    profiles = {experiment.experts.profile: None} | {arm.experts: None for arm in experiment.arms.values() if arm.experts}
    for profile in profiles:
        folder = layout.data(f"experts-{seed}-{profile}")
        arguments = (experiment.domain, profile, experiment.experts, seed, folder)
        yield Job(f"data-experts-{seed}-{profile}", folder / "trajectories.jsonl", (), call=(f"{DATA}:make_experts", arguments))


def _arm(layout: Layout, model: Model, arm: Arm) -> Iterator[Job]:
    experts = layout.data(f"experts-{model.seed}-{arm.experts or layout.experiment.experts.profile}")
    start = layout.base(model.seed).checkpoint(1)
    share = layout.experiment.budget_tokens // len(arm.stages)
    for number, stage in enumerate(arm.stages, 1):
        options = _merged(layout.experiment.train, stage)
        options = _merged(options, {options.get("method", "srl"): {"budget_tokens": share}})
        yield _training(layout, model, number, options, experts, start, experts / "trajectories.jsonl")
        start = model.checkpoint(number)
    yield from _measuring(layout, model, len(arm.stages))


def _training(layout: Layout, model: Model, number: int, options: Mapping[str, Any], data: Path, start: Path | None, needs: Path) -> Job:
    """A training run; its options lie beside it as a file."""
    out = model.folder / f"train-{number}"
    file = model.folder / f"train-{number}.yaml"
    write_text(file, yaml.safe_dump(dict(options), sort_keys=False))
    command = ["train", "--domain", layout.experiment.domain, "--config", file, "--data", data, f"--seed={model.seed}", "--out", out]
    command += ["--model", start] if start else []
    before = (start.parents[1] / "report.json",) if start else ()
    return Job(_name(layout, out), out / "report.json", (needs, *before), tuple(map(str, command)))


def _measuring(layout: Layout, model: Model, stages: int) -> Iterator[Job]:
    experiment, trained = layout.experiment, model.folder / f"train-{stages}" / "report.json"
    first = next(iter(experiment.tests))
    held_out = layout.data(f"test-{first}")
    out = model.folder / "steps.json"
    max_tokens = int(experiment.evaluate.get("sampling", {}).get("max_tokens", 2048))
    arguments = (str(model.checkpoint(stages)), experiment.domain, str(held_out / "steps.jsonl"), experiment.steps, experiment.samples)
    needs = (trained, held_out / "tasks.jsonl")
    yield Job(
        _name(layout, out.with_suffix("")), out, needs, call=("harness.experiment.steps:measure_steps", (*arguments, max_tokens, out))
    )
    for test in experiment.tests:
        yield _evaluation(layout, model, stages, test, f"eval-{test}", ())


def _evaluation(layout: Layout, model: Model, stages: int, test: str, name: str, options: tuple[str, ...]) -> Job:
    out, tasks = model.folder / name, layout.data(f"test-{test}") / "tasks.jsonl"
    file = layout.path / "evaluate.yaml"
    write_text(file, yaml.safe_dump(layout.experiment.evaluate, sort_keys=False))
    command = ["eval", "--domain", layout.experiment.domain, "--mode", "e2e", "--model", model.checkpoint(stages), "--dataset", tasks]
    command += ["--config", file, "--workers", 64, "--out", out, *options]
    needs = (model.folder / f"train-{stages}" / "report.json", tasks)
    return Job(_name(layout, out), out / "report.json", needs, tuple(map(str, command)))


def _name(layout: Layout, out: Path) -> str:
    return str(out.relative_to(layout.path)).replace("/", "-")


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        found[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return found
