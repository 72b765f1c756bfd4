"""The heads of a verdict (LMH, LRC, RKC, KRR), their official thresholds, and the decision rule.

Shapes: Q memes, C outputs of the problem (1 if binary).
"""

import numpy as np

from ra_hmd.core.choices import Head
from ra_hmd.core.problem import Problem

THRESHOLDS: dict[Head, float] = {"lmh": 0.5, "lrc": 0.5, "rkc": 0.0, "krr": 0.0}
"""A score at or above its head's threshold means class 1."""

BANK_HEADS: tuple[Head, ...] = ("rkc", "krr")
"""The heads that classify by the labelled memes of a bank; their scores are no probabilities."""


def official_thresholds(head: Head, problem: Problem) -> np.ndarray:
    """Thresholds of the released code, float64 [C]; unused for `single_label`, where the highest score decides."""
    return np.full(problem.outputs, THRESHOLDS[head])


def decide(scores: np.ndarray, thresholds: np.ndarray, problem: Problem) -> np.ndarray:
    """Verdicts in the shape of labels: int64 [Q], or [Q, C] for `multi_label`.

    Args:
        scores: [Q, C].
        thresholds: [C]; a score at or above it assigns the class. `single_label` takes the highest score instead.
        problem: Labels of the head.
    """
    if problem.kind == "single_label":
        return scores.argmax(axis=1)
    verdicts = (scores >= thresholds).astype(np.int64)
    return verdicts if problem.kind == "multi_label" else verdicts[:, 0]


def exact_match(verdicts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each verdict is right, for `multi_label` in every class; bool [Q]."""
    return (verdicts == labels).reshape(len(labels), -1).all(axis=1)


HEAD_NAMES: dict[Head, str] = {
    "lmh": "LMH (language-model head)",
    "lrc": "LRC (logistic regression)",
    "rkc": "RKC (KNN vote over the bank)",
    "krr": "KRR (kernel ridge regression over the bank)",
}
