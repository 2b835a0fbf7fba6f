"""Sandboxes. References: GNU bash (`bash -c` of the same text on this machine) for what a command gives; for what a container holds, what
the kernel says in it and the engine of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from docker import DockerClient

from harness.sandbox import Limits, Sandbox, SandboxError
from harness.sandbox_docker import LABEL, DockerSandbox, DockerSandboxes, connect, reap
from harness.sandbox_local import LocalSandbox, LocalSandboxes
from harness.sandbox_owner import is_gone, own_label
from harness.sandbox_shell import Clip
from harness_trajectories.errors import UserError

SMALL = Limits(memory="200m", pids=64, file_size_mb=8, disk_mb=40, read_mb=2, output_bytes=100_000)

COMMANDS = [
    "echo one; echo two >&2; echo three",
    "false",
    "(exit {n})",
    "printf 'no newline'",
    r"printf '\n\n%s\n\n' {n}",
    "for i in 1 2 3; do echo $((i * {n})); done",
    "nosuchcommand{n}",
    "cat; echo code $?",
    'read line; echo "[$line] $?"',
    "echo 'one quote '\"'\"' and $dollar `backtick` \\\\ é 漢字'",
    "f() { return {n}; }; f",
    "echo a | tr a b | cat",
    "python3 -c 'import sys; print({n}); sys.exit({n})'",
    "seq {n} | tail -2",
    "x={n}; [[ $x -gt 50 ]] && echo big || echo small",
    "cat <<'EOF'\nhere $x\n\tdocument {n}\nEOF",
    "head -c {n} /dev/zero | wc -c",
    "sh -c 'kill -9 $$'; echo $?",
    'mkdir -p d{n} && cd d{n} && basename "$PWD"',
    "ls nonexistent{n}",
    "exec 3>&1; echo third >&3",
    "echo 'unterminated > /dev/null",
    "if then",
    "set -- {n} 2; echo $# $1; shift 2",
    "echo $LINENO; nosuch\nnosuch\necho $LINENO",
    "sleep 0.01 & wait; echo waited",
    "trap 'echo trapped' USR1; kill -USR1 $$; trap - USR1",
    "yes {n} | head -n 2000",
    r"printf '\377\376\001\n'",
    "exit {n}",
    "echo before; exit 0; echo never",
    "exec sh -c 'echo replaced; exit 7'",
    "set -e; false; echo never",
    "echo ${missing:?is missing}; echo never",
]


@pytest.fixture(scope="module")
def sandboxes(docker_engine: None) -> Iterator[DockerSandboxes]:
    with DockerSandboxes(limits=SMALL) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(docker_engine: None) -> Iterator[DockerClient]:
    opened = connect()
    yield opened
    opened.close()


@pytest.fixture
def container(sandboxes: DockerSandboxes) -> Iterator[DockerSandbox]:
    with sandboxes.open() as sandbox:
        yield sandbox


@pytest.fixture(params=[pytest.param("container", marks=pytest.mark.docker), "local"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Both kinds, which speak with their bash in the same way."""
    if request.param == "container":
        yield request.getfixturevalue("container")
    else:
        with LocalSandbox(limits=SMALL.model_copy(update={"memory": "4g"})) as local:
            yield local


def labelled(client: DockerClient, owner: str | None = None) -> set[str]:
    """Names of the containers with our label, of one owner or of all."""
    found = client.api.containers(all=True, filters={"label": f"{LABEL}={owner}" if owner else LABEL})
    return {one["Names"][0].lstrip("/") for one in found}


def running(sandbox: Sandbox, name: str) -> bool:
    return sandbox.exec(f"pgrep -f '{name[:-1]}[{name[-1]}]'").exit_code == 0


# What a command gives


def test_output_and_exit_code_are_those_of_bash(sandbox: Sandbox, tmp_path: Path) -> None:
    rng = random.Random(5)
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    for command in rng.sample(COMMANDS, len(COMMANDS)) + rng.sample(COMMANDS, len(COMMANDS)):
        command = command.replace("{n}", str(rng.randrange(2, 120)))
        ran = subprocess.run(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env=environment,
        )
        assert sandbox.exec(f"mkdir -p {sandbox.root}/work && cd {sandbox.root}/work").exit_code == 0
        got = sandbox.exec(command)
        assert got.exit_code == ran.returncode, command
        assert not got.timed_out
        assert not got.out_of_memory
        if not any(word in got.output for word in ("eval:", "Killed")):  # where bash names itself or a process id
            assert got.output == ran.stdout.decode(errors="replace"), command


