"""Nearest-neighbour search over the candidates of any index: FAISS in memory, the index of a bank, Milvus.

An index computes many similarities at once, and its rounding depends on the batch of queries and on the kind of index.
So an index proposes candidates only; the similarity of each is computed again, always in one way, and equal ones are
ordered by row. A query has the same neighbours alone and in any batch, bit for bit.

Shapes: Q queries, N rows, P points (distinct vectors of rows), D embedding, K neighbours, L queries of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ra_hmd.retrieval.distinct_vectors import ABSENT, VectorRows

Metric = Literal["cos", "ip", "l2"]

_MARGIN = 8  # candidates beyond K, so that a tie at the K-th place is seen
_ROUNDING = 2e-6  # two kernels' float32 products of unit vectors differ by less
_QUERY_BLOCK = 512
_DEEPEST = 1024  # points searched beyond K; past them, vectors that differ by rounding only may be missed
_FEW = 16  # FAISS searches so few queries one by one, so that results do not depend on the batch


@dataclass(frozen=True)
class CandidateIndex:
    """An index that proposes candidates, and the rows and vectors of these.

    Attributes:
        candidates: Maps queries [Q, D] and a depth to points int64 [Q, depth], the most similar of those that have
            rows; -1 where absent. Points without rows may be among them.
        vectors: Maps points [M] to their vectors, float32 [M, D].
        members: The rows of each point.
        metric: `cos` (queries and vectors are unit rows), `ip` or `l2`.
        longest: Length of the longest vector; 1 for unit rows.
    """

    candidates: Callable[[np.ndarray, int], np.ndarray]
    vectors: Callable[[np.ndarray], np.ndarray]
    members: VectorRows
    metric: Metric = "cos"
    longest: float = 1.0

    def row_vectors(self, rows: np.ndarray) -> np.ndarray:
        """float32 [M, D], the vectors of rows that the index holds."""
        return self.vectors(self._point_of[rows])

    @cached_property
    def _point_of(self) -> np.ndarray:
        """int64, the point of each row number."""
        rows, counts = self.members.rows, self.members.counts
        point = np.full(int(rows.max(initial=-1)) + 1, ABSENT)
        point[rows] = np.repeat(np.arange(len(counts)), counts)
        return point


def nearest_rows(
    index: CandidateIndex,
    queries: np.ndarray,
    k: int,
    *,
    own: np.ndarray | None = None,
    codes: np.ndarray | None = None,
    excluded: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """The K nearest rows of each query among the candidates of an index, nearest first and equal ones by row.

    The depth is increased until no other point can belong to the K. Only past `_DEEPEST` points whose similarities
    differ by less than rounding does the choice depend on the index.

    Args:
        index: The index.
        queries: float32 [Q, D]; for metric `cos` unit rows.
        k: K.
        own: int64 [Q]: rows with this code are never neighbours of the query; -1: none. Default: none for any query.
        codes: int64 [N], the code of each row; default: its number.
        excluded: Highest number of rows with one code.

    Returns:
        Row numbers int64 and similarities float32, both [Q, K], -1 and 0 where absent.
    """
    rows = np.full((len(queries), k), ABSENT, dtype=np.int64)
    similarity = np.zeros((len(queries), k), dtype=np.float32)
    own = np.full(len(queries), ABSENT) if own is None else own
    wanted = k + excluded
    search = _Search(index, codes, k, wanted)
    for first in range(0, len(queries), _QUERY_BLOCK):
        part = slice(first, first + _QUERY_BLOCK)
        search.fill(queries[part], own[part], rows[part], similarity[part])
    return rows, similarity


@dataclass(frozen=True)
class _Search:
    """One call of `nearest_rows`; `wanted` rows are enough for K that are not the query's own."""

    index: CandidateIndex
    codes: np.ndarray | None
    k: int
    wanted: int

    def fill(self, queries: np.ndarray, own: np.ndarray, rows: np.ndarray, similarity: np.ndarray) -> None:
        """Fill `rows` and `similarity` [L, K]."""
        open_lines, depth = np.arange(len(queries)), self.wanted + _MARGIN
        zero = ~queries.any(axis=1) if self.index.metric != "l2" else np.zeros(len(queries), bool)
        if zero.any():  # every row is equally similar to a query of zeros: the first K are the nearest
            lowest = np.sort(self.index.members.rows)[: self.wanted]
            for line in np.flatnonzero(zero):
                first = lowest[self._code(lowest) != own[line]][: self.k]
                rows[line, : len(first)] = first
            open_lines = open_lines[~zero]
        deepest = self.wanted + max(_DEEPEST, self.wanted)
        while len(open_lines):
            block, last = queries[open_lines], depth >= deepest
            step = _FEW if last else len(block)
            parts = [self.index.candidates(block[i : i + step], depth) for i in range(0, len(block), step)]
            points = np.concatenate(parts)
            near = self._similarity(block, points)
            best, value = self._rows(points, near, own[open_lines])
            rows[open_lines], similarity[open_lines] = best, np.where(best == ABSENT, 0, value)
            exhausted = (points == ABSENT).any(axis=1) | (points.shape[1] < depth)
            unseen = near.min(axis=1, initial=np.inf) + self._rounding(block)
            settled = (best[:, -1] != ABSENT) & (value[:, -1] > unseen)
            open_lines = open_lines[~(exhausted | settled | last)]
            depth = min(2 * depth, deepest)

    def _code(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.codes is None else self.codes[rows]

    def _rounding(self, queries: np.ndarray) -> np.ndarray | float:
        """Highest difference between two ways of computing a similarity, for each query."""
        if self.index.metric == "cos":
            return _ROUNDING
        length, longest = np.linalg.norm(queries.astype(np.float64), axis=1), self.index.longest
        return _ROUNDING * (length * longest if self.index.metric == "ip" else 2 * (length**2 + longest**2))

    def _similarity(self, queries: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Similarities float32 [L, depth], computed per pair in 64 bits; minus infinity where absent."""
        unique, place = np.unique(points, return_inverse=True)
        present = unique != ABSENT
        vectors = np.zeros((len(unique), queries.shape[1]), np.float32)
        if present.any():
            vectors[present] = self.index.vectors(unique[present])
        place = place.reshape(points.shape)
        near = np.empty(points.shape, np.float32)
        for line, query in enumerate(queries.astype(np.float64)):
            candidates = vectors[place[line]].astype(np.float64)
            if self.index.metric == "l2":
                candidates -= query
                near[line] = -np.einsum("cd,cd->c", candidates, candidates)
            else:
                near[line] = np.einsum("cd,d->c", candidates, query)
        near = near.clip(-1, 1) if self.index.metric == "cos" else near
        return np.where(points == ABSENT, np.float32(-np.inf), near)

    def _rows(self, points: np.ndarray, near: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The K best rows of the points, and their similarities, both [L, K]; -1 and minus infinity where absent."""
        best = np.full((len(points), self.k), ABSENT)
        value = np.full((len(points), self.k), -np.inf, np.float32)
        if not points.size:
            return best, value
        order = np.argsort(-near, axis=1, kind="stable")
        points, near = (np.take_along_axis(array, order, axis=1) for array in (points, near))
        first = self.index.members.first
        counts = np.where(points == ABSENT, 0, first[points + 1] - first[points])
        enough = counts.cumsum(axis=1) - counts < self.wanted
        limit = np.where(enough, near, np.inf).min(axis=1, keepdims=True)
        # The first rows of a point are enough, of those as similar as the last point that is needed.
        counts = np.where(near >= limit, counts.clip(max=self.wanted), 0).reshape(-1)
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        rows = self.index.members.rows[np.repeat(first[points.reshape(-1)], counts) + within]
        line = np.repeat(np.arange(len(points)), counts.reshape(points.shape).sum(axis=1))
        sim = np.repeat(near.reshape(-1), counts)
        keep = self._code(rows) != own[line]
        rows, line, sim = rows[keep], line[keep], sim[keep]
        order = np.lexsort((rows, -sim, line))
        rows, line, sim = rows[order], line[order], sim[order]
        rank = np.arange(len(line)) - np.searchsorted(line, np.arange(len(points)))[line]
        top = rank < self.k
        best[line[top], rank[top]], value[line[top], rank[top]] = rows[top], sim[top]
        return best, value
