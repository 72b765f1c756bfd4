"""Nearest-neighbour search through FAISS: exhaustive, in a large bank approximate.

Shapes: Q queries, N bank rows, D embedding, K neighbours.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ra_hmd.core.errors import UserError
from ra_hmd.retrieval.distinct_vectors import ABSENT, DistinctVectors, VectorRows
from ra_hmd.retrieval.index import IndexKind, build_index
from ra_hmd.retrieval.nearest import CandidateIndex, Metric, nearest_rows


@dataclass(frozen=True)
class Neighbours:
    """The K nearest bank rows of Q queries, nearest first.

    Attributes:
        rows: int64 [Q, K], bank row, or `ABSENT` (-1) at the end of a line with fewer than K neighbours.
        similarity: float32 [Q, K], similarity to that row; 0 where absent.
    """

    rows: np.ndarray
    similarity: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """bool [Q, K]: where there is a neighbour."""
        return self.rows != ABSENT


def unit_rows(matrix: np.ndarray) -> np.ndarray:
    """A float32 copy of `matrix` [N, D] with rows of length 1; an all-zero row stays zero."""
    matrix = np.asarray(matrix, dtype=np.float32)
    # Divided by the largest entry first: squares of large entries would overflow float32.
    largest = np.abs(matrix).max(axis=1, keepdims=True, initial=0.0)
    scaled = matrix / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.ascontiguousarray(scaled / np.where(length > 0, length, 1), dtype=np.float32)


def search(
    queries: np.ndarray,
    bank: np.ndarray,
    k: int,
    *,
    metric: Metric = "cos",
    query_ids: Sequence[str] | None = None,
    bank_ids: Sequence[str] | None = None,
    index: IndexKind = "auto",
) -> Neighbours:
    """The K nearest bank rows of each query: exhaustive, in a large bank approximate.

    With ids, a bank row that has the query's own id is never its neighbour, however often the id occurs and whether or
    not the row is among the nearest: the depth is increased by the number of excluded rows. Equal similarities are
    ordered by row. As long as the search is exhaustive, a query has the same neighbours alone and in any batch, bit for
    bit. Inputs are not modified.

    Args:
        queries: [Q, D].
        bank: [N, D]; N may be smaller than K, also 0.
        k: K, at least 1.
        metric: `cos`, in [-1, 1], `ip`, the raw inner product, or `l2`, the squared distance with a minus sign.
        query_ids: Q ids; give both or neither.
        bank_ids: N ids.
        index: Kind of index, see `build_index`; `auto` is exhaustive up to `EXACT_ROWS` rows. Approximate kinds have a
            recall@20 of 0.99 on the queries.

    Raises:
        UserError: K below 1, widths that differ, values that are not finite, an unknown index.
    """
    queries, bank = as_matrix(queries, "queries"), as_matrix(bank, "bank")
    if k < 1:
        raise UserError(f"K is {k}; at least one neighbour must be asked for.")
    if queries.shape[1] != bank.shape[1]:
        raise UserError(
            f"The queries have {queries.shape[1]} dimensions and the bank {bank.shape[1]}; "
            "embed both with the same head."
        )
    if (query_ids is None) != (bank_ids is None):
        raise ValueError("give the ids of both the queries and the bank, or of neither")
    own = codes = None
    excludable = 0
    if query_ids is not None and bank_ids is not None:
        own, codes, excludable = _id_codes(query_ids, bank_ids)
    if metric == "cos":
        queries, bank = unit_rows(queries), unit_rows(bank)
    points = DistinctVectors()
    point, distinct = points.number(bank)
    vectors = bank if len(distinct) == len(bank) else bank[distinct]
    kind = "flat" if not len(bank) else index
    built = build_index(vectors, metric="l2" if metric == "l2" else "ip", kind=kind, queries=queries)
    candidates = CandidateIndex(
        lambda block, depth: built.search(block, depth)[0],
        vectors.__getitem__,
        VectorRows.of(point, len(points)),
        metric,
        float(np.linalg.norm(vectors, axis=1).max(initial=0.0)),
    )
    return Neighbours(*nearest_rows(candidates, queries, k, own=own, codes=codes, excluded=excludable))


def as_matrix(array: np.ndarray, name: str) -> np.ndarray:
    """`array` as a float32 matrix of finite numbers; `name` is for error messages.

    Raises:
        UserError: values that are not finite.
    """
    array = np.asarray(array, dtype=np.float32)
    if array.ndim != 2:
        raise ValueError(f"{name} have shape {array.shape}, a matrix is needed")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise UserError(
            f"{int((~finite).sum())} of {len(array)} {name} embeddings are not finite (first: row "
            f"{int(np.flatnonzero(~finite)[0])}); extract the features again or check the head."
        )
    return array


def _id_codes(query_ids: Sequence[str], bank_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """Ids as integers (-1 for a query that is not in the bank) and the highest number of rows that a query excludes."""
    codes: dict[str, int] = {}
    bank_codes = np.array([codes.setdefault(name, len(codes)) for name in bank_ids], dtype=np.int64)
    query_codes = np.array([codes.get(name, -1) for name in query_ids], dtype=np.int64)
    counts = Counter(bank_codes.tolist())
    return query_codes, bank_codes, max((counts.get(code, 0) for code in set(query_codes.tolist())), default=0)
