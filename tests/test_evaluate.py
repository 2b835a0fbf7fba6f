"""Evaluations: what is kept, what is counted, what is refused. kill −9 and Ctrl-C are real signals to a real `harness eval`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest

from harness import Env, Grade, Task, contamination, tool
from harness.agent import Limits
from harness.config import resolve
from harness.env import EnvError, Split
from harness.evaluate import evaluate, file_name
from harness.generate import ScriptedGenerator
from harness.plan import EvalConfig, Plan, prepare
from harness.prompt import Message, PromptPolicy, completion
from harness_sql import SqlEnv
from harness_trajectories import Action
from harness_trajectories.errors import UserError
from harness_trajectories.steps import ContextPolicy

HARNESS = Path(sys.executable).with_name("harness")
SQL = "harness_sql:SqlEnv"
HERE = "test_evaluate"
STATUSES = {"resolved", "unresolved", "empty_patch", "patch_error", "timeout", "infra_error", "suspicious"}


def no_sandbox(*_: Any) -> Any:
    raise AssertionError("needs no sandbox")


def nonsense() -> ScriptedGenerator:
    return ScriptedGenerator(lambda _: "no")


def plan(mode: str = "e2e", domain: str = SQL, model: str | None = None, **options: Any) -> Plan:
    return prepare(EvalConfig(domain=domain, mode=mode, **options), model if model or mode in ("gold", "null") else "scripted")


def gold_model() -> ScriptedGenerator:
    """Plays gold, told apart by the prompt: what was done so far is how many assistant messages there are."""
    tasks = {task.prompt: task for task in SqlEnv.tasks(SqlEnv.Config(), "test")}

    def reply(prompt: list[Message]) -> str:
        env = SqlEnv(SqlEnv.Config(), no_sandbox)
        env.task = tasks[prompt[1]["content"].split("\n\n(")[0]]
        return completion("", [env.gold()[sum(message["role"] == "assistant" for message in prompt)]], "calls")

    return ScriptedGenerator(reply)


def test_gold_resolves_and_null_does_not(tmp_path: Path) -> None:
    gold = evaluate(plan("gold"), tmp_path / "gold", workers=4)
    assert (gold["n"], gold["graded"], gold["resolved"], gold["rate"]) == (20, 20, 20, 1.0)
    null = evaluate(plan("null"), tmp_path / "null")
    assert (null["n"], null["resolved"], null["rate"], null["mean"]["turns"]) == (20, 0, 0.0, 0)
    assert set(gold["statuses"]) == STATUSES
    assert gold["ci95"][1] == 1.0


def test_the_folder_is_the_contract(tmp_path: Path) -> None:
    report = evaluate(plan(), tmp_path / "run", workers=4, generator=gold_model())
    assert report == json.loads((tmp_path / "run/report.json").read_text())
    assert {"domain", "mode", "scaffold", "model", "dataset", "n", "resolved", "rate", "ci95", "statuses", "instances"} <= set(report)
    assert (report["mode"], report["scaffold"], report["model"], report["resolved"]) == ("e2e", "agent", "scripted", 20)
    assert report["decoding"]["temperature"] == 0
    assert report["policy"]["context"] == {"kind": "last_k", "k": 2, "title": False}
    assert list(report["instances"]) == [f"sql-test-{n}" for n in range(20)]
    one = report["instances"]["sql-test-3"]
    assert set(one) == {"status", "official_resolved", "notes", "seconds", "turns", "tokens"}
    assert (one["status"], one["turns"]) == ("resolved", 3)
    predictions = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert [row["instance_id"] for row in predictions] == list(report["instances"])
    assert {frozenset(row) for row in predictions} == {frozenset({"instance_id", "model_name_or_path", "model_patch"})}
    episode = json.loads((tmp_path / "run/episodes/sql-test-3.json").read_text())
    assert episode["schema_version"] == "ATIF-v1.4"
    assert episode["extra"]["grade"]["status"] == "resolved"


def test_format_errors_are_counted(tmp_path: Path) -> None:
    report = evaluate(plan(limits=Limits(max_format_errors=2)), tmp_path / "run", generator=nonsense())
    assert (report["resolved"], report["format_errors"], report["turns"]) == (0, 40, 40)
    assert report["exits"] == {"format_errors": 20}
    assert report["statuses"]["unresolved"] == 20


class Flaky(Env):
    """Fails in ways that its config names; counts what it is asked."""

    begun: ClassVar[Counter[str]] = Counter()
    open_now = 0
    most = 0
    lock = threading.Lock()

    class Config(SqlEnv.Config):
        breaks: int = 0
        """How often each odd task's reset fails."""

    @classmethod
    def tasks(cls, config: Any, split: Split) -> Iterable[Task]:
        for n in range(config.n):
            yield Task(id=f"{split}/{n}", prompt="Act.")

    def reset(self, task: Task) -> str:
        with Flaky.lock:
            Flaky.begun[task.id] += 1
            Flaky.open_now += 1
            Flaky.most = max(Flaky.most, Flaky.open_now)
        time.sleep(0.01)
        if int(task.id.split("/")[1]) % 2 and Flaky.begun[task.id] <= self.config.breaks:
            raise EnvError("no disk left")
        self.graded = 0
        return task.prompt

    @tool
    def act(self) -> str:
        """Act."""
        self.done = True
        return "acted"

    def gold(self) -> list[Action]:
        return [Action(tool="act")]

    def prediction(self) -> str:
        return "the patch"

    def grade(self) -> Grade:
        self.graded += 1
        return Grade(score=float(self.graded % 2), status="resolved" if self.graded % 2 else "unresolved", files={"patch.diff": "p"})

    def close(self) -> None:
        with Flaky.lock:
            Flaky.open_now -= 1


