"""Episodes on several machines: each is one task of a Ray cluster, on a node with a Docker engine of its own.

A node needs this package, the environment's, and what the model is named by: an endpoint that it reaches, or a folder that it has. The
run folder stays with the caller, who gets every state of an episode as it comes. A node that goes away is an infrastructure error of the
episodes that it played: they are played again elsewhere.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from typing import Any

from harness.agent import AGENT, Episode, Save
from harness.generate import EngineName, Generator, load_generator
from harness.plan import Item, Plan
from harness.play import play
from harness.sandbox_open import Sandboxes
from harness_trajectories import Trajectory
from harness_trajectories.errors import UserError

Played = tuple[Episode, list[str]]


class Cluster:
    """A connection to a Ray cluster, for the episodes of one plan. Several threads may use it.

    Args:
        address: `auto` for the cluster that this machine is a node of, HOST:PORT, or ray://HOST:PORT.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str, plan: Plan) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--ray needs the package ray: pip install 'srl-harness[ray]'") from None
        self._ray: Any = ray
        try:
            if address != "auto":
                _reach(address)
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--ray {address}: no Ray cluster answers there: {str(error).strip().splitlines()[0]}. "
                "Start one (`ray start --head`, then `ray start --address=HOST:PORT` on each further machine), or leave --ray out"
            ) from error
        self._plan = ray.put(plan)
        self._label = plan.label
        # A node's processors are the slots that it offers; SPREAD fills the nodes evenly.
        self._task: Any = ray.remote(max_retries=0, scheduling_strategy="SPREAD", num_returns="streaming")(_states)

    def play(self, item: Item, save: Save) -> Played:
        """`harness.play.play` on some node.

        Raises:
            UserError: the node cannot have the model or the sandbox.
        """
        run = Trajectory(id=item.task.id, instance_id=item.task.id, format=AGENT, model=self._label, steps=())
        episode = Episode(trajectory=run, exit="unfinished", seconds=0.0)
        states = self._task.remote(self._plan, item)
        try:
            for reference in states:
                state: Episode | Played = self._ray.get(reference)
                if isinstance(state, tuple):
                    return state
                episode = state
                save(episode)
            reason = "the node ended it without a result"
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            reason = f"the node was lost: {str(error).strip().splitlines()[0]}"
        finally:
            self._ray.cancel(states)  # where it has not ended: its sandboxes are taken away
        return episode.model_copy(update={"exit": "infra_error", "error": reason, "grade": None}), []

    def close(self) -> None:
        """Leave the cluster; what still runs there for this caller is ended."""
        self._ray.shutdown()


def _reach(address: str) -> None:
    """See at once whether anybody listens there: Ray itself tries for minutes.

    Raises:
        OSError: nobody does.
        ValueError: this is no HOST:PORT.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("allowed are auto, HOST:PORT and ray://HOST:PORT")
    socket.create_connection((host, int(port)), timeout=5).close()


def _states(plan: Plan, item: Item) -> Iterator[Episode | Played]:
    """On a node: every state of the episode, at last its end with its notes."""
    found: queue.SimpleQueue[Episode | Played | BaseException] = queue.SimpleQueue()

    def work(sandboxes: Sandboxes) -> None:
        try:
            generator = _generator(str(plan.config.model), plan.config.engine) if plan.needs_model else None
            found.put(play(plan, item, generator, sandboxes, found.put))
        except BaseException as error:
            found.put(error)

    with closing(Sandboxes(plan.config.sandbox, plan.config.base_image, plan.images)) as sandboxes:
        threading.Thread(target=work, args=(sandboxes,), daemon=True).start()
        while True:
            state = found.get()
            if isinstance(state, BaseException):
                raise state
            yield state
            if isinstance(state, tuple):
                return


@cache
def _generator(model: str, engine: EngineName) -> Generator:
    """A model stays loaded in the process of a node."""
    return load_generator(model, engine)
