"""The agentless scaffold. References: git's own list of files, the oracle's prompt, pytest's verdicts, this Python's library."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_swe_env import CALC, RECORDS, record

from harness.agent import Episode, Limits, replay, run
from harness.env import OpenSandbox
from harness.generate import Sampling, ScriptedGenerator
from harness.prompt import Message, PromptPolicy, messages
from harness.sandbox import Prepare, Sandbox
from harness.sandbox_local import LocalSandbox
from harness_envs.swe import SweAgentEnv, SweAgentlessEnv, SweOracleEnv
from harness_envs.swe.agentless import parse_choice, tree
from harness_envs.swe.env import SweConfig
from harness_envs.swe.oracle import head_and_tail
from harness_envs.swe.task import SweTask, base_commit
from harness_trajectories import Action
from harness_trajectories.export import to_openai
from harness_trajectories.steps import ContextPolicy, step_examples

EDIT = "calc.py\n<<<<<<< SEARCH\n    return a - b\n=======\n    return a + b\n>>>>>>> REPLACE"


def task_of(row: dict[str, object]) -> SweTask:
    names = {"instance_id": "id", "problem_statement": "prompt", "FAIL_TO_PASS": "fail_to_pass", "PASS_TO_PASS": "pass_to_pass"}
    fields = {names.get(name, name): value for name, value in row.items()}
    return SweTask.model_validate({**fields, "base_commit": base_commit(row["files"])})  # type: ignore[arg-type]


PLAIN = task_of(RECORDS[0])


def imaged(task: SweTask, extra: str = "true") -> tuple[SweTask, OpenSandbox]:
    """The task as a record that carries no files, and what opens its image."""

    def image(name: str | None, prepare: Prepare) -> Sandbox:
        sandbox = LocalSandbox()
        for path, text in task.files.items():
            sandbox.write(f"{sandbox.root}/{path}", text.encode())
        ran = sandbox.exec(f"{extra}; git init -q . && git add -A . && git -c user.name=x -c user.email=x@y commit -qm base")
        assert ran.exit_code == 0, ran.output
        prepare.run(sandbox)
        return sandbox

    return task.model_copy(update={"files": {}, "image": "some/image:1"}), image


@contextmanager
def environment(task: SweTask, open_sandbox: OpenSandbox = LocalSandbox, **options: object) -> Iterator[SweAgentlessEnv]:
    with closing(SweAgentlessEnv(SweConfig.model_validate(options), open_sandbox)) as env:
        yield env


def play(
    task: SweTask, *answers: str, open_sandbox: OpenSandbox = LocalSandbox, tokens: int = 8192, grade: bool = True
) -> tuple[Episode, list[list[Message]]]:
    """Both answers said by the scripted model, and the prompts that it got."""
    seen: list[list[Message]] = []

    def reply(prompt: list[Message]) -> str:
        seen.append(prompt)
        return f"<think>hm</think>\n{answers[len(seen) - 1]}"

    with environment(task, open_sandbox) as env:
        policy = PromptPolicy(max_prompt_tokens=tokens)
        return run(env, task, ScriptedGenerator(reply), Limits(), policy, Sampling(), grade=grade), seen


@pytest.mark.parametrize("image", [False, True])
def test_files_are_chosen_and_edited(image: bool) -> None:
    task, open_sandbox = imaged(PLAIN) if image else (PLAIN, LocalSandbox)
    episode, seen = play(task, "calc.py\nnowhere.py", EDIT, open_sandbox=open_sandbox)
    assert episode.grade is not None
    assert (episode.exit, episode.grade.status, episode.turns) == ("done", "resolved", 2)
    assert episode.grade.notes == ("1 lines of the choice name no file of the repository, as 'nowhere.py'",)
    assert episode.cuts == {"unknown_file": 1}
    assert "<repository>\ncalc.py\nconftest.py\ntests/\n  test_calc.py\n</repository>" in seen[0][1]["content"]
    assert PLAIN.prompt in seen[0][1]["content"]
    assert CALC not in seen[0][1]["content"]


def test_the_repair_is_that_of_the_oracle_mode() -> None:
    with closing(SweOracleEnv(SweConfig(), LocalSandbox)) as oracle:
        prompt = oracle.reset(PLAIN)
    _, seen = play(PLAIN, "calc.py", EDIT)
    assert seen[1] == messages(SweOracleEnv.system_prompt(SweConfig()), prompt, (), "text")


def test_training_reads_what_the_model_read() -> None:
    episode, seen = play(PLAIN, "calc.py", EDIT)
    steps = episode.trajectory.steps
    assert [step.source for step in steps] == ["system", "user", "agent", "user", "agent"]
    assert [message["role"] for message in to_openai(episode.trajectory)["messages"]] == ["system", *["user", "assistant"] * 2]
    for policy in (ContextPolicy(), ContextPolicy(kind="full")):
        examples = list(step_examples(episode.trajectory, policy, "all"))
        assert [messages(steps[0].message, e.prompt, e.history, e.wire, e.omitted) for e in examples] == seen
        assert [(e.index, e.thought, e.target[0].arguments["text"]) for e in examples] == [(0, "hm", "calc.py"), (1, "hm", EDIT)]


def test_a_choice_of_nothing_ends_the_episode() -> None:
    episode, seen = play(PLAIN, "I do not know")
    assert episode.grade is not None
    assert (episode.exit, episode.grade.status, len(seen)) == ("done", "empty_patch", 1)
    assert "name no file" in episode.grade.notes[0]


@pytest.mark.parametrize("image", [False, True])
def test_gold_resolves_and_nothing_does_not(image: bool) -> None:
    for row in RECORDS[:3]:
        task, open_sandbox = imaged(task_of(row)) if image else (task_of(row), LocalSandbox)
        with environment(task, open_sandbox) as env:
            assert replay(env, task).grade.status == "resolved"  # type: ignore[union-attr]
    with environment(PLAIN) as env:
        assert replay(env, PLAIN, ()).grade.status == "empty_patch"  # type: ignore[union-attr]
    new = PLAIN.model_copy(
        update={"patch": "diff --git a/n.py b/n.py\nnew file mode 100644\n--- /dev/null\n+++ b/n.py\n@@ -0,0 +1 @@\n+x\n"}
    )
    with environment(new) as env:
        env.reset(new)
        assert env.gold() is None  # there is no file to choose


def test_the_files_of_an_image_are_those_that_git_lists() -> None:
    odd = "mkdir -p 'a b/ü' && echo x > 'a b/ü/\"q\".py' && ln -s calc.py link.py && printf '*.log\\n' > .gitignore && echo x > no.log"
    task, open_sandbox = imaged(PLAIN, odd)
    with environment(task, open_sandbox) as env:
        prompt = env.reset(task)
        assert env.repository is not None
        listed = env.repository.sandbox.exec("git -c core.quotepath=off ls-files | grep -v '\"' | grep -v link.py").output.split("\n")
        assert set(env.files) == {*filter(None, listed), 'a b/ü/"q".py'}
        assert 'a b/ü/\n  "q".py' in prompt


def unfolded(text: str) -> list[str]:
    """The paths that a printed tree stands for."""
    directory, paths = "", []
    for line in text.split("\n"):
        if line.endswith("/"):
            directory = line
        else:
            paths.append(directory + line[2:] if line.startswith("  ") else line)
    return paths


@given(st.sets(st.lists(st.sampled_from(["a", "b.py", "ü", "c d", "e.f"]), min_size=1, max_size=4).map("/".join), min_size=1))
@settings(max_examples=200)
def test_a_tree_stands_for_its_files(paths: set[str]) -> None:
    found = unfolded(tree(paths))
    assert sorted(found) == sorted(paths)


@pytest.fixture(scope="module")
def library() -> SweTask:
    """The files of this Python's library, thousands of them, as one task."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in root.rglob("*") if path.is_file() and not {"site-packages", "__pycache__"} & {*path.parts}]
    files = {str(path.relative_to(root)): "x\n" for path in paths}
    return SweTask(id="lib", prompt="json.loads is slow.", base_commit=base_commit(files), patch="", files=files)


