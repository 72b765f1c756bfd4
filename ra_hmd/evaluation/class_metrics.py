"""Metrics of any problem: binary scores, one of C classes, or any number of them, with their intervals.

Shapes: Q memes, C outputs of the problem (1 if binary), R resamples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from ra_hmd.evaluation.bootstrap import Estimate, interval, metric_estimates
from ra_hmd.evaluation.metrics import (
    METRICS,
    THRESHOLDS,
    Head,
    auroc,
    draw_counts,
    ratio,
    resampled_metric,
    weighted_auroc,
)
from ra_hmd.problem import Problem

_AVERAGED = {
    f"{average}_{name}": (average, function)
    for name, function in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score))
    for average in ("macro", "micro")
}

CLASS_METRICS = ("accuracy", "pair_accuracy", "auroc", "micro_auroc", *_AVERAGED)
"""Of several classes. `auroc` is the mean over classes of one class against the rest; `pair_accuracy` is the share of
pairs of meme and class that are right, which is high where most memes lack most classes.
"""


def metric_names(problem: Problem) -> tuple[str, ...]:
    """The metrics that are reported for a problem."""
    return METRICS if problem.kind == "binary" else CLASS_METRICS


def official_thresholds(head: Head, problem: Problem) -> np.ndarray:
    """float64 [C]: the thresholds of the released code. One of C classes has none, the highest score decides."""
    return np.full(problem.outputs, THRESHOLDS[head])


def decide(scores: np.ndarray, thresholds: np.ndarray, problem: Problem) -> np.ndarray:
    """Verdicts in the shape of labels: int64 [Q], or [Q, C] for `multi_label`.

    Args:
        scores: [Q, C].
        thresholds: [C]; a score at or above it means yes. `single_label` takes the highest score instead.
        problem: What the scores mean.
    """
    if problem.kind == "single_label":
        return scores.argmax(axis=1)
    verdicts = (scores >= thresholds).astype(np.int64)
    return verdicts if problem.kind == "multi_label" else verdicts[:, 0]


def exact_match(verdicts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool [Q]: where the verdict is wholly right, of `multi_label` in every class."""
    return (verdicts == labels).reshape(len(labels), -1).all(axis=1)


def _telling(member: np.ndarray) -> np.ndarray:
    """bool [C]: classes that some memes have and some do not: only these have an AUROC."""
    return member.any(axis=0) & ~member.all(axis=0)


def class_values(
    scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, problem: Problem
) -> dict[str, float | None]:
    """The `CLASS_METRICS` of scores [Q, C] of several classes.

    Accuracy is of the whole verdict (`multi_label`: subset accuracy). Macro averages of F1, precision and recall are
    over the classes, of `single_label` over those that occur among labels or verdicts; micro averages take every pair
    of meme and class as one case; without any such case they are 0. AUROC leaves out classes that all or no memes have;
    the micro AUROC takes every pair of meme and class as one case. None where undefined.
    """
    member, verdicts = problem.membership(labels), decide(scores, thresholds, problem)
    known = _telling(member)
    return {
        "accuracy": float(accuracy_score(labels, verdicts)),
        "pair_accuracy": float((member == problem.membership(verdicts)).mean()),
        "auroc": float(roc_auc_score(member[:, known], scores[:, known], average="macro")) if known.any() else None,
        "micro_auroc": auroc(scores.ravel(), member.ravel().astype(np.int64)),
        **{
            name: float(function(labels, verdicts, average=average, zero_division=0))
            for name, (average, function) in _AVERAGED.items()
        },
    }


