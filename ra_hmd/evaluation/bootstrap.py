"""95 % percentile bootstrap intervals, through `scipy.stats.bootstrap`."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ra_hmd.evaluation.metrics import METRICS, binary_metrics, resampled_metric

CONFIDENCE = 0.95
_BATCH_ROWS = 2_000_000  # drawn rows held at once: bounds the memory whatever the set's size


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; None where it is undefined (AUROC of one class, fewer than two rows)."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """`{"value", "low", "high"}`, for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def interval(
    statistic: Callable[[np.ndarray], np.ndarray], rows: int, *, samples: int, seed: int, width: int = 1
) -> tuple[float | None, float | None]:
    """Percentile interval of a statistic of row numbers.

    Resamples for which the statistic is NaN (an AUROC of one class) are left out of the percentiles.

    Args:
        statistic: From row numbers [R, N] to values [R].
        rows: N.
        samples: R in all; 0 gives no interval.
        seed: Of the resampling. The same seed draws the same rows, whatever the statistic.
        width: How many numbers the statistic holds per drawn row; bounds the memory, changes nothing.
    """
    if samples < 1 or rows < 2:
        return None, None
    with warnings.catch_warnings():
        # SciPy warns of resamples that are NaN; they are dealt with below.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (np.arange(rows),),
            lambda drawn, axis=-1: statistic(np.atleast_2d(drawn)),
            n_resamples=samples,
            batch=max(1, _BATCH_ROWS // (rows * width)),
            vectorized=True,
            method="percentile",
            confidence_level=CONFIDENCE,
            rng=np.random.default_rng(seed),
        )
    values = result.bootstrap_distribution[np.isfinite(result.bootstrap_distribution)]
    if not len(values):
        return None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def metric_estimates(
    scores: np.ndarray,
    labels: np.ndarray,
    threshold: float,
    *,
    samples: int = 1000,
    seed: int = 0,
    names: Iterable[str] = METRICS,
) -> dict[str, Estimate]:
    """The metrics `names` of scores [N] against labels [N] in {0, 1}, each with its interval over resampled rows."""
    estimates = {}
    for name, value in binary_metrics(scores, labels, threshold, names).items():
        low, high = None, None
        if value is not None:
            statistic = resampled_metric(name, scores, labels, threshold)
            low, high = interval(statistic, len(labels), samples=samples, seed=seed)
        estimates[name] = Estimate(value, low, high)
    return estimates


def paired_gain(
    correct_before: np.ndarray, correct_after: np.ndarray, *, samples: int = 1000, seed: int = 0
) -> Estimate:
    """Accuracy after minus accuracy before, on the same rows, with its paired interval.

    Args:
        correct_before: [N], whether each row was classified correctly.
        correct_after: [N], the same rows in the same order.

    Raises:
        ValueError: different lengths.
    """
    before, after = np.asarray(correct_before, dtype=np.float64), np.asarray(correct_after, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(f"paired rows are needed, got shapes {before.shape} and {after.shape}")
    change = after - before
    low, high = interval(lambda rows: change[rows].mean(axis=-1), len(change), samples=samples, seed=seed)
    return Estimate(float(change.mean()) if len(change) else None, low, high)
