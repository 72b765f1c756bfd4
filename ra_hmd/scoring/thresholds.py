"""Thresholds that maximise a criterion on dev.

Shapes: Q dev memes, C outputs of the problem.
"""

from typing import Literal, get_args

import numpy as np

from ra_hmd.core.problem import Problem

Criterion = Literal["macro_f1", "accuracy", "f1", "youden"]
CRITERIA: tuple[str, ...] = get_args(Criterion)


def criterion_values(
    criterion: Criterion, tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray
) -> np.ndarray:
    """A criterion of confusion counts, all [T].

    `accuracy`; `f1` of class 1; `macro_f1`, the mean of F1 over both classes; `youden`, the true-positive rate minus
    the false-positive rate.
    """
    if criterion == "accuracy":
        return (tp + tn) / (tp + fp + fn + tn)
    if criterion == "youden":
        return ratio(tp, tp + fn) - ratio(fp, fp + tn)
    f1 = ratio(2 * tp, 2 * tp + fp + fn)
    return f1 if criterion == "f1" else (f1 + ratio(2 * tn, 2 * tn + fp + fn)) / 2


def best_threshold(scores: np.ndarray, positive: np.ndarray, criterion: Criterion, official: float) -> float:
    """The threshold with the best criterion; among equal ones the one nearest to the official threshold.

    The candidates are the official threshold, the midpoints of neighbouring scores, and one above all scores: all that
    separate the memes [Q] differently.

    Args:
        scores: [Q].
        positive: bool [Q].
        criterion: The metric to maximise.
        official: The official threshold.
    """
    order = np.argsort(scores, kind="stable")
    ordered, truth = scores[order], positive[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    distinct = ordered[starts]
    middle = (distinct[1:] + distinct[:-1]) / 2
    # The midpoint of two adjacent floats may be the lower one: then the upper one separates them.
    middle = np.where(middle > distinct[:-1], middle, distinct[1:])
    candidates = np.r_[distinct[0], middle, np.nextafter(distinct[-1], np.inf), official]
    below = np.searchsorted(ordered, candidates, side="left")  # memes below each threshold
    hits = np.r_[0, truth.cumsum()]
    fn = hits[below]
    tp, tn = hits[-1] - fn, below - fn
    fp = len(ordered) - hits[-1] - tn
    values = criterion_values(criterion, tp, fp, fn, tn)
    best = candidates[values >= values.max() - 1e-12]
    return float(best[np.lexsort((best, np.abs(best - official)))[0]])


def best_thresholds(
    scores: np.ndarray, labels: np.ndarray, criterion: Criterion, official: np.ndarray, problem: Problem
) -> np.ndarray:
    """float64 [C]: the best threshold of each output of scores [Q, C].

    A class that all or no dev memes have keeps its official one, as does `single_label`, which takes the highest score.
    """
    chosen = official.astype(np.float64)
    if problem.kind == "single_label":
        return chosen
    member = problem.membership(labels)
    for c in range(problem.outputs):
        if 0 < member[:, c].sum() < len(member):
            chosen[c] = best_threshold(scores[:, c], member[:, c], criterion, float(official[c]))
    return chosen


def criterion_of(criterion: Criterion, verdicts: np.ndarray, labels: np.ndarray, problem: Problem) -> float:
    """The criterion of verdicts, in the shape of labels; for several classes the mean of each against the rest."""
    predicted, member = problem.membership(verdicts), problem.membership(labels)
    tp, fp = (predicted & member).sum(axis=0), (predicted & ~member).sum(axis=0)
    fn = (~predicted & member).sum(axis=0)
    return float(criterion_values(criterion, tp, fp, fn, len(member) - tp - fp - fn).mean())


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, 0 where the denominator is 0."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)
