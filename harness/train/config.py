"""The options of training. Field defaults are the published SRL recipe (arXiv 2510.25992); `TINY` is the preset for a CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.agent import Limits
from harness.env import Env
from harness.prompt import PromptPolicy
from harness_trajectories.steps import ContextPolicy, Targets

Method = Literal["srl", "sft", "rlvr", "pipeline"]
TINY_MODEL = "tiny"
"""The value of `model` that has a small model built on the spot."""


MAY_CHANGE = ("micro_batch", "sample_batch", "sampler", "vllm_memory", "max_tries", "without_signal", "workers", "pull", "image_budget_gb")
"""Options that may differ when a run is taken up again: they decide on memory, place, speed and giving up, not on what is learnt."""


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TinyModel(Options):
    """A Qwen2 of a few million parameters and its tokenizer; used with `model: tiny` only."""

    vocabulary: int = Field(default=1536, ge=300)
    """Tokens of the BPE that is trained on the data (fewer where the data has fewer); not used with `tokenizer`."""
    hidden: int = Field(default=128, ge=16)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    feedforward: int = Field(default=384, ge=16)
    deviation: float = Field(default=0.08, gt=0)
    """Of the random weights. At Qwen's 0.02 a model this narrow hardly attends to anything at first, and learns to copy ten times later."""


class Supervised(Options):
    """Supervised fine-tuning: completion-only loss on the expert's steps."""

    unit: Literal["steps", "trajectory"] = "steps"
    """`trajectory`: a sequence holds all target steps of a trajectory, each after the history that evaluation shows it, which is computed
    once. It needs `context: {kind: full}`."""
    epochs: float = Field(default=3.0, ge=0)
    """0: not done."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop earlier than `epochs`."""
    budget_tokens: int | None = Field(default=None, ge=1)
    """Stop earlier than that, after the step with which so many tokens have been sampled and updated: for comparing methods on equal
    terms."""
    batch: int = Field(default=64, ge=1)
    """Sequences of one optimizer step."""
    micro_batch: int = Field(default=1, ge=1)
    """Sequences of one forward pass; divides `batch`."""
    learning_rate: float = Field(default=5e-6, gt=0)
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup_ratio: float = Field(default=0.3, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    beta2: float = Field(default=0.999, gt=0, lt=1)
    """Of AdamW."""
    grad_norm: float = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=16384, ge=16)
    """A longer sequence (prompt and completion, or a whole trajectory) is dropped and counted, never truncated."""
    prompt_loss: bool = False
    """Train on the prompt's tokens too, as in pretraining; with single steps."""


class WarmUp(Supervised):
    """Supervised warm-up before RL; the published recipe has none."""

    epochs: float = Field(default=0.0, ge=0)
    """0: not done."""


class Reinforced(Options):
    """GRPO, on the similarity of single steps (SRL) or on the outcome of episodes (RLVR).

    Sampling is unfiltered (top_p 1, no top_k): else the importance ratio is biased.
    """

    section: ClassVar[str] = "srl"
    """Where these options stand."""
    epochs: float = Field(default=30.0, gt=0)
    """Optimizer steps as multiples of the data's size; prompts that dynamic sampling drops are not counted."""
    max_steps: int | None = Field(default=None, ge=1)
    budget_tokens: int | None = Field(default=None, ge=1)
    """As in supervised training. What is read and written in sampling counts, dropped groups included, and the sequences of the update,
    whatever they share."""
    prompts: int = Field(default=512, ge=1)
    """Prompts of one optimizer step."""
    rollouts: int = Field(default=8, ge=2)
    """Completions of each prompt: the group."""
    micro_batch: int = Field(default=8, ge=1)
    """Completions of one forward and backward pass; divides `prompts × rollouts`."""
    steps_per_trajectory: int = Field(default=1, ge=1)
    """Steps of one trajectory that are trained on together (SRL). What their prompts share is computed once in a micro-batch, which holds
    `steps_per_trajectory × rollouts` completions at least. The price: their gradients are alike, so a batch says less; how much less,
    `gradient_correlation` in metrics.jsonl tells (harness/train/correlation.py)."""
    sample_batch: int = Field(default=128, ge=1)
    """Completions decoded at once, by the model."""
    sampler: str = "model"
    """What samples: `model`, the one that is trained; `vllm`, beside it on the same device, in one process; or a vLLM server's address,
    `http://HOST:PORT`: on other GPUs or another node, from where the run folder is seen (docs/scale.md)."""
    vllm_memory: float = Field(default=0.3, gt=0, lt=1)
    """Share of the GPU's memory that vLLM takes, a second copy of the weights in bfloat16 included."""
    share_prefixes: bool | None = None
    """Compute what the sequences of a micro-batch share once in the update (harness/train/packing.py). None: on a CPU, where that is
    measured (benchmarks/RESULTS.md), and with several steps of a trajectory; else TRL's own padded forward."""
    dynamic_sampling: bool = True
    """Take only prompts whose group's rewards differ, and sample on until the batch is full."""
    min_deviation: float = Field(default=1e-4, ge=0)
    """Standard deviation that a group's rewards must exceed, besides not being equal; not stated by the paper. TRL adds as much to its
    divisor."""
    max_tries: int = Field(default=16, ge=1)
    """Prompts tried for one batch at most, as a multiple of `prompts`."""
    without_signal: Literal["fail", "end"] = "fail"
    """What it means that these do not fill a batch. `fail`: the run ends with a message, and goes on with other options. `end`: nothing is
    left to learn, and the stage is finished."""
    learning_rate: float = Field(default=5e-7, gt=0)
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=1.0, gt=0)
    max_completion_tokens: int = Field(default=2048, ge=4)
    max_sampler_gap: float = Field(default=0.3, gt=0)
    """Mean difference between the log-prob of a token as it was sampled and in the update; beyond it the sampler has other weights, and the
    run ends. In float32 it is about 1e-6, between kernels in bfloat16 some hundredths."""
    kl: float = Field(default=0.0, ge=0)
    clip: float = Field(default=0.2, gt=0)
    """Of the importance ratio; not stated by the paper. Never reached with one update a batch."""
    grad_norm: float = Field(default=1.0, gt=0)

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, sampler: str) -> str:
        address = re.fullmatch(r"(https?://[^/@?#\s]+)(/v1)?/?", sampler)
        if address is None and sampler not in ("model", "vllm"):
            raise ValueError("expected model, vllm, or the address of a vLLM server: http://HOST:PORT")
        return address[1] if address else sampler

    @property
    def served(self) -> bool:
        """Whether a server samples, elsewhere."""
        return self.sampler not in ("model", "vllm")


