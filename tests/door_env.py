"""An environment of several turns without a sandbox: turn the knob to the number, then open the door."""

from __future__ import annotations

from collections.abc import Iterable

from harness import Env, Task, tool
from harness.env import EnvError, Split


class DoorTask(Task):
    number: int


class DoorEnv(Env):
    system = "Open the door."
    answer = None

    def __init__(self, config: Env.Config, open_sandbox: object) -> None:
        super().__init__(config, open_sandbox)
        self.knob = 0

    @classmethod
    def tasks(cls, config: Env.Config, split: Split) -> Iterable[DoorTask]:
        numbers = {"train": range(8), "val": range(8, 10), "test": range(10, 12)}[split]
        return [DoorTask(id=f"door-{n}", prompt=f"The number is {n}.", number=n) for n in numbers]

    def reset(self, task: DoorTask) -> str:
        if task.number == 7:
            raise EnvError("the house is gone")
        self.task = task
        return task.prompt

    def grade(self) -> float:
        return float(self.done and self.knob == self.task.number)

    @tool
    def turn(self, by: int) -> str:
        """Turn the knob.

        by: how far
        """
        if by == 13:
            raise EnvError("the knob came off")
        self.knob += by
        return f"It stands at {self.knob}."

    @tool
    def open(self) -> str:
        """Open the door."""
        self.done = True
        return ""