@pytest.fixture
def flaky() -> None:
    Flaky.begun.clear()
    Flaky.open_now = Flaky.most = 0


def flaky_plan(**options: Any) -> Plan:
    return plan("gold", f"{HERE}:Flaky", **options)


@pytest.mark.usefixtures("flaky")
def test_infrastructure_is_retried(tmp_path: Path) -> None:
    report = evaluate(flaky_plan(env={"n": 4, "breaks": 2}), tmp_path / "run", workers=4)
    assert (report["n"], report["graded"], report["resolved"]) == (4, 4, 4)
    assert Flaky.begun == {"test/0": 1, "test/1": 3, "test/2": 1, "test/3": 3}


@pytest.mark.usefixtures("flaky")
def test_infrastructure_that_stays_broken_is_not_scored_and_tried_again(tmp_path: Path) -> None:
    options = {"env": {"n": 4, "breaks": 4}}
    report = evaluate(flaky_plan(**options), tmp_path / "run", workers=4)
    assert (report["n"], report["graded"], report["resolved"], report["rate"]) == (4, 2, 2, 1.0)
    assert report["statuses"]["infra_error"] == 2
    assert len((tmp_path / "run/predictions.jsonl").read_text().splitlines()) == 2
    again = evaluate(flaky_plan(**options), tmp_path / "run", workers=4)
    assert (again["graded"], again["statuses"]["infra_error"]) == (4, 0)
    assert Flaky.begun == {"test/0": 1, "test/1": 5, "test/2": 1, "test/3": 5}
    assert Flaky.open_now == 0


@pytest.mark.usefixtures("flaky")
def test_workers_work_at_the_same_time(tmp_path: Path) -> None:
    report = evaluate(flaky_plan(env={"n": 40}), tmp_path / "run", workers=4)
    assert report["resolved"] == 40
    assert set(Flaky.begun.values()) == {1}
    assert 1 < Flaky.most <= 4
    assert Flaky.open_now == 0
    assert sorted(path.name for path in (tmp_path / "run/instances").iterdir())[0] == "test%2F0"


@pytest.mark.usefixtures("flaky")
def test_repeated_grading_finds_flakes(tmp_path: Path) -> None:
    report = evaluate(flaky_plan(env={"n": 2}, repeat=3), tmp_path / "run")
    assert report["flaky"] == ["test/0", "test/1"]
    assert report["instances"]["test/0"]["notes"] == ["flaky: resolved, unresolved, resolved"]


@pytest.mark.usefixtures("flaky")
def test_no_grade_only_predicts(tmp_path: Path) -> None:
    report = evaluate(flaky_plan(env={"n": 2}, grade=False), tmp_path / "run")
    assert (report["graded"], report["rate"], report["ci95"]) == (0, None, None)
    assert [json.loads(line)["model_patch"] for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()] == ["the patch"] * 2
    evaluate(flaky_plan(env={"n": 2}, grade=False), tmp_path / "run")
    assert set(Flaky.begun.values()) == {1}


