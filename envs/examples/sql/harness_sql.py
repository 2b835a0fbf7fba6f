"""A stateful example environment: a small database, queries as the tool, and the state left behind as the grade."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from harness import Env, Task, tool
from harness.env import Split, ToolError
from harness_trajectories import Action

NAMES = ("ada", "ben", "cleo", "dan", "eva", "finn")
_FORBIDDEN = (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA)
_MAX_STEPS = 200
"""Thousands of virtual-machine instructions of one statement."""


class SqlTask(Task):
    balances: dict[str, int]
    sender: str
    receiver: str
    amount: int


class SqlEnv(Env):
    """Move money between the accounts of a SQLite database, then say the sender's new balance."""

    system = "You work on a SQLite database with the table account(name TEXT, balance INTEGER)."

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")

        n: int = Field(default=20, ge=1)
        """Tasks in each split."""

    @classmethod
    def tasks(cls, config: Any, split: Split) -> Iterable[SqlTask]:
        for index in range(config.n):
            dice = random.Random(f"{split}-{index}")
            balances = {name: dice.randint(50, 99) for name in NAMES}
            sender, receiver = dice.sample(NAMES, 2)
            amount = dice.randint(1, 49)
            prompt = f"Move {amount} from {sender} to {receiver}. Then answer with the balance that {sender} has left."
            yield SqlTask(id=f"sql-{split}-{index}", prompt=prompt, balances=balances, sender=sender, receiver=receiver, amount=amount)

    def reset(self, task: SqlTask) -> str:
        self.task = task
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.execute("CREATE TABLE account (name TEXT, balance INTEGER)")
        self.db.executemany("INSERT INTO account VALUES (?, ?)", task.balances.items())
        self.db.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action in _FORBIDDEN else sqlite3.SQLITE_OK)
        return task.prompt

    @tool
    def query(self, sql: str) -> str:
        """Run one SQL statement and return its rows.

        sql: the statement
        """
        try:
            return "\n".join(str(row) for row in self._rows(sql, 50)) or "no rows"
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise ToolError(str(error)) from None

    def grade(self) -> float:
        task = self.task
        left = task.balances[task.sender] - task.amount
        wanted = {**task.balances, task.sender: left, task.receiver: task.balances[task.receiver] + task.amount}
        try:
            found = sorted(self._rows("SELECT name, balance FROM account", len(wanted) + 1), key=str)
        except sqlite3.Error:
            return 0.0
        return float(found == sorted(wanted.items(), key=str) and (self.answered or "").strip() == str(left))

    def gold(self) -> list[Action]:
        task = self.task
        move = "UPDATE account SET balance = balance + {} WHERE name = '{}'"
        return [
            Action(tool="query", arguments={"sql": move.format(-task.amount, task.sender)}),
            Action(tool="query", arguments={"sql": move.format(task.amount, task.receiver)}),
            Action(tool="answer", arguments={"text": str(task.balances[task.sender] - task.amount)}),
        ]

    def _rows(self, sql: str, limit: int) -> list[Any]:
        steps = iter(range(_MAX_STEPS))
        self.db.set_progress_handler(lambda: next(steps, None) is None, 1000)
        return self.db.execute(sql).fetchmany(limit)

    def close(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
