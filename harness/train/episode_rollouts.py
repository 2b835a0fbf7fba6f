"""RLVR's rollouts: whole episodes in the environment, rewarded by its grade."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness.env import EnvError, Task
from harness.evaluate import file_name
from harness.runs import write_json
from harness.train import processes
from harness.train.config import Outcome
from harness.train.engine import Engine, completion_seeds
from harness.train.episodes import Played, Players, Start
from harness.train.phases import Phases
from harness.train.rollouts import Rollout, Turn
from harness.train.sampling import has_signal


class Detail(NamedTuple):
    """Of one episode."""

    name: str
    played: Played


class EpisodeRollouts:
    """A `Source` of episodes. What is sampled in one depends on the run's seed, the place in the stream and the copy alone.

    Args:
        folder: where some episodes of each step are kept as ATIF documents, `logged` of them.
    """

    def __init__(self, tasks: Sequence[Task], players: Players, options: Outcome, folder: Path, logged: int, phases: Phases) -> None:
        self.size = len(tasks)
        self.trajectories = range(self.size)
        self.rollouts = options.rollouts
        self.figures: dict[str, float] = {}
        self._tasks = tasks
        self._players = players
        self._options = options
        self._folder = folder
        self._logged = logged
        self.phases = phases
        self._step = 0
        self._groups: list[Sequence[Rollout]] = []  # of the present step

    def name(self, item: int) -> str:
        return self._tasks[item].id

    def roll(self, items: Sequence[int], places: Sequence[int], engine: Engine) -> list[list[Rollout]]:
        """A group for each task.

        Raises:
            EnvError: the infrastructure failed in every episode.
        """
        each = [(item, place, copy) for item, place in zip(items, places, strict=True) for copy in range(self.rollouts)]
        sampling = self._players.plan.config.sampling
        seeds = completion_seeds(sampling.seed, places, self.rollouts)
        starts = [
            Start(self._tasks[item], sampling.model_copy(update={"seed": seed})) for (item, *_), seed in zip(each, seeds, strict=True)
        ]
        every = self._players.play(starts, engine, self.phases)
        _require_some(every)
        rollouts = [
            self._rollout(item, Detail(f"{self._tasks[item].id}.{place}.{copy}", played))
            for (item, place, copy), played in zip(each, every, strict=True)
        ]
        return [rollouts[start : start + self.rollouts] for start in range(0, len(rollouts), self.rollouts)]

    def note(self, step: int, groups: Sequence[Sequence[Rollout]]) -> None:
        """Figures of all episodes that were played for the step, dropped groups included."""
        if step != self._step:
            self._step, self._groups = step, []
        self._groups += groups
        details: list[Detail] = [one.detail for group in self._groups for one in group]
        varied = [has_signal([one.reward for one in group], self._options.min_deviation) for group in self._groups]
        self.figures = {**summary([detail.played for detail in details]), "zero_variance": 1 - sum(varied) / len(varied)}
        for name, played in details[: self._logged]:
            trajectory = played.episode.trajectory.model_copy(update={"id": name})
            document = played.episode.model_copy(update={"trajectory": trajectory}).atif()
            write_json(self._folder / f"step-{step:05}" / f"{file_name(name)}.json", document)

    def validate(self, tasks: Sequence[Task], engine: Engine) -> dict[str, float]:
        """A greedy episode of each task.

        Raises:
            EnvError: the infrastructure failed in every episode.
        """
        greedy = self._players.plan.config.sampling.model_copy(update={"temperature": 0.0})
        every = processes.gathered(self._players.play([Start(task, greedy) for task in processes.mine(tasks)], engine, Phases()))
        _require_some(every)
        return summary(every)

    def _rollout(self, item: int, detail: Detail) -> Rollout:
        """An episode without a turn or without a verdict has no reward, and so no gradient."""
        grade, turns = detail.played.episode.grade, detail.played.turns
        if not turns:
            token = min(self._players.end)
            return Rollout(item, (Turn([token], [token], [float("nan")]),), float("nan"), detail)
        return Rollout(item, turns, float("nan") if grade is None else grade.score, detail)


def summary(every: Sequence[Played]) -> dict[str, float]:
    """Figures of episodes; `solved` and `reward` are over those that have a verdict, a mean over nothing is 0.

    `format_ok` and `clipped` are shares of the turns. `exit_…` and `status_…` count episodes by how they ended and by their verdict.
    """
    episodes = [played.episode for played in every]
    grades = [episode.grade for episode in episodes if episode.grade is not None]
    turns = sum(len(played.turns) for played in every)
    exits = Counter(f"exit_{episode.exit}" for episode in episodes)
    statuses = Counter(f"status_{grade.status}" for grade in grades)
    return {
        "reward": sum(grade.score for grade in grades) / max(len(grades), 1),
        "solved": sum(grade.status == "resolved" for grade in grades) / max(len(grades), 1),
        "format_ok": 1 - sum(episode.format_errors for episode in episodes) / max(turns, 1),
        "clipped": sum(played.clipped for played in every) / max(turns, 1),
        "turns": turns / len(every),
        "completion_tokens": sum(len(turn.completion) for played in every for turn in played.turns) / len(every),
        "invalid_calls": sum(episode.invalid_calls for episode in episodes) / len(every),
        "episode_seconds": sum(episode.seconds for episode in episodes) / len(every),
        "episodes": len(every),
        "unscorable": len(every) - len(grades),
        "tries": sum(played.tries for played in every),
        **exits,
        **statuses,
    }


def _require_some(every: Sequence[Played]) -> None:
    errors = [played.episode.error for played in every if played.episode.exit == "infra_error"]
    if errors and len(errors) == len(every):
        raise EnvError(f"the infrastructure failed in all {len(every)} episodes, the last time: {errors[-1]}")