class Patches(Flaky):
    """Takes patches."""

    def load_prediction(self, patch: str) -> None:
        self.patch = patch

    def grade(self) -> Grade:
        status = "resolved" if self.patch == "good" else "empty_patch" if not self.patch else "unresolved"
        return Grade(score=float(status == "resolved"), status=status, files={"patch.diff": self.patch})


@pytest.mark.usefixtures("flaky")
@pytest.mark.parametrize("form", ["jsonl", "list", "dict"])
def test_predictions_are_graded(tmp_path: Path, form: str) -> None:
    rows = [{"instance_id": f"test/{n}", "model_name_or_path": "m", "model_patch": patch} for n, patch in enumerate(["good", "bad", None])]
    file = tmp_path / ("p.jsonl" if form == "jsonl" else "p.json")
    by_id = {row["instance_id"]: row for row in rows}
    file.write_text("\n".join(json.dumps(row) for row in rows) if form == "jsonl" else json.dumps(rows if form == "list" else by_id))
    report = evaluate(plan(domain=f"{HERE}:Patches", env={"n": 4}, predictions=str(file)), tmp_path / "run")
    assert report["model"] == "m"
    assert [row["status"] for row in report["instances"].values()] == ["resolved", "unresolved", "empty_patch", "empty_patch"]
    assert report["instances"]["test/3"]["notes"] == ["no prediction"]
    with pytest.raises(UserError, match="not among those to grade"):
        plan(domain=f"{HERE}:Patches", env={"n": 2}, predictions=str(file))


