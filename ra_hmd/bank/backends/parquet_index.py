"""The search index of a bank in a folder: kept in memory, and beside the data where building it takes long.

Shapes: N rows ever added, Q queries, D embedding, M rows in the index.
"""

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout

from ra_hmd.bank.versions import BankState
from ra_hmd.core.artifacts import atomic_path, read_json, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.retrieval.distinct_vectors import ABSENT, DistinctVectors, VectorRows
from ra_hmd.retrieval.index import RECALL_SAMPLE, SearchIndex, build_index, resolve_kind, sample_rows
from ra_hmd.retrieval.knn import unit_rows
from ra_hmd.retrieval.nearest import CandidateIndex

_POINTER = "index.json"
_STALE_GROWTH, _STALE_DEAD = 2.0, 0.5
_FEW_DEAD, _STALE_SHARE = 64, 0.02  # points without a row that an exhaustive index may hold
_RETUNE = 0.05  # share of rows that came or went since the recall was measured
_BLOCK = 65_536


class FaissSearch:
    """An index over the rows of a state that follows the bank: new rows are appended, equal vectors are held once.

    Points that no row of the state has any more stay in the index, where they are not looked at, until they are too
    many. `ivf` and `hnsw` are built anew when the bank has doubled or half of the points are gone; they are written to
    `cache/`, and read from there by the next process. Their recall is measured again, and they look more widely, when a
    twentieth of the rows has come or gone. It is the recall of queries like the rows of the index.
    """

    def __init__(
        self, cache: Path, settings: Mapping[str, Any], embeddings: Callable[[BankState, np.ndarray], np.ndarray]
    ) -> None:
        """
        Args:
            cache: Folder for an index that takes long to build; created when one is written.
            settings: Settings of the bank: `index`, `dimension`, `seed`, `recall_target`.
            embeddings: Reads float32 [M, D], the embeddings of the given row numbers of a state.
        """
        self._cache, self._settings, self._embeddings = cache, settings, embeddings
        self._index: SearchIndex | None = None
        self._points = DistinctVectors()
        self._rows = np.zeros(0, np.int64)  # row numbers that the index knows …
        self._point = np.zeros(0, np.int64)  # … and the point of each
        self._state: BankState | None = None  # what the index was prepared for, …
        self._searched: CandidateIndex | None = None  # … and how it is searched
        self._built = 0  # how many rows the index was built from
        self._tuned = np.zeros(0, np.int64)  # row numbers that there were when the recall was measured

    def prepare(self, state: BankState) -> CandidateIndex:
        """Make the index hold every row of the state; free where it does already."""
        if state is self._state and self._searched is not None:
            return self._searched
        self._state = None  # until all below has worked
        kind = resolve_kind(self._settings["index"], int(state.alive.sum()))
        if kind != "flat" and not state.alive.any():
            kind = "flat"
        if self._index is None and kind != "flat":
            self._load()
        if self._index is None or self._stale(kind, state):
            self._build(kind, state)
        elif kind == "flat":
            self._compact(state)
        held = np.zeros(len(state.alive), bool)
        held[self._rows] = True
        missing = np.flatnonzero(state.alive & ~held)
        for first in range(0, len(missing), _BLOCK):
            self._add(state, missing[first : first + _BLOCK])
        members = VectorRows.of(self._point_of(state), len(self._points), state.alive)
        mask = members.counts > 0
        now = np.flatnonzero(state.alive)
        if kind != "flat" and len(np.setxor1d(now, self._tuned)) > _RETUNE * len(self._tuned):
            self._tune(state, mask)
        self._state, self._searched = (
            state,
            CandidateIndex(partial(self._candidates, mask), self._index.vectors, members),
        )
        return self._searched

    def _add(self, state: BankState, rows: np.ndarray) -> None:
        """Let the index hold further rows of a state."""
        vectors = unit_rows(self._embeddings(state, rows))
        point, new = self._points.number(vectors)
        self._index.add(vectors[new])
        self._rows, self._point = np.concatenate([self._rows, rows]), np.concatenate([self._point, point])

    def _point_of(self, state: BankState) -> np.ndarray:
        """int64 [N], the point of each row number; -1 where the index does not hold it."""
        point = np.full(len(state.alive), ABSENT)
        point[self._rows] = self._point
        return point

    def _stale(self, kind: str, state: BankState) -> bool:
        if self._index.kind != kind or (len(self._rows) and self._rows.max() >= len(state.alive)):
            return True
        if kind == "flat":
            return False
        dead = 1 - state.alive[self._rows].mean()
        return bool(dead > _STALE_DEAD or state.alive.sum() > _STALE_GROWTH * self._built)

    def _compact(self, state: BankState) -> None:
        """Let go of points that no row of the state has, once they are many: a search would have to pass over them."""
        kept = state.alive[self._rows]
        used = np.zeros(len(self._points), bool)
        used[self._point[kept]] = True
        if (~used).sum() <= max(_FEW_DEAD, _STALE_SHARE * len(used)):
            return
        points = np.flatnonzero(used)
        number = np.full(len(used), ABSENT)
        number[points] = np.arange(len(points))
        self._index = build_index(self._index.vectors(points), kind="flat")
        self._points = DistinctVectors(self._points.hashes[points])
        self._rows, self._point = self._rows[kept], number[self._point[kept]]

    def _build(self, kind: str, state: BankState) -> None:
        self._points, self._rows, self._point = DistinctVectors(), self._rows[:0], self._point[:0]
        if kind == "flat":
            width = self._settings["dimension"]
            self._index = build_index(np.zeros((0, width), np.float32), kind="flat")
            return
        self._rows = self._tuned = np.flatnonzero(state.alive)
        self._built = len(self._rows)
        settings = self._settings
        vectors = unit_rows(self._embeddings(state, self._rows))
        self._point, new = self._points.number(vectors)
        self._index = build_index(
            vectors[new],
            kind=kind,
            seed=settings["seed"],
            recall_target=settings["recall_target"],
        )
        self._save()

    def _tune(self, state: BankState, allowed: np.ndarray) -> None:
        """Measure the recall of queries like any point that the index holds, also of those without a row."""
        settings = self._settings
        sample = sample_rows(np.random.default_rng(settings["seed"]), len(self._points), RECALL_SAMPLE)
        queries = self._index.vectors(sample)
        self._index.tune(settings["recall_target"], queries, own=allowed[sample], allowed=allowed)
        self._tuned = np.flatnonzero(state.alive)

    def _candidates(self, allowed: np.ndarray, queries: np.ndarray, depth: int) -> np.ndarray:
        """Points int64 [Q, depth], the most similar ones; -1 where absent. `flat` gives also those not allowed."""
        return self._index.search(queries, depth, allowed=None if self._index.kind == "flat" else allowed)[0]

    def describe(self) -> dict[str, Any]:
        """Kind, measured recall@20 and rows of the index."""
        if self._index is None:
            return {}
        return {"index": self._index.kind, "recall_at_20": self._index.recall, "indexed_rows": len(self._rows)}

    def _save(self) -> None:
        """Keep the index for the next process; files that are named first, then the one that names them.

        Where the folder is read-only, or another process is saving, nothing is kept.
        """
        cache = self._cache
        try:
            cache.mkdir(exist_ok=True)
            with FileLock(cache / ".lock", timeout=0):
                name = secrets.token_hex(8)
                with atomic_path(cache / f"{name}.faiss") as temporary:
                    self._index.save(temporary)
                with atomic_path(cache / f"{name}.npz") as temporary, temporary.open("wb") as file:
                    np.savez(file, rows=self._rows, point=self._point, hashes=self._points.hashes)
                about = {"name": name, "kind": self._index.kind, "recall": self._index.recall, "built": self._built}
                write_json(cache / _POINTER, about)
                for path in cache.glob("*.*"):
                    if path.suffix in (".faiss", ".npz", ".npy") and path.stem != name:
                        path.unlink(missing_ok=True)
        except (OSError, Timeout):  # read-only, full, or in use: the index in memory is whole all the same
            return

    def _load(self) -> None:
        """Read what `_save` kept, if it is there whole."""
        cache = self._cache
        try:
            about = read_json(cache / _POINTER)
            with np.load(cache / f"{about.name}.npz", allow_pickle=False) as file:
                rows, point, points = file["rows"], file["point"], DistinctVectors(file["hashes"])
            index = SearchIndex.load(cache / f"{about.name}.faiss", about.kind, "ip", about.recall)
        except (UserError, OSError, ValueError, RuntimeError, KeyError, BadZipFile):
            return  # not there, replaced meanwhile, or of an earlier version: it is built again
        if len(index) == len(points) and len(rows) == len(point):
            self._index, self._points, self._rows, self._point = index, points, rows, point
            self._tuned, self._built = rows, about.built
