"""Rows of a bank whose label the other rows contradict, by confident learning on leave-one-out scores.

Shapes: N rows, C outputs of the problem (1 if binary).
"""

from dataclasses import dataclass

import numpy as np

from ra_hmd.core.problem import Problem
from ra_hmd.scoring.calibration import Uncalibrated, fit_calibration


@dataclass(frozen=True)
class Contradictions:
    """What the other rows say of each row's label.

    Attributes:
        probability: float64 [N], calibrated probability of the row's own label; of a label set that of its least likely
            part. NaN where the scores do not allow a calibration.
        suggested: int64 [N] or [N, C], the label that the other rows give; the row's own where nothing contradicts it.
        contradicted: bool [N].
        note: Why nothing could be found; empty otherwise.
    """

    probability: np.ndarray
    suggested: np.ndarray
    contradicted: np.ndarray
    note: str = ""

    @property
    def worst(self) -> np.ndarray:
        """int64 [M]: the contradicted rows, the least probable label first; equal ones by row."""
        rows = np.flatnonzero(self.contradicted)
        return rows[np.argsort(self.probability[rows], kind="stable")]


def find_contradictions(scores: np.ndarray, labels: np.ndarray, problem: Problem) -> Contradictions:
    """Find the rows whose label is contradicted by their leave-one-out scores.

    A row's leave-one-out score does not depend on its own label. The scores are calibrated by isotonic regression,
    which assumes nothing of their distribution. The other rows are confident of class j where its probability is at
    least the mean probability of j among the rows that are labelled j. A row is contradicted where they are confident
    of another class and of no likelier one. So the limit follows from the data; a limit of 0.5 would also report the
    rows that are merely hard. A label set is looked at class by class.

    Args:
        scores: [N, C], leave-one-out scores (`KernelClassifier.leave_one_out`).
        labels: [N] or [N, C].
        problem: What labels mean.

    Raises:
        UserError: labels that are not the problem's.

    Source: Northcutt, Jiang and Chuang, Confident Learning, JAIR 2021 (the off-diagonal of the confident joint).
    """
    problem.check(labels, "The bank")
    nothing = np.zeros(len(labels), bool)
    if not len(labels):
        return Contradictions(np.zeros(0), labels.copy(), nothing)
    calibration = fit_calibration("isotonic", scores, labels, "krr", problem)
    if isinstance(calibration, Uncalibrated):
        why = f"The rows do not predict each other's labels: {calibration.reason}."
        return Contradictions(np.full(len(labels), np.nan), labels.copy(), nothing, why)
    probabilities = calibration.apply(scores, "krr", problem)
    if problem.kind == "single_label":
        return Contradictions(*_confident(probabilities, labels))
    columns = labels[:, None] if problem.kind == "binary" else labels
    parts = [
        _confident(np.stack([1 - column, column], axis=1), own)
        for column, own in zip(probabilities.T, columns.T, strict=True)
    ]
    own, suggested, contradicted = (np.stack(values, axis=1) for values in zip(*parts, strict=True))
    return Contradictions(own.min(axis=1), suggested.reshape(labels.shape), np.any(contradicted, axis=1))


def _confident(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability of the own class, the class that the others give, and whether that is another one; each [N]."""
    count = probabilities.shape[1]
    limits = [
        probabilities[labels == one, one].mean() if (labels == one).any() else np.inf for one in range(count)
    ]  # a class without rows is never suggested
    sure = np.where(probabilities >= np.array(limits), probabilities, -1.0)
    best = sure.argmax(axis=1)
    suggested = np.where(sure.max(axis=1) >= 0, best, labels)
    own = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
    return own, suggested, suggested != labels
