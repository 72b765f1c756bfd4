"""Metrics of binary scores, through scikit-learn.

Shapes: N rows.
"""

from collections.abc import Callable, Iterable

import numpy as np

METRICS = ("accuracy", "auroc", "macro_f1", "precision", "recall", "f1")


def auroc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Area under the ROC curve; None where it is undefined, with one class only."""
    from sklearn.metrics import roc_auc_score  # takes half a second, and verdicts need no metrics

    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else None


def binary_metrics(
    scores: np.ndarray, labels: np.ndarray, threshold: float, names: Iterable[str] = METRICS
) -> dict[str, float | None]:
    """The metrics `names` of scores [N] against labels [N] in {0, 1}.

    Precision, recall and F1 are of class 1 and 0 where their denominator is 0; macro-F1 averages F1 over the classes
    that occur among labels or predictions; AUROC is None with one class only.
    """
    from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

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
