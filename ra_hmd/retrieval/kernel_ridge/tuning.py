"""Choice of width, noise and view weights by exact leave-one-out on the labelled rows, never on queries.

Shapes: N rows, C targets, V views.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from ra_hmd.retrieval.kernel_ridge.kernels import GaussianKernel, SummedKernel, Views

WIDTH_FACTORS = (1.0, 0.25, 0.5, 2.0, 4.0)
"""Factors of γ that are compared; the first is the default."""
NOISES = (0.1, 0.001, 0.01, 1.0)
"""Values of λ that are compared; the first is the default."""
_STEPS = 4  # weights of views are multiples of 1/4
_ERRORS = 2.0  # standard errors by which a choice must be better than the default


@dataclass(frozen=True)
class RidgeParameters:
    """What the bank's rows determine besides the coefficients.

    Attributes:
        kernel: Standardisation, widths and weights of the views.
        noise: λ.
        losses: Mean leave-one-out squared error of each view alone and, of several, of the chosen weights (`chosen`).
        rows: Number of rows that the choice was made on.
        version: Version of the example bank that they were, if it is one.
    """

    kernel: SummedKernel
    noise: float
    losses: Mapping[str, float]
    rows: int
    version: int | None = None


def tune(views: Views, targets: np.ndarray, weights: np.ndarray) -> RidgeParameters:
    """Choose the parameters on N rows.

    For each view the default (γ = 1 / median squared distance, λ = 0.1) is kept unless another pair is better by two
    standard errors of the paired difference. Then the weights of the views are chosen in the same way against equal
    ones, with λ.

    Args:
        views: The vectors of the rows.
        targets: [N, C].
        weights: [N], weights of the rows.
    """
    kernels: dict[str, GaussianKernel] = {}
    grams: dict[str, np.ndarray] = {}
    losses: dict[str, float] = {}
    noise = NOISES[0]
    for name, vectors in views.items():
        default = GaussianKernel.fit(vectors)
        rows = default.standardised(vectors)
        squared = -np.log(np.maximum(default(rows, rows), np.finfo(float).tiny))
        found = {
            (factor, value): loss
            for factor in WIDTH_FACTORS
            for value, loss in _losses(np.exp(-factor * squared), targets, weights)
        }
        factor, noise = _better(found, (WIDTH_FACTORS[0], NOISES[0]))
        kernels[name], grams[name] = default.scaled(factor), np.exp(-factor * squared)
        losses[name] = _mean(found[factor, noise])
    shares = dict.fromkeys(views, 1 / len(views))
    if len(views) > 1:
        stacked = np.stack(list(grams.values()))
        mixtures = {
            (mixed, value): loss
            for mixed in _mixtures(len(views))
            for value, loss in _losses(np.tensordot(mixed, stacked, axes=1), targets, weights)
        }
        mixed, noise = _better(mixtures, (tuple(shares.values()), NOISES[0]))
        shares = dict(zip(views, mixed, strict=True))
        losses["chosen"] = _mean(mixtures[mixed, noise])
    return RidgeParameters(SummedKernel(kernels, shares), noise, losses, len(targets))


def _mixtures(count: int) -> Iterator[tuple[float, ...]]:
    """Weights of V views: equal ones first, then all multiples of 1/4 that add up to 1."""
    yield (1 / count,) * count
    for parts in product(range(_STEPS + 1), repeat=count):
        if sum(parts) == _STEPS:
            yield tuple(part / _STEPS for part in parts)


def _losses(kernel: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Yield each λ with the weighted leave-one-out squared error of every row, summed over targets [N]."""
    root = np.sqrt(weights)
    values, vectors = np.linalg.eigh(root[:, None] * kernel * root)
    rotated = vectors.T @ (root[:, None] * targets)
    for noise in NOISES:
        inverse = 1 / (np.maximum(values, 0) + noise)
        residual = (vectors @ (inverse[:, None] * rotated)) / ((vectors**2) @ inverse)[:, None] / root[:, None]
        yield noise, weights * (residual**2).sum(axis=1)


def _better(losses: Mapping[tuple, np.ndarray], default: tuple) -> tuple:
    """The choice with the lowest mean loss, or the default where that is not better by two standard errors."""
    best = min(losses, key=lambda choice: losses[choice].sum())
    gain = losses[default] - losses[best]
    return best if len(gain) > 1 and gain.mean() > _ERRORS * gain.std(ddof=1) / np.sqrt(len(gain)) else default


def _mean(losses: np.ndarray) -> float:
    """The mean, 0 without any row."""
    return float(losses.sum() / max(len(losses), 1))
