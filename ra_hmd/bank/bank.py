"""The example bank: labelled memes that vote, versioned, behind one interface for all storage backends.

    bank = Bank.open("banks/memes")                    # a folder (FAISS)
    bank = Bank.open("s3://bucket/banks/memes")        # the same on an object store
    bank = Bank.open("banks/memes.db")                 # a file (Milvus Lite)
    bank = Bank.open("http://localhost:19530#memes")   # a collection in a Milvus cluster

Shapes: N rows of a version, M rows to add, D embedding, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ra_hmd.bank.backends.base import ViewBackend, backend_class, backend_of
from ra_hmd.bank.identical import addition, check_one_label, relabelling
from ra_hmd.bank.reader import BankReader
from ra_hmd.bank.row_history import taking_back
from ra_hmd.bank.versions import (
    Action,
    BankRows,
    BankState,
    Change,
    VersionEntry,
    VersionTaken,
    check_entry,
    check_new,
    no_labels,
    now,
)
from ra_hmd.bank.views import chosen_views, new_vectors
from ra_hmd.core.artifacts import plain
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import BankManifest, ViewDescription
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.retrieval.index import IndexKind, resolve_kind

T = TypeVar("T")
_ATTEMPTS = 20
"""How often a change is planned at most, where other writers do not see the lock."""


class Bank(BankReader):
    """An open example bank that can be changed.

    Every change is a version with author, reason and time, and no version is ever lost. An open bank shows one version
    until `refresh` is called or it is changed through this object. One thread at a time searches or changes it; others
    wait. Close it with `close` or a `with` statement.
    """

    _is_writing = False  # whether the thread that holds `_lock` is inside `exclusively`

    @classmethod
    def open(cls, location: str | Path, *, wait: float = 60.0, **options: Any) -> "Bank":
        """Open a bank at its newest version.

        Args:
            location: A folder, `s3://bucket/path`, a file `….db`, or `http://host:port#name`.
            wait: Seconds to wait for other writers (Milvus Lite: for any other process).
            options: Options of the backend; `milvus`: `lock`, `token`.

        Raises:
            UserError: no bank there, or one of another format.
        """
        return cls(backend_class(backend_of(location))(location, wait=wait, **options))

    @classmethod
    def create(
        cls,
        location: str | Path,
        rows: BankRows,
        embedding: np.ndarray,
        *,
        fingerprint: Mapping[str, Any],
        author: str,
        reason: str,
        problem: Problem = BINARY,
        index: IndexKind = "auto",
        recall_target: float = 0.99,
        seed: int = 0,
        views: Mapping[str, np.ndarray] | None = None,
        view_origins: Mapping[str, ViewDescription] | None = None,
        wait: float = 60.0,
        **options: Any,
    ) -> "Bank":
        """Create a bank with its first rows, and open it.

        Args:
            location: See `open`; nothing may be there.
            rows: The first M memes; may be none.
            embedding: [M, D].
            fingerprint: What made the embeddings, see `ra_hmd.bank.embed_features`.
            author: Author of the first version.
            reason: Why.
            problem: What labels mean.
            index: Index of a folder, see `build_index`; Milvus has its own.
            recall_target: Lowest recall@20 of an approximate index.
            seed: Seed of the index.
            views: Further vectors [M, D_v] of the memes, which the bank keeps of every row. Only in a folder.
            view_origins: What made them, by name.
            wait: Seconds to wait for other processes.
            options: See `open`.

        Raises:
            UserError: see `add`; something is there already; a place that does not keep views.
        """
        check_entry(author, reason)
        resolve_kind(index, len(rows))
        if not 0 < recall_target <= 1:
            raise UserError(f"Recall {recall_target} is asked for, it must be in (0, 1].")
        embedding = check_new(rows, embedding, problem, np.asarray(embedding).shape[1])
        if rows.decided.any():
            check_one_label(rows)
        backend = backend_of(location)
        kept, vectors = _first_views(views or {}, view_origins or {}, rows, location)
        more = {"views": {name: view.to_json() for name, view in kept.items()}} if kept else {"format": 1}
        settings = BankManifest.new(
            backend=backend,
            dimension=embedding.shape[1],
            problem={"kind": problem.kind, "outputs": problem.outputs},
            fingerprint=plain(dict(fingerprint)),
            index=index,
            recall_target=recall_target,
            seed=seed,
            **more,
        )
        change = Change.of(no_labels(problem), added=rows)
        entry = VersionEntry(1, "create", author, reason, now(), change.counts(len(rows)))
        stored = {"views": vectors} if vectors else {}
        backend_class(backend).create(location, settings, entry, change, embedding, wait=wait, **stored, **options)
        return cls.open(location, wait=wait, **options)

    def add(
        self,
        rows: BankRows,
        embedding: np.ndarray,
        *,
        author: str,
        reason: str,
        relabel_identical: bool = False,
        views: Mapping[str, np.ndarray] | None = None,
    ) -> VersionEntry:
        """Add memes with embeddings [M, D], as a new version.

        Args:
            rows: The memes.
            embedding: Their embeddings.
            author: Author of the change.
            reason: Why.
            relabel_identical: Whether rows that are the same memes with other labels get the new ones.
            views: Further vectors [M, D_v] of the memes; those that the bank does not keep are left out.

        Raises:
            UserError: ids that are duplicate or in the bank, labels that are not the problem's, embeddings of another
                width or not finite, a missing view of a bank that keeps views; memes that the bank has with
                another label (`LabelConflictError`).
        """
        embedding = check_new(rows, embedding, self.problem, self.dimension)
        vectors = new_vectors(self.views, views or {}, len(rows), self.location)
        return self._commit("add", lambda: self.plan_add(rows, relabel_identical), author, reason, embedding, vectors)

    def plan_add(self, rows: BankRows, relabel_identical: bool = False, state: BankState | None = None) -> Change:
        """The change that `add` would make to this version, or to a `preview`."""
        return addition(state or self._state, rows, relabel_identical, self.location)

    def remove(self, ids: Sequence[str], *, author: str, reason: str) -> VersionEntry:
        """Remove memes by id, as a new version.

        Raises:
            UserError: ids that the bank does not have.
        """
        return self._commit("remove", lambda: self.plan_remove(ids), author, reason)

    def plan_remove(self, ids: Sequence[str]) -> Change:
        """The change that `remove` would make."""
        return Change.of(self._state.rows.labels, removed=np.unique(self._row_numbers(ids)))

    def relabel(
        self, labels: Mapping[str, Any], *, author: str, reason: str, relabel_identical: bool = False
    ) -> VersionEntry:
        """Give memes other labels, as a new version. Those that have the label already are left alone.

        Args:
            labels: Id to label.
            author: Author of the change.
            reason: Why.
            relabel_identical: Whether all rows of the same meme get its label.

        Raises:
            UserError: ids that the bank does not have, labels that are not the problem's; other rows of the same meme
                that would keep another label (`LabelConflictError`).
        """
        return self._commit("relabel", lambda: self.plan_relabel(labels, relabel_identical), author, reason)

    def plan_relabel(self, labels: Mapping[str, Any], relabel_identical: bool = False) -> Change:
        """The change that `relabel` would make."""
        numbers = self._row_numbers(list(labels))
        try:
            new = np.array(list(labels.values()), dtype=np.int64)
        except ValueError as error:
            raise UserError(f"The new labels do not fit {self.location}: {error}.") from error
        if not len(new):
            return Change.of(no_labels(self.problem))
        self.problem.check(new, "The new labels")
        return relabelling(self._state, numbers, new, relabel_identical, self.location)

    def rollback(self, version: int, *, author: str, reason: str) -> VersionEntry:
        """Restore the content of an earlier version, as a new version.

        Raises:
            UserError: no such version, or the bank has that content already.
        """
        return self._commit("rollback", lambda: self.plan_rollback(version), author, reason, restores=version)

    def plan_rollback(self, version: int) -> Change:
        """The change that `rollback` would make; empty where the bank has the content of that version."""
        return self._state.back_to(self.state_at(version))

    def take_back(self, name: str, version: int, *, author: str, reason: str) -> VersionEntry:
        """Take back what a version did to one row, and to other rows of the same meme, as a new version.

        Args:
            name: Id of the row.
            version: The version; it must be the last one that changed the row.
            author: Author of this change.
            reason: Why.

        Raises:
            UserError: the version did not change the row, or created the bank; the row was changed again since, or
                another row of the same meme would keep another label (`LabelConflictError`).
        """
        return self._commit("rollback", lambda: self.plan_take_back(name, version), author, reason)

    def plan_take_back(self, name: str, version: int) -> Change:
        """The change that `take_back` would make."""
        return taking_back(self, name, version)

    def exclusively(self, call: Callable[[], T]) -> T:
        """Run a call at the newest version while no other process writes, so that what it reads still holds when its
        change is written. Reentrant within a thread.

        Args:
            call: Reads, and makes at most one change. It is run again at the newest version where a writer that does
                not see the lock came first.

        Raises:
            BankInUse: another process was writing for as long as this one waits.
        """
        with self._lock:
            attempts = 1 if self._is_writing else _ATTEMPTS
            while True:
                attempts -= 1
                try:
                    return self._run_alone(call)
                except VersionTaken:
                    if not attempts:
                        raise

    def _run_alone(self, call: Callable[[], T]) -> T:
        if self._is_writing:
            return call()
        with self._backend.writing():
            self._is_writing = True
            try:
                self.refresh()
                return call()
            finally:
                self._is_writing = False

    def _row_numbers(self, ids: Sequence[str]) -> np.ndarray:
        missing = [f"id {name!r}" for name in ids if name not in self._row_of]
        raise_all(missing, f"{self.location} does not have these, at version {self.version}")
        return np.array([self._row_of[name] for name in ids], dtype=np.int64)

    def _commit(
        self,
        action: Action,
        plan: Callable[[], Change],
        author: str,
        reason: str,
        embedding: np.ndarray | None = None,
        views: Mapping[str, np.ndarray] | None = None,
        *,
        restores: int | None = None,
    ) -> VersionEntry:
        """Plan a change of the newest version and write it, excluding other writers."""
        check_entry(author, reason)

        def write() -> VersionEntry:
            change = plan()
            if change.empty:
                raise UserError(f"{self.location} would stay as it is at version {self.version}: nothing was changed.")
            rows = len(self) + len(change.added) - len(change.removed) + len(change.restored)
            entry = VersionEntry(self.version + 1, action, author, reason, now(), change.counts(rows), restores)
            stored = {"views": views} if views else {}
            self._backend.write(entry, change, embedding, len(self._state.rows), **stored)
            self._apply([(entry, change)])
            return entry

        return self.exclusively(write)


def _first_views(
    views: Mapping[str, np.ndarray], origins: Mapping[str, ViewDescription], rows: BankRows, location: str | Path
) -> tuple[dict[str, ViewDescription], dict[str, np.ndarray]]:
    """What a new bank states of its views, and their vectors."""
    backend = backend_of(location)
    if views and not issubclass(backend_class(backend), ViewBackend):
        raise UserError(
            f"{location}: backend {backend!r} keeps no views ({', '.join(views)}); give a folder, or leave them out."
        )
    kept = chosen_views(views, origins)
    return kept, new_vectors(kept, views, len(rows), location)
