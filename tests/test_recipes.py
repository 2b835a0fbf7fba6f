"""The recipes in configs/: each loads, and holds the published values (arXiv 2510.25992, the table of its training settings)."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config import read_yaml, resolve
from harness.env import load_env
from harness.train.config import Reinforced, Supervised, TrainConfig, defaults
from harness.train.setup import stages_of

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*-*.yaml") if path.stem.count("-") == 1)
"""Of the paper; a third part names a machine."""
FOR_ONE_CARD = {"swe-srl-h100": {"learning_rate": 5e-6}, "swe-srl-h200": {}}
"""Where they differ from what is published, besides what memory is spent on."""
RL = {"epochs": 30, "rollouts": 8, "learning_rate": 5e-7, "warmup_ratio": 0.0, "temperature": 1.0, "grad_norm": 1.0, "kl": 0.0}
SFT = {"epochs": 3, "batch": 64, "learning_rate": 5e-6, "schedule": "cosine", "warmup_ratio": 0.3, "unit": "steps"}
BATCH = {"srl": 512, "rlvr": 128}
MODELS = {"math": "Qwen/Qwen2.5-7B-Instruct", "swe": "Qwen/Qwen2.5-Coder-7B-Instruct"}


def loaded(name: str) -> TrainConfig:
    """As the command loads it for a model that brings no options of its own."""
    domain = name.partition("-")[0]
    return resolve(TrainConfig, CONFIGS / f"{name}.yaml", [f"--domain={domain}"], defaults(load_env(domain), MODELS[domain]))


def values(section: Reinforced | Supervised, names: dict[str, object]) -> dict[str, object]:
    return {name: getattr(section, name) for name in names}


def test_there_is_a_recipe_for_each_domain_and_method() -> None:
    assert sorted(f"{domain}-{method}" for domain in MODELS for method in ("sft", "srl", "rlvr", "pipeline")) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_published_values(name: str) -> None:
    domain, _, method = name.partition("-")
    config = loaded(name)
    assert config.method == method
    assert config.model == MODELS[domain]
    stages = {"sft": ["sft"], "srl": ["srl"], "rlvr": ["rlvr"], "pipeline": ["srl", "rlvr"]}[method]
    assert stages_of(config) == stages
    for stage in stages:
        section = getattr(config, stage)
        if stage == "sft":
            assert values(section, SFT) == SFT
        else:
            assert values(section, RL) == RL
            assert section.prompts == BATCH[stage]
            assert section.dynamic_sampling
    assert config.targets == "all_but_last"
    if domain == "math":
        assert config.context.kind == "full"
        assert config.validation.instances == 60
    else:
        assert (config.context.kind, config.context.k) == ("last_k", 2)
        assert (config.validation.instances, config.validation.steps) == (30, 650)
        if method != "rlvr":
            assert config.only_resolved
            assert config.teacher == "claude-3-7-sonnet-20250219"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_what_it_sets(name: str) -> None:
    """Nothing stands in a recipe that its stages do not read."""
    unread = {"sft", "srl", "rlvr", "episodes"} - {
        "sft": {"sft"},
        "srl": {"srl"},
        "rlvr": {"rlvr", "episodes"},
        "pipeline": {"srl", "rlvr", "episodes"},
    }[name.partition("-")[2]]
    assert not unread & set(read_yaml(CONFIGS / f"{name}.yaml"))


@pytest.mark.parametrize("name", FOR_ONE_CARD)
def test_a_recipe_for_one_card_differs_in_memory_alone(name: str) -> None:
    config, published = loaded(name), loaded(name.rpartition("-")[0])
    sizes = {"micro_batch", "sample_batch"}
    different = {key: getattr(config.srl, key) for key in RL if getattr(config.srl, key) != RL[key]}
    assert different == FOR_ONE_CARD[name]
    assert config.srl.model_copy(update=published.srl.model_dump(include=sizes | different.keys())) == published.srl
    assert config.model_copy(update={name: getattr(published, name) for name in ("srl", "memory", "validation")}) == published
