"""The FAISS index of a bank in a folder: kept in memory, and cached on disk where building it takes long.

Shapes: N rows ever added, Q queries, D embedding, M rows of the index, P distinct vectors.
"""

import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout

from ra_hmd.bank.versions import BankState
from ra_hmd.core.artifacts import atomic_path, read_json, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import BankManifest
from ra_hmd.retrieval.distinct_vectors import ABSENT, DistinctVectors, VectorRows
from ra_hmd.retrieval.index import RECALL_SAMPLE, ResolvedKind, SearchIndex, build_index, resolve_kind, sample_rows
from ra_hmd.retrieval.knn import unit_rows
from ra_hmd.retrieval.nearest import CandidateIndex

_POINTER = "index.json"
_STALE_GROWTH, _STALE_DEAD = 2.0, 0.5
_FEW_UNUSED, _UNUSED_SHARE = 64, 0.02  # vectors without a row that an exhaustive index may hold
_RETUNE = 0.05  # share of rows added or removed since recall was measured
_BLOCK = 65_536


class ParquetIndex:
    """An index over the rows of a bank that follows its versions: new rows are appended, equal vectors stored once.

    Vectors that no row of the state has any more stay in the index, masked, until there are too many. `ivf` and `hnsw`
    are rebuilt when the bank has doubled or half of the rows are gone. They are written to `cache/`, where the next
    process reads them. Their recall is measured again, and their search widened, when a twentieth of the rows has been
    added or removed. It is the recall of queries like the rows of the index.
    """

    def __init__(
        self, cache: Path, settings: BankManifest, embeddings: Callable[[BankState, np.ndarray], np.ndarray]
    ) -> None:
        """
        Args:
            cache: Folder for an index that takes long to build; created when one is written.
            settings: The manifest of the bank.
            embeddings: Reads float32 [M, D], the embeddings of the given row numbers of a state.
        """
        self._cache, self._settings, self._embeddings = cache, settings, embeddings
        self._index: SearchIndex | None = None
        self._vectors = DistinctVectors()
        self._rows = np.zeros(0, np.int64)  # row numbers in the index …
        self._point = np.zeros(0, np.int64)  # … and the vector of each
        self._prepared: tuple[BankState, CandidateIndex] | None = None
        self._built = 0  # number of rows that the index was built from
        self._tuned = np.zeros(0, np.int64)  # row numbers when recall was measured

    def prepare(self, state: BankState) -> CandidateIndex:
        """Update the index to hold every row of the state, and return how it is searched."""
        if self._prepared is not None and self._prepared[0] is state:
            return self._prepared[1]
        self._prepared = None  # until all below has worked
        kind = resolve_kind(self._settings.index, int(state.alive.sum()))
        if kind != "flat" and not state.alive.any():
            kind = "flat"
        if self._index is None and kind != "flat":
            self._load()
        index = self._index
        if index is None or self._is_stale(index, kind, state):
            index = self._build(kind, state)
        elif kind == "flat":
            index = self._compact(index, state)
        self._index = index
        held = np.zeros(len(state.alive), bool)
        held[self._rows] = True
        missing = np.flatnonzero(state.alive & ~held)
        for first in range(0, len(missing), _BLOCK):
            self._add(index, state, missing[first : first + _BLOCK])
        members = VectorRows.of(self._point_of(state), len(self._vectors), state.alive)
        mask = members.counts > 0
        # Rows that were added or removed since; all tuned ones are in the index, so the state knows their numbers.
        changed = len(state.members) + len(self._tuned) - 2 * int(state.alive[self._tuned].sum())
        if kind != "flat" and changed > _RETUNE * len(self._tuned):
            self._tune(index, state, mask)
        candidates = CandidateIndex(partial(_candidates, index, mask), index.vectors, members)
        self._prepared = state, candidates
        return candidates

    def _add(self, index: SearchIndex, state: BankState, rows: np.ndarray) -> None:
        """Add further rows of a state."""
        vectors = unit_rows(self._embeddings(state, rows))
        point, new = self._vectors.number(vectors)
        index.add(vectors[new])
        self._rows, self._point = np.concatenate([self._rows, rows]), np.concatenate([self._point, point])

    def _point_of(self, state: BankState) -> np.ndarray:
        """int64 [N], the vector of each row number; -1 where the index does not hold the row."""
        point = np.full(len(state.alive), ABSENT)
        point[self._rows] = self._point
        return point

    def _is_stale(self, index: SearchIndex, kind: ResolvedKind, state: BankState) -> bool:
        if index.kind != kind or (len(self._rows) and self._rows.max() >= len(state.alive)):
            return True
        if kind == "flat":
            return False
        dead = 1 - state.alive[self._rows].mean()
        return bool(dead > _STALE_DEAD or state.alive.sum() > _STALE_GROWTH * self._built)

    def _compact(self, index: SearchIndex, state: BankState) -> SearchIndex:
        """Drop vectors that no row of the state has, once there are many: each search would pass over them."""
        kept = state.alive[self._rows]
        used = np.zeros(len(self._vectors), bool)
        used[self._point[kept]] = True
        if (~used).sum() <= max(_FEW_UNUSED, _UNUSED_SHARE * len(used)):
            return index
        points = np.flatnonzero(used)
        number = np.full(len(used), ABSENT)
        number[points] = np.arange(len(points))
        self._vectors = DistinctVectors(self._vectors.hashes[points])
        self._rows, self._point = self._rows[kept], number[self._point[kept]]
        return build_index(index.vectors(points), kind="flat")

    def _build(self, kind: ResolvedKind, state: BankState) -> SearchIndex:
        self._vectors, self._rows, self._point = DistinctVectors(), self._rows[:0], self._point[:0]
        settings = self._settings
        if kind == "flat":
            return build_index(np.zeros((0, settings.dimension), np.float32), kind="flat")
        self._rows = self._tuned = state.members
        self._built = len(self._rows)
        vectors = unit_rows(self._embeddings(state, self._rows))
        self._point, new = self._vectors.number(vectors)
        index = build_index(vectors[new], kind=kind, seed=settings.seed, recall_target=settings.recall_target)
        self._save(index)
        return index

    def _tune(self, index: SearchIndex, state: BankState, allowed: np.ndarray) -> None:
        """Measure recall on vectors of the index, those without a row among them."""
        settings = self._settings
        sample = sample_rows(np.random.default_rng(settings.seed), len(self._vectors), RECALL_SAMPLE)
        index.tune(settings.recall_target, index.vectors(sample), own=allowed[sample], allowed=allowed)
        self._tuned = state.members

    def describe(self) -> dict[str, Any]:
        """Kind, measured recall@20 and number of rows of the index."""
        if self._index is None:
            return {}
        return {"index": self._index.kind, "recall_at_20": self._index.recall, "indexed_rows": len(self._rows)}

    def _save(self, index: SearchIndex) -> None:
        """Write the index for the next process: first its files, then the pointer to them.

        Nothing is written where the folder is read-only, or another process is writing.
        """
        cache = self._cache
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / ".lock", timeout=0):
                name = secrets.token_hex(8)
                with atomic_path(cache / f"{name}.faiss") as temporary:
                    index.save(temporary)
                with atomic_path(cache / f"{name}.npz") as temporary, temporary.open("wb") as file:
                    np.savez(file, rows=self._rows, point=self._point, hashes=self._vectors.hashes)
                about = {"name": name, "kind": index.kind, "recall": index.recall, "built": self._built}
                write_json(cache / _POINTER, about)
                for path in cache.glob("*.*"):
                    if path.suffix in (".faiss", ".npz", ".npy") and path.stem != name:
                        path.unlink(missing_ok=True)
        except (OSError, Timeout):  # read-only, full or in use: the index in memory does not need it
            return

    def _load(self) -> None:
        """Read what `_save` wrote, if it is complete."""
        cache = self._cache
        try:
            about = read_json(cache / _POINTER)
            with np.load(cache / f"{about['name']}.npz", allow_pickle=False) as file:
                rows, point, vectors = file["rows"], file["point"], DistinctVectors(file["hashes"])
            index = SearchIndex.load(cache / f"{about['name']}.faiss", about["kind"], "ip", about["recall"])
            built = about["built"]
        except (UserError, OSError, ValueError, RuntimeError, KeyError, BadZipFile):
            return  # missing, replaced meanwhile, or of an earlier release: it is built again
        if len(index) == len(vectors) and len(rows) == len(point):
            self._index, self._vectors, self._rows, self._point = index, vectors, rows, point
            self._tuned, self._built = rows, built


def _candidates(index: SearchIndex, allowed: np.ndarray, queries: np.ndarray, depth: int) -> np.ndarray:
    """The most similar vectors, int64 [Q, depth]; -1 where absent. `flat` also returns those not allowed."""
    return index.search(queries, depth, allowed=None if index.kind == "flat" else allowed)[0]
