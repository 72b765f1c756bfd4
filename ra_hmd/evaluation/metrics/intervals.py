"""95 % confidence intervals that keep their coverage near 0 and 1 and on small sets.

The bootstrap interval of a set that is classified without an error has no width; these intervals have one.

Shapes: N memes, K cells (memes that are alike), R draws, G positives, H negatives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, norm, rankdata

CONFIDENCE = 0.95
TOO_FEW = "too few"
"""Reason in place of an interval: too few memes to estimate one."""

_TAIL = (1 - CONFIDENCE) / 2
_BATCH = 4_000_000  # random numbers in memory at once
_PRIOR = 10  # misplaced memes at which both variances of an AUROC weigh equally (scripts/bench/interval_coverage.py)
_GROUPS = 1000  # a mean over more distinct values than this merges neighbouring ones


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its 95 % interval.

    Attributes:
        value: Value on these memes; None where it is undefined (AUROC with one class).
        low: Lower end of the interval; None where none was computed.
        high: Upper end.
        why: `TOO_FEW` where there are too few memes for an interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str | None = None

    def as_dict(self) -> dict[str, float | str | None]:
        """JSON form: `value`, `low`, `high`, and `why` where it is set."""
        found: dict[str, float | str | None] = {"value": self.value, "low": self.low, "high": self.high}
        return found if self.why is None else {**found, "why": self.why}


def proportion(hits: int, cases: int) -> tuple[float, float] | None:
    """Clopper–Pearson interval of a proportion; None without a case.

    It covers at least 95 % for every proportion and number of cases.

    Source: Clopper and Pearson, Biometrika 1934.
    """
    if not cases:
        return None
    low = beta.ppf(_TAIL, hits, cases - hits + 1) if hits else 0.0
    high = beta.ppf(1 - _TAIL, hits + 1, cases - hits) if hits < cases else 1.0
    return float(low), float(high)


def rate(hits: np.ndarray) -> dict[str, float | str | None]:
    """Share of hits [N] with its interval; the value is None where there is no case."""
    found = proportion(int(hits.sum()), len(hits))
    return (Estimate(None) if found is None else Estimate(float(hits.mean()), *found)).as_dict()


def cells_interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    counts: np.ndarray,
    worst: np.ndarray,
    best: np.ndarray,
    *,
    samples: int,
    seed: int,
) -> tuple[float, float]:
    """Interval of a statistic of the cells' weights, by the Bayesian bootstrap.

    The lower end is computed with one more meme of the worst kind, the upper end with one more of the best. For a
    proportion this is exactly the Clopper–Pearson interval, and the interval of a perfect set has a width.

    Args:
        statistic: Function from weights [R, K], of any scale, to values [R].
        counts: [K], memes per cell.
        worst: [K], weight that is added for the lower end; sums to 1.
        best: [K], weight that is added for the upper end.
        samples: R.
        seed: Seed of the resamples.

    Source: Rubin, Annals of Statistics 1981.
    """
    ends = []
    for extra, tail in ((worst, _TAIL), (best, 1 - _TAIL)):
        generator, values = np.random.default_rng(seed), []
        for first in range(0, samples, size := max(1, _BATCH // len(counts))):
            shape = (min(size, samples - first), len(counts))
            values.append(statistic(generator.standard_gamma(counts + extra, size=shape)))
        ends.append(float(np.quantile(np.concatenate(values), tail)))
    return ends[0], ends[1]


def mean_estimate(
    values: np.ndarray, bounds: tuple[float, float] | None = None, *, samples: int, seed: int
) -> Estimate:
    """Mean of values [N] with its interval; see `cells_interval`.

    Args:
        values: [N].
        bounds: Smallest and largest possible value; default: those that occur, and 0.
        samples: Resamples; 0 for no interval.
        seed: Seed of the resamples.
    """
    if not len(values):
        return Estimate(None)
    mean = float(np.mean(values))
    if samples < 1:
        return Estimate(mean)
    low, high = bounds if bounds is not None else (min(0.0, float(values.min())), float(values.max()))
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    groups = np.array_split(ordered, min(len(ordered), _GROUPS))
    cells = np.array([low, *(group.mean() for group in groups), high])
    counts = np.array([0, *(len(group) for group in groups), 0], dtype=np.float64)
    worst, best = np.zeros(len(cells)), np.zeros(len(cells))
    worst[0], best[-1] = 1, 1
    ends = cells_interval(lambda w: w @ cells / w.sum(axis=1), counts, worst, best, samples=samples, seed=seed)
    # Rounding must not push an end past the mean or a bound.
    return Estimate(mean, max(low, min(ends[0], mean)), min(high, max(ends[1], mean)))


def paired_gain(
    correct_before: np.ndarray, correct_after: np.ndarray, *, samples: int = 1000, seed: int = 0
) -> Estimate:
    """Accuracy after minus accuracy before, on the same rows, with its paired interval.

    Args:
        correct_before: bool [N], whether each row was classified correctly.
        correct_after: bool [N], the same rows in the same order.

    Raises:
        ValueError: different lengths.
    """
    before, after = np.asarray(correct_before, dtype=np.float64), np.asarray(correct_after, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(f"paired rows are needed, got shapes {before.shape} and {after.shape}")
    return mean_estimate(after - before, (-1.0, 1.0), samples=samples, seed=seed)


@dataclass(frozen=True)
class Area:
    """An AUROC, or the mean of several on the same memes, with what its interval needs.

    Attributes:
        value: The AUROC.
        influence: [N], each meme's contribution to the error; their squares sum to DeLong's variance.
        sizes: Numbers of positives and negatives of each averaged AUROC.
        misplaced: Number of positives that are not above all negatives, or of negatives that are not below all
            positives, whichever is smaller. The variance is estimated from these memes.
    """

    value: float
    influence: np.ndarray
    sizes: tuple[tuple[int, int], ...]
    misplaced: int

    @classmethod
    def of(cls, scores: np.ndarray, positive: np.ndarray) -> "Area | None":
        """Compute the AUROC of scores [N]; None where one class is missing. Ties count half.

        Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988, by ranks as Sun and Xu 2014.
        """
        g, h = int(positive.sum()), int((~positive).sum())
        if not g or not h:
            return None
        ranks = rankdata(scores)
        share = np.empty(len(scores))  # positives: share of negatives below; negatives: share of positives above
        share[positive] = (ranks[positive] - rankdata(scores[positive])) / h
        share[~positive] = 1 - (ranks[~positive] - rankdata(scores[~positive])) / g
        value = float(share[positive].mean())
        scale = np.where(positive, 1 / np.sqrt(g * max(g - 1, 1)), 1 / np.sqrt(h * max(h - 1, 1)))
        misplaced = min(int((share[side] < 1 - 1e-12).sum()) for side in (positive, ~positive))
        return cls(value, (share - value) * scale, ((g, h),), misplaced)

    @classmethod
    def mean(cls, areas: Sequence["Area"], *, runs: bool = False) -> "Area":
        """Average several AUROCs: of the same classes in other runs (`runs`), or of other classes."""
        sizes = areas[0].sizes if runs else tuple(size for area in areas for size in area.sizes)
        influence = np.mean([area.influence for area in areas], axis=0)
        misplaced = [area.misplaced for area in areas]
        value = float(np.mean([area.value for area in areas]))
        return cls(value, influence, sizes, min(misplaced) if runs else sum(misplaced))

    @property
    def variance(self) -> float:
        """DeLong's variance."""
        return float((self.influence**2).sum())

    @property
    def too_few(self) -> bool:
        """Whether a class has fewer than two memes, too few for an interval."""
        return any(min(size) < 2 for size in self.sizes)

    def expected_variance(self, area: float) -> float:
        """Hanley and McNeil's variance for a true AUROC of `area`; several are taken as independent."""
        q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
        parts = [
            (area * (1 - area) + (g - 1) * (q1 - area**2) + (h - 1) * (q2 - area**2)) / (g * h) for g, h in self.sizes
        ]
        return sum(parts) / len(parts) ** 2

    @property
    def excess(self) -> float:
        """Ratio of DeLong's variance to the expected one, by which the expected variance is scaled.

        A ratio below 1 is shrunk towards 1 as far as few misplaced memes support it.
        """
        expected = self.expected_variance(self.value)
        if expected <= 1e-12:
            return 1.0
        found = self.variance / expected
        return found if found > 1 else (self.misplaced * found + _PRIOR) / (self.misplaced + _PRIOR)

    def interval(self) -> tuple[float, float] | None:
        """Score interval: all true AUROCs that lie within 1.96 of their own standard errors of this one.

        The standard error is Hanley and McNeil's, which is positive also for a perfect separation, scaled by what
        DeLong's says of it (`excess`). None where there are too few memes.

        Source: Newcombe, Statistics in Medicine 2006, part 2, for the inversion.
        """
        if self.too_few:
            return None
        z2 = norm.ppf(1 - _TAIL) ** 2 * self.excess

        def distance(area: float) -> float:
            return (self.value - area) ** 2 - z2 * self.expected_variance(area)

        edge = 1e-9
        low = brentq(distance, 0.0, self.value - edge) if self.value > edge and distance(0.0) > 0 else 0.0
        high = brentq(distance, self.value + edge, 1.0) if self.value < 1 - edge and distance(1.0) > 0 else 1.0
        return float(low), float(high)

    def minus(self, other: "Area") -> Estimate:
        """Difference from another AUROC on the same memes, with its paired interval.

        The intervals of the two are combined by the correlation of their errors.

        Source: Newcombe, Statistics in Medicine 1998 (square-and-add), with DeLong's correlation.
        """
        value = self.value - other.value
        mine, theirs = self.interval(), other.interval()
        if mine is None or theirs is None:
            return Estimate(value, why=TOO_FEW)
        both = self.variance * other.variance
        alike = float(np.clip((self.influence * other.influence).sum() / np.sqrt(both), -1, 1)) if both > 0 else 0.0

        def reach(up: float, down: float) -> float:
            return float(np.sqrt(max(up**2 + down**2 - 2 * alike * up * down, 0.0)))

        low = value - reach(self.value - mine[0], theirs[1] - other.value)
        return Estimate(value, low, value + reach(mine[1] - self.value, other.value - theirs[0]))
