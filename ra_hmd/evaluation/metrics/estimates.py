"""Metrics with their intervals: of one head, of the mean over several runs, or of a difference on the same memes.

Memes that have the same label and the same verdicts are one cell, so that the draws behind an interval take as long for
a hundred thousand memes as for a hundred.

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
class Judged:
    """Scores [Q, C] of memes and the thresholds [C] by which they become verdicts."""

    scores: np.ndarray
    thresholds: np.ndarray

    @classmethod
    def binary(cls, scores: np.ndarray, threshold: float) -> "Judged":
        """Scores [Q] of class 1."""
        return cls(np.asarray(scores, dtype=np.float64)[:, None], np.array([threshold]))


def metric_estimate(
    name: str,
    runs: Sequence[Judged],
    labels: np.ndarray,
    problem: Problem = BINARY,
    *,
    base: Sequence[Judged] = (),
    samples: int,
    seed: int,
) -> Estimate:
    """A metric's mean over runs on the same memes, or with `base` that minus its mean over `base`.

    Args:
        name: One of `metric_names`.
        runs: One or several.
        labels: As the problem has them.
        problem: What they mean.
        base: What is subtracted.
        samples: Draws behind an interval that has no closed form; 0 for no interval at all.
        seed: Of the draws.

    Raises:
        KeyError: no such metric.
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
    """The metrics of a problem, each with its interval.

    Args:
        scores: [Q, C].
        labels: As the problem has them.
        thresholds: [C].
        problem: What they mean.
        samples: Draws; 0 for no intervals.
        seed: Of the draws.
        names: Only these of `metric_names`.
    """
    one = [Judged(scores, thresholds)]
    fixed = {"samples": samples, "seed": seed}
    return {name: metric_estimate(name, one, labels, problem, **fixed) for name in names or metric_names(problem)}


def per_class(
    scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, problem: Problem, *, samples: int, seed: int
) -> list[dict[str, Any]]:
    """One row per class of several, this class against the rest: `class`, `memes` in it, AUROC with its interval,
    precision, recall and F1 of the verdicts.
    """
    member, said = problem.membership(labels), problem.membership(decide(scores, thresholds, problem))
    rows = []
    for c in range(problem.outputs):
        area = metric_estimate("auroc", [Judged.binary(scores[:, c], 0.0)], member[:, c].astype(int), samples=samples,
                               seed=seed)  # fmt: skip
        verdicts = [Judged.binary(said[:, c], 0.5)]
        row = {"class": c, "memes": int(member[:, c].sum()), "auroc": area.as_dict()}
        for name in ("precision", "recall", "f1"):
            row[name] = metric_estimate(name, verdicts, member[:, c].astype(int), samples=0, seed=0).value
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------------- AUROC


def _area(
    name: str, runs: Sequence[Judged], base: Sequence[Judged], labels: np.ndarray, problem: Problem, *_: int
) -> Estimate:
    member = problem.membership(labels)
    areas = [[_one_area(name, one.scores, member) for one in group] for group in (runs, base)]
    if None in areas[0] or None in areas[1]:
        return Estimate(None)
    mean, *rest = (Area.mean(group, runs=True) for group in areas if group)
    if rest:
        return mean.minus(rest[0])
    ends = mean.interval()
    return Estimate(mean.value, why=TOO_FEW) if ends is None else Estimate(mean.value, *ends)


def _one_area(name: str, scores: np.ndarray, member: np.ndarray) -> Area | None:
    """The mean over classes that some memes have and some do not, or the micro AUROC; None where undefined."""
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
    runs: Sequence[Judged],
    base: Sequence[Judged],
    labels: np.ndarray,
    problem: Problem,
    samples: int,
    seed: int,
) -> Estimate:
    verdicts = [[decide(one.scores, one.thresholds, problem) for one in group] for group in (runs, base)]
    cells = _Cells(labels, *verdicts, problem)
    statistic = cells.statistic(name)
    value = float(statistic(cells.counts[None])[0])
    if len(runs) == 1 and not base and (closed := _closed(name, verdicts[0][0], labels, problem)) is not None:
        return Estimate(value, why=TOO_FEW) if closed == () else Estimate(value, *closed)
    if len(labels) < 2 or (problem.kind == "binary" and name == "macro_f1" and not cells.both_classes):
        return Estimate(value, why=TOO_FEW)
    if samples < 1:
        return Estimate(value)
    low, high = cells_interval(statistic, cells.counts, *cells.extremes(name), samples=samples, seed=seed)
    least = -1.0 if base else 0.0  # sums of weights round
    return Estimate(value, max(least, min(low, value)), min(1.0, max(high, value)))


