"""`harness data synth --domain swe`: candidates become tasks until each split is full, and everything is written down.

    OUT/tasks/{train,val,test}.jsonl   SWE-bench-schema records with the base tree in `files`
    OUT/trajectories.jsonl             the teacher's runs on train and val, SWE-smith rows
    OUT/oracle.jsonl                   the same tasks as one step: the file given, SEARCH/REPLACE answered
    OUT/synth.json                     profile, seed, counts, reasons why candidates were dropped, rates

The files depend on seed, count and profile alone (and on the Python version, whose error messages may be part of an observation).
No time of day, duration or address stands in them; `synth.json` alone has the seconds that it took.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, get_args

from pydantic import JsonValue

from harness.agent import Record
from harness.edit import edits_between
from harness.env import OpenSandbox, Split
from harness.progress import Progress
from harness.runs import write_json, write_text
from harness_envs.splits import quotas
from harness_envs.swe.agent import SweAgentEnv
from harness_envs.swe.env import SweConfig
from harness_envs.swe.oracle import SweOracleEnv
from harness_envs.swe.synth.batch import Executor
from harness_envs.swe.synth.build import Built, Candidate, Dropped, Profile, build, candidate
from harness_envs.swe.synth.teacher import Recorded, plan, shortest_plan
from harness_envs.swe.task import SweTask
from harness_trajectories.errors import UserError
from harness_trajectories.export import to_swesmith

TEACHER = "scripted-teacher"
ROUND = 400
"""Candidates that are executed at once, at most. It does not depend on the machine, and so the choice of tasks does not either."""


def generate(n: int, seed: int, out: Path, profile: str, open_sandbox: OpenSandbox, workers: int | None = None) -> dict[str, JsonValue]:
    """Write `n` tasks, eight tenths of them for training and one each for validation and test, and the teacher's runs.

    Returns:
        what stands in synth.json.

    Raises:
        UserError: no such profile, or fewer tasks than splits.
        EnvError: the sandbox failed.
    """
    known = get_args(Profile)
    if profile not in known:
        raise UserError(f"unknown profile {profile!r}; the swe domain has: {', '.join(known)}")
    wanted = quotas(n)
    start = time.monotonic()
    dropped: Counter[str] = Counter()
    with Executor(open_sandbox, workers) as executor:
        tasks = _tasks(profile, seed, wanted, dropped, executor)  # type: ignore[arg-type]
    executed = time.monotonic() - start
    for split, built in tasks.items():
        write_text(out / "tasks" / f"{split}.jsonl", _jsonl(one.record for one in built))
    taught = [one for split in ("train", "val") for one in tasks[split]]
    brief = profile == "tiny"
    write_text(out / "trajectories.jsonl", _jsonl(_trajectory(one, brief) for one in taught))
    write_text(out / "oracle.jsonl", _jsonl(_oracle(one, brief) for one in taught))
    seconds = time.monotonic() - start
    everything = [one for built in tasks.values() for one in built]
    document: dict[str, JsonValue] = {
        "domain": "swe",
        "profile": profile,
        "seed": seed,
        "out": str(out),
        "tasks": {split: len(built) for split, built in tasks.items()},
        "trajectories": len(taught),
        "oracle": len(taught),
        "candidates": len(everything) + sum(dropped.values()),
        "dropped": dict(sorted(dropped.items())),
        "bugs": dict(sorted(Counter(one.mutant.kind for one in everything).items())),
        "seconds": round(seconds, 1),
        "seconds_executing": round(executed, 1),
        "tasks_per_second": round(n / seconds, 1),
    }
    write_json(out / "synth.json", document)
    return document


def _tasks(profile: Profile, seed: int, wanted: dict[Split, int], dropped: Counter[str], executor: Executor) -> dict[Split, list[Built]]:
    """Candidates in the order of their index, executed in rounds, until every split is full. `dropped` counts by reason."""
    tasks: dict[Split, list[Built]] = {split: [] for split in wanted}
    seen: set[str] = set()
    index = 0
    total = sum(wanted.values())
    with Progress(total, f"synth swe {profile}") as progress:
        while any(len(tasks[split]) < wanted[split] for split in wanted):
            room = {split: _more(wanted[split] - len(tasks[split])) for split in wanted}
            chosen: list[Candidate] = []
            while len(chosen) < ROUND and any(room.values()):
                try:
                    one = candidate(profile, seed, index)
                    index += 1
                except Dropped as reason:
                    index += 1
                    dropped[str(reason)] += 1
                    continue
                if one.id in seen:
                    dropped["duplicate"] += 1
                elif room[one.split]:
                    room[one.split] -= 1
                    chosen.append(one)
                seen.add(one.id)
            for one, result in zip(chosen, build(profile, chosen, executor), strict=True):
                if all(len(tasks[split]) >= wanted[split] for split in wanted):
                    break
                if isinstance(result, Dropped):
                    dropped[str(result)] += 1
                elif len(tasks[one.split]) < wanted[one.split]:
                    tasks[one.split].append(result)
                    progress.advance()
    return tasks


def _more(missing: int) -> int:
    """How many candidates to execute for so many missing tasks: about one in eight comes to nothing."""
    return missing + missing // 6 + 2 if missing > 0 else 0


def _jsonl(rows: Iterator[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _task(record: dict[str, Any]) -> SweTask:
    """What of a record makes prompts and runs the teacher."""
    fields = {name: record[name] for name in ("base_commit", "patch", "files")}
    return SweTask(id=record["instance_id"], prompt=record["problem_statement"], **fields)


def _no_sandbox(image: str | None = None) -> Any:
    raise AssertionError("a generated task in oracle mode needs no sandbox")


def _trajectory(one: Built, brief: bool) -> dict[str, Any]:
    """The teacher's run: the environment's own prompts and tools, over what was recorded in the sandbox."""
    task = _task(one.record)
    if brief:
        turns = shortest_plan(one.path, one.mutant, one.fixed)
    else:
        turns = plan(Random(task.id), f"/testbed/{one.path}", one.mutant, one.fixed, one.outputs[0][0])
    recorded = Recorded(task.files, task.base_commit, one.outputs)
    env = SweAgentEnv(SweConfig(brief=brief), lambda image=None: recorded)
    record = Record(env, task, TEACHER, None)
    record.reset()
    for turn in turns:
        record.act(turn.action)
    assert recorded.read(f"/testbed/{one.path}").decode() == one.fixed, f"{task.id}: the teacher's edit is not the fix"
    env.close()
    run = record.episode("done", task.patch).trajectory
    thoughts = iter(turns)
    steps = tuple(s.model_copy(update={"message": next(thoughts).thought}) if s.source == "agent" else s for s in run.steps)
    return to_swesmith(run.model_copy(update={"steps": steps, "resolved": True, "split": one.split}))


def _oracle(one: Built, brief: bool) -> dict[str, Any]:
    task = _task(one.record)
    env = SweOracleEnv(SweConfig(brief=brief), _no_sandbox)
    answer = edits_between({one.path: one.mutant.source}, {one.path: one.fixed})
    assert answer is not None
    conversation = [("system", env.system_prompt(env.config)), ("user", env.reset(task)), ("assistant", answer)]
    return {
        "messages": [{"role": role, "content": content} for role, content in conversation],
        "wire": "text",
        "instance_id": task.id,
        "traj_id": f"{task.id}.oracle",
        "model": TEACHER,
        "resolved": True,
        "patch": task.patch,
        "split": one.split,
    }
