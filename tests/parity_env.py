"""Math problems with a grade that a model meets by chance: whether its steps have an odd number of characters."""

from __future__ import annotations

from harness_envs.math import MathEnv


class ParityEnv(MathEnv):
    def grade(self) -> float:
        return len("".join(self.steps)) % 2