def _closed(name: str, verdicts: np.ndarray, labels: np.ndarray, problem: Problem) -> tuple[float, ...] | None:
    """The interval of a metric that is a share of memes, or F1, which rises with one; () without a case, None for other
    metrics.

    F1 is 2 s / (1 + s) of s = TP / (TP + FP + FN).
    """
    if name == "accuracy":
        right = exact_match(verdicts, labels)
        return proportion(int(right.sum()), len(right)) or ()
    if problem.kind != "binary" or name not in ("precision", "recall", "f1"):
        return None
    tp = int((verdicts & labels).sum())
    cases = {"precision": verdicts.sum(), "recall": labels.sum(), "f1": (verdicts | labels).sum()}[name]
    ends = proportion(tp, int(cases)) or ()
    return tuple(2 * end / (1 + end) for end in ends) if name == "f1" else ends


class _Cells:
    """Memes of one label and one verdict of each run, counted; then cells that no meme need be in: the worst and the
    best kinds of memes.

    Attributes:
        counts: float64 [K].
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
        self._said = as_labels[1 : 1 + len(runs)], as_labels[1 + len(runs) :]

    def _extreme_rows(self, width: int) -> tuple[np.ndarray, int]:
        """Rows [2 E, width]: E kinds of memes that the runs judge wrongly and the base rightly, then the other way
        round; and E. Of one of C classes a kind is a class; else a meme with all classes, or with none.
        """
        problem = self.problem
        single = problem.kind == "single_label"
        of = width // (1 + self._runs + self._base)
        kinds = range(problem.outputs) if single else (1, 0)
        found = []
        for runs_right in (False, True):
            for kind in kinds:
                wrong = (kind + 1) % problem.outputs if single else 1 - kind
                said = [kind if runs_right else wrong] * self._runs + [wrong if runs_right else kind] * self._base
                found.append(np.repeat([kind, *said], of))
        return np.array(found, dtype=np.int16), len(kinds)

    @property
    def both_classes(self) -> bool:
        """Whether each of two classes is among labels or verdicts."""
        seen = self.counts > 0
        values = [part[seen] for part in (self._label, *self._said[0], *self._said[1])]
        return len(np.unique(np.concatenate(values))) == 2

    def extremes(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """What one more meme of the worst and of the best kind adds to each cell, both [K]."""
        worst, best = np.zeros(len(self.counts)), np.zeros(len(self.counts))
        per, start = self._per_end, len(self.counts) - 2 * self._per_end
        worst[start : start + per] = best[start + per :] = 1 / per
        if self.problem.kind == "binary" and not self._base:  # the kinds are a meme of class 1, and one of class 0
            if name in ("precision", "recall"):
                worst[start : start + per] = (0, 1) if name == "precision" else (1, 0)
            if name in ("precision", "recall", "f1"):
                best[start + per :] = (1, 0)
        return worst, best

    def statistic(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        """From weights [R, K] to the metric's mean over runs, minus that over the base, [R]."""
        runs, base = ([self._metric(name, said) for said in group] for group in self._said)

        def value(weights: np.ndarray) -> np.ndarray:
            mean = np.mean([metric(weights) for metric in runs], axis=0)
            return mean - np.mean([metric(weights) for metric in base], axis=0) if base else mean

        return value

    def _metric(self, name: str, said: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        problem = self.problem
        member, predicted = problem.membership(self._label), problem.membership(said)
        if name in ("accuracy", "pair_accuracy"):
            share = exact_match(said, self._label) if name == "accuracy" else (member == predicted).mean(axis=1)
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
                theirs, rest = total - 2 * below + tp, total - below  # of class 0: hits, and half of labels and alarms
                return (ours + ratio(theirs, rest)[:, 0]) / ((below > 0).astype(int) + (rest > 0))[:, 0]
            if average == "micro":
                return ratio(tp.sum(axis=1), below.sum(axis=1))
            seen = (weights @ (members + alarms) > 0).sum(axis=1)
            classes = seen if problem.kind == "single_label" else problem.outputs
            return ratio(tp, below).sum(axis=1) / classes

        return metric
