"""Math problems with a grade that a model meets by chance: whether its answer has an odd number of characters."""

from __future__ import annotations

from harness_envs.math import MathEnv


class ParityEnv(MathEnv):
    def grade(self) -> float:
        return len(self.answered or "") % 2
