"""Metrics with 95 % intervals: of one head, of a mean over runs, or of a paired difference on the same memes.

Memes with the same label and the same verdicts are counted as one cell. Resampling the cells takes as long for a
hundred thousand memes as for a hundred.

Shapes: Q memes, C outputs of the problem (1 if binary), K cells, R draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ra_hmd.core.heads import decide, exact_match
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.evaluation.metrics.classification import AVERAGED, metric_names
from ra_hmd.evaluation.metrics.intervals import TOO_FEW, Area, Estimate, cells_interval, proportion
from ra_hmd.scoring.thresholds import ratio

_AREAS = ("auroc", "micro_auroc")


@dataclass(frozen=True)
class ThresholdedScores:
    """Scores [Q, C] and the thresholds [C] that turn them into verdicts."""

    scores: np.ndarray
    thresholds: np.ndarray

    @classmethod
    def binary(cls, scores: np.ndarray, threshold: float) -> "ThresholdedScores":
        """Create from scores [Q] of class 1."""
        return cls(np.asarray(scores, dtype=np.float64)[:, None], np.array([threshold]))


def metric_estimate(
    name: str,
    runs: Sequence[ThresholdedScores],
    labels: np.ndarray,
    problem: Problem = BINARY,
    *,
    base: Sequence[ThresholdedScores] = (),
    samples: int,
    seed: int,
) -> Estimate:
    """Estimate a metric's mean over runs on the same memes, or its difference from the mean over `base`.

    Args:
        name: One of `metric_names`.
        runs: Scores of one or several runs.
        labels: int64 [Q], or [Q, C] for `multi_label`.
        problem: What labels and scores mean.
        base: Runs whose mean is subtracted.
        samples: Resamples behind an interval that has no closed form; 0 for no interval at all.
        seed: Seed of the resamples.

    Raises:
        KeyError: unknown metric.
    """
    if name not in metric_names(problem):
        raise KeyError(f"metric {name!r} is none of {', '.join(metric_names(problem))}")
    found = (_area if name in _AREAS else _of_verdicts)(name, runs, base, labels, problem, samples, seed)
    return found if samples > 0 else Estimate(found.value)


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
    """Estimate the metrics of one run, each with its interval.

    Args:
        scores: [Q, C].
        labels: int64 [Q], or [Q, C] for `multi_label`.
        thresholds: [C].
        problem: What labels and scores mean.
        samples: Resamples; 0 for no intervals.
        seed: Seed of the resamples.
        names: Metrics to estimate, of `metric_names`; all by default.
    """
    run = [ThresholdedScores(scores, thresholds)]
    return {
        name: metric_estimate(name, run, labels, problem, samples=samples, seed=seed)
        for name in names or metric_names(problem)
    }


def per_class(
    scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, problem: Problem, *, samples: int, seed: int
) -> list[dict[str, Any]]:
    """Metrics of each class against the rest.

    Returns:
        Per class: `class`, `memes` in it, `auroc` with its interval, `precision`, `recall` and `f1` of the verdicts.
    """
    member, predicted = problem.membership(labels), problem.membership(decide(scores, thresholds, problem))
    rows = []
    for c in range(problem.outputs):
        inside = member[:, c].astype(int)
        area = metric_estimate(
            "auroc", [ThresholdedScores.binary(scores[:, c], 0.0)], inside, samples=samples, seed=seed
        )
        verdicts = [ThresholdedScores.binary(predicted[:, c], 0.5)]
        row: dict[str, Any] = {"class": c, "memes": int(inside.sum()), "auroc": area.as_dict()}
        for name in ("precision", "recall", "f1"):
            row[name] = metric_estimate(name, verdicts, inside, samples=0, seed=0).value
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------------- AUROC


def _area(
    name: str,
    runs: Sequence[ThresholdedScores],
    base: Sequence[ThresholdedScores],
    labels: np.ndarray,
    problem: Problem,
    *_: int,
) -> Estimate:
    member = problem.membership(labels)
    areas = [_one_area(name, one.scores, member) for one in (*runs, *base)]
    known = [area for area in areas if area is not None]
    if len(known) < len(areas):
        return Estimate(None)
    mean = Area.mean(known[: len(runs)], runs=True)
    if base:
        return mean.minus(Area.mean(known[len(runs) :], runs=True))
    ends = mean.interval()
    return Estimate(mean.value, why=TOO_FEW) if ends is None else Estimate(mean.value, *ends)


def _one_area(name: str, scores: np.ndarray, member: np.ndarray) -> Area | None:
    """Mean AUROC over the classes that some memes have and some lack, or the micro AUROC; None where undefined."""
    if name == "auroc":
        areas = [Area.of(scores[:, c], member[:, c]) for c in range(member.shape[1])]
        known = [area for area in areas if area is not None]
        return Area.mean(known) if known else None
    area = Area.of(scores.ravel(), member.ravel())
    if area is None:
        return None
    return replace(area, influence=area.influence.reshape(member.shape).sum(axis=1))


# ---------------------------------------------------------------------------------------------- verdicts


def _of_verdicts(
    name: str,
    runs: Sequence[ThresholdedScores],
    base: Sequence[ThresholdedScores],
    labels: np.ndarray,
    problem: Problem,
    samples: int,
    seed: int,
) -> Estimate:
    verdicts, base_verdicts = ([decide(one.scores, one.thresholds, problem) for one in group] for group in (runs, base))
    cells = _Cells(labels, verdicts, base_verdicts, problem)
    statistic = cells.statistic(name)
    value = float(statistic(cells.counts[None])[0])
    if len(runs) == 1 and not base:
        closed = _closed_form(name, value, verdicts[0], labels, problem)
        if closed is not None:
            return closed
    if len(labels) < 2 or (problem.kind == "binary" and name == "macro_f1" and not cells.both_classes):
        return Estimate(value, why=TOO_FEW)
    if samples < 1:
        return Estimate(value)
    low, high = cells_interval(statistic, cells.counts, *cells.extremes(name), samples=samples, seed=seed)
    least = -1.0 if base else 0.0  # the clipping below removes rounding errors of the weighted sums
    return Estimate(value, max(least, min(low, value)), min(1.0, max(high, value)))


def _closed_form(
    name: str, value: float, verdicts: np.ndarray, labels: np.ndarray, problem: Problem
) -> Estimate | None:
    """Estimate of a proportion, or of binary F1 = 2 s / (1 + s), s = TP / (TP + FP + FN); None for other metrics."""
    if name == "accuracy":
        right = exact_match(verdicts, labels)
        ends = proportion(int(right.sum()), len(right))
    elif problem.kind == "binary" and name in ("precision", "recall", "f1"):
        cases = {"precision": verdicts.sum(), "recall": labels.sum(), "f1": (verdicts | labels).sum()}[name]
        ends = proportion(int((verdicts & labels).sum()), int(cases))
    else:
        return None
    if ends is None:
        return Estimate(value, why=TOO_FEW)
    low, high = (2 * end / (1 + end) for end in ends) if name == "f1" else ends
    return Estimate(value, low, high)


class _Cells:
    """Counts of the memes that share their label and the verdict of each run.

    Cells for the worst and the best kinds of memes follow, which may be empty.

    Attributes:
        counts: float64 [K], memes per cell.
    """

    def __init__(self, labels: np.ndarray, runs: list[np.ndarray], base: list[np.ndarray], problem: Problem) -> None:
        self.problem, self._runs, self._base = problem, len(runs), len(base)
        columns = [np.reshape(part, (len(labels), -1)) for part in (labels, *runs, *base)]
        rows = np.ascontiguousarray(np.concatenate(columns, axis=1).astype(np.int16))
        packed = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
        _, first, counts = np.unique(packed, return_index=True, return_counts=True)
        extremes, self._per_end = self._extreme_rows(rows.shape[1])
        every = np.concatenate([rows[first], extremes])
        self.counts = np.concatenate([counts.astype(np.float64), np.zeros(len(extremes))])
        width = columns[0].shape[1]
        parts = [every[:, start : start + width] for start in range(0, every.shape[1], width)]
        as_labels = [part if problem.kind == "multi_label" else part[:, 0] for part in parts]
        self._label = as_labels[0]
        self._verdicts = as_labels[1 : 1 + len(runs)], as_labels[1 + len(runs) :]

    def _extreme_rows(self, width: int) -> tuple[np.ndarray, int]:
        """Rows of the worst and the best kinds of memes.

        Returns:
            Rows [2 E, width]: E kinds of memes that the runs classify wrongly and the base correctly, then the reverse;
            and E. For `single_label` a kind is a class; otherwise a meme with all classes, or with none.
        """
        problem = self.problem
        single = problem.kind == "single_label"
        of = width // (1 + self._runs + self._base)
        kinds = range(problem.outputs) if single else (1, 0)
        found = []
        for runs_right in (False, True):
            for kind in kinds:
                wrong = (kind + 1) % problem.outputs if single else 1 - kind
                verdicts = [kind if runs_right else wrong] * self._runs + [wrong if runs_right else kind] * self._base
                found.append(np.repeat([kind, *verdicts], of))
        return np.array(found, dtype=np.int16), len(kinds)

    @property
    def both_classes(self) -> bool:
        """Whether both of two classes occur among labels or verdicts."""
        seen = self.counts > 0
        values = [part[seen] for part in (self._label, *self._verdicts[0], *self._verdicts[1])]
        return len(np.unique(np.concatenate(values))) == 2

    def extremes(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Increments [K] of the cells by one more meme of the worst, and of the best kind."""
        worst, best = np.zeros(len(self.counts)), np.zeros(len(self.counts))
        per, start = self._per_end, len(self.counts) - 2 * self._per_end
        worst[start : start + per] = best[start + per :] = 1 / per
        if self.problem.kind == "binary" and not self._base:  # the kinds are class 1 and class 0
            if name in ("precision", "recall"):
                worst[start : start + per] = (0, 1) if name == "precision" else (1, 0)
            if name in ("precision", "recall", "f1"):
                best[start + per :] = (1, 0)
        return worst, best

    def statistic(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        """Function from weights [R, K] to the metric's mean over runs minus its mean over the base, [R]."""
        runs, base = ([self._metric(name, verdicts) for verdicts in group] for group in self._verdicts)

        def value(weights: np.ndarray) -> np.ndarray:
            mean = np.mean([metric(weights) for metric in runs], axis=0)
            return mean - np.mean([metric(weights) for metric in base], axis=0) if base else mean

        return value

    def _metric(self, name: str, verdicts: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        problem = self.problem
        member, predicted = problem.membership(self._label), problem.membership(verdicts)
        if name in ("accuracy", "pair_accuracy"):
            share = exact_match(verdicts, self._label) if name == "accuracy" else (member == predicted).mean(axis=1)
            return lambda weights: weights @ share / weights.sum(axis=1)
        hits, members, alarms = ((part).astype(np.float64) for part in (member & predicted, member, predicted))
        average, _, kind = name.rpartition("_")
        if problem.kind != "binary" and name not in AVERAGED:
            raise KeyError(name)

        def metric(weights: np.ndarray) -> np.ndarray:
            tp, below = weights @ hits, weights @ {"f1": (members + alarms) / 2, "precision": alarms,
                                                   "recall": members}[kind]  # fmt: skip
            if problem.kind == "binary":
                ours = ratio(tp, below)[:, 0]
                if not average:
                    return ours
                total = weights.sum(axis=1, keepdims=True)
                theirs, rest = total - 2 * below + tp, total - below  # class 0: hits, and half of labels plus alarms
                return (ours + ratio(theirs, rest)[:, 0]) / ((below > 0).astype(int) + (rest > 0))[:, 0]
            if average == "micro":
                return ratio(tp.sum(axis=1), below.sum(axis=1))
            seen = (weights @ (members + alarms) > 0).sum(axis=1)
            classes = seen if problem.kind == "single_label" else problem.outputs
            return ratio(tp, below).sum(axis=1) / classes

        return metric
