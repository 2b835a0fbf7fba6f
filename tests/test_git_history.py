"""Repositories without their future. Reference: git's own commands and a search of every byte under .git, compressed objects included."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from docker import DockerClient

from harness.env import EnvError
from harness.sandbox import Prepare, Sandbox
from harness.sandbox_docker import DockerSandboxes, connect
from harness.sandbox_local import LocalSandbox
from harness.sandbox_prepared import LABEL, REPOSITORY
from harness_envs.swe import SweAgentEnv
from harness_envs.swe.env import SweConfig
from harness_envs.swe.history import clean, fault
from harness_envs.swe.task import SweTask

FIX = "THE-FIX-2f81"
"""Stands in the fix, in the message of its commit, in the names of what leads there."""
SETUP = f"""
git init -q . && git config user.name x && git config user.email x@y
mkdir -p pkg && echo first > pkg/a.py && git add . && git commit -qm first
echo second > pkg/a.py && git commit -qam second && git rev-parse HEAD > /tmp/base && echo ignored > .git/info/exclude
future() {{ echo "$1 {FIX}" > pkg/a.py && git commit -qam "$1 {FIX}" && git rev-parse HEAD; }}
back() {{ git reset -q --hard "$(cat /tmp/base)"; }}
quiet() {{ rm -rf .git/logs .git/ORIG_HEAD .git/COMMIT_EDITMSG .git/FETCH_HEAD; }}
"""
PLACES = {
    "a branch": "git checkout -qb later && future x && git checkout -q - && quiet",
    "a tag": "future x && git tag v2 && back && quiet",
    "an annotated tag": f"future x && git tag -am '{FIX}' v2 && back && quiet",
    "the reflog": "future x && back",
    "ORIG_HEAD": "future x && back && rm -rf .git/logs",
    "a dangling loose object": "future x && back && quiet",
    "a dangling packed object": "future x && git repack -adq && back && quiet",
    "a packed ref": "future x && git branch later && git pack-refs --all && git gc -q && back && quiet",
    "the stash": f"echo '{FIX}' > pkg/a.py && git stash -q",
    "an alternate": "git clone -q --bare . /opt/far.git && future x && git push -q /opt/far.git HEAD:later && back && "
    "rm -rf .git && git clone -q --shared /opt/far.git /tmp/c && mv /tmp/c/.git .git && git reset -q --hard $(cat /tmp/base)",
    "a remote": "future x && git clone -q --bare . /srv/mirror.git && back && git remote add origin /srv/mirror.git && git fetch -q && "
    "quiet",
    "a clone elsewhere": "future x && cp -r . /root/copy && rm -rf /root/copy/pkg && back && quiet && git gc -q --prune=now",
    "a worktree": "git branch later && git worktree add -q /home/wt later && cd /home/wt && future x && cd - && quiet",
    "notes": f"git notes add -m '{FIX}' && quiet",
    "a replace ref": "tip=$(future x | tail -1) && back && git replace $(git rev-parse HEAD~1) $tip && quiet",
    "a graft": 'tip=$(future x | tail -1) && back && mkdir -p .git/info && echo "$(cat /tmp/base) $tip" > .git/info/grafts && quiet',
    "a bundle": "future x && git bundle create -q .git/later.bundle HEAD && back && quiet && git gc -q --prune=now",
    "a submodule": "git init -q lib && (cd lib && git config user.name x && git config user.email x@y && echo 1 > f && git add f && "
    f"git commit -qm 1 && echo '{FIX}' > f && git commit -qam '{FIX}' && git reset -q --hard HEAD~1) && "
    "git -c protocol.file.allow=always submodule --quiet add ./lib lib 2>/dev/null; git submodule --quiet absorbgitdirs; "
    "git commit -qm sub && git rev-parse HEAD > /tmp/base && quiet",
    "a hook": f"echo 'echo {FIX}' > .git/hooks/post-checkout && chmod +x .git/hooks/post-checkout && quiet",
    "an alias": f"git config alias.solve '!echo {FIX}' && quiet",
    "FETCH_HEAD": "tip=$(future x | tail -1) && back && quiet && echo $tip > .git/FETCH_HEAD",
    "a git folder elsewhere": "future x && back && mv .git /var/real.git && echo 'gitdir: /var/real.git' > .git",
    "an index entry": f"echo '{FIX}' > pkg/b.py && git add pkg/b.py && rm pkg/b.py && quiet",
    "HEAD after the base": f"echo '{FIX}' > /tmp/message && git commit -q --allow-empty -F /tmp/message",
}
SEARCH = f"""
import pathlib, subprocess, zlib
found = []
for root in ("/testbed", "/opt", "/srv", "/home", "/root", "/var", "/mnt"):
    for path in pathlib.Path(root).rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            for text in (data, *( [zlib.decompress(data)] if path.parent.parent.name == "objects" and len(path.name) == 38 else [] )):
                if b"{FIX}" in text or text.startswith(b"# v2 git bundle"):
                    found.append(str(path))
