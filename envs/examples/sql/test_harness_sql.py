"""What `harness env check` checks, and that the agent cannot leave the database. Reference: the files that are there afterwards."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from harness.check import check
from harness_sql import SqlEnv
from harness_trajectories import Action


def no_sandbox(*_: Any) -> Any:
    raise AssertionError("SqlEnv needs no sandbox")


def test_sql() -> None:
    assert [found for found in check(SqlEnv, SqlEnv.Config(), no_sandbox) if not found.ok] == []


def test_an_agent_cannot_leave_the_database(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(SqlEnv(SqlEnv.Config(), no_sandbox)) as env:
        env.reset(next(iter(SqlEnv.tasks(env.config, "test"))))
        for sql in (f"ATTACH '{tmp_path}/x.db' AS x", "PRAGMA writable_schema=1", "SELECT load_extension('x')", "VACUUM INTO 'x.db'"):
            assert env.step(Action(tool="query", arguments={"sql": sql})).startswith("ERROR"), sql
        endless = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT MAX(x) FROM r"
        assert "interrupted" in env.step(Action(tool="query", arguments={"sql": endless}))
    assert not list(tmp_path.iterdir())


def test_whatever_the_agent_leaves_is_graded() -> None:
    for sql in ("DROP TABLE account", "DELETE FROM account", "UPDATE account SET balance = NULL", "UPDATE account SET name = x'ff'"):
        with closing(SqlEnv(SqlEnv.Config(), no_sandbox)) as env:
            env.reset(next(iter(SqlEnv.tasks(env.config, "test"))))
            env.step(Action(tool="query", arguments={"sql": sql}))
            assert env.grade() == 0.0, sql
