"""Selective classification: accuracy when the least certain memes are left to people.

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
    """Estimated probability float64 [Q] that each verdict is entirely right.

    For `multi_label` this is the product over classes, as if they were independent. Memes on which the vote abstained
    get −1, so that they are left out first.

    Args:
        probabilities: [Q, C].
        verdicts: int64 [Q] or [Q, C], in the shape of labels.
        problem: What verdicts mean.
        abstained: bool [Q].
    """
    member = problem.membership(verdicts)
    if problem.kind == "single_label":
        certain = probabilities[member]
    else:
        certain = np.where(member, probabilities, 1 - probabilities).prod(axis=1)
    return certain if abstained is None else np.where(abstained, -1.0, certain)


def aurc(certain: np.ndarray, right: np.ndarray) -> float:
    """Area under the risk-coverage curve: the mean over k of the error rate of the k most certain memes.

    Ties count with their expected error rate, so that the order of rows does not matter.

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

    Ties are kept or left out together, so the actual `coverage` may exceed the nominal one.

    Args:
        certain: [Q], confidence of each meme.
        right: bool [Q], whether its verdict is right.
        macro_f1: Function from row numbers to the macro-F1 of these memes.

    Returns:
        Per point `coverage`, `confidence` (of the least certain meme that is kept), `accuracy` and `macro_f1`; equal
        coverages appear once.
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
