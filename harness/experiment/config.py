"""What a controlled comparison consists of. Everything in it is written down before the first run: arms, budgets, how checkpoints are
chosen, what is measured, and the gate that the base has to pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PRESETS = Path(__file__).parent / "presets"


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Base(Options):
    """The model that every arm starts from: pretrained here, on generated text."""

    profile: str
    """Of `harness data synth`."""
    n: int = Field(ge=10)
    """Tasks that are generated; their solutions are the corpus."""
    count: int = Field(default=1, ge=1)
    """Bases, by seed; the experiment's seeds take turns with them."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Options of `harness train --method sft --model tiny`."""


class Experts(Options):
    """The expert set of a seed: tasks with their solutions."""

    profile: str
    n: int = Field(default=60, ge=1)
    """Trajectories to train on; RLVR trains on their tasks."""
    validation: int = Field(default=40, ge=1)
    """Further ones, to choose the checkpoint by."""


class Test(Options):
    """Held-out tasks, the same for all seeds."""

    profile: str
    n: int = Field(default=200, ge=1)
    about: str = ""
    """A few words for the page."""


class Arm(Options):
    """One way to train. Its stages share the budget equally, each from the best checkpoint of the one before."""

    stages: tuple[dict[str, Any], ...] = Field(min_length=1)
    """Options of `harness train`, above those of `Experiment.train`."""
    experts: str | None = None
    """Another profile for the expert solutions of the same tasks."""
    about: str = ""
    kind: Literal["method", "control", "ablation"] = "method"
    """Where its row stands."""


class Gate(Options):
    """What must hold of the base, or nothing could be learnt from the comparison."""

    with_thought: tuple[float, float] = (0.0, 1.0)
    """Share of the sampled steps that are right, among those with a thought."""
    without_below: float = 1.0
    """Of those without a thought it is at most this share of that."""
    solved_at_most: float = 1.0
    """pass@k on the first test, by `samples` episodes each: above it, RLVR would not be in the regime of sparse reward."""


class Experiment(Options):
    """One comparison."""

    domain: str
    question: str
    """What it is to answer, for the page."""
    seeds: int = Field(default=5, ge=1)
    """Each draws its own experts and its own order of training."""
    base: Base
    gate: Gate = Gate()
    experts: Experts
    budget_tokens: int = Field(ge=1)
    """Of each arm: tokens sampled and updated (`srl.budget_tokens`). Validation is the same for all and does not count."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Options of every arm."""
    arms: dict[str, Arm]
    tests: dict[str, Test]
    evaluate: dict[str, Any] = Field(default_factory=dict)
    """Options of `harness eval`."""
    steps: int = Field(default=320, ge=1)
    """Held-out expert steps on which step accuracy is measured, at most."""
    samples: int = Field(default=8, ge=2)
    """Of each held-out step, and episodes of the base on each task of the first test, at temperature 1."""

    @model_validator(mode="after")
    def _named(self) -> Experiment:
        if not self.arms or not self.tests:
            raise ValueError("an experiment needs arms and tests")
        return self