def test_the_shell_persists(sandbox: Sandbox) -> None:
    sandbox.exec("mkdir -p a/b && cd a && export X=1 && f() { echo f$1; } && declare -A map=([k]=v)")
    assert sandbox.exec("cd b; pwd; echo $X; f 2; echo ${map[k]}").output == f"{sandbox.root}/a/b\n1\nf2\nv\n"
    assert sandbox.exec("pwd").output == f"{sandbox.root}/a/b\n"


@pytest.mark.parametrize("ending", ["exit 3", "set -e; (exit 3)", "exec sh -c 'exit 3'", "(sleep 0.1; exit 3) && true; exit"])
def test_a_shell_that_ends_is_replaced(sandbox: Sandbox, ending: str) -> None:
    sandbox.exec("cd /; gone=1")
    assert sandbox.exec(f"echo said; {ending}") == ("said\n", 3, False, False)
    assert sandbox.exec('echo "$PWD ${gone:-none}"') == (f"{sandbox.root} none\n", 0, False, False)


def test_stray_loop_words_are_harmless(sandbox: Sandbox) -> None:
    for command in ("break", "continue", "continue 9", "for i in 1 2; do continue 5; done"):
        assert sandbox.exec(command).exit_code == 0
        assert sandbox.exec("echo here").output == "here\n"


def test_redirections_and_traps_of_the_shell_itself_do_not_hide_anything(sandbox: Sandbox) -> None:
    sandbox.exec("exec >/dev/null 2>&1 </dev/zero; set -x; set -v; trap 'echo debug' DEBUG; set -u; IFS=x")
    sandbox.exec("set +x +v; trap - DEBUG; printf() { echo hijacked; }; read() { false; }; eval() { false; }")
    assert sandbox.exec("echo shown; cat").output == "shown\n"
    sandbox.write("f", b"exact\n")
    assert sandbox.read("f") == b"exact\n"


def test_background_output_never_mixes_into_files(sandbox: Sandbox) -> None:
    data = os.urandom(300_000)
    sandbox.exec("yes noise & while :; do echo more >&2; done &")
    for _ in range(3):
        sandbox.write("data", data)
        assert sandbox.read("data") == data
    assert sandbox.exec("kill $(jobs -p); wait").exit_code == 0
    assert sandbox.exec("echo quiet").output == "quiet\n"


def test_background_output_never_hides_the_end_of_a_command(sandbox: Sandbox) -> None:
    sandbox.exec("while :; do printf x; done & while :; do printf y >&2; done &")
    for i in range(100):
        ran = sandbox.exec(f"(exit {i}); (exit {i})", timeout=20)
        assert ran.exit_code == i
        assert set(ran.output) <= {"x", "y"}


def test_long_output_keeps_its_ends(sandbox: Sandbox) -> None:
    ran = sandbox.exec("echo first; head -c 30000000 /dev/zero | tr '\\0' '\\n'; echo last")
    assert ran.output.startswith("first\n")
    assert ran.output.endswith("\nlast\n")
    assert "\n[... 29900011 bytes left out ...]\n" in ran.output
    assert len(ran.output) < SMALL.output_bytes + 100


def test_clip_keeps_exactly_what_fits() -> None:
    rng = random.Random(0)
    for _ in range(300):
        limit = rng.randrange(1, 40) * 2
        data = bytes(rng.randrange(97, 123) for _ in range(rng.randrange(120)))
        clip, rest = Clip(limit), data
        while rest:
            size = rng.randrange(1, 50)
            clip.add(rest[:size])
            rest = rest[size:]
        half = limit // 2
        left_out = len(data) - limit
        note = f"\n[... {left_out} bytes left out ...]\n".encode() if left_out > 0 else b""
        expected = data[:half] + note + data[-half:] if left_out > 0 else data
        assert clip.text().encode() == expected


def test_a_timeout_kills_inside_and_leaves_a_usable_sandbox(sandbox: Sandbox) -> None:
    sandbox.exec("echo kept > kept; sleep 9871 &")
    started = time.monotonic()
    ran = sandbox.exec("echo begun; (setsid sleep 9872 &); sh -c 'trap \"\" TERM INT HUP; sleep 9873'; echo never", timeout=1.5)
    assert ran == ("begun\n", None, True, False)
    assert time.monotonic() - started < 60
    assert sandbox.exec("cat kept; pwd").output == f"kept\n{sandbox.root}\n"
    assert not any(running(sandbox, f"sleep 987{i}") for i in (1, 2, 3))


def test_a_busy_shell_is_killed_too(sandbox: Sandbox) -> None:
    assert sandbox.exec("while :; do :; done", timeout=0.3).timed_out
    assert sandbox.exec("kill -STOP $$", timeout=0.3).timed_out
    assert sandbox.exec("yes", timeout=1.0).output.startswith("y\ny\n")
    assert sandbox.exec("echo usable").output == "usable\n"


