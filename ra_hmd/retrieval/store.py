"""What a backend of the bank does, and the search that makes all backends give the same.

Shapes: N rows ever added, Q queries, D embedding, K neighbours, M rows.
"""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from ra_hmd.retrieval.knn import ABSENT
from ra_hmd.retrieval.state import Change, Entry, State

_MARGIN = 8  # candidates beyond K, so that a tie at the K-th place is seen
_ROUNDING = 2e-6  # two kernels' float32 products of unit vectors differ by less
_QUERY_BLOCK = 1024


class Store(Protocol):
    """What a backend does. All else is the same for every backend, and in `Bank`."""

    place: Any
    settings: dict[str, Any]

    def writing(self) -> AbstractContextManager[None]: ...

    def newest(self, known: int) -> int: ...

    def read(self, first: int, last: int) -> list[tuple[Entry, Change]]: ...

    def write(self, entry: Entry, change: Change, new: np.ndarray | None, first: int) -> None: ...

    def embeddings(self, state: State, rows: np.ndarray) -> np.ndarray: ...

    def prepare(self, state: State) -> None: ...

    def candidates(self, queries: np.ndarray, depth: int, state: State, allowed: np.ndarray) -> np.ndarray: ...

    def unit_vectors(self, state: State, rows: np.ndarray) -> np.ndarray: ...

    def describe(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


def nearest_rows(
    store: Store, state: State, queries: np.ndarray, own: np.ndarray, k: int, allowed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The K nearest rows by cosine, as far as the backend's index finds them.

    Similarities are computed anew from the candidates' vectors, and equal ones ordered by row number. The search goes
    deeper until no row that was not seen can belong to the K: so the order does not depend on the backend.

    Args:
        store: Prepared for the state.
        state: Whose rows are searched.
        queries: float32 [Q, D], unit rows.
        own: int64 [Q], a row that is never the query's neighbour; -1: none.
        k: K.
        allowed: bool [N], which rows may be neighbours.

    Returns:
        Row numbers int64 and similarities float32, both [Q, K], -1 and 0 where absent.
    """
    rows = np.full((len(queries), k), ABSENT, dtype=np.int64)
    similarity = np.zeros((len(queries), k), dtype=np.float32)
    for first in range(0, len(queries), _QUERY_BLOCK):
        part = slice(first, first + _QUERY_BLOCK)
        _search_block(store, state, queries[part], own[part], allowed, rows[part], similarity[part])
    return rows, similarity


def _search_block(
    store: Store,
    state: State,
    queries: np.ndarray,
    own: np.ndarray,
    allowed: np.ndarray,
    rows: np.ndarray,
    similarity: np.ndarray,
) -> None:
    """Fill `rows` and `similarity` [Q, K]."""
    k = rows.shape[1]
    open_lines, depth = np.arange(len(queries)), k + 1 + _MARGIN
    while len(open_lines):
        found = store.candidates(queries[open_lines], depth, state, allowed)
        near = _similarity(store, state, queries[open_lines], found)
        keep = (found != ABSENT) & (found != own[open_lines, None])
        keep &= allowed[found] if len(allowed) else keep
        order = np.lexsort((found, -near, ~keep), axis=1)[:, :k]
        best, there, value = (np.take_along_axis(array, order, axis=1) for array in (found, keep, near))
        width = best.shape[1]  # fewer than K where the backend gives no more
        rows[open_lines, :width] = np.where(there, best, ABSENT)
        similarity[open_lines, :width] = np.where(there, value, 0)
        exhausted = (found == ABSENT).any(axis=1) | (found.shape[1] < depth)
        settled = there[:, -1] & (value[:, -1] > near.min(axis=1) + _ROUNDING)
        open_lines = open_lines[~(exhausted | settled)]
        depth *= 2


def _similarity(store: Store, state: State, queries: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Cosines float32 [Q, depth] of unit queries and candidates, always computed in one way; −1 where absent."""
    unique, place = np.unique(found, return_inverse=True)
    known = unique != ABSENT
    vectors = np.zeros((len(unique), queries.shape[1]))
    if known.any():
        vectors[known] = store.unit_vectors(state, unique[known])
    place = place.reshape(found.shape)
    near = np.empty(found.shape, np.float32)
    for line, query in enumerate(queries.astype(np.float64)):
        near[line] = np.einsum("cd,d->c", vectors[place[line]], query).clip(-1, 1)
    return np.where(found == ABSENT, np.float32(-1), near)