class StepWise(Reinforced):
    """SRL: a prompt is a step, its reward the similarity of the model's action to the expert's."""

    reward: Literal["similarity", "edit", "exact"] = "similarity"
    """`edit`: where the expert edits a file that the context shows, edits are compared by what they do to it (harness/edit_reward.py).
    Both are logged in any case. `exact`: 1 for the expert's action and 0 for any other, to compare with."""


class Outcome(Reinforced):
    """RLVR: a prompt is a task, a rollout an episode, its reward the environment's grade. A group of equal outcomes has no signal."""

    section: ClassVar[str] = "rlvr"
    prompts: int = Field(default=128, ge=1)
    """Tasks of one optimizer step."""
    max_completion_tokens: int = Field(default=2048, ge=4)
    """Of one turn; an episode's limits are `episodes.limits`."""


class Episodes(Options):
    """RLVR's tasks, and how they are played: as `harness eval` plays them."""

    dataset: str | None = None
    """As for evaluation: a file, a hub id, a folder of `harness data synth`. None: the folder among `data` that holds tasks, else the
    environment's own."""
    image_template: str | None = None
    mode: Literal["e2e", "oracle"] = "e2e"
    scaffold: Literal["agent", "agentless"] = "agent"
    limits: Limits = Limits()
    """When an episode is ended; it is graded as it then stands."""
    workers: int = Field(default=16, ge=1)
    """Episodes at a time: as many sandboxes, where the environment uses them, and at most as many completions are decoded together."""
    sandbox: Literal["docker", "local"] = "docker"
    """local: this machine, unprotected."""
    base_image: str | None = None
    pull: bool = False
    """Get images that are not here from their registry."""
    image_budget_gb: float | None = Field(default=None, ge=0)
    """Keep the pulled images to so many GB."""


class Memory(Options):
    """What is kept on the device to train: `harness train --dry-run` shows what it comes to."""

    lora_rank: int = Field(default=0, ge=0)
    """Train adapters of this rank beside the frozen weights, which then lie on a GPU in bfloat16. 0: train the weights, kept in float32.
    The adapters of a stage are added to the weights at its end: every exported checkpoint holds whole weights."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """An adapter's product is scaled by `lora_alpha / lora_rank`. None: twice the rank."""
    lora_targets: str | tuple[str, ...] = "all-linear"
    """Names of the layers that get adapters; `all-linear`: every linear layer but the output embeddings."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """AdamW keeps 8 bytes for each trained weight, in 8 bits 2; `paged` moves them to the host where the device runs full."""
    gradient_checkpointing: bool | None = None
    """Compute a layer's activations again in the backward pass instead of keeping them. None: on a GPU, where they would not fit."""


class Gate(Options):
    """What a model must do before RL starts: there is nothing to reinforce otherwise."""

    groups: int = Field(default=16, ge=1)
    """Steps or tasks that are rolled out to find out, as a group each."""
    min_format_rate: float = Field(default=0.5, ge=0, le=1)
    """Share of the outputs that have the format."""
    min_varied_groups: float = Field(default=0.1, ge=0, le=1)
    """Share of groups whose rewards are not all equal."""


