"""Metrics of several runs (seeds, samples) on the same memes as one estimate.

Shapes: Q queries, R runs.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ra_hmd.evaluation.metrics.estimates import ThresholdedScores, metric_estimate
from ra_hmd.evaluation.metrics.intervals import Estimate

STUDY_METRICS = ("accuracy", "auroc")


METRIC_TITLES = {"accuracy": "accuracy", "auroc": "AUROC"}


Cell = dict[str, dict[str, Any]]
"""Metric → `value` (mean over runs), `low` and `high` (interval over memes), `runs` (each value), `std` (over runs)."""


def estimate(
    runs: Sequence[np.ndarray],
    labels: np.ndarray,
    threshold: float,
    *,
    samples: int,
    seed: int,
    names: Sequence[str] = STUDY_METRICS,
) -> Cell:
    """Estimate metrics of R runs' scores [Q] on the same memes: the mean over runs, with its interval over memes.

    The interval covers other memes of the same kind; the standard deviation shows the spread over runs.
    """
    cell: Cell = {}
    scored = [ThresholdedScores.binary(scores, threshold) for scores in runs]
    for name in names:
        values = [metric_estimate(name, [one], labels, samples=0, seed=seed).value for one in scored]
        known = [value for value in values if value is not None]
        whole = bool(values) and len(known) == len(values)
        found = metric_estimate(name, scored, labels, samples=samples, seed=seed) if whole else Estimate(None)
        spread = statistics.stdev(known) if whole and len(known) > 1 else None
        cell[name] = {**found.as_dict(), "runs": values, "std": spread}
    return cell


def paired_change(
    runs: Sequence[np.ndarray],
    base: Sequence[np.ndarray],
    labels: np.ndarray,
    threshold: float,
    *,
    samples: int,
    seed: int,
    name: str = "auroc",
) -> dict[str, float | str | None]:
    """Difference of a metric's means over `runs` and over `base`, on the same memes [Q], with its paired interval.

    Returns:
        `value`, `low` and `high`; None where the metric is undefined.
    """
    if not runs or not base:
        return Estimate(None).as_dict()
    after, before = ([ThresholdedScores.binary(scores, threshold) for scores in group] for group in (runs, base))
    return metric_estimate(name, after, labels, base=before, samples=samples, seed=seed).as_dict()


def error_bars(items: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Lengths [2, N] of the error bars below and above each value; 0 where there is no interval."""
    # Intervals that an earlier version wrote may miss their value; the length of a bar cannot be negative.
    bounds = [
        (0.0, 0.0) if i["low"] is None else (max(0.0, i["value"] - i["low"]), max(0.0, i["high"] - i["value"]))
        for i in items
    ]
    return np.array(bounds).reshape(-1, 2).T
