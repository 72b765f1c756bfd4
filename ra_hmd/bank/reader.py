"""Reading and searching an example bank.

Shapes: N rows of a version, Q queries, D embedding, K neighbours, C classes.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self, cast

import numpy as np

from ra_hmd.bank.backends.base import BankBackend, ViewBackend
from ra_hmd.bank.identical import decided_rows, rows_by_content
from ra_hmd.bank.versions import BankState, Change, VersionEntry, no_labels
from ra_hmd.core.artifacts import plain
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import ViewDescription
from ra_hmd.core.problem import Problem
from ra_hmd.retrieval.distinct_vectors import ABSENT
from ra_hmd.retrieval.embeddings import EMBEDDING, Embeddings
from ra_hmd.retrieval.knn import Neighbours, as_matrix, unit_rows
from ra_hmd.retrieval.nearest import nearest_rows


class BankReader:
    """An open example bank at one version. One thread at a time searches it; others wait.

    Attributes:
        location: Folder, file or address.
        problem: What labels mean.
        dimension: D.
        fingerprint: The LMM, adapter, prompt and head that made the embeddings.
        views: Further views of the rows that the bank keeps, by name.
        log: Entries of all versions up to this one, oldest first.
    """

    def __init__(self, backend: BankBackend) -> None:
        self._backend = backend
        self.location = backend.location
        settings = backend.settings
        self.problem = Problem(settings.problem.kind, settings.problem.outputs)
        self.dimension = settings.dimension
        self.fingerprint: dict[str, Any] = plain(settings.fingerprint)
        self.views: dict[str, ViewDescription] = settings.views
        self.log: list[VersionEntry] = []
        self._state = BankState.start(no_labels(self.problem))
        self._changes: list[Change] = []
        self._ids: list[str] = []
        self._row_of: dict[str, int] = {}
        self._decided: dict[str, int] | None = None  # content → decided row, computed on demand
        self._lock = threading.RLock()
        self.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close files and connections."""
        self._backend.close()

    def refresh(self) -> int:
        """Move to the newest version, and return it."""
        with self._lock:
            current = self._state.version
            newest = self._backend.newest(current)
            if newest > current or not current:
                self._apply(self._backend.read(current + 1, newest))
            return self._state.version

    def _apply(self, versions: list[tuple[VersionEntry, Change]]) -> None:
        """Move on by some versions."""
        before, self._state = self._state, self._state.after(change for _, change in versions)
        self._changes = [*self._changes, *(change for _, change in versions)]
        self.log = [*self.log, *(entry for entry, _ in versions)]
        if before.version and not any(len(change.removed) or len(change.restored) for _, change in versions):
            first = len(before.rows)  # all rows stay, and new ones follow them
            new = self._state.rows.ids[first:]
            self._ids = [*self._ids, *new]
            self._row_of |= {name: first + i for i, name in enumerate(new)}
        else:
            self._ids = self._state.ids
            self._row_of = dict(zip(self._ids, self._state.members.tolist(), strict=True))
        self._decided = None

    @property
    def version(self) -> int:
        """The version that is shown."""
        return self._state.version

    def newest(self) -> int:
        """The newest version, without moving to it; does not wait for searches and changes."""
        return self._backend.newest(self._state.version)

    @property
    def ids(self) -> list[str]:
        """N ids, in the order in which the memes were added."""
        return self._ids

    @property
    def labels(self) -> np.ndarray:
        """Labels of the rows: int64 [N] or [N, C]."""
        return self._state.labels

    def __len__(self) -> int:
        return len(self._state.members)

    def row(self, position: int) -> dict[str, Any]:
        """The meme at a position in `ids`: `id`, `label`, `source`, `note`, `time`, `image_hash`."""
        return self._state.row(int(self._state.members[position]))

    def changes(self) -> list[tuple[VersionEntry, Change]]:
        """The log entries of all versions up to this one, each with its change, oldest first."""
        with self._lock:
            return list(zip(self.log, self._changes, strict=True))

    def info(self) -> dict[str, Any]:
        """Size, classes, fingerprint, last change and facts of the backend."""
        with self._lock:
            self._backend.candidates(self._state)  # `describe` states the index
            counts = self.problem.membership(self.labels).sum(axis=0).tolist()
            if self.problem.kind == "binary":
                counts = [len(self) - counts[0], counts[0]]
            return {
                "bank": str(self.location),
                "backend": self._backend.settings.backend,
                "version": self.version,
                "rows": len(self),
                "rows_per_class": counts,
                "decided_rows": int(self._state.rows.decided[self._state.members].sum()),
                "dimension": self.dimension,
                **({"views": {name: view.width for name, view in self.views.items()}} if self.views else {}),
                "problem": {"kind": self.problem.kind, "outputs": self.problem.outputs},
                "created": self._backend.settings.created,
                "changed": self.log[-1].time,
                "fingerprint": self.fingerprint,
                **self._backend.describe(),
            }

    def search(self, queries: Embeddings, k: int = 20) -> list[list[dict[str, Any]]]:
        """For each query its K nearest rows, nearest first: `row` of each, and its `similarity`, the cosine.

        Raises:
            UserError: see `nearest`.
        """
        with self._lock:
            return self.neighbour_rows(self.nearest(queries, k))

    def neighbour_rows(self, neighbours: Neighbours) -> list[list[dict[str, Any]]]:
        """The rows and similarities of neighbours in this version, see `search`."""
        return [
            [
                self.row(position) | {"similarity": value}
                for position, value in zip(rows.tolist(), similarity.tolist(), strict=True)
                if position != ABSENT
            ]
            for rows, similarity in zip(neighbours.rows, neighbours.similarity, strict=True)
        ]

    def nearest(self, queries: Embeddings, k: int, *, state: BankState | None = None) -> Neighbours:
        """The K nearest rows of each query by cosine, as positions in `ids` and `labels`.

        A query's own id is left out. Similarities are computed again from the vectors of the candidates, and equal ones
        ordered by position, so all backends give the same result.

        Args:
            queries: Q queries.
            k: K.
            state: Another state of the same rows (`preview`); then positions refer to its rows.

        Raises:
            UserError: K below 1, another width than the bank's, values that are not finite.
        """
        if k < 1:
            raise UserError(f"K is {k}; at least one neighbour must be asked for.")
        embedding = as_matrix(queries.embedding, "queries")
        if embedding.shape[1] != self.dimension:
            raise UserError(
                f"The queries have {embedding.shape[1]} dimensions and {self.location} has {self.dimension}; embed "
                "both with the same head."
            )
        with self._lock:
            state, row_of = state or self._state, self._row_of
            if state is not self._state:
                row_of = dict(zip(state.ids, state.members.tolist(), strict=True))
            own = np.array([row_of.get(name, ABSENT) for name in queries.ids], dtype=np.int64)
            rows, similarity = nearest_rows(self._backend.candidates(state), unit_rows(embedding), k, own=own)
            positions = np.searchsorted(state.members, rows)
        return Neighbours(np.where(rows == ABSENT, ABSENT, positions), similarity)

    def decided_positions(self, contents: Sequence[str]) -> list[int | None]:
        """For each content hash the position of its decided row (`ra_hmd.bank.identical`), or None."""
        with self._lock:
            if self._decided is None:
                self._decided = decided_rows(self._state)
            rows = [self._decided.get(content) for content in contents]
            return [None if row is None else int(np.searchsorted(self._state.members, row)) for row in rows]

    def identical_positions(self, content: str) -> list[int]:
        """Positions of all rows with a content hash."""
        with self._lock:
            rows = rows_by_content(self._state, [content]).get(content, [])
            return np.searchsorted(self._state.members, rows).tolist()

    def state_at(self, version: int | None = None) -> BankState:
        """The state at an earlier version (default: the one that is shown).

        Raises:
            UserError: there is no such version.
        """
        if version is None or version == self.version:
            return self._state
        if not 1 <= version <= self.version:
            raise UserError(f"{self.location} has versions 1 to {self.version}, not {version}; see `ra-hmd bank log`.")
        return BankState.start(no_labels(self.problem)).after(self._changes[:version])

    def preview(self, changes: Sequence[Change]) -> BankState:
        """The state after changes without new rows, for `nearest`."""
        return replace(self._state.after(changes), version=self.version, origins=self._state.origins)

    def select(
        self, rows: np.ndarray, views: Sequence[str] | None = None, *, state: BankState | None = None
    ) -> Embeddings:
        """Rows at positions [M]: ids, labels, embeddings of unit length, as the index has them, and further views.

        Args:
            rows: Positions in `ids` and `labels`.
            views: Views that are needed, `embedding` or further ones; default: all that the bank keeps.
            state: Another state of the same rows; then positions refer to its rows.

        Raises:
            UserError: the bank does not keep a view.
        """
        names = self._kept_views([name for name in views if name != EMBEDDING] if views is not None else None)
        with self._lock:
            state = state or self._state
            numbers = state.members[rows]
            rising, back = np.unique(numbers, return_inverse=True)
            further = {
                name: cast(ViewBackend, self._backend).view(state, rising, name)[back.reshape(-1)] for name in names
            }
            ids, labels = [state.rows.ids[row] for row in numbers.tolist()], state.rows.labels[numbers]
            return Embeddings(ids, labels, self._backend.candidates(state).row_vectors(numbers), views=further)

    def to_embeddings(self, version: int | None = None, views: Sequence[str] | None = None) -> Embeddings:
        """The bank in memory, at this or an earlier version: ids, labels, embeddings as the head computed them.

        Args:
            version: Default: the version that is shown.
            views: Further views to read; default: all that the bank keeps.

        Raises:
            UserError: there is no such version, or no such view.
        """
        names = self._kept_views(views)
        with self._lock:
            state = self.state_at(version)
            further = {name: cast(ViewBackend, self._backend).view(state, state.members, name) for name in names}
            embedding = self._backend.embeddings(state, state.members)
            return Embeddings(state.ids, state.labels, embedding, views=further)

    def _kept_views(self, views: Sequence[str] | None) -> list[str]:
        """The named views, or all that the bank keeps. Raises `UserError` for one that it does not keep."""
        names = list(self.views) if views is None else list(views)
        unknown = [f"view {name!r}" for name in names if name not in self.views]
        have = f"it keeps {', '.join(self.views)}" if self.views else "it keeps none"
        remedy = "name them when it is created, `ra-hmd bank create … --views NAME`"
        raise_all(unknown, f"{self.location} does not keep these ({have}); {remedy}")
        return names