def is_test(path: str) -> bool:
    *directories, name = path.split("/")
    return bool({"test", "tests", "testing"} & set(directories)) or name.startswith("test_") or name.endswith("_test.py")


@pytest.mark.parametrize("tokens", [400, 2000, 8192, 10**6])
def test_the_tree_keeps_to_the_budget(library: SweTask, tokens: int) -> None:
    episode, seen = play(library, "json/decoder.py", "no edit", tokens=tokens, grade=False)
    shown = seen[0][1]["content"]
    assert ScriptedGenerator(str).count(seen[0]) <= tokens
    listed = unfolded(shown.partition("<repository>\n")[2].partition("\n</repository>")[0].partition("\n(")[0])
    missing = len(library.files) - len(listed)
    assert set(listed) <= set(library.files)
    assert episode.cuts.get("tree_file", 0) == missing
    assert (f"({missing} more files are not listed" in shown) == (missing > 0)
    assert (missing > 0) == (tokens < 10**6)
    if missing:  # code first, and what lies near the root first: nothing more would have fitted
        code = {path for path in library.files if path.endswith((".py", ".c")) and not is_test(path)}
        assert set(listed) <= code or code <= set(listed)
        assert ScriptedGenerator(str).count(seen[0]) > 0.9 * tokens
    assert len(seen) == 2  # a file that is not listed may be chosen as well


