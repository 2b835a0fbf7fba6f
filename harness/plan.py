"""What an evaluation is going to do: its options, and what they come to (environment, instances, prompt policy) before anything runs."""

from __future__ import annotations

import difflib
import json
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.agent import Limits
from harness.contamination import overlap
from harness.env import Env, SandboxTask, Split, Task, load_env
from harness.generate import EngineName, Sampling, is_endpoint, parse_endpoint
from harness.images import ImagePolicy, absent
from harness.prompt import PromptPolicy
from harness.sandbox import NoEngine, SandboxError
from harness.sandbox_open import Sandboxes
from harness_trajectories.errors import ReadError, UserError
from harness_trajectories.steps import ContextPolicy

RUNS = Path("runs")
"""Where checkpoints and generated tasks are looked for when none are named."""
Mode = Literal["oracle", "e2e", "gold", "null"]


class EvalConfig(BaseModel):
    """The options of `harness eval`; they stand in RUN/config.yaml, and a run is resumed only with the same ones."""

    model_config = ConfigDict(extra="forbid")

    domain: str = "swe"
    mode: Mode = "e2e"
    scaffold: Literal["agent", "agentless"] = "agent"
    model: str | None = None
    """A checkpoint's directory, a hub id or an endpoint; None: the newest checkpoint under runs/."""
    engine: EngineName = "auto"
    """What runs a checkpoint; RUN/config.yaml has what `auto` came to, and a run is taken up again with that."""
    predictions: str | None = None
    """Instead of a model: a file of patches in the SWE-bench schema, to be graded."""
    dataset: str | None = None
    instances: tuple[str, ...] = ()
    """Only these; all where empty."""
    samples: int = Field(default=1, ge=1)
    """Episodes of each instance; the N-th uses seed `sampling.seed + N - 1`."""
    greedy: bool = False
    """Besides the samples, one greedy episode of each instance, as its sample 0. Its figures stand apart from the samples'."""
    repeat: int = Field(default=1, ge=1)
    """How often each result is graded; verdicts that differ are flakes."""
    grade: bool = True
    sandbox: Literal["docker", "local"] = "docker"
    base_image: str | None = None
    image_template: str | None = None
    env: dict[str, Any] = Field(default_factory=dict)
    """The environment's own options."""
    limits: Limits = Limits()
    sampling: Sampling = Sampling()
    context: ContextPolicy | None = None
    """None: the checkpoint's, or the default of `PromptPolicy`."""
    max_prompt_tokens: int | None = Field(default=None, ge=16)
    force: bool = False
    """Let explicit prompt options win over the checkpoint's."""
    allow_overlap: bool = False
    """Evaluate also what the model was trained on."""

    @field_validator("mode", mode="before")
    @classmethod
    def _null(cls, value: Any) -> Any:
        """YAML reads a bare `null` as no value."""
        return "null" if value is None else value


class EnvOptions(BaseModel):
    """An environment's own options where nothing else is asked."""

    model_config = ConfigDict(extra="forbid")

    env: dict[str, Any] = Field(default_factory=dict)


class Item(NamedTuple):
    """One episode of an evaluation."""

    task: Task
    sample: int | None
    """Which of the instance's episodes, from 1, 0 the greedy one beside them; None where it has one only."""

    @property
    def name(self) -> str:
        return self.task.id if self.sample is None else f"{self.task.id}.sample-{self.sample}"


class Plan(NamedTuple):
    """Everything that is decided before the first episode."""

    config: EvalConfig
    """With the defaults filled in."""
    env: type[Env]
    env_config: BaseModel
    tasks: dict[str, Task]
    policy: PromptPolicy
    predictions: Mapping[str, str] | None
    label: str
    """The model's name in the report."""
    overlap: list[str]
    """Instances that the model was trained on."""
    images: ImagePolicy = ImagePolicy()

    def items(self) -> list[Item]:
        """All episodes, those of an instance one after the other."""
        config = self.config
        samples = range(0 if config.greedy else 1, config.samples + 1) if config.greedy or config.samples > 1 else (None,)
        return [Item(task, sample) for task in self.tasks.values() for sample in samples]

    @property
    def needs_model(self) -> bool:
        return self.predictions is None and self.config.mode in ("oracle", "e2e")