# Files


@pytest.mark.parametrize("size", [0, 1, 100, 65_537, 1_300_000])
def test_files_are_exact(sandbox: Sandbox, size: int) -> None:
    rng = random.Random(size)
    sandbox.exec("cd /; set -C -e")  # neither the directory nor options of the shell matter
    for data in (rng.randbytes(size), bytes(rng.choices(b"\\'\"\0\n\r%$`!\x01\x7f\xff 0", k=size))):
        path = "new folder/it's/$x *.bin"
        sandbox.write(path, data)
        assert sandbox.read(f"{sandbox.root}/{path}") == data


def test_files_that_cannot_be(sandbox: Sandbox) -> None:
    sandbox.exec("mkdir folder; mkfifo pipe; ln -s nowhere dangling; head -c 2097153 /dev/zero > big; echo x > file; chmod 750 file")
    for path in ("folder", "pipe", "dangling", "missing", "nul\0"):
        with pytest.raises(FileNotFoundError):
            sandbox.read(path)
    with pytest.raises(OSError, match="larger than 2 MB"):
        sandbox.read("big")
    for path in ("folder", "file/below"):
        with pytest.raises(OSError, match="directory"):
            sandbox.write(path, b"x")
    sandbox.write("file", b"changed")
    assert sandbox.exec("stat -c %a file; cat file").output == "750\nchanged"


def test_text_that_is_not_unicode_reaches_bash(sandbox: Sandbox) -> None:
    assert sandbox.exec("echo 'a\0b \udcff'").output == "ab ?\n"


# What a container holds


@pytest.mark.docker
def test_a_container_is_closed_off(container: DockerSandbox, client: DockerClient) -> None:
    status = dict(line.split(":\t") for line in container.read("/proc/self/status").decode().splitlines() if ":\t" in line)
    assert {status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
    assert status["NoNewPrivs"] == "1"
    assert container.exec("ls /sys/class/net").output == "lo\n"
    connect_out = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=3)"
    assert "Network is unreachable" in container.exec(f'python3 -c "{connect_out}"').output
    assert container.exec("mount -t tmpfs none /mnt; chown 1 /etc/passwd; mknod /tmp/disk b 8 0; true").exit_code == 0
    assert container.exec("test -e /tmp/disk || test $(stat -c %u /etc/passwd) != 0").exit_code == 1
    found = client.api.inspect_container(container.name)
    host = found["HostConfig"]
    assert found["Mounts"] == []
    assert (host["Init"], host["NetworkMode"], host["Privileged"], host["Binds"]) == (True, "none", False, None)
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"], host["NanoCpus"]) == (200 * 2**20, 200 * 2**20, 64, 10**9)
    assert found["Config"]["Labels"][LABEL] == own_label()


@pytest.mark.docker
def test_memory(container: DockerSandbox) -> None:
    eat = "python3 -c 'x = bytearray(400_000_000)'"
    assert container.exec(eat)[1:] == (137, False, True)
    assert container.exec("kill -9 $$") == ("", 137, False, False)  # not every 137 is memory
    assert container.exec("kill -9 $BASHPID")[1:] == (137, False, False)
    assert container.exec(f"{eat}; echo went on")[1:] == (0, False, True)
    assert container.exec("true")[1:] == (0, False, False)


@pytest.mark.docker
def test_processes(container: DockerSandbox) -> None:
    ran = container.exec("bomb() { bomb | bomb & }; bomb; sleep 1; cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max", timeout=5)
    assert ran.timed_out or "64" in ran.output or "fork" in ran.output
    container.exec("sleep 60", timeout=0.1)
    assert container.exec("ps -e | wc -l").output.strip() in {"5", "6", "7"}


@pytest.mark.docker
def test_disk(container: DockerSandbox) -> None:
    assert container.exec("head -c 9000000 /dev/zero > big", timeout=20).exit_code == 128 + signal.SIGXFSZ
    ran = container.exec("for i in $(seq 999); do head -c 8000000 /dev/zero > f$i; sleep 0.2; done", timeout=60)
    assert ran.exit_code == 137
    assert "[stopped: the sandbox has written" in ran.output
    assert container.exec("rm -f f* && echo room").output == "room\n"


@pytest.mark.docker
def test_a_command_that_kills_everything_kills_only_itself(container: DockerSandbox) -> None:
    container.exec("echo kept > kept")
    for command in ("echo said; kill -9 -1; sleep 5", "pkill -9 sh; kill -9 $PPID; sleep 5"):
        ran = container.exec(command, timeout=20)
        assert ran.exit_code == 137
        assert not ran.timed_out
        assert container.exec("cat kept").output == "kept\n"


