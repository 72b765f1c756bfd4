"""How much better verdicts are when the least certain ones are left to people.

Shapes: Q memes, C outputs of the problem.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ra_hmd.core.problem import Problem

COVERAGES = tuple(share / 20 for share in range(1, 21))


def confidence(
    probabilities: np.ndarray, verdicts: np.ndarray, problem: Problem, abstained: np.ndarray | None = None
) -> np.ndarray:
    """float64 [Q]: the probability that the verdict that was given is wholly right.

    Of `multi_label` the product over the classes, as if they were independent. A meme on which the vote abstained has
    −1: it is the first to be left out.

    Args:
        probabilities: [Q, C].
        verdicts: [Q] or [Q, C], in the shape of labels.
        problem: What they mean.
        abstained: bool [Q].
    """
    said = problem.membership(verdicts)
    if problem.kind == "single_label":
        certain = probabilities[said]
    else:
        certain = np.where(said, probabilities, 1 - probabilities).prod(axis=1)
    return certain if abstained is None else np.where(abstained, -1.0, certain)


def aurc(certain: np.ndarray, right: np.ndarray) -> float:
    """Area under the risk-coverage curve: the mean over k of the error rate of the k most certain memes.

    Equally certain memes are taken in as if in random order, so that the order of the rows does not count.

    Source: Geifman and El-Yaniv, NeurIPS 2017 (risk and coverage).
    """
    order = np.argsort(-certain, kind="stable")
    ordered, wrong = certain[order], (~right[order]).astype(np.float64)
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(ordered)])
    expected = np.repeat(np.add.reduceat(wrong, starts) / sizes, sizes)
    return float((expected.cumsum() / np.arange(1, len(ordered) + 1)).mean())


def abstention_curve(
    certain: np.ndarray, right: np.ndarray, macro_f1: Callable[[np.ndarray], float]
) -> list[dict[str, Any]]:
    """Accuracy and macro-F1 of the most certain memes, at each of `COVERAGES`.

    Equally certain memes are kept or left out together, so `coverage`, the share that is kept, may be above the asked.

    Args:
        certain: [Q].
        right: bool [Q].
        macro_f1: Of row numbers.

    Returns:
        `coverage`, `confidence` (of the least certain that is kept), `accuracy`, `macro_f1`; coverages that are equal
        appear once.
    """
    falling = np.sort(certain)[::-1]
    points: dict[float, dict[str, Any]] = {}
    for share in COVERAGES:
        least = falling[max(int(np.ceil(share * len(falling) - 1e-9)), 1) - 1]
        rows = np.flatnonzero(certain >= least)
        coverage = len(rows) / len(certain)
        if coverage not in points:
            points[coverage] = {
                "coverage": coverage,
                "confidence": float(least),
                "accuracy": float(right[rows].mean()),
                "macro_f1": macro_f1(rows),
            }
    return list(points.values())
