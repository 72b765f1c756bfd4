"""Neighbours behind the KNN vote, as JSON values.

Shapes: Q queries, K neighbours, C outputs of the problem.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ra_hmd.core.problem import Problem
from ra_hmd.scoring.scores import LabelledIndex, ScoredSet


def vote_evidence(scored: ScoredSet, bank: LabelledIndex, memes: int | None = None) -> Iterator[list[dict[str, Any]]]:
    """For each meme of a set (of the first `memes`): the neighbours behind the KNN vote, the nearest first.

    A neighbour's `vote` is what it adds to the score (the votes add up to it), of several classes a list; its `share`
    is its part of all votes regardless of sign.
    """
    ids, labels = bank.ids, bank.labels  # of an example bank both are made anew each time
    for row in range(len(scored))[:memes]:
        strength = np.abs(scored.votes[row]).sum(axis=1)
        total = float(strength.sum())
        yield [
            {
                "id": ids[found],
                "label": labels[found].tolist(),
                "similarity": float(scored.neighbours.similarity[row, rank]),
                "vote": plain_score(scored.votes[row, rank], scored.problem),
                "share": float(strength[rank]) / total if total else 0.0,
            }
            for rank, found in enumerate(scored.neighbours.rows[row])
            if found >= 0
        ]


def plain_score(values: np.ndarray, problem: Problem) -> float | list[float]:
    """Values [C] for JSON: one number if binary, else a list."""
    return float(values[0]) if problem.kind == "binary" else values.tolist()
