"""Rows that are equal to the last bit, as one point: so that a search sees a vector once, however often a bank has it.

Shapes: N rows, P points, D embedding, M rows that come in.
"""

from dataclasses import dataclass

import numpy as np
from xxhash import xxh3_64_intdigest

ABSENT = -1
"""No row, or no point."""


class DistinctVectors:
    """Numbers of distinct vectors, in the order in which they came. Vectors are told apart by a hash of 64 bits."""

    def __init__(self, hashes: np.ndarray | None = None) -> None:
        """`hashes`: uint64 [P] of points that were numbered before, in their order (`DistinctVectors.hashes`)."""
        hashes = np.zeros(0, np.uint64) if hashes is None else hashes
        self._number = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._number]

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def hashes(self) -> np.ndarray:
        """uint64 [P], in the order of the points."""
        hashes = np.zeros_like(self._sorted)
        hashes[self._number] = self._sorted
        return hashes

    def number(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The point of each of the vectors [M, D], int64 [M], and which rows of them are new points, in their order."""
        hashes = np.fromiter(map(xxh3_64_intdigest, np.ascontiguousarray(vectors)), np.uint64, len(vectors))
        unique, first, place = np.unique(hashes, return_index=True, return_inverse=True)
        at = np.searchsorted(self._sorted, unique)
        known = np.zeros(len(unique), bool)
        inside = at < len(self)
        known[inside] = self._sorted[at[inside]] == unique[inside]
        new = np.flatnonzero(~known)
        arrived = np.argsort(first[new], kind="stable")
        numbers = np.empty(len(unique), np.int64)
        numbers[known] = self._number[at[known]]
        numbers[new[arrived]] = len(self) + np.arange(len(new))
        self._sorted = np.insert(self._sorted, at[new], unique[new])
        self._number = np.insert(self._number, at[new], numbers[new])
        return numbers[place.reshape(-1)], first[new[arrived]]


@dataclass(frozen=True)
class VectorRows:
    """Which rows may be found at each of P points.

    Attributes:
        rows: int64 [N], by point, and of one point in rising order.
        first: int64 [P + 1], where the rows of each point begin in `rows`.
    """

    rows: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, point: np.ndarray, points: int, allowed: np.ndarray | None = None) -> "VectorRows":
        """From the point of each row, int64 [N] with `ABSENT` for none, and which rows may be found (default: all)."""
        there = point != ABSENT
        rows = np.flatnonzero(there if allowed is None else there & allowed)
        at = point[rows]
        first = np.concatenate([[0], np.cumsum(np.bincount(at, minlength=points))])
        return cls(rows[np.argsort(at, kind="stable")], first)

    @classmethod
    def single(cls, allowed: np.ndarray) -> "VectorRows":
        """Each row is a point of its own."""
        return cls(np.flatnonzero(allowed), np.concatenate([[0], np.cumsum(allowed)]))

    @property
    def counts(self) -> np.ndarray:
        """int64 [P], how many rows each point has."""
        return np.diff(self.first)