class Validation(Options):
    """Greedy decoding of held-out steps and, in RLVR, greedy episodes on held-out tasks; the best checkpoint is chosen by it."""

    instances: int = Field(default=30, ge=0)
    """Held out of the data, and of RLVR's tasks, where they bring no split of their own; at most a tenth of them. So many tasks are played
    at most."""
    steps: int = Field(default=650, ge=0)
    """Steps that are decoded at most."""
    every: int = Field(default=10, ge=1)
    """Optimizer steps between validations; besides, one before the first and one after the last."""
    rlvr_by: Literal["tasks", "steps"] = "tasks"
    """What chooses RLVR's checkpoint: tasks solved, or, where few are, the expert's steps (then `data` has to hold some)."""
    sample_batch: int | None = Field(default=None, ge=1)
    """Steps decoded at once, each after a prompt of its own, where sampling reads one prompt for a group. None: `srl.sample_batch`."""


class TrainConfig(Options):
    """One training run."""

    domain: str
    method: Method = "srl"
    """`pipeline`: warm-up (where `warmup.epochs` is not 0), SRL, RLVR, each from the best checkpoint of the one before."""
    model: str
    """A checkpoint folder, a hub id, or `tiny`."""
    tokenizer: str | None = None
    """With `model: tiny`: a folder or tokenizer.json (.gz) to use instead of a BPE trained on the data."""
    data: tuple[str, ...] = ()
    """Folders, files or hub ids of trajectories; several are mixed. RLVR alone needs none."""
    only_resolved: bool = False
    """Drop trajectories whose recorded verdict is not `resolved`; the published recipe trains on verified ones."""
    teacher: str | None = None
    """Drop trajectories of other models than this one."""
    exclude: tuple[str, ...] = ()
    """Evaluation sets (files of rows or ids, or hub ids) whose instances must not be trained on: data that holds one is refused."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    env: dict[str, Any] = Field(default_factory=dict)
    """Options of the domain's environment: its system prompt depends on them."""
    context: ContextPolicy = ContextPolicy()
    targets: Targets = "all_but_last"
    max_prompt_tokens: int = Field(default=8192, ge=16)
    """Longer prompts are cut by `harness.prompt.fit`; the cuts are counted."""
    tiny: TinyModel = TinyModel()
    warmup: WarmUp = WarmUp()
    sft: Supervised = Supervised()
    srl: StepWise = StepWise()
    rlvr: Outcome = Outcome()
    episodes: Episodes = Episodes()
    memory: Memory = Memory()
    gate: Gate = Gate()
    validation: Validation = Validation()
    checkpoint_every: int = Field(default=10, ge=1)
    """Optimizer steps between resumable checkpoints."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where the figures of metrics.jsonl are sent besides, by the integrations of transformers. TensorBoard's files: RUN/tensorboard."""
    samples_logged: int = Field(default=16, ge=0)
    """Completions kept under completions/ for each step of SRL, and episodes under episodes/ for each of RLVR."""


TINY: dict[str, Any] = {
    "targets": "all",
    "max_prompt_tokens": 512,
    "warmup": {
        "epochs": 2.5,
        "batch": 32,
        "micro_batch": 16,
        "learning_rate": 2e-3,
        "warmup_ratio": 0.05,
        "weight_decay": 0.05,
        "beta2": 0.98,
        "max_tokens": 640,
    },
    "sft": {
        "epochs": 0.5,
        "batch": 32,
        "micro_batch": 16,
        "learning_rate": 5e-4,
        "warmup_ratio": 0.05,
        "weight_decay": 0.05,
        "beta2": 0.98,
        "max_tokens": 640,
    },
    "srl": {
        "epochs": 2,
        "max_steps": 60,
        "prompts": 8,
        "micro_batch": 64,
        "sample_batch": 256,
        "dynamic_sampling": False,
        "learning_rate": 1e-4,
        "max_completion_tokens": 96,
    },
    "rlvr": {
        "max_steps": 20,
        "prompts": 4,
        "micro_batch": 8,
        "learning_rate": 1e-4,
        "max_completion_tokens": 96,
    },
    "episodes": {"limits": {"max_turns": 8}},
    "validation": {"steps": 200, "every": 200},
    "checkpoint_every": 100,
}
"""What the tiny preset sets. `all` targets, since `all_but_last` would never teach the call that ends an episode. No dynamic sampling:
after the warm-up it samples twice as many prompts a step, and no gain on held-out steps stood out from noise."""


TINY_WIDTH = 512
"""A checkpoint of at most this hidden size is treated as a tiny one."""


def is_tiny(model: str) -> bool:
    """Whether `model` is the tiny preset's, or a checkpoint folder of such a model."""
    file = Path(model) / "config.json"
    return model == TINY_MODEL or (file.is_file() and json.loads(file.read_text()).get("hidden_size", TINY_WIDTH + 1) <= TINY_WIDTH)


def defaults(env: type[Env], model: str) -> dict[str, Any]:
    """The options below those that are given: the environment's context, the tiny preset, and what the checkpoint to start from was trained
    with. `brief` is set for a tiny model where the environment has such an option.
    """
    tiny = is_tiny(model)
    base: dict[str, Any] = {**(TINY if tiny else {}), "context": env.context.model_dump()}
    if tiny and "brief" in env.Config.model_fields:
        base["env"] = {"brief": True}
    if model != TINY_MODEL:
        base.pop("warmup", None)
        policy = PromptPolicy.load(Path(model))
        base |= policy.model_dump() if policy else {}
    return base
