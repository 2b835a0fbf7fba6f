"""Sandboxes in Docker: one container an episode, closed off, limited, and taken away however the process ends.

A container has no network unless it is asked for, no capability, no way to gain privileges, nothing mounted, and the limits of `Limits`.
It carries a label that names the process which owns it. `DockerSandboxes` removes its containers when it is closed and at exit, to which
SIGINT and SIGTERM lead too; those of a process that was killed are removed by the next one that starts.
"""

from __future__ import annotations

import atexit
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from types import FrameType, TracebackType
from typing import Any, Self

from docker import DockerClient
from docker.errors import APIError, DockerException, NotFound
from docker.types import LogConfig, Ulimit
from requests.exceptions import RequestException

from harness.base_image import base_image as prepare_base_image
from harness.images import ImagePolicy, Images, engine_errors
from harness.sandbox import Limits, Network, NoEngine, Prepare, SandboxError
from harness.sandbox_owner import is_gone, own_label
from harness.sandbox_prepared import prepared
from harness.sandbox_shell import ARGV, ENVIRONMENT, SEND_SECONDS, Lost, Overrun, Shell, ShellSandbox

LABEL = "srl-harness.run"
_ENGINE_TIMEOUT = 120
"""Seconds for one request to the engine."""
_GET_ENGINE = "make engine installs and starts one on Debian or Ubuntu as root; elsewhere: https://docs.docker.com/engine/install/"


def connect() -> DockerClient:
    """A client of the engine that DOCKER_HOST names, or of the local one.

    Raises:
        NoEngine: none answers.
    """
    try:
        client = DockerClient.from_env(timeout=_ENGINE_TIMEOUT)
        if client.api.base_url.startswith("http+docker"):  # a socket of this machine
            client.api.trust_env = False  # looking for a proxy, requests would walk through os.environ while other threads may change it
        client.ping()
    except (DockerException, RequestException) as error:
        raise NoEngine(f"no Docker engine answers: {error}. {_GET_ENGINE}; or run without isolation: --sandbox local") from None
    return client


def reap(client: DockerClient) -> int:
    """Remove the containers of owners that are gone, and say how many."""
    with engine_errors("removing old containers"):
        found = client.api.containers(all=True, filters={"label": LABEL})
        gone = [one["Id"] for one in found if is_gone(one["Labels"][LABEL])]
        for container in gone:
            _remove(client, container)
    return len(gone)


