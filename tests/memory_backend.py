"""A bank backend that keeps its versions in a dictionary: what adding a backend takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.bank.backends.base import BackendSpec, register_backend
from ra_hmd.bank.versions import BankState, Change, VersionEntry
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import BankManifest
from ra_hmd.retrieval.distinct_vectors import ABSENT, VectorRows
from ra_hmd.retrieval.knn import unit_rows
from ra_hmd.retrieval.nearest import CandidateIndex

_BANKS: dict[str, tuple[BankManifest, list[tuple[VersionEntry, Change]], list[np.ndarray]]] = {}


class MemoryBackend:
    """A bank `memory://NAME`, which lives as long as the process."""

    def __init__(self, location: str | Path, wait: float = 60.0, **options: Any) -> None:
        self.location = location
        if str(location) not in _BANKS:
            raise UserError(f"{location} is not an example bank; create it first.")
        self.settings, self._versions, self._blocks = _BANKS[str(location)]

    @classmethod
    def create(
        cls,
        location: str | Path,
        settings: BankManifest,
        entry: VersionEntry,
        change: Change,
        embedding: np.ndarray,
        **options: Any,
    ) -> None:
        if str(location) in _BANKS:
            raise UserError(f"{location} holds a bank already; choose another name.")
        _BANKS[str(location)] = settings, [(entry, change)], [embedding]

    @contextmanager
    def writing(self) -> Iterator[None]:
        yield

    def newest(self, known: int) -> int:
        return len(self._versions)

    def read(self, first: int, last: int) -> list[tuple[VersionEntry, Change]]:
        return self._versions[first - 1 : last]

    def write(self, entry: VersionEntry, change: Change, embedding: np.ndarray | None, first: int) -> None:
        self._versions.append((entry, change))
        self._blocks.append(np.zeros((0, self.settings.dimension), np.float32) if embedding is None else embedding)

    def embeddings(self, state: BankState, rows: np.ndarray) -> np.ndarray:
        return np.concatenate(self._blocks)[rows]

    def candidates(self, state: BankState) -> CandidateIndex:
        vectors = unit_rows(np.concatenate(self._blocks))

        def propose(queries: np.ndarray, depth: int) -> np.ndarray:
            similarity = np.where(state.alive, queries @ vectors[: len(state.alive)].T, -np.inf)
            order = np.argsort(-similarity, axis=1, kind="stable")[:, :depth]
            found = np.where(np.take_along_axis(similarity, order, axis=1) == -np.inf, ABSENT, order)
            return np.pad(found, ((0, 0), (0, depth - found.shape[1])), constant_values=ABSENT)

        return CandidateIndex(propose, lambda rows: vectors[rows], VectorRows.single(state.alive))

    def describe(self) -> dict[str, Any]:
        return {"index": "none"}

    def close(self) -> None:
        pass


register_backend(
    BackendSpec(
        "memory",
        accepts=lambda location: location.startswith("memory://"),
        is_bank=lambda location: location in _BANKS,
        load=lambda: MemoryBackend,
    )
)
