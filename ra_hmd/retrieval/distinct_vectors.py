"""Rows with bitwise equal vectors as one point, so that an index holds each vector once, however often a bank has it.

Shapes: N rows, P points, D embedding, M rows to add.
"""

from dataclasses import dataclass

import numpy as np
from xxhash import xxh3_64_intdigest

ABSENT = -1
"""No row, or no point."""


class DistinctVectors:
    """Numbers of distinct vectors, in the order in which they were added. Vectors are identified by a 64-bit hash."""

    def __init__(self, hashes: np.ndarray | None = None) -> None:
        """`hashes`: uint64 [P], hashes of vectors that are numbered already, in their order."""
        hashes = np.zeros(0, np.uint64) if hashes is None else hashes
        self._number = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._number]

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def hashes(self) -> np.ndarray:
        """uint64 [P], hashes in the order of the points."""
        hashes = np.zeros_like(self._sorted)
        hashes[self._number] = self._sorted
        return hashes

    def number(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The point of each vector [M, D], int64 [M], and the rows of new ones in the order of their points."""
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
    """The rows of each of P points.

    Attributes:
        rows: int64 [N], sorted by point, then by row.
        first: int64 [P + 1], where the rows of each point begin in `rows`.
    """

    rows: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, point: np.ndarray, points: int, allowed: np.ndarray | None = None) -> "VectorRows":
        """From the point of each row, int64 [N] with `ABSENT` for none, and a mask of rows (default: all)."""
        present = point != ABSENT
        rows = np.flatnonzero(present if allowed is None else present & allowed)
        at = point[rows]
        first = np.concatenate([[0], np.cumsum(np.bincount(at, minlength=points))])
        return cls(rows[np.argsort(at, kind="stable")], first)

    @classmethod
    def single(cls, allowed: np.ndarray) -> "VectorRows":
        """Each row is a point of its own."""
        return cls(np.flatnonzero(allowed), np.concatenate([[0], np.cumsum(allowed)]))

    @property
    def counts(self) -> np.ndarray:
        """int64 [P], number of rows of each point."""
        return np.diff(self.first)
