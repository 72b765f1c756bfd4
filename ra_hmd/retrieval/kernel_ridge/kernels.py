"""Gaussian kernels of one or several views of memes.

Shapes: N rows, M other rows, D dimensions of a view.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Views = Mapping[str, np.ndarray]
"""Name of a view to vectors [N, D]; D differs from view to view."""

_MEDIAN_ROWS = 1000  # rows whose distances the width follows from


@dataclass(frozen=True)
class GaussianKernel:
    """k(x, z) = exp(−γ |x − z|²) of standardised vectors.

    Attributes:
        mean: float64 [D].
        scale: float64 [D], standard deviations; 1 where a dimension is constant.
        gamma: γ.
    """

    mean: np.ndarray
    scale: np.ndarray
    gamma: float

    @classmethod
    def fit(cls, vectors: np.ndarray) -> "GaussianKernel":
        """Standardise by the given rows [N, D]; γ = 1 / median squared distance of two different rows.

        At most 1,000 rows at equal steps are compared. Where all rows are equal, γ is 1 / D.
        """
        vectors = np.asarray(vectors, np.float64)
        if not len(vectors):
            return cls(np.zeros(vectors.shape[1]), np.ones(vectors.shape[1]), 1 / vectors.shape[1])
        mean, deviation = vectors.mean(axis=0), vectors.std(axis=0)
        # Rounding gives a constant dimension a tiny deviation, by which it must not be divided.
        constant = deviation <= 1e-6 * np.abs(vectors).max(axis=0, initial=0.0)
        kernel = cls(mean, np.where(constant, 1.0, deviation), 1 / vectors.shape[1])
        some = kernel.standardised(vectors[:: -(-len(vectors) // _MEDIAN_ROWS)])
        distances = squared_distances(some, some)[np.triu_indices(len(some), 1)]
        apart = distances[distances > 1e-6]
        return kernel.scaled(vectors.shape[1] / float(np.median(apart))) if len(apart) else kernel

    def scaled(self, factor: float) -> "GaussianKernel":
        """The kernel with γ multiplied by a factor."""
        return GaussianKernel(self.mean, self.scale, self.gamma * factor)

    def standardised(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [N, D] in units of the standard deviations, float64."""
        return (np.asarray(vectors, np.float64) - self.mean) / self.scale

    def __call__(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """float64 [N, M] in [0, 1] for vectors [N, D] and [M, D] as `standardised` returns them."""
        return np.exp(-self.gamma * squared_distances(left, right))


@dataclass(frozen=True)
class SummedKernel:
    """The weighted sum of the kernels of views; k(x, x) = 1.

    Attributes:
        kernels: Name of a view to its kernel.
        weights: Name of a view to its weight; they are at least 0 and add up to 1.
    """

    kernels: Mapping[str, GaussianKernel]
    weights: Mapping[str, float]

    @property
    def used(self) -> list[str]:
        """Views with a weight above 0."""
        return [name for name, weight in self.weights.items() if weight > 0]

    def standardised(self, views: Views) -> dict[str, np.ndarray]:
        """The views that are used, in units of their standard deviations."""
        return {name: self.kernels[name].standardised(views[name]) for name in self.used}

    def __call__(self, left: Views, right: Views) -> np.ndarray:
        """float64 [N, M] in [0, 1] for views as `standardised` returns them."""
        parts = (self.weights[name] * self.kernels[name](left[name], right[name]) for name in self.used)
        return sum(parts, np.zeros(1))  # type: ignore[return-value]


def squared_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64 [N, M], at least 0."""
    lengths = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)
    return np.maximum(lengths - 2 * left @ right.T, 0.0)
