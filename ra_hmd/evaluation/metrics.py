"""Metrics of binary scores: one value through scikit-learn, or many resamples at once for the bootstrap.

Shapes: N rows, R resamples.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

Head = Literal["lmh", "lrc", "rkc"]

THRESHOLDS: dict[Head, float] = {"lmh": 0.5, "lrc": 0.5, "rkc": 0.0}
"""A score at or above its head's threshold means class 1."""

METRICS = ("accuracy", "auroc", "macro_f1", "precision", "recall", "f1")


def auroc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Area under the ROC curve; None where it is undefined, with one class only."""
    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else None


def binary_metrics(
    scores: np.ndarray, labels: np.ndarray, threshold: float, names: Iterable[str] = METRICS
) -> dict[str, float | None]:
    """The metrics `names` of scores [N] against labels [N] in {0, 1}.

    Precision, recall and F1 are of class 1 and 0 where their denominator is 0; macro-F1 averages F1 over the classes
    that occur among labels or predictions; AUROC is None with one class only.
    """
    predicted = (np.asarray(scores) >= threshold).astype(np.int64)
    known: dict[str, Callable[[], float | None]] = {
        "accuracy": lambda: float(accuracy_score(labels, predicted)),
        "auroc": lambda: auroc(scores, labels),
        "macro_f1": lambda: float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "precision": lambda: float(precision_score(labels, predicted, zero_division=0)),
        "recall": lambda: float(recall_score(labels, predicted, zero_division=0)),
        "f1": lambda: float(f1_score(labels, predicted, zero_division=0)),
    }
    return {name: known[name]() for name in names}


def resampled_metric(
    name: str, scores: np.ndarray, labels: np.ndarray, threshold: float
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from resampled row numbers [R, N] to the metric `name` of each resample [R].

    The same definitions as `binary_metrics`; NaN where a resample leaves the AUROC undefined.
    """
    if name == "auroc":
        return _resampled_auroc(np.asarray(scores), np.asarray(labels))
    positive = np.asarray(labels) == 1
    predicted = np.asarray(scores) >= threshold
    # Cells of the confusion matrix: 0 true negative, 1 false positive, 2 false negative, 3 true positive.
    cells = 2 * positive.astype(np.int8) + predicted

    def metric(rows: np.ndarray) -> np.ndarray:
        drawn = cells[rows]
        tn, fp, fn, tp = ((drawn == cell).sum(axis=-1) for cell in range(4))
        if name == "accuracy":
            return (tn + tp) / rows.shape[-1]
        if name == "precision":
            return ratio(tp, tp + fp)
        if name == "recall":
            return ratio(tp, tp + fn)
        positive_f1, negative_f1 = ratio(2 * tp, 2 * tp + fp + fn), ratio(2 * tn, 2 * tn + fp + fn)
        if name == "f1":
            return positive_f1
        if name == "macro_f1":
            classes = (tp + fp + fn > 0).astype(np.int64) + (tn + fp + fn > 0)
            return (positive_f1 + negative_f1) / classes
        raise KeyError(f"metric {name!r} is none of {', '.join(METRICS)}")

    return metric


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, 0 where the denominator is 0."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)


def _resampled_auroc(scores: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    area = weighted_auroc(scores, labels == 1)
    return lambda rows: area(draw_counts(rows, len(scores)))


def draw_counts(rows: np.ndarray, size: int) -> np.ndarray:
    """How often [R, N] each of `size` rows N is among the drawn row numbers [R, drawn]."""
    resamples = rows.shape[0]
    flat = (rows + size * np.arange(resamples)[:, None]).ravel()
    return np.bincount(flat, minlength=resamples * size).reshape(resamples, size)


def weighted_auroc(scores: np.ndarray, positive: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from how often each row counts [R, N] to the AUROC [R], NaN where it is undefined.

    The scores [N] are sorted once, not once per resample.
    """
    order = np.argsort(scores, kind="stable")
    ordered, positive = scores[order], positive[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # first row of each group of tied scores

    def area(counts: np.ndarray) -> np.ndarray:
        drawn = counts[:, order]
        above = np.add.reduceat(drawn * positive, starts, axis=1)
        below = np.add.reduceat(drawn * ~positive, starts, axis=1)
        won = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
        pairs = above.sum(axis=1) * below.sum(axis=1)
        return np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan)

    return area