def resampled(
    name: str, scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, problem: Problem
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from row numbers [R, Q] to the metric `name` of each resample [R]; defined as in `class_values`.

    A resample's AUROC is the mean over the classes that have one in it; NaN where none has.
    """
    if problem.kind == "binary":
        return resampled_metric(name, scores[:, 0], labels, float(thresholds[0]))
    member, size = problem.membership(labels), len(labels)
    if name == "auroc":
        areas = [weighted_auroc(scores[:, c], member[:, c]) for c in np.flatnonzero(_telling(member))]
        return lambda rows: _mean_of_known(np.stack([area(draw_counts(rows, size)) for area in areas]))
    if name == "micro_auroc":
        area = weighted_auroc(scores.ravel(), member.ravel())
        return lambda rows: area(np.repeat(draw_counts(rows, size), problem.outputs, axis=1))
    verdicts = decide(scores, thresholds, problem)
    if name == "accuracy":
        right = exact_match(verdicts, labels)
        return lambda rows: right[rows].mean(axis=-1)
    if name == "pair_accuracy":
        share = (member == problem.membership(verdicts)).mean(axis=1)
        return lambda rows: share[rows].mean(axis=-1)
    return _resampled_average(name, member, problem.membership(verdicts), problem)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean [R] over the first axis of [C, R] without the NaNs; NaN where there is nothing else."""
    known = np.isfinite(values)
    counts = known.sum(axis=0)
    return np.where(counts > 0, np.where(known, values, 0).sum(axis=0) / np.maximum(counts, 1), np.nan)


def _resampled_average(
    name: str, member: np.ndarray, predicted: np.ndarray, problem: Problem
) -> Callable[[np.ndarray], np.ndarray]:
    """F1, precision or recall, averaged; F1 is 2 TP / (members + predicted), the others TP over one of the two."""
    if name not in _AVERAGED:
        raise KeyError(f"metric {name!r} is none of {', '.join(CLASS_METRICS)}")
    hits, either = (member & predicted).astype(np.float64), member.astype(np.float64) + predicted
    average, _, kind = name.partition("_")
    below = {"f1": either / 2, "precision": predicted.astype(np.float64), "recall": member.astype(np.float64)}[kind]

    def metric(rows: np.ndarray) -> np.ndarray:
        counts = draw_counts(rows, len(member)).astype(np.float64)
        found, total = counts @ hits, counts @ below  # [R, C]
        if average == "micro":
            return ratio(found.sum(axis=1), total.sum(axis=1))
        classes = (counts @ either > 0).sum(axis=1) if problem.kind == "single_label" else problem.outputs
        return ratio(found, total).sum(axis=1) / classes

    return metric


def estimates(
    scores: np.ndarray,
    labels: np.ndarray,
    thresholds: np.ndarray,
    problem: Problem,
    *,
    samples: int,
    seed: int,
    names: Sequence[str] | None = None,
) -> dict[str, Estimate]:
    """The metrics of a problem, each with its interval over resampled memes.

    Args:
        scores: [Q, C].
        labels: As the problem has them.
        thresholds: [C].
        problem: What they mean.
        samples: Resamples; 0 for no intervals.
        seed: Of the resampling.
        names: Only these of `metric_names`.
    """
    names = names or metric_names(problem)
    if problem.kind == "binary":
        threshold = float(thresholds[0])
        return metric_estimates(scores[:, 0], labels, threshold, samples=samples, seed=seed, names=names)
    found, values = {}, class_values(scores, labels, thresholds, problem)
    for name in names:
        value, low, high = values[name], None, None
        if value is not None:
            statistic = resampled(name, scores, labels, thresholds, problem)
            low, high = interval(statistic, len(labels), samples=samples, seed=seed, width=problem.outputs)
        found[name] = Estimate(value, low, high)
    return found


def per_class(
    scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, problem: Problem, *, samples: int, seed: int
) -> list[dict[str, Any]]:
    """One row per class of several, this class against the rest: `class`, `memes` in it, AUROC with its interval,
    precision, recall and F1 of the verdicts.
    """
    member = problem.membership(labels)
    predicted = problem.membership(decide(scores, thresholds, problem))
    rows = []
    for c in range(problem.outputs):
        truth, said = member[:, c].astype(np.int64), predicted[:, c]
        area = metric_estimates(scores[:, c], truth, 0.0, samples=samples, seed=seed, names=("auroc",))["auroc"]
        rows.append(
            {
                "class": c,
                "memes": int(truth.sum()),
                "auroc": area.as_dict(),
                "precision": float(precision_score(truth, said, zero_division=0)),
                "recall": float(recall_score(truth, said, zero_division=0)),
                "f1": float(f1_score(truth, said, zero_division=0)),
            }
        )
    return rows