def prepare(config: EvalConfig, model_name: str | None = None, images: ImagePolicy | None = None) -> Plan:
    """The plan of an evaluation.

    Args:
        model_name: of a generator that is given instead of `config.model`.
        images: what is done about images that are not here. Where there is no model either, the images are spoken of first.

    Raises:
        UserError: any option that cannot be met.
    """
    control = config.mode in ("gold", "null")
    if config.scaffold == "agentless" and config.mode != "e2e":
        raise UserError(f"--scaffold agentless is a way to play --mode e2e; --mode {config.mode} has no scaffold")
    if config.samples > 1 and (control or config.predictions):
        what = "--predictions" if config.predictions else f"--mode {config.mode}"
        raise UserError(f"--samples {config.samples}: {what} asks no model, so there is one episode an instance; was --repeat meant?")
    if config.samples > 1 and config.sampling.temperature == 0:
        raise UserError(
            f"--samples {config.samples} with greedy decoding gives the same episode {config.samples} times: "
            "add a temperature, as --sampling.temperature=0.8"
        )
    if config.greedy and (control or config.predictions or config.sampling.temperature == 0):
        what = "what asks no model has no samples" if control or config.predictions else "a run at temperature 0 is greedy already"
        raise UserError(f"--greedy stands for a greedy episode beside the sampled ones, and {what}: leave it out")
    if control and (config.model or config.predictions):
        raise UserError(f"--mode {config.mode} takes neither --model nor --predictions: it checks the tasks and the grading")
    if config.model and config.predictions:
        raise UserError("--model and --predictions exclude each other: the patches are graded as they are")
    if config.model and is_endpoint(config.model):
        parse_endpoint(config.model)  # before the run's folder holds what may be a password
    env = load_env(config.domain).for_mode(config.mode, config.scaffold)
    label: str = config.mode
    predictions: dict[str, str] | None = None
    if config.predictions:
        predictions, label = read_predictions(Path(config.predictions))
    elif not control:
        if config.model is None and model_name is None and (found := _newest_checkpoint()):
            config = config.model_copy(update={"model": str(found)})
        label = model_name or str(config.model)
    config = _with_dataset(config, env)
    checkpoint = Path(config.model) if config.model and Path(config.model).is_dir() else None
    policy = _policy(config, checkpoint, env)
    options = env_config(env, _env_options(config, env, policy))
    tasks = _tasks(config, env, options)
    if unknown := sorted(set(predictions or ()) - set(tasks)):
        raise UserError(
            f"{config.predictions}: {len(unknown)} predictions are for instances not among those to grade: {', '.join(unknown[:3])}"
        )
    both = overlap(checkpoint, tasks, config.allow_overlap) if checkpoint else []
    built = (images or ImagePolicy())._replace(builds=builds(tasks.values()))
    plan = Plan(config, env, options, tasks, policy, predictions, label, both, built)
    if plan.needs_model and config.model is None and model_name is None:
        require_images(plan, tasks.values())
        raise UserError(f"no --model, and no checkpoint under {RUNS}/**/checkpoints. Train one (harness train), or give --model")
    return plan


def builds(tasks: Iterable[Task]) -> tuple[tuple[str, str], ...]:
    """The images that tasks have built, and of what (`ImagePolicy.builds`)."""
    return tuple((task.image, task.build) for task in tasks if isinstance(task, SandboxTask) and task.image and task.build)


