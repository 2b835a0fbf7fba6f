"""`harness eval`: episodes over the instances of a data set, each kept the moment it is finished, and the report over all of them.

    RUN/episodes/ID.json                                           the episode as ATIF, saved after every step
    RUN/instances/ID/{report.json, patch.diff, test_output.txt}    its verdict
    RUN/predictions.jsonl, RUN/report.json

With several samples an instance they are episodes/ID.sample-N.json and instances/ID/sample-N/…; predictions.jsonl has the first ones,
predictions-N.jsonl the N-th. report.json of an episode is written last and marks it as finished: the same command again runs only the
others. One that ended in an error of the infrastructure has no verdict and is tried again.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.agent import Episode, Save
from harness.env import OpenSandbox, Status
from harness.generate import EngineName, Generator, is_endpoint, local_engine, require_vllm
from harness.plan import Item, Plan, require_images
from harness.play import Interrupted, persist, play, terminable
from harness.progress import Progress
from harness.runs import append_jsonl, open_run, option_of, write_json, write_text
from harness.sandbox_open import Sandboxes
from harness.score import summarize
from harness_trajectories.errors import UserError

Player = Callable[[Item, Save], tuple[Episode, list[str]]]
"""Plays an episode once (`harness.play.play`)."""


def evaluate(
    plan: Plan,
    out: Path,
    workers: int = 1,
    fresh: bool = False,
    generator: Generator | None = None,
    open_sandbox: OpenSandbox | None = None,
    cluster: str | None = None,
) -> dict[str, Any]:
    """Run or take up an evaluation and return its report, which is also RUN/report.json.

    Args:
        workers: episodes at a time, a thread each.
        generator: instead of the one that `plan.config.model` names.
        open_sandbox: instead of the one that `plan.config.sandbox` names.
        cluster: address of a Ray cluster whose nodes play the episodes, instead of this machine (`harness.cluster`).

    Raises:
        UserError: `out` holds another run, or the model, the sandbox or the cluster cannot be had.
        KeyboardInterrupt: Ctrl-C; whatever was finished is kept, and no sandbox is left.
    """
    begun_with = None if fresh else option_of(out, "engine")
    plan = _with_engine(plan, begun_with, generator is not None, cluster is not None)
    folder = open_run(out, "eval", plan.config, fresh).path
    todo = _by_repository(item for item in plan.items() if not _finished(folder, item))
    if open_sandbox is None and cluster is None:
        require_images(plan, [item.task for item in todo if item.sample in (None, 1)])
    try:
        if todo:
            with ExitStack() as stack, terminable():
                player, stop = _players(plan, generator, open_sandbox, cluster, stack)
                _Work(plan, folder, player, stop).all(todo, workers)
    finally:
        _rebuild_predictions(plan, folder)
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for item in plan.items():
        if (row := _read(folder, item)) is not None:
            rows.setdefault(item.task.id, []).append(row)
    report = summarize(plan, rows)
    write_json(folder / "report.json", report)
    return report


def _with_engine(plan: Plan, begun_with: EngineName | None, generator: bool, cluster: bool) -> Plan:
    """The plan with the engine that is used; `auto` remains where none is.

    Args:
        begun_with: the engine of the run that is taken up again.
        generator: one is given, so that no model is loaded.
        cluster: other machines play the episodes.

    Raises:
        UserError: the engine cannot be used so.
    """
    engine = plan.config.engine
    if not plan.needs_model or generator or is_endpoint(str(plan.config.model)):
        if engine != "auto":
            why = "an endpoint has an engine of its own" if plan.needs_model and not generator else "no model is loaded"
            print(f"--engine {engine} is left out: {why}", file=sys.stderr)
        engine = "auto"
    elif engine == "auto":
        engine = begun_with or ("transformers" if cluster else local_engine())
    if engine == "vllm" and cluster:
        raise UserError(
            "--engine vllm: with --ray a node plays episodes in several processes, and each would want the GPU for an engine of its "
            "own. Serve the model (vllm serve MODEL) and name it as --model http://HOST:PORT/v1#MODEL, or use --engine transformers"
        )
    if engine == "vllm":
        require_vllm()
    return plan._replace(config=plan.config.model_copy(update={"engine": engine}))


def _players(
    plan: Plan, generator: Generator | None, open_sandbox: OpenSandbox | None, cluster: str | None, stack: ExitStack
) -> tuple[Player, Callable[[], None]]:
    """What plays an episode, and what ends all that are under way. `stack` takes what is to be closed.

    Raises:
        UserError: the model or the cluster cannot be had.
    """
    if cluster is not None:
        from harness.cluster import Cluster

        remote = stack.enter_context(closing(Cluster(cluster, plan)))
        return remote.play, remote.close
    if plan.needs_model and generator is None:
        from harness.generate import load_generator

        generator = stack.enter_context(closing(load_generator(str(plan.config.model), plan.config.engine)))
    sandboxes = stack.enter_context(closing(Sandboxes(plan.config.sandbox, plan.config.base_image, plan.images)))
    opened = open_sandbox or sandboxes
    return lambda item, save: play(plan, item, generator, opened, save), sandboxes.close


def _by_repository(items: Iterable[Item]) -> list[Item]:
    """The episodes of one repository and version one after the other, since their images share most layers; else as they came."""
    groups: dict[tuple[str | None, ...], list[Item]] = {}
    for item in items:
        groups.setdefault(tuple(getattr(item.task, name, None) for name in ("repo", "version")), []).append(item)
    return [item for group in groups.values() for item in group]


def file_name(instance: str) -> str:
    """An instance id as a file name; ids of the SWE-bench style stay as they are."""
    return quote(instance, safe="").replace(".", "%2E", 1) if instance.startswith(".") else quote(instance, safe="")


def place(folder: Path, item: Item) -> Path:
    """Where the verdict of an episode stands."""
    instance = folder / "instances" / file_name(item.task.id)
    return instance if item.sample is None else instance / f"sample-{item.sample}"


class _Work:
    """The episodes of one call, spread over threads."""

    def __init__(self, plan: Plan, folder: Path, play: Player, stop: Callable[[], None]) -> None:
        self.plan = plan
        self.folder = folder
        self._play = play
        self._stop_players = stop
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._total = len(plan.items())
        self._progress = Progress(self._total, f"eval {plan.config.mode}")

    def all(self, items: list[Item], workers: int) -> None:
        """Play all of them.

        Raises:
            BaseException: whatever ended it early, after the workers have let go of their sandboxes.
        """
        self._progress.resume_at(self._total - len(items))
        pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="eval")
        futures = [pool.submit(self.instance, item) for item in items]
        try:
            with self._progress:
                for future in as_completed(futures):
                    future.result()
        except BaseException:
            self._stop.set()
            self._stop_players()
            pool.shutdown(wait=True, cancel_futures=True)
            what = "episodes" if self.plan.config.samples > 1 else "instances"
            print(f"stopped; {self._progress.done} of {self._total} {what} are finished and kept", file=sys.stderr)
            raise
        pool.shutdown()

    def instance(self, item: Item) -> None:
        """One episode until it has a verdict or its tries are used up."""
        attempt = partial(self._play, item, partial(self._saved, item))
        episode, notes, tries = persist(attempt, item.name, self._stop)
        status = self._keep(item, episode, notes, tries)
        with self._lock:
            self._counts[status or "not graded"] += 1
            self._progress.advance(**self._counts)

    def _saved(self, item: Item, episode: Episode) -> None:
        if self._stop.is_set():
            raise Interrupted
        self._write(item, episode)

    def _write(self, item: Item, episode: Episode) -> None:
        """Save an episode as it stands, under its own name: with several samples, two of an instance are two runs."""
        trajectory = episode.trajectory.model_copy(update={"id": item.name})
        document = episode.model_copy(update={"trajectory": trajectory}).atif()
        write_json(self.folder / "episodes" / f"{file_name(item.name)}.json", document)

    def _keep(self, item: Item, episode: Episode, notes: list[str], attempts: int) -> Status | None:
        """Write down a finished episode; report.json comes last."""
        grade = episode.grade
        folder = place(self.folder, item)
        patch = episode.trajectory.patch
        for name, text in (grade.files if grade else {} if patch is None else {"patch.diff": patch}).items():
            write_text(folder / Path(name).name, text)
        self._write(item, episode)
        status: Status | None = "infra_error" if episode.exit == "infra_error" else grade.status if grade else None
        row = {
            "instance_id": item.task.id,
            **({} if item.sample is None else {"sample": item.sample}),
            "status": status,
            "score": grade.score if grade else None,
            "official_resolved": grade.official_resolved if grade else None,
            "notes": [*(grade.notes if grade else ()), *notes],
            "seconds": episode.seconds,
            "turns": episode.turns,
            "tokens": episode.tokens,
            "format_errors": episode.format_errors,
            "invalid_calls": episode.invalid_calls,
            "exit": episode.exit,
            "error": episode.error,
            "cuts": episode.cuts,
            "attempts": attempts,
        }
        write_json(folder / "report.json", row)
        if status != "infra_error":
            with self._lock:
                append_jsonl(self.folder / _predictions(item.sample), _prediction(self.plan, item, patch))
        return status


def _read(folder: Path, item: Item) -> Mapping[str, Any] | None:
    file = place(folder, item) / "report.json"
    row: Mapping[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
    return row


def _finished(folder: Path, item: Item) -> bool:
    """Whether an episode has its verdict (or needs none)."""
    row = _read(folder, item)
    return row is not None and row["status"] != "infra_error"


def _predictions(sample: int | None) -> str:
    return "predictions.jsonl" if sample in (None, 1) else f"predictions-{sample}.jsonl"


def _prediction(plan: Plan, item: Item, patch: str | None) -> dict[str, str]:
    return {"instance_id": item.task.id, "model_name_or_path": plan.label, "model_patch": patch or ""}


def _rebuild_predictions(plan: Plan, folder: Path) -> None:
    """The predictions of the finished episodes, in the data set's order: a killed writer's torn or missing lines are made good."""
    lines: dict[str, list[str]] = {_predictions(item.sample): [] for item in plan.items()}
    for item in plan.items():
        if _finished(folder, item):
            patch = place(folder, item) / "patch.diff"
            text = patch.read_bytes().decode(errors="surrogatepass") if patch.is_file() else ""
            lines[_predictions(item.sample)].append(json.dumps(_prediction(plan, item, text)) + "\n")
    for name, rows in lines.items():
        write_text(folder / name, "".join(rows))