git = lambda *a: subprocess.run(["git", *a], capture_output=True).stdout
names = git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)").split()
for name in names:
    if b"{FIX}" in git("cat-file", "-p", name.decode()):
        found.append(name.decode())
for command in (["log", "--all", "--reflog", "-p"], ["reflog"], ["stash", "list"], ["for-each-ref"], ["notes", "list"],
                ["worktree", "list"], ["fsck", "--full", "--lost-found", "--no-progress"],
                ["config", "--list", "--local"], ["submodule", "status"]):
    if b"{FIX}" in git(*command) or (command[0] in ("reflog", "stash", "notes") and git(*command).strip()):
        found.append(" ".join(command))
print(found)
"""


@pytest.fixture(scope="module")
def sandboxes(docker_engine: None) -> Iterator[DockerSandboxes]:
    with DockerSandboxes() as opened:
        yield opened


@pytest.fixture(scope="module")
def client(docker_engine: None) -> Iterator[DockerClient]:
    opened = connect()
    yield opened
    opened.close()


def search(sandbox: Sandbox) -> str:
    sandbox.write("/tmp/search.py", SEARCH.encode())
    return sandbox.exec("cd /testbed && python3 /tmp/search.py").output.strip()


@pytest.mark.docker
@pytest.mark.parametrize("place", PLACES)
def test_nothing_of_the_future_is_left(sandboxes: DockerSandboxes, place: str) -> None:
    with sandboxes.open() as sandbox:
        made = sandbox.exec(
            f"cd /testbed\n{SETUP}\nset -e\n{PLACES[place]}\ncd /testbed; echo untracked > untracked; echo changed >> pkg/a.py"
        )
        assert made.exit_code == 0, made.output
        base = sandbox.read("/tmp/base").decode().strip()
        tree = sandbox.exec(
            "cd /testbed && find . -path ./.git -prune -o -type f -not -path '*/.git/*' -not -name .git -exec sha1sum {} + | sort"
        ).output
        assert fault(sandbox, base)
        if place not in ("FETCH_HEAD",):
            assert search(sandbox) != "[]"
        clean(sandbox, base)
        assert fault(sandbox, base) == ""
        assert search(sandbox) == "[]"
        assert sandbox.exec("git rev-parse HEAD").output.strip() == base
        assert sandbox.exec("git fsck --full --strict 2>&1").output == ""
        assert sandbox.exec("git log --format=%s").output.split()[-2:] == ["second", "first"]
        assert "M pkg/a.py" in sandbox.exec("git status --short").output
        after = sandbox.exec("cd /testbed && find . -path ./.git -prune -o -type f -exec sha1sum {} + | sort").output
        assert after == tree
        assert (
            sandbox.exec("git cat-file --batch-all-objects --batch-check | wc -l").output
            == sandbox.exec("git rev-list --objects HEAD | wc -l").output
        )


@pytest.mark.docker
@pytest.mark.parametrize(
    "dirt",
    [
        "git commit -q --allow-empty -m x",
        "git tag x",
        "echo x | git hash-object -w --stdin",
        "echo x > f && git add f && git stash -q",
        "mkdir -p .git/objects/info && echo /opt > .git/objects/info/alternates",
        "git config core.hooksPath /opt",
        "git config include.path /opt/x",
        "mkdir .git/hooks",
        "mkdir -p /srv && cp -r .git /srv && rm -rf .git && ln -s /srv/.git .git",
        "f=$(ls .git/objects/pack/*.pack) && echo x | git hash-object -w --stdin | git pack-objects -q .git/objects/pack/pack && "
        "find .git/objects -type f -not -path '*pack*' -delete",
        "echo x | git hash-object -w --stdin > /tmp/x && (git rev-list --objects HEAD | cut -d' ' -f1; cat /tmp/x) | "
        "git pack-objects -q /tmp/p && find .git/objects -type f -delete && mv /tmp/p-* .git/objects/pack/ && cd .git/objects/pack && "
        "for f in p-*; do mv $f pack-${f#p-}; done",
    ],
)
def test_the_assertion_sees_what_does_not_belong(sandboxes: DockerSandboxes, dirt: str) -> None:
    with sandboxes.open() as sandbox:
        sandbox.exec(f"cd /testbed\n{SETUP}")
        base = sandbox.read("/tmp/base").decode().strip()
        clean(sandbox, base)
        assert fault(sandbox, base) == ""
        sandbox.exec(f"cd /testbed; {dirt}")
        assert fault(sandbox, base)
        clean(sandbox, base)
        assert fault(sandbox, base) == ""


@pytest.mark.docker
def test_a_shallow_clone_keeps_its_boundary(sandboxes: DockerSandboxes) -> None:
    with sandboxes.open() as sandbox:
        sandbox.exec(f"cd /testbed\n{SETUP}\nfuture x; back; git clone -q --depth 1 file:///testbed /tmp/s; rm -rf .git; mv /tmp/s/.git .")
        base = sandbox.read("/tmp/base").decode().strip()
        clean(sandbox, base)
        assert sandbox.exec("git log --format=%s; git fsck --full").output == "second\n"
        assert search(sandbox) == "[]"


@pytest.mark.docker
def test_an_image_is_prepared_once_and_held_to_it_at_every_start(sandboxes: DockerSandboxes, client: DockerClient) -> None:
    with sandboxes.open() as sandbox:
        sandbox.exec(f"cd /testbed\n{SETUP}\nfuture x; git tag v2; back")
        base = sandbox.read("/tmp/base").decode().strip()
        client.api.commit(sandbox.name, "srl-harness-test-history", "leaky")
    ran: list[str] = []

    def run(box: Sandbox) -> None:
        ran.append(base)
        clean(box, base)

    source = client.images.get("srl-harness-test-history:leaky").id
    try:
        for _ in range(2):
            with sandboxes.open("srl-harness-test-history:leaky", Prepare(f"test {base}", run)) as sandbox:
                assert fault(sandbox, base) == ""
                assert search(sandbox) == "[]"
        assert ran == [base]
        assert [image.labels.get(LABEL) for image in client.images.list(REPOSITORY)].count(source) == 1
        record = {
            "id": "x__y-1",
            "prompt": "p",
            "base_commit": base,
            "patch": "",
            "image": "srl-harness-test-history:leaky",
            "test_cmd": "pytest",
        }
        env = SweAgentEnv(SweConfig(), sandboxes.open)
        env.reset(SweTask.model_validate(record))
        repository = env.open_repository()
        assert search(repository.sandbox) == "[]"
        repository.sandbox.exec("echo more >> pkg/a.py && git commit -qam mine")
        assert "+more" in repository.diff()
        started = time.perf_counter()
        assert fault(repository.sandbox, base) != ""  # the agent's commit
        assert time.perf_counter() - started < 10
        env.close()
    finally:
        for image in client.images.list(REPOSITORY):
            if image.labels.get(LABEL) == source:
                client.images.remove(image.id, force=True)
        client.images.remove("srl-harness-test-history:leaky", force=True)


def test_a_folder_of_this_machine_loses_nothing_around_it(tmp_path: pytest.TempPathFactory) -> None:
    """A local sandbox shares this machine's files: other copies of the repository stay."""
    with LocalSandbox() as sandbox:
        place = f"{sandbox.root}/../copy"
        sandbox.exec(f"{SETUP.replace('/tmp/base', sandbox.root + '/../base')}\nfuture x; cp -r . {place}; git worktree add -q ../wt; back")
        base = sandbox.exec("cat ../base").output.strip()
        clean(sandbox, base)
        assert fault(sandbox, base) == ""
        assert FIX in sandbox.exec(f"git -C {place} log; ls ../wt/pkg").output
        assert FIX not in sandbox.exec("git log --all --reflog").output


def test_a_folder_inside_a_repository_is_an_error() -> None:
    with LocalSandbox() as sandbox:
        sandbox.exec("cd .. && git init -q . && cd testbed && echo x > x && git add x && git commit -qm x")
        with pytest.raises(EnvError, match="the repository's root is"):
            clean(sandbox, sandbox.exec("git rev-parse HEAD").output.strip())
        assert sandbox.exec("git log --format=%s").output == "x\n"


def test_no_repository_is_an_error() -> None:
    with LocalSandbox() as sandbox, pytest.raises(EnvError, match="cannot be cut off"):
        clean(sandbox, "0" * 40)