def test_whole_files_are_shown_and_the_longest_cut_to_the_budget() -> None:
    long = "".join(f"line {n} = {'x' * (n % 40)}\n" for n in range(3000))
    row = record("long-1", {"long.py": long}, {"long.py": long.replace("line 1500 =", "line 1500 +=")})
    task = task_of(row)
    edit = "long.py\n<<<<<<< SEARCH\nline 1500 = " + "x" * 20 + "\n=======\nline 1500 += 1\n>>>>>>> REPLACE"
    for tokens, whole in ((100_000, True), (6000, False)):
        episode, seen = play(task, "long.py\ncalc.py", edit, tokens=tokens, grade=False)
        shown = seen[1][1]["content"]
        assert ScriptedGenerator(str).count(seen[1]) <= tokens
        assert CALC in shown
        assert (long in shown) == whole
        lines = shown.count("\nline ")
        assert lines + episode.cuts.get("file_line", 0) == 3000
        assert ("line 0 =" in shown, "line 2999 =" in shown) == (True, True)
        assert episode.cuts == ({} if whole else {"file": 1, "file_line": 3000 - lines})
        if not whole:
            assert f"[... {3000 - lines} lines are not shown ...]" in shown
            assert ScriptedGenerator(str).count(seen[1]) > 0.95 * tokens
        assert "+line 1500 += 1" in (episode.trajectory.patch or "")  # an edit may reach what was not shown


@given(st.lists(st.text("ab", max_size=9), max_size=30).map("\n".join), st.integers(0, 200))
def test_head_and_tail(text: str, limit: int) -> None:
    shown, left = head_and_tail(text, limit)
    lines = text.split("\n")
    if left == 0:
        assert shown == text
        return
    head, _, tail = shown.partition(f"[... {left} lines are not shown ...]")
    kept = [*head.split("\n")[:-1], *tail.split("\n")[1:]]
    assert len(kept) + left == len(lines)
    assert lines[: len(head.split("\n")) - 1] == head.split("\n")[:-1]
    assert sum(len(line) + 1 for line in kept) <= limit < len(text)


FILES = {"a/x.py", "x.py", "src/y.py", "b c.py", "-z.py"}


@pytest.mark.parametrize(
    ("text", "chosen", "unknown"),
    [
        ("src/y.py", ["src/y.py"], []),
        ("```\n1. `src/y.py`\n2) x.py\n```", ["src/y.py", "x.py"], []),
        ("- /testbed/src/y.py\r\n* ./x.py,", ["src/y.py", "x.py"], []),
        ("a/src/y.py\nb/x.py\na/x.py", ["src/y.py", "x.py", "a/x.py"], []),
        ("b c.py\n-z.py\nb c.py", ["b c.py", "-z.py"], []),
        ("The files:\n\nsrc/y.py\nsrc/z.py", ["src/y.py"], ["The files:", "src/z.py"]),
        ("/etc/passwd\n../x.py", [], ["/etc/passwd", "../x.py"]),
    ],
)
def test_choices(text: str, chosen: list[str], unknown: list[str]) -> None:
    assert parse_choice(text, FILES) == (chosen, unknown)


def test_more_than_five_are_left_out_and_counted() -> None:
    files = {f"f{n}.py": f"{n}\n" for n in range(8)}
    task = SweTask(id="t", prompt="p", base_commit=base_commit(files), patch="", files=files)
    episode, seen = play(task, "\n".join(files), "no", grade=False)
    assert episode.cuts == {"surplus_file": 3}
    assert [f'<file path="f{n}.py">' in seen[1][1]["content"] for n in range(8)] == [True] * 5 + [False] * 3


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("name", ["x" * 300 + ".py", "calc.py/new.py", "a\0b.py", "tests", "d/" * 3000 + "f.py"])
def test_a_name_that_no_file_can_have_is_the_models_fault(name: str, image: bool) -> None:
    task, open_sandbox = imaged(PLAIN) if image else (PLAIN, LocalSandbox)
    answer = f"{EDIT}\n{name}\n<<<<<<< SEARCH\n=======\nx\n>>>>>>> REPLACE"
    episode, _ = play(task, "calc.py", answer, open_sandbox=open_sandbox)
    assert episode.grade is not None, episode.error
    assert episode.grade.status == "patch_error"


def test_text_that_is_not_utf8_can_be_sent() -> None:
    """A file in Latin-1 comes to the model as valid Unicode, and a change beside it keeps its bytes."""
    task, open_sandbox = imaged(PLAIN, "printf '# caf\\351\\n' | cat - calc.py > c && mv c calc.py")
    episode, seen = play(task, "calc.py", EDIT, open_sandbox=open_sandbox)
    assert "# caf\ufffd\n" in seen[1][1]["content"]
    assert seen[1][1]["content"].encode()
    assert episode.grade is not None
    assert episode.grade.status == "resolved"
    with closing(SweAgentEnv(SweConfig(), open_sandbox)) as env:
        act = Action(tool="str_replace_editor", arguments={"command": "view", "path": "calc.py"})
        found = replay(env, task, [act], grade=False)
        assert "caf\ufffd" in found.trajectory.turns[0].observations[0].content


def test_brief_prompts() -> None:
    config = SweConfig(brief=True)
    with closing(SweAgentlessEnv(config, LocalSandbox)) as env:
        assert env.reset(PLAIN) == f"{PLAIN.prompt}\n{tree(PLAIN.files)}"
        assert env.step(Action(tool="answer", arguments={"text": "calc.py"})) == f"{PLAIN.prompt}\ncalc.py\n{CALC}"
    assert SweAgentEnv.for_mode("e2e", "agentless") is SweAgentlessEnv
    assert SweAgentlessEnv.wire() == "text"
