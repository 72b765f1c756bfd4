"""The linear system of kernel ridge regression, with updates and exact leave-one-out predictions.

For rows with kernel matrix K, noise λ, row weights w and targets Y, the coefficients are α = (K + λ diag(1/w))⁻¹ Y. The
inverse is kept: from it follow leave-one-out predictions of all rows at once, predictions without any one row, and the
inverse of a system with rows added or removed, by block inversion, in a time that is quadratic in the rows.

Shapes: N rows, M rows of a change, Q queries, C targets.
"""

from functools import cached_property

import numpy as np
from scipy.linalg import cho_solve, lapack

_BLOCK = 512  # rows of the inverse that are updated at a time, so that temporaries stay in the cache


class RidgeSystem:
    """The system of N rows. Methods that change it return another one.

    Args:
        targets: [N, C].
        noise: λ.
        factor: Upper Cholesky factor [N, N] of K + λ diag(1/w); or:
        inverse: Its inverse, float64 [N, N].

    Source: Rifkin and Lippert, Notes on Regularized Least Squares, 2007 (leave-one-out); block inversion is textbook.
    """

    def __init__(
        self,
        targets: np.ndarray,
        noise: float,
        *,
        factor: np.ndarray | None = None,
        inverse: np.ndarray | None = None,
    ) -> None:
        self.targets, self.noise = np.asarray(targets, np.float64), noise
        self._factor, self._inverse = factor, inverse

    @classmethod
    def solve(cls, kernel: np.ndarray, targets: np.ndarray, noise: float, weights: np.ndarray) -> "RidgeSystem":
        """The system of N rows.

        Args:
            kernel: [N, N], symmetric and positive semi-definite.
            targets: [N, C].
            noise: λ, above 0.
            weights: [N], above 0.
        """
        return cls(targets, noise, factor=_factor(_with_noise(kernel, noise, weights)))

    @property
    def inverse(self) -> np.ndarray:
        """(K + λ diag(1/w))⁻¹, float64 [N, N]; computed when it is first asked for."""
        if self._inverse is None:
            self._inverse, self._factor = _inverse_of(self._factor), None
        return self._inverse

    @cached_property
    def coefficients(self) -> np.ndarray:
        """α, float64 [N, C]."""
        if self._factor is not None and len(self):
            return cho_solve((self._factor, False), self.targets)
        return self.inverse @ self.targets

    def __len__(self) -> int:
        return len(self.targets)

    def leave_one_out(self) -> np.ndarray:
        """float64 [N, C]: the prediction for each row by the system without it, exactly.

        With one row there is nothing left to predict with; its prediction is 0.
        """
        return self.targets - self.coefficients / np.diag(self.inverse)[:, None]

    def coefficients_without(self, rows: np.ndarray) -> np.ndarray:
        """float64 [N, C]: the coefficients of the system without rows [M]; those of these rows are 0."""
        coefficients = self.coefficients
        solved = np.linalg.solve(self.inverse[np.ix_(rows, rows)], coefficients[rows])
        coefficients = coefficients - self.inverse[:, rows] @ solved
        coefficients[rows] = 0.0
        return coefficients

    def with_targets(self, targets: np.ndarray) -> "RidgeSystem":
        """The system with other targets [N, C]."""
        return RidgeSystem(targets, self.noise, factor=self._factor, inverse=self._inverse)

    def ordered(self, order: np.ndarray) -> "RidgeSystem":
        """The system with its rows in another order, [N] row numbers."""
        if (order == np.arange(len(self))).all():
            return self
        return RidgeSystem(self.targets[order], self.noise, inverse=self.inverse[np.ix_(order, order)])

    def plus(self, cross: np.ndarray, kernel: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> "RidgeSystem":
        """The system with M more rows at its end.

        Args:
            cross: [N, M], kernel of the rows and the new ones.
            kernel: [M, M], kernel of the new rows.
            targets: [M, C].
            weights: [M].
        """
        count, new = len(self), len(targets)
        if not new:
            return self
        solved = self.inverse @ cross  # [N, M]
        corner = _inverse_of(_factor(_with_noise(kernel, self.noise, weights) - cross.T @ solved))
        moved = solved @ corner  # [N, M]
        inverse = np.empty((count + new, count + new))
        for start in range(0, count, _BLOCK):
            rows = slice(start, min(start + _BLOCK, count))
            np.add(self.inverse[rows], moved[rows] @ solved.T, out=inverse[rows, :count])
        inverse[:count, count:], inverse[count:, :count], inverse[count:, count:] = -moved, -moved.T, corner
        return RidgeSystem(np.concatenate([self.targets, targets]), self.noise, inverse=inverse)

    def without(self, rows: np.ndarray) -> "RidgeSystem":
        """The system without the rows with the given numbers [M]."""
        if not len(rows):
            return self
        kept = np.setdiff1d(np.arange(len(self)), rows)
        cross = self.inverse[np.ix_(kept, rows)]
        solved = np.linalg.solve(self.inverse[np.ix_(rows, rows)], cross.T)  # [M, N - M]
        inverse = np.empty((len(kept), len(kept)))
        for start in range(0, len(kept), _BLOCK):
            part = slice(start, min(start + _BLOCK, len(kept)))
            np.subtract(self.inverse[np.ix_(kept[part], kept)], cross[part] @ solved, out=inverse[part])
        return RidgeSystem(self.targets[kept], self.noise, inverse=inverse)


def _with_noise(kernel: np.ndarray, noise: float, weights: np.ndarray) -> np.ndarray:
    matrix = np.array(kernel, np.float64)
    matrix[np.diag_indices_from(matrix)] += noise / np.asarray(weights, np.float64)
    return matrix


def _factor(matrix: np.ndarray) -> np.ndarray:
    """Upper Cholesky factor of a symmetric positive definite matrix."""
    if not len(matrix):
        return matrix
    factor, info = lapack.dpotrf(matrix, lower=0)
    if info:
        raise np.linalg.LinAlgError(f"the matrix is not positive definite (leading minor {info})")
    return factor


def _inverse_of(factor: np.ndarray | None) -> np.ndarray:
    """Inverse of the matrix that has an upper Cholesky factor."""
    if factor is None or not len(factor):
        return np.zeros((0, 0))
    inverse, _ = lapack.dpotri(factor, lower=0)
    upper = np.triu(inverse)
    return upper + np.triu(upper, 1).T
