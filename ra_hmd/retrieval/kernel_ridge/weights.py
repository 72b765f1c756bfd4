"""Weights of rows by their classes.

Shapes: N rows, C outputs of the problem, G groups of outputs.
"""

from dataclasses import dataclass

import numpy as np

from ra_hmd.core.problem import Problem


@dataclass(frozen=True)
class ClassWeights:
    """Weights of rows, with which every class has the same weight as the others in the rows that they were made from.

    Attributes:
        problem: What labels mean.
        share: float64 [C], share of the rows that have each class; None: all rows weigh 1.
    """

    problem: Problem
    share: np.ndarray | None

    @classmethod
    def of(cls, labels: np.ndarray, problem: Problem, balanced: bool) -> "ClassWeights":
        """Weights by the classes of N rows; a class that none of them has counts as that of half a row."""
        if not balanced or not len(labels):
            return cls(problem, None)
        least = 0.5 / len(labels)
        return cls(problem, problem.membership(labels).mean(axis=0).clip(least, 1 - least))

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Weights [N, G]: G = C for balanced label sets, whose classes are weighted each by itself, else 1."""
        if self.share is None:
            return np.ones((len(labels), 1))
        member = self.problem.membership(labels)
        if self.problem.kind == "single_label":
            return 1 / (self.problem.classes * self.share[labels][:, None])
        return 1 / (2 * np.where(member, self.share, 1 - self.share))
