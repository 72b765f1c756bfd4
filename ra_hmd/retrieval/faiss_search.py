"""The search index of a bank in a folder: kept in memory, and beside the data where building it takes long.

Shapes: N rows ever added, Q queries, D embedding, M rows in the index.
"""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from ra_hmd.errors import UserError
from ra_hmd.manifest import atomic_path, read_json, write_json
from ra_hmd.retrieval.index import RECALL_SAMPLE, SearchIndex, build_index, choose, resolve_kind
from ra_hmd.retrieval.knn import ABSENT, unit_rows
from ra_hmd.retrieval.state import State

if TYPE_CHECKING:
    from ra_hmd.retrieval.folder_store import FolderStore

_POINTER = "index.json"
_STALE_GROWTH, _STALE_DEAD = 2.0, 0.5
_RETUNE = 0.05  # share of rows that came or went since the recall was measured
_BLOCK = 65_536


class FaissSearch:
    """An index over the rows of a state that follows the bank: new rows are appended.

    `flat` holds exactly the rows of the state. `ivf` and `hnsw` keep removed rows, which a mask hides, until the bank
    has doubled or half of the rows are gone; they are written to `cache/`, and read from there by the next process.
    Their recall is measured again, and they look more widely, when a twentieth of the rows has come or gone. It is
    the recall of queries like the rows of the index.
    """

    def __init__(self, store: "FolderStore") -> None:
        self._store = store
        self._index: SearchIndex | None = None
        self._rows = np.zeros(0, np.int64)  # row number of each place in the index …
        self._place = np.zeros(0, np.int64)  # … and place of each row number
        self._state: State | None = None  # what the index was prepared for, …
        self._mask = np.zeros(0, bool)  # … and which places hold a row of it
        self._built = 0  # how many rows the index was built from
        self._tuned = np.zeros(0, np.int64)  # row numbers that there were when the recall was measured

    def prepare(self, state: State) -> None:
        """Make the index hold every row of the state; free where it does already."""
        if state is self._state:
            return
        self._state = None  # until all below has worked
        kind = resolve_kind(self._store.settings["index"], int(state.alive.sum()))
        if kind != "flat" and not state.alive.any():
            kind = "flat"
        if self._index is None and kind != "flat":
            self._load()
        if self._index is None or self._stale(kind, state):
            self._build(kind, state)
        elif kind == "flat" and not state.alive[self._rows].all():
            keep = np.flatnonzero(state.alive[self._rows])
            self._index = build_index(self._index.vectors(keep), kind="flat")
            self._rows = self._rows[keep]
        held = np.zeros(len(state.alive), bool)
        held[self._rows] = True
        missing = np.flatnonzero(state.alive & ~held)
        for first in range(0, len(missing), _BLOCK):
            block = missing[first : first + _BLOCK]
            self._index.add(unit_rows(self._store.embeddings(state, block)))
            self._rows = np.concatenate([self._rows, block])
        self._place = np.full(len(state.alive), ABSENT)
        self._place[self._rows] = np.arange(len(self._rows))
        now = np.flatnonzero(state.alive)
        if kind != "flat" and len(np.setxor1d(now, self._tuned)) > _RETUNE * len(self._tuned):
            self._tune(state)
        self._state, self._mask = state, state.alive[self._rows]

    def _stale(self, kind: str, state: State) -> bool:
        if self._index.kind != kind or (len(self._rows) and self._rows.max() >= len(state.alive)):
            return True
        if kind == "flat":
            return False
        dead = 1 - state.alive[self._rows].mean()
        return bool(dead > _STALE_DEAD or state.alive.sum() > _STALE_GROWTH * self._built)

    def _build(self, kind: str, state: State) -> None:
        if kind == "flat":
            width = self._store.settings["dimension"]
            self._index, self._rows = build_index(np.zeros((0, width), np.float32), kind="flat"), self._rows[:0]
            return
        self._rows = self._tuned = np.flatnonzero(state.alive)
        self._built = len(self._rows)
        settings = self._store.settings
        self._index = build_index(
            unit_rows(self._store.embeddings(state, self._rows)),
            kind=kind,
            seed=settings["seed"],
            recall_target=settings["recall_target"],
        )
        self._save()

    def _tune(self, state: State) -> None:
        """Measure the recall of queries like any row that the index holds, also of removed ones."""
        settings, allowed = self._store.settings, state.alive[self._rows]
        sample = choose(np.random.default_rng(settings["seed"]), len(self._rows), RECALL_SAMPLE)
        queries = self._index.vectors(sample)
        self._index.tune(settings["recall_target"], queries, own=allowed[sample], allowed=allowed)
        self._tuned = np.flatnonzero(state.alive)

    def candidates(self, queries: np.ndarray, depth: int, allowed: np.ndarray) -> np.ndarray:
        """Row numbers int64 [Q, depth] of the most similar allowed rows; -1 where absent."""
        mask = self._mask if allowed is self._state.alive else allowed[self._rows]
        places, _ = self._index.search(queries, depth, allowed=None if self._index.kind == "flat" else mask)
        if not len(self._rows):
            return places
        return np.where(places < 0, ABSENT, self._rows[places])

    def unit_vectors(self, rows: np.ndarray) -> np.ndarray:
        """float32 [M, D] of row numbers [M]."""
        return self._index.vectors(self._place[rows])

    def describe(self) -> dict[str, Any]:
        """Kind, measured recall@20 and rows of the index."""
        if self._index is None:
            return {}
        return {"index": self._index.kind, "recall_at_20": self._index.recall, "indexed_rows": len(self._index)}

    def _cache(self) -> Path:
        from ra_hmd.retrieval.folder_store import CACHE

        return self._store.place / CACHE

    def _save(self) -> None:
        """Keep the index for the next process; files that are named first, then the one that names them.

        Where the folder is read-only, or another process is saving, nothing is kept.
        """
        cache = self._cache()
        try:
            cache.mkdir(exist_ok=True)
            with FileLock(cache / ".lock", timeout=0):
                name = secrets.token_hex(8)
                with atomic_path(cache / f"{name}.faiss") as temporary:
                    self._index.save(temporary)
                with atomic_path(cache / f"{name}.npy") as temporary, temporary.open("wb") as file:
                    np.save(file, self._rows)
                about = {"name": name, "kind": self._index.kind, "recall": self._index.recall, "built": self._built}
                write_json(cache / _POINTER, about)
                for path in cache.glob("*.*"):
                    if path.suffix in (".faiss", ".npy") and path.stem != name:
                        path.unlink(missing_ok=True)
        except (OSError, Timeout):  # read-only, full, or in use: the index in memory is whole all the same
            return

    def _load(self) -> None:
        """Read what `_save` kept, if it is there whole."""
        cache = self._cache()
        try:
            about = read_json(cache / _POINTER)
            rows = np.load(cache / f"{about.name}.npy", allow_pickle=False)
            index = SearchIndex.load(cache / f"{about.name}.faiss", about.kind, "ip", about.recall)
        except (UserError, OSError, ValueError, RuntimeError):  # not there, or replaced meanwhile: it is built again
            return
        if len(index) == len(rows):
            self._index, self._rows, self._tuned, self._built = index, rows, rows, about.built