@pytest.mark.usefixtures("flaky")
def test_a_patch_is_kept_byte_for_byte(tmp_path: Path) -> None:
    patch = "-a\r\n+b\rc\r\n+é\ud800\n"
    (tmp_path / "p.json").write_text(json.dumps([{"instance_id": "test/0", "model_patch": patch}]))
    evaluate(plan(domain=f"{HERE}:Patches", env={"n": 1}, predictions=str(tmp_path / "p.json")), tmp_path / "run")
    assert (tmp_path / "run/instances/test%2F0/patch.diff").read_bytes() == patch.encode(errors="surrogatepass")
    assert json.loads((tmp_path / "run/predictions.jsonl").read_text())["model_patch"] == patch


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no predictions"),
        ("{", ":1: not valid JSON"),
        ('{"instance_id": "a", "model_patch": ""}\n[1]', ":2: expected"),
        ('{"model_patch": "x"}', ":1: expected"),
    ],
)
def test_bad_predictions(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(UserError, match=words):
        plan(predictions=str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scaffold": "agentless"}, "SqlEnv has no scaffold 'agentless'"),
        ({"scaffold": "agentless", "mode": "gold"}, "--mode gold has no scaffold"),
        ({"samples": 4}, "--samples 4 with greedy decoding.*--sampling.temperature"),
        ({"samples": 2, "mode": "null"}, "--mode null asks no model"),
        ({"samples": 2, "predictions": "p"}, "--predictions asks no model"),
        ({"mode": "gold", "model": "m"}, "--mode gold takes neither"),
        ({"model": "m", "predictions": "p"}, "exclude each other"),
        ({"mode": "oracle"}, "no oracle mode"),
        ({"dataset": "d.jsonl"}, "reads no data set"),
        ({"env": {"m": 3}}, "no option 'm'.*allowed: n"),
        ({"env": {"n": 0}}, "--env.n"),
        ({"instances": ("sql-tets-1",)}, "did you mean 'sql-test-1'"),
        ({"predictions": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        prepare(EvalConfig(**{"domain": SQL, **options}), "scripted")


def test_only_the_named_instances(tmp_path: Path) -> None:
    report = evaluate(plan("gold", instances=("sql-test-7", "sql-test-2")), tmp_path / "run")
    assert list(report["instances"]) == ["sql-test-7", "sql-test-2"]


def test_another_config_is_refused_and_fresh_moves_aside(tmp_path: Path) -> None:
    evaluate(plan("gold"), tmp_path / "run")
    with pytest.raises(UserError, match="mode: 'gold' there, 'null' asked for"):
        evaluate(plan("null"), tmp_path / "run")
    assert evaluate(plan("null"), tmp_path / "run", fresh=True)["resolved"] == 0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "runs/srl/checkpoints/best"
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    PromptPolicy(context=ContextPolicy(k=1), max_prompt_tokens=300, env={"n": 5}).save(path)
    return path


def test_the_checkpoints_policy_is_obeyed(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = prepare(EvalConfig(domain=SQL))
    assert found.config.model == found.label == "runs/srl/checkpoints/best"
    assert (found.policy.context.k, found.policy.max_prompt_tokens, len(found.tasks)) == (1, 300, 5)
    same = prepare(EvalConfig(domain=SQL, context=ContextPolicy(k=1)))
    assert same.policy == found.policy
    for options, word in (
        ({"context": ContextPolicy(k=2)}, "context"),
        ({"max_prompt_tokens": 400}, "max_prompt_tokens"),
        ({"env": {"n": 9}}, "env.n"),
    ):
        with pytest.raises(UserError, match=f"{word}.*--force"):
            prepare(EvalConfig(domain=SQL, **options))
    forced = prepare(EvalConfig(domain=SQL, context=ContextPolicy(k=2), env={"n": 9}, force=True))
    assert (forced.policy.context.k, forced.policy.max_prompt_tokens, len(forced.tasks), forced.policy.env) == (2, 300, 9, {"n": 9})


def test_no_model_and_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="harness train"):
        prepare(EvalConfig(domain=SQL))


def test_the_held_out_generated_tasks_are_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="harness data synth"):
        prepare(EvalConfig(mode="gold"))
    rows = {"instance_id": "a__a-1", "problem_statement": "x", "patch": "", "files": {"a.py": ""}, "test_cmd": "true"}
    for seconds, name in ((2000, "old"), (3000, "new")):
        file = tmp_path / f"runs/data/{name}/tasks/test.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(rows))
        os.utime(file, (seconds, seconds))
    found = prepare(EvalConfig(mode="gold"))
    assert found.config.dataset == "runs/data/new/tasks/test.jsonl"
    (tmp_path / "runs/data/new/synth.json").write_text('{"domain": "math"}')
    assert prepare(EvalConfig(mode="gold")).config.dataset == "runs/data/old/tasks/test.jsonl"
    assert list(found.tasks) == ["a__a-1"]
    assert not found.env_config.grade_empty_patch  # type: ignore[attr-defined]
    assert prepare(EvalConfig(mode="null")).env_config.grade_empty_patch  # type: ignore[attr-defined]


def test_a_bare_null_in_yaml_is_the_mode(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("mode: null\nlimits: {max_turns: 3}\n")
    found = resolve(EvalConfig, tmp_path / "c.yaml", ["--sampling.temperature=0.5"])
    assert (found.mode, found.limits.max_turns, found.sampling.temperature) == ("null", 3, 0.5)


@pytest.mark.parametrize("place", ["checkpoint", "run"])
def test_training_instances_are_not_evaluated(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    contamination.record(checkpoint if place == "checkpoint" else checkpoint.parent.parent, ["sql-test-3", "sql-train-1"])
    with pytest.raises(UserError, match=r"1 of the instances.*sql-test-3.*--allow-overlap"):
        prepare(EvalConfig(domain=SQL))
    assert prepare(EvalConfig(domain=SQL, allow_overlap=True)).overlap == ["sql-test-3"]
    assert prepare(EvalConfig(domain=SQL, instances=("sql-test-1",))).overlap == []
    report = evaluate(prepare(EvalConfig(domain=SQL, allow_overlap=True)), tmp_path / "run", generator=nonsense())
    assert report["overlap"] == ["sql-test-3"]


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "a b", "astropy__astropy-12907", "x.y__z-1"])
def test_file_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / file_name(name)
    assert path.parent == tmp_path
    assert path.resolve() == path
    if name[0] == "a" and name.isprintable() and "/" not in name and " " not in name:
        assert file_name(name) == name


SLOW = """
    import os, time
    from pathlib import Path
    from harness import Env, Task, tool
    from harness_trajectories import Action

    class Slow(Env):
        @classmethod
        def tasks(cls, config, split):
            return [Task(id=f"t{n}", prompt="p") for n in range(30)]
        def reset(self, task):
            self.task = task
            return task.prompt
        @tool
        def act(self) -> str:
            '''Act. From the instance HOLD on it takes until a file `go` is there.'''
            time.sleep(0.1)
            while int(self.task.id[1:]) >= int(os.environ["HOLD"]) and not Path("go").exists():
                time.sleep(0.01)
            self.done = True
            return "acted"
        def gold(self):
            return [Action(tool="act")]
        def grade(self):
            return 1.0
        def close(self):
            with open("closed.txt", "a") as log:
                log.write(self.task.id + "\\n")
"""


def start(tmp_path: Path, hold: int = 30) -> subprocess.Popen[str]:
    (tmp_path / "slow_env.py").write_text(textwrap.dedent(SLOW))
    return subprocess.Popen(
        [HARNESS, "eval", "--domain", "slow_env:Slow", "--mode", "gold", "--out", "run", "--workers", "4", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "HOLD": str(hold)},
    )


def finished(tmp_path: Path) -> dict[str, int]:
    """Finished instances with the time of their report in ns."""
    return {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("run/instances/*/report.json")}


def interrupt(tmp_path: Path, number: int, wanted: int) -> tuple[dict[str, int], subprocess.Popen[str], str]:
    process = start(tmp_path, hold=wanted + 4)
    deadline = time.monotonic() + 120
    while len(finished(tmp_path)) < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    (tmp_path / "go").touch()
    _, errors = process.communicate(timeout=120)
    (tmp_path / "go").unlink()
    return finished(tmp_path), process, errors


def test_kill_9_loses_nothing_and_runs_nothing_twice(tmp_path: Path) -> None:
    before: dict[str, int] = {}
    for wanted in (3, 12):
        found, process, _ = interrupt(tmp_path, signal.SIGKILL, wanted)
        assert process.returncode == -signal.SIGKILL
        assert wanted <= len(found) < 30
        assert before.items() <= found.items()
        before = found
    last = start(tmp_path)
    out, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    report = json.loads(out)
    assert (report["n"], report["resolved"]) == (30, 30)
    assert before.items() <= finished(tmp_path).items(), "a finished instance was run again"
    lines = [json.loads(line)["instance_id"] for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert lines == [f"t{n}" for n in range(30)]


def test_ctrl_c_stops_cleanly(tmp_path: Path) -> None:
    found, process, errors = interrupt(tmp_path, signal.SIGINT, 4)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"{len(found)} of 30" in errors
    closed = (tmp_path / "closed.txt").read_text().split()
    assert set(found) <= set(closed)
    assert len(closed) == len(set(closed)) <= len(found) + 4
    out, _ = start(tmp_path).communicate(timeout=120)
    assert json.loads(out)["resolved"] == 30


BOXED = """
    from harness import Env, Task, tool
    from harness_trajectories import Action

    class Boxed(Env):
        @classmethod
        def tasks(cls, config, split):
            return [Task(id=f"t{n}", prompt="p") for n in range(6)]
        def reset(self, task):
            self.task = task
            self.box = self.open_sandbox()
            return task.prompt
        @tool
        def act(self) -> str:
            '''Act.'''
            self.done = True
            seconds = 0 if self.task.id in ("t0", "t1") else 300
            return self.box.exec(f"sleep {seconds}; echo acted", 600).output
        def gold(self):
            return [Action(tool="act")]
        def grade(self):
            return 1.0
        def close(self):
            self.box.close()
"""


def containers(owner: int | None = None) -> list[str]:
    """Names of our containers; of one process only where it is given."""
    from docker import DockerClient

    from harness.sandbox_docker import LABEL

    with closing(DockerClient.from_env()) as client:
        found = client.api.containers(all=True, filters={"label": LABEL})
    return [one["Names"][0] for one in found if owner is None or one["Labels"][LABEL].split(" ")[3] == str(owner)]


@pytest.mark.docker
@pytest.mark.usefixtures("docker_engine")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_container_is_left(tmp_path: Path, number: int) -> None:
    (tmp_path / "boxed_env.py").write_text(textwrap.dedent(BOXED))
    command = [HARNESS, "eval", "--domain", "boxed_env:Boxed", "--mode", "gold", "--out", "run", "--workers", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while (len(finished(tmp_path)) < 2 or len(containers(process.pid)) < 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)  # it does not wait for the commands that run
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[signal.Signals(number)], errors
    assert set(finished(tmp_path)) == {"t0", "t1"}
    if number == signal.SIGKILL:
        again = subprocess.run([*command, "--fresh", "--instances", "t0"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert again.returncode == 0, again.stderr
    assert containers(process.pid) == []