@pytest.mark.docker
@pytest.mark.parametrize("busy", [True, False])
@pytest.mark.parametrize("end", ["kill", "remove_container"])
def test_a_container_ended_from_outside_is_an_error_at_once(sandboxes: DockerSandboxes, client: DockerClient, busy: bool, end: str) -> None:
    with sandboxes.open() as sandbox:
        options = {"force": True} if end == "remove_container" else {}
        timer = threading.Timer(0.5 if busy else 0.0, getattr(client.api, end), [sandbox.name], options)
        timer.start()
        if not busy:
            timer.join()
        started = time.monotonic()
        with pytest.raises(SandboxError):
            sandbox.exec("sleep 300", 600)
        assert time.monotonic() - started < 60
        timer.join()
        with pytest.raises(SandboxError):
            sandbox.read("/etc/passwd")
        assert sandbox.name not in labelled(client)


# How it ends


@pytest.mark.docker
def test_closing_removes_and_ends_what_runs(client: DockerClient) -> None:
    sandboxes = DockerSandboxes()
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: sandboxes.open(), range(4)))
        assert {sandbox.name for sandbox in opened} <= labelled(client)
        assert [sandbox.exec(f"echo {i}").output for i, sandbox in enumerate(opened)] == ["0\n", "1\n", "2\n", "3\n"]
        opened[0].close()
        opened[0].close()
        waiting = [pool.submit(sandbox.exec, "sleep 600", 600) for sandbox in opened[1:]]
        time.sleep(0.3)
        sandboxes.close()
        for one in waiting:
            with pytest.raises(SandboxError):
                one.result(timeout=60)
        with pytest.raises(SandboxError):
            opened[0].exec("true")
        with pytest.raises(SandboxError):
            sandboxes.open()
        assert not {sandbox.name for sandbox in opened} & labelled(client)


SCRIPT = """
import sys, threading
from harness.sandbox_docker import DockerSandboxes
sandboxes = DockerSandboxes()
sandbox = sandboxes.open()
print(sandbox.name, flush=True)
if sys.argv[1] == "raise":
    raise RuntimeError
sandbox.exec("sleep 600", 600)
"""


@pytest.mark.docker
@pytest.mark.parametrize("ending", ["raise", signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_container_outlives_its_process(container: DockerSandbox, client: DockerClient, ending: str | signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(ending)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    assert name
    if isinstance(ending, signal.Signals):
        assert name in labelled(client)
        time.sleep(0.3)
        process.send_signal(ending)
    if ending is signal.SIGKILL:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        reap(client)  # while the killed process is still a zombie
    else:
        process.wait(timeout=60)
    assert name not in labelled(client)
    assert container.name in labelled(client)  # a live owner's stays
    process.wait(timeout=60)
    assert container.exec("echo alive").output == "alive\n"


def test_owners() -> None:
    host, boot, namespace, pid, started = own_label().split(" ")
    assert not is_gone(own_label())
    assert is_gone(f"{host} {boot} {namespace} {pid} {int(started) + 1}")
    assert is_gone(f"{host} another-boot {namespace} {pid} {started}")
    assert not is_gone(f"elsewhere {boot} {namespace} {pid} {int(started) + 1}")
    assert not is_gone(f"{host} {boot} pid:[1] {pid} {int(started) + 1}")
    ended = subprocess.Popen(["true"])
    assert ended.wait() == 0
    assert is_gone(f"{host} {boot} {namespace} {ended.pid} 1")


def test_no_engine_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    with pytest.raises(UserError, match=r"no Docker engine answers.*--sandbox local"):
        DockerSandboxes()


@pytest.mark.docker
def test_an_image_that_cannot_be_had(sandboxes: DockerSandboxes) -> None:
    with pytest.raises(SandboxError, match=r"nosuch\.invalid/image"):
        sandboxes.open("nosuch.invalid/image:1")


def test_local_sandboxes_leave_nothing() -> None:
    sandboxes = LocalSandboxes()
    with sandboxes.open() as first:
        second = sandboxes.open()
        second.exec("sleep 9874 & setsid sleep 9875 &")
        assert first.root != second.root
    sandboxes.close()
    assert not Path(first.root).exists()
    assert not Path(second.root).exists()
    assert subprocess.run(["pgrep", "-f", "sleep 987[45]"], capture_output=True).stdout == b""
    with pytest.raises(SandboxError):
        second.exec("true")
    with pytest.raises(UserError, match="image"):
        sandboxes.open("some/image")