class DockerSandboxes:
    """Opens sandboxes of one engine. Several threads may use it.

    Args:
        base_image: what sandboxes that name no image get, completed by docker/sandbox.Dockerfile; None: chosen, and said on stderr.
        limits: of every sandbox.
        images: what is done about images that are not here.

    Raises:
        UserError: no engine answers.
    """

    def __init__(self, base_image: str | None = None, limits: Limits | None = None, images: ImagePolicy | None = None) -> None:
        self.limits = limits or Limits()
        self._client = connect()
        self.images = Images(self._client, images or ImagePolicy())
        self._base_image = base_image
        self._base: str | None = None
        """The tag of the base image, once it is made."""
        self._waits: dict[str | None, threading.Lock] = {}
        self._opened: dict[str, DockerSandbox | None] = {}
        """By the name of the container; None while it is being started."""
        self._closing = False
        reap(self._client)
        atexit.register(self.close)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _exit)

    def open(self, image: str | None = None, prepare: Prepare | None = None, network: Network = "none") -> DockerSandbox:
        """A fresh sandbox.

        Args:
            image: its image; None: the base image.
            prepare: done to the image before; the result is an image of its own, kept for the next one (`sandbox_prepared`).
            network: what can be reached from it.

        Raises:
            UserError: the base image cannot be had.
            SandboxError: no image, or the engine cannot start the container.
            EnvError: it cannot be prepared.
        """
        ready = self._ready(image)
        if prepare is not None:
            with self._waits.setdefault(f"{ready} {prepare.key}", threading.Lock()):
                ready = prepared(self._client, ready, prepare, self._start)
        return self._start(ready, network)

    def _start(self, ready: str, network: Network = "none") -> DockerSandbox:
        name = f"srl-harness-{secrets.token_hex(8)}"
        self._opened[name] = None  # before the container exists, so that no ending misses it
        try:
            sandbox = self._opened[name] = DockerSandbox(self._client, ready, name, self.limits, self._forget, network)
            if self._closing:
                raise SandboxError("the sandboxes are being closed")
        except BaseException:
            _remove(self._client, name)
            self._forget(name)
            raise
        return sandbox

    def close(self) -> None:
        """Remove all containers; commands that run in them fail, and none can be opened any more. Called once or more."""
        self._closing = True
        atexit.unregister(self.close)
        for name, sandbox in list(self._opened.items()):
            try:
                if sandbox is None:
                    _remove(self._client, name)
                else:
                    sandbox.close()
            except SandboxError as error:
                print(f"{error}; the next start removes it", file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _forget(self, name: str) -> None:
        self._opened.pop(name, None)

    def _ready(self, image: str | None) -> str:
        """The name of an image that is here. Several threads that want the same one wait for the first."""
        with self._waits.setdefault(image, threading.Lock()):
            if image is not None:
                self.images.get(image)
                return image
            if self._base is None:
                with engine_errors("making the base image"):
                    self._base = prepare_base_image(self._client, self._base_image)
            return self._base


class DockerSandbox(ShellSandbox):
    """One container. `DockerSandboxes.open` makes it.

    Args:
        client: of the engine.
        image: a name that is here; it must hold bash and sh.
        name: of the container.
        limits: what it may use.
        on_close: called with the name once the container is removed.
        network: what can be reached from it.

    Raises:
        SandboxError: the engine cannot start it.
    """

    def __init__(
        self,
        client: DockerClient,
        image: str,
        name: str,
        limits: Limits,
        on_close: Callable[[str], None],
        network: Network = "none",
    ) -> None:
        super().__init__(limits)
        self.name = name
        self._client = client
        self._image = image
        self._on_close = on_close
        self._channel: AttachChannel | None = None
        api = client.api
        with engine_errors(f"starting a container of {image}"):
            api.create_container(
                image,
                entrypoint=ARGV,
                command=[],
                name=name,
                labels={LABEL: own_label()},
                stdin_open=True,
                working_dir=self.root,
                environment=ENVIRONMENT,
                healthcheck={"test": ["NONE"]},
                host_config=api.create_host_config(
                    init=True,
                    network_mode=network,
                    cap_drop=["ALL"],
                    security_opt=["no-new-privileges"],
                    mem_limit=limits.memory,
                    memswap_limit=limits.memory,
                    nano_cpus=round(limits.cpus * 1e9),
                    pids_limit=limits.pids,
                    ulimits=[
                        Ulimit(name="fsize", soft=limits.file_size_mb * 2**20, hard=limits.file_size_mb * 2**20),
                        Ulimit(name="core", soft=0, hard=0),
                    ],
                    log_config=LogConfig(type="none"),
                ),
            )
            api.start(name)
        self._connect()

    def close(self) -> None:
        """Remove the container with everything in it."""
        if not self._closed:
            self._closed = True
            self._disconnect()
            _remove(self._client, self.name)
            self._on_close(self.name)

    def _disconnect(self) -> None:
        """Before the container is ended: the engine would wait for us to read all that it still prints."""
        if self._channel is not None:
            self._channel.close()

    def _connect(self) -> None:
        with engine_errors(f"attaching to {self.name}"):
            self._channel = AttachChannel(
                self._client.api.attach_socket(self.name, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
            )
        try:
            self._shell = Shell(self._channel, self.limits.output_bytes)
        except Lost:
            raise SandboxError(f"the shell of {self.name} does not start; image {self._image} needs bash and sh") from None

    def _restart(self) -> None:
        self._disconnect()
        with engine_errors(f"restarting {self.name}"):
            self._client.api.restart(self.name, timeout=0)
        self._connect()

    def _revive(self) -> bool:
        try:
            with engine_errors(f"looking at {self.name}"):
                state = self._client.api.inspect_container(self.name)["State"]
                outside = state["Running"] or self._killed_from_outside(state)
        except SandboxError:
            self.close()
            raise
        if outside:
            self.close()
            raise SandboxError(f"container {self.name} was ended from outside (exit code {state['ExitCode']})")
        self._restart()
        return bool(state["OOMKilled"])

    def _killed_from_outside(self, state: dict[str, Any]) -> bool:
        """Whether the engine was asked to kill it since it started; else something inside killed the first process."""
        started, finished = (datetime.fromisoformat(state[key]).timestamp() for key in ("StartedAt", "FinishedAt"))
        asked = self._client.api.events(
            since=int(started), until=int(finished) + 1, filters={"container": self.name, "event": "kill"}, decode=True
        )
        return any(event["timeNano"] > started * 1e9 for event in asked)

    def _watch(self) -> None:
        with engine_errors(f"looking at {self.name}"):
            found = self._client.api.containers(size=True, filters={"name": f"^/{self.name}$"})
        used = found[0].get("SizeRw", 0) if found else 0
        if used > self.limits.disk_mb * 2**20:
            raise Overrun(f"the sandbox has written {used // 2**20} MB, allowed are {self.limits.disk_mb} MB")


class AttachChannel:
    """The `Channel` of a container's first process. Without a terminal the engine sends frames: stream, three zero bytes, length, data.

    Args:
        attached: what `attach_socket` of the SDK returns.
    """

    def __init__(self, attached: Any) -> None:
        self._attached = attached
        self._socket: socket.socket = getattr(attached, "_sock", attached)
        self._buffer = bytearray()

    def send(self, data: bytes) -> None:
        self._socket.settimeout(SEND_SECONDS)
        self._socket.sendall(data)

    def receive(self, timeout: float) -> tuple[int, bytes] | None:
        while True:
            if len(self._buffer) >= 8:
                end = 8 + int.from_bytes(self._buffer[4:8])
                if len(self._buffer) >= end:
                    frame = self._buffer[0], bytes(self._buffer[8:end])
                    del self._buffer[:end]
                    return frame
            self._socket.settimeout(timeout)
            try:
                data = self._socket.recv(65536)
            except (TimeoutError, BlockingIOError):
                return None
            except ConnectionError:
                raise EOFError from None
            if not data:
                raise EOFError
            self._buffer += data

    def close(self) -> None:
        """Close the connection; the container does not notice."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in `receive`
        getattr(self._attached, "_response", self._attached).close()


def _exit(number: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds the main thread and runs what is registered for the exit."""
    sys.exit(128 + number)


def _remove(client: DockerClient, container: str) -> None:
    """Kill and remove a container; nothing where there is none."""
    try:
        client.api.remove_container(container, force=True, v=True)
    except NotFound:
        pass
    except APIError as error:
        if error.status_code != 409:  # another call is removing it
            raise SandboxError(f"removing {container}: {error.explanation}") from error
    except (DockerException, RequestException) as error:
        raise SandboxError(f"removing {container}: {error}") from error