def require_images(plan: Plan, tasks: Collection[Task], pulling: str | None = None) -> None:
    """Say what images are not here before anything is begun. Where they are pulled, the first is, so that what cannot be pulled is said
    once. Where nothing is graded and prompts can be made without them, a line on stderr says so.

    Args:
        pulling: the command that pulls them; None: that of the evaluation.

    Raises:
        UserError: images are needed that are not here and are not or cannot be pulled, or no engine answers.
    """
    named = [task.image for task in tasks if isinstance(task, SandboxTask) and task.image]
    if not named or (plan.predictions is not None and not plan.config.grade):
        return
    optional = not plan.config.grade and not plan.env.needs_image
    try:
        with closing(Sandboxes(plan.config.sandbox, plan.config.base_image, plan.images)) as sandboxes:
            images = sandboxes.images()
            missing = images.missing(named) if images else []
            if images and missing and plan.images.pull:
                images.get(missing[0])
                return
    except NoEngine:
        if not optional:
            raise
        missing = sorted(set(named))
    except SandboxError as error:
        raise UserError(str(error)) from None
    affected = sum(name in missing for name in named)
    if missing and optional:
        print(
            f"the images of {affected} of {len(tasks)} instances are not here: their prompts show the files as far as the gold patch shows "
            "them, which is not comparable with other oracle results",
            file=sys.stderr,
        )
    elif missing:
        given = ((name, getattr(plan.config, name)) for name in ("domain", "mode", "scaffold", "model", "predictions", "dataset"))
        words = [word for name, value in given if value != EvalConfig.model_fields[name].default for word in (f"--{name}", str(value))]
        raise absent(missing, affected, len(tasks), pulling or shlex.join(["harness", "eval", *words, "--pull"]))


def read_predictions(path: Path) -> tuple[dict[str, str], str]:
    """Patches by instance id, and the model's name, of a .jsonl, a JSON list or a JSON mapping in the SWE-bench schema.

    Raises:
        UserError: unreadable, a row without its fields, two rows of one instance.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}. --predictions takes a file in the SWE-bench schema") from None
    except UnicodeDecodeError as error:
        raise ReadError(str(path), None, f"not UTF-8 text: {error}") from None
    if path.suffix == ".jsonl":
        rows = [(line, _json(row, path, line)) for line, row in enumerate(text.split("\n"), 1) if row.strip()]
    else:
        whole = _json(text, path, None)
        rows = list(enumerate(whole.values() if isinstance(whole, dict) else whole if isinstance(whole, list) else [whole], 1))
    patches: dict[str, str] = {}
    names: list[str] = []
    for line, row in rows:
        fields = row if isinstance(row, dict) else {}
        if not isinstance(fields.get("instance_id"), str) or not isinstance(fields.get("model_patch", 0), str | None):
            raise ReadError(str(path), line, "expected {instance_id, model_name_or_path, model_patch}")
        if row["instance_id"] in patches:
            raise ReadError(str(path), line, f"instance_id {row['instance_id']!r} occurs twice")
        patches[row["instance_id"]] = row["model_patch"] or ""
        names.append(str(row.get("model_name_or_path") or "unnamed"))
    if not patches:
        raise UserError(f"{path}: no predictions")
    return patches, ", ".join(dict.fromkeys(names))


def _json(text: str, path: Path, line: int | None) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ReadError(str(path), line, f"not valid JSON: {error}") from None


def _newest_checkpoint() -> Path | None:
    found = _newest(path for path in RUNS.glob("**/checkpoints/*/config.json") if not path.parent.name.startswith("."))
    if found is None:
        return None
    print(f"--model not given: {found.parent}, the newest local checkpoint", file=sys.stderr)
    return found.parent


def _with_dataset(config: EvalConfig, env: type[Env]) -> EvalConfig:
    """The data set filled in, where the environment reads one and none is given."""
    field = env.Config.model_fields.get("dataset")
    if field is None and config.dataset:
        raise UserError(f"--dataset {config.dataset}: {config.domain} brings its own instances and reads no data set")
    if field is None or config.dataset or config.env.get("dataset"):
        return config
    found = _newest(file for file in RUNS.glob("data/**/tasks/test.jsonl") if _generated_for(file) in (None, config.domain))
    if found is None:
        if field.is_required() or field.get_default(call_default_factory=True) is None:
            raise UserError(
                f"no --dataset, and no held-out generated tasks under {RUNS}/data. Give a data set (docs/datasets.md), or make some: "
                f"harness data synth --domain {config.domain} -n 100 --seed 0 --out {RUNS}/data/{config.domain}"
            )
        return config
    print(f"--dataset not given: {found}, the newest held-out generated tasks", file=sys.stderr)
    return config.model_copy(update={"dataset": str(found)})


def _generated_for(tasks: Path) -> str | None:
    """The domain of a folder of `harness data synth`; None where it says none."""
    file = tasks.parents[1] / "synth.json"
    return json.loads(file.read_text()).get("domain") if file.is_file() else None


def _newest(paths: Iterable[Path]) -> Path | None:
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)


def _policy(config: EvalConfig, checkpoint: Path | None, env: type[Env]) -> PromptPolicy:
    """The checkpoint's policy; explicit options fill in where it has none, and win over it only by force."""
    saved = PromptPolicy.load(checkpoint) if checkpoint else None
    asked = {name: value for name in ("context", "max_prompt_tokens") if (value := getattr(config, name)) is not None}
    if saved is None:
        return PromptPolicy(**{"context": env.context, **asked})
    conflicts = [f"{name} {getattr(saved, name)}, not {value}" for name, value in asked.items() if value != getattr(saved, name)]
    conflicts += [f"env.{k} {v!r}, not {config.env[k]!r}" for k, v in saved.env.items() if k in config.env and config.env[k] != v]
    if conflicts and not config.force:
        raise UserError(
            f"{checkpoint} was trained with {'; '.join(conflicts)}. Leave the option out to use the checkpoint's, or --force to override it"
        )
    options = {name: config.env.get(name, value) for name, value in saved.env.items()}
    return saved.model_copy(update={**asked, "env": options})


