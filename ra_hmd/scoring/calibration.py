"""Calibration of scores: probabilities, calibration maps fitted on dev, and measures of calibration error.

Shapes: Q memes, C outputs of the problem (1 if binary), B bins.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit, log_softmax, logit, softmax

from ra_hmd.core.heads import BANK_HEADS, Head
from ra_hmd.core.problem import Problem

CalibrationKind = Literal["temperature", "isotonic"]
BINS = 15
_SMALLEST = 1e-12  # probabilities 0 and 1 have no logit
_LOSS_FLOOR = 1e-7  # a probability of 0 for a true case costs 16.1 nats, not infinity
_TEMPERATURES = (0.01, 100.0)


def score_logits(scores: np.ndarray, head: Head, problem: Problem) -> np.ndarray:
    """Logits [Q, C] of a head's scores [Q, C].

    LMH and LRC give probabilities: their logits, of one of C classes their logarithms. The score of a bank head
    (RKC, KRR) is its own logit, as in the released code, which calls class 1 from sigmoid(score) = 0.5.
    """
    if head in BANK_HEADS:
        return scores
    inside = np.clip(scores, _SMALLEST, 1 - _SMALLEST)
    return np.log(inside) if problem.kind == "single_label" else logit(inside)


def logit_probabilities(logits: np.ndarray, problem: Problem) -> np.ndarray:
    """Probabilities [Q, C] of logits [Q, C]: softmax over single labels, else one sigmoid per output."""
    return softmax(logits, axis=1) if problem.kind == "single_label" else expit(logits)


@dataclass(frozen=True)
class Calibration:
    """A map from a head's scores to probabilities.

    Attributes:
        kind: `none` (the probabilities of `score_logits`), `temperature` (logits divided by one T), `platt` (per output
            sigmoid(slope · score + intercept)) or `isotonic` (per output a monotone function fitted on dev).
        parameters: JSON values: `temperature`; `slope` and `intercept`, C each; `x` and `y`, C lists each.
    """

    kind: Literal["none", "temperature", "platt", "isotonic"]
    parameters: dict[str, Any]

    def apply(self, scores: np.ndarray, head: Head, problem: Problem) -> np.ndarray:
        """Probabilities [Q, C] of scores [Q, C]; rows of `single_label` add up to 1."""
        logits = score_logits(scores, head, problem)
        if self.kind == "temperature":
            return logit_probabilities(logits / self.parameters["temperature"], problem)
        if self.kind == "platt":
            return expit(logits * np.array(self.parameters["slope"]) + np.array(self.parameters["intercept"]))
        base = logit_probabilities(logits, problem)
        if self.kind == "none":
            return base
        knots = zip(base.T, self.parameters["x"], self.parameters["y"], strict=True)
        mapped = np.stack([np.interp(column, x, y) for column, x, y in knots], axis=1)
        if problem.kind != "single_label":
            return mapped
        total = mapped.sum(axis=1, keepdims=True)
        return np.where(total > 0, mapped / np.where(total > 0, total, 1), 1 / problem.outputs)


UNCALIBRATED = Calibration("none", {})


@dataclass(frozen=True)
class Uncalibrated:
    """The result of a fit without a usable map, and the reason."""

    reason: str


def fit_calibration(
    kind: CalibrationKind, scores: np.ndarray, labels: np.ndarray, head: Head, problem: Problem
) -> Calibration | Uncalibrated:
    """Fit a map on dev by least negative log-likelihood.

    `temperature` divides the logits of LMH and LRC by one T between 0.01 and 100. The score of RKC and KRR has no
    fixed zero and scale, so it gets a slope and an intercept instead (Platt), unless it is one of C classes.

    A map never decreases: where a higher score goes with fewer cases on dev, probabilities would contradict verdicts,
    and no map is returned. A class that all or no dev memes have determines no direction; its map is constant.

    Args:
        kind: Kind of map.
        scores: [Q, C], scores of dev.
        labels: Labels of dev.
        head: The head that made the scores.
        problem: What scores and labels mean.

    Source: temperature: Guo et al., ICML 2017; Platt 1999 with his smoothed targets, which keep the fit finite where
    dev is separable; isotonic: Zadrozny and Elkan, KDD 2002.
    """
    logits, member = score_logits(scores, head, problem), problem.membership(labels)
    if kind == "isotonic" or (head in BANK_HEADS and problem.kind != "single_label"):
        directions = [_direction(kind, logits[:, c], member[:, c]) for c in range(problem.outputs)]
        falling = {c: value for c, value in enumerate(directions) if value is not None and value <= 0}
        if falling:
            measure = "AUROC minus 0.5" if kind == "isotonic" else "slope"
            values = ", ".join(f"{value:.2f}" + f" (class {c})" * (problem.outputs > 1) for c, value in falling.items())
            return Uncalibrated(f"on dev a higher score does not go with more cases, its {measure} is {values}")
    if kind == "isotonic":
        base = logit_probabilities(logits, problem)
        from sklearn.isotonic import IsotonicRegression

        fits = [IsotonicRegression(y_min=0, y_max=1).fit(base[:, c], member[:, c]) for c in range(problem.outputs)]
        knots = {"x": [fit.X_thresholds_.tolist() for fit in fits], "y": [fit.y_thresholds_.tolist() for fit in fits]}
        return Calibration("isotonic", knots)
    if head in BANK_HEADS and problem.kind != "single_label":
        slopes, intercepts = zip(*(_platt(logits[:, c], member[:, c]) for c in range(problem.outputs)), strict=True)
        return Calibration("platt", {"slope": list(slopes), "intercept": list(intercepts)})
    if _rise(logits, member, problem) <= 0:
        return Uncalibrated("on dev its probabilities are on the wrong side more than on the right one, so no T helps")
    return Calibration("temperature", {"temperature": _temperature(logits, member, problem)})


def _direction(kind: CalibrationKind, scores: np.ndarray, member: np.ndarray) -> float | None:
    """Direction of the map of one output, positive where it increases: the slope, for an isotonic map AUROC minus 0.5.
    None where all or no dev memes have the output.
    """
    if member.all() or not member.any():
        return None
    if kind == "isotonic":
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(member, scores)) - 0.5
    return _platt(scores, member)[0] if np.ptp(scores) > 0 else 0.0


def _rise(logits: np.ndarray, member: np.ndarray, problem: Problem) -> float:
    """Derivative of the mean log-likelihood by 1/T at 1/T = 0; it is concave, so some T is best if this is positive."""
    if problem.kind == "single_label":
        return float((logits[member] - logits.mean(axis=1)).mean())
    return float(((2 * member - 1) * logits).mean())


def _temperature(logits: np.ndarray, member: np.ndarray, problem: Problem) -> float:
    """T of the lowest loss. The loss is convex in 1/T, so its minimum is unique."""
    signed = (2 * member - 1) * logits

    def loss(log_temperature: float) -> float:
        scaled = np.exp(-log_temperature)
        if problem.kind == "single_label":
            return -float(log_softmax(scaled * logits, axis=1)[member].mean())
        return -float(log_expit(scaled * signed).mean())

    found = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def _platt(scores: np.ndarray, member: np.ndarray) -> tuple[float, float]:
    positives, negatives = int(member.sum()), int((~member).sum())
    if not positives or not negatives:
        return 0.0, float(logit((positives + 1) / (len(member) + 2)))
    target = np.where(member, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        z = line[0] * scores + line[1]
        error = expit(z) - target
        value = -(target * log_expit(z) + (1 - target) * log_expit(-z)).mean()
        return float(value), np.array([(error * scores).mean(), error.mean()])

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return float(slope), float(intercept)


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: cases, mean predicted probability and observed frequency per bin.

    Attributes:
        count: int64 [B], number of cases.
        stated: [B], mean predicted probability; 0 where the bin is empty.
        seen: [B], observed frequency; 0 where the bin is empty.
    """

    count: np.ndarray
    stated: np.ndarray
    seen: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of `stated` and `seen`, bins weighted by their cases."""
        return float((self.count * np.abs(self.stated - self.seen)).sum() / self.count.sum())

    def as_dict(self) -> dict[str, Any]:
        """The diagram as JSON values."""
        return {"count": self.count.tolist(), "stated": self.stated.tolist(), "seen": self.seen.tolist()}


def reliability(stated: np.ndarray, true: np.ndarray, bins: int = BINS) -> Reliability:
    """Bin cases [Q] into `bins` bins of equal width; a probability on a border belongs to the bin above it."""
    number = np.clip(np.searchsorted(np.arange(bins + 1) / bins, stated, side="right") - 1, 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    sums = [np.bincount(number, weights=values, minlength=bins) for values in (stated, true)]
    means = [np.divide(total, count, out=np.zeros(bins), where=count > 0) for total in sums]
    return Reliability(count, *means)


def stated_cases(probabilities: np.ndarray, labels: np.ndarray, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Predicted probabilities and whether the cases are true, both [cases].

    Binary: the probability of class 1 of each meme. `multi_label`: of every class of every meme. `single_label`: of the
    likeliest class.
    """
    member = problem.membership(labels)
    if problem.kind == "single_label":
        rows, best = np.arange(len(member)), probabilities.argmax(axis=1)
        return probabilities[rows, best], member[rows, best]
    return probabilities.ravel(), member.ravel()


def brier_losses(probabilities: np.ndarray, labels: np.ndarray, problem: Problem) -> np.ndarray:
    """[Q]: squared error of the probabilities; summed over one of C classes, averaged over `multi_label` ones."""
    squared = (probabilities - problem.membership(labels)) ** 2
    return squared.sum(axis=1) if problem.kind == "single_label" else squared.mean(axis=1)


def log_losses(probabilities: np.ndarray, labels: np.ndarray, problem: Problem) -> np.ndarray:
    """[Q]: −log of the probability of what is true, in nats (at most 16.1); a mean over `multi_label` classes."""
    member = problem.membership(labels)
    if problem.kind == "single_label":
        return -np.log(np.clip(probabilities[member], _LOSS_FLOOR, 1))
    true = np.where(member, probabilities, 1 - probabilities)
    return -np.log(np.clip(true, _LOSS_FLOOR, 1)).mean(axis=1)