def env_config(env: type[Env], options: Mapping[str, Any]) -> Any:
    """The validated options of an environment.

    Raises:
        UserError: an unknown option or a wrong value.
    """
    known = list(env.Config.model_fields)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known) or 'none'}"
            raise UserError(f"{env.__name__} has no option {name!r} (--env.{name}); {hint}")
    try:
        return env.Config(**options)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--env.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}, got {first.get('input')!r}") from None


def _env_options(config: EvalConfig, env: type[Env], policy: PromptPolicy) -> dict[str, Any]:
    options = {**{name: value for name, value in policy.env.items() if name in env.Config.model_fields}, **config.env}
    for name in ("dataset", "image_template"):
        if (value := getattr(config, name)) is not None:
            options[name] = value
    if config.mode == "null" and "grade_empty_patch" in env.Config.model_fields:
        options["grade_empty_patch"] = True
    return options


def _tasks(config: EvalConfig, env: type[Env], options: BaseModel) -> dict[str, Task]:
    tasks = tasks_of(env, options, "test")
    if not tasks:
        raise UserError(f"{config.dataset or config.domain}: no instances to evaluate")
    for wanted in config.instances:
        if wanted not in tasks:
            near = difflib.get_close_matches(wanted, tasks, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"--instances: no instance {wanted!r} in {config.dataset or config.domain}{hint}")
    return {name: tasks[name] for name in config.instances} if config.instances else tasks


def tasks_of(env: type[Env], options: BaseModel, split: Split) -> dict[str, Task]:
    """The tasks of a split by id, in their order.

    Raises:
        UserError: two have the same id.
    """
    tasks: dict[str, Task] = {}
    for task in env.tasks(options, split):
        if task.id in tasks:
            raise UserError(f"two instances have the id {task.id!r}; ids must be unique")
        tasks[task.id] = task
    return tasks
