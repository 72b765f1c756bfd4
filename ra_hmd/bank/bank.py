"""The example bank: labelled memes that vote, with a history, behind one protocol and two backends.

    bank = open_bank("banks/memes")                    # a folder (FAISS)
    bank = open_bank("banks/memes.db")                 # a file (Milvus Lite)
    bank = open_bank("http://localhost:19530#memes")   # a collection in a Milvus cluster

Every change is a version with author, reason and time, and no version is ever lost. An open bank shows one version
until `refresh` is called or it is changed through this object.

Shapes: N rows of a version, Q queries, D embedding, K neighbours, C classes.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.bank.backends.base import BankBackend
from ra_hmd.bank.backends.registry import backend_class, backend_of, is_bank  # noqa: F401 - imported from here by others
from ra_hmd.bank.identical import addition, check_one_label, decided_rows, relabelling, rows_with
from ra_hmd.bank.versions import Action, BankRows, BankState, Change, VersionEntry, check_entry, check_new
from ra_hmd.core.artifacts import plain, run_manifest
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.retrieval.distinct_vectors import ABSENT
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.index import IndexKind, resolve_kind
from ra_hmd.retrieval.knn import Neighbours, as_matrix, unit_rows
from ra_hmd.retrieval.nearest import nearest_rows

FORMAT = 1


class Bank:
    """An open bank. One thread at a time searches or changes it; others wait.

    Attributes:
        place: Folder or URI.
        problem: What labels mean.
        dimension: D.
        fingerprint: Which LMM, adapter, prompt and head made the embeddings.
        log: Entries of all versions up to this one, oldest first.
    """

    def __init__(self, store: BankBackend) -> None:
        self._store = store
        self.place = store.place
        settings = store.settings
        self.problem = Problem(**settings["problem"])
        self.dimension: int = settings["dimension"]
        self.fingerprint: dict[str, Any] = plain(settings["fingerprint"])
        self.log: list[VersionEntry] = []
        self._state = BankState.start(_label_shape(self.problem))
        self._changes: list[Change] = []
        self._alone = threading.RLock()
        self.refresh()

    def __enter__(self) -> "Bank":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of files and connections."""
        self._store.close()

    def refresh(self) -> int:
        """Go to the newest version; returns it."""
        with self._alone:
            known = self._state.version
            newest = self._store.newest(known)
            if newest > known or not known:
                self._follow(self._store.read(known + 1, newest))
            return self._state.version

    def _follow(self, versions: list[tuple[VersionEntry, Change]]) -> None:
        before, self._state = self._state, self._state.after(change for _, change in versions)
        self._changes = [*self._changes, *(change for _, change in versions)]
        self.log = [*self.log, *(entry for entry, _ in versions)]
        self._members = np.flatnonzero(self._state.alive)
        if before.version and not any(len(change.removed) or len(change.restored) for _, change in versions):
            first = len(before.rows)  # all rows stay, and new ones come after them
            new = self._state.rows.ids[first:]
            self._ids = [*self._ids, *new]
            self._row_of |= {name: first + place for place, name in enumerate(new)}
        else:
            self._ids = [self._state.rows.ids[row] for row in self._members.tolist()]
            self._row_of: dict[str, int] = dict(zip(self._ids, self._members.tolist(), strict=True))
        self._decided: dict[str, int] | None = None  # of this version; made when it is asked for

    @property
    def version(self) -> int:
        """The version that is shown."""
        return self._state.version

    @property
    def ids(self) -> list[str]:
        """N ids, in the order in which the memes were added."""
        return self._ids

    @property
    def labels(self) -> np.ndarray:
        """Labels of the rows: int64 [N] or [N, C]."""
        return self._state.rows.labels[self._members]

    def __len__(self) -> int:
        return len(self._members)

    def row(self, place: int) -> dict[str, Any]:
        """What is known of the meme at a place in `ids`."""
        number, rows = self._members[place], self._state.rows
        return {
            "id": rows.ids[number],
            "label": rows.labels[number].tolist(),
            "source": rows.sources[number],
            "note": rows.notes[number],
            "time": rows.times[number],
            "image_hash": f"{rows.image_hashes[number]:016x}",
        }

    def info(self) -> dict[str, Any]:
        """Size, classes, fingerprint, last change and the backend's figures."""
        with self._alone:
            self._store.searched(self._state)
            member = self.problem.membership(self.labels)
            counts = member.sum(axis=0).tolist()
            if self.problem.kind == "binary":
                counts = [len(self) - counts[0], counts[0]]
            return {
                "bank": str(self.place),
                "backend": self._store.settings["backend"],
                "version": self.version,
                "rows": len(self),
                "rows_per_class": counts,
                "decided_rows": int(self._state.rows.decided[self._members].sum()),
                "dimension": self.dimension,
                "problem": {"kind": self.problem.kind, "outputs": self.problem.outputs},
                "created": self._store.settings["created"],
                "changed": self.log[-1].time,
                "fingerprint": self.fingerprint,
                **self._store.describe(),
            }

    # ---------------------------------------------------------------------------------------------- search

    def nearest(self, queries: Embeddings, k: int, *, state: BankState | None = None) -> Neighbours:
        """The K nearest rows of this version by cosine; rows are places in `ids` and `labels`.

        A query's own id is left out. Similarities are computed anew from the vectors of the candidates, and equal ones
        ordered by place: so both backends give the same.

        Args:
            queries: Q queries.
            k: K.
            state: Another state of the same rows (`preview`); then rows are places among those that it has.

        Raises:
            UserError: K below 1, another width than the bank's, values that are not finite.
        """
        if k < 1:
            raise UserError(f"K is {k}; at least one neighbour must be asked for.")
        embedding = as_matrix(queries.embedding, "queries")
        if embedding.shape[1] != self.dimension:
            raise UserError(
                f"The queries have {embedding.shape[1]} dimensions and {self.place} has {self.dimension}; embed both "
                "with the same head."
            )
        with self._alone:
            state = state or self._state
            members, row_of = self._members, self._row_of
            if state is not self._state:
                members = np.flatnonzero(state.alive)
                row_of = {state.rows.ids[row]: row for row in members.tolist()}
            own = np.array([row_of.get(name, ABSENT) for name in queries.ids], dtype=np.int64)
            rows, similarity = nearest_rows(self._store.searched(state), unit_rows(embedding), k, own=own)
            places = np.searchsorted(members, rows)
        return Neighbours(np.where(rows == ABSENT, ABSENT, places), similarity)

    def preview(self, changes: Sequence[Change]) -> BankState:
        """The state that changes would lead to, without new rows; for `nearest`."""
        return replace(self._state.after(changes), version=self.version, origins=self._state.origins)

    def to_embeddings(self, version: int | None = None) -> Embeddings:
        """The bank in memory, at this or an earlier version: ids, labels, embeddings as the head made them."""
        with self._alone:
            state = self.at(version)
            members = np.flatnonzero(state.alive)
            embedding = self._store.embeddings(state, members)
            return Embeddings([state.rows.ids[row] for row in members], state.rows.labels[members], embedding)

    def at(self, version: int | None = None) -> BankState:
        """The state at an earlier version (default: the one that is shown).

        Raises:
            UserError: there is no such version.
        """
        if version is None or version == self.version:
            return self._state
        if not 1 <= version <= self.version:
            raise UserError(f"{self.place} has versions 1 to {self.version}, not {version}; see `ra-hmd bank log`.")
        return BankState.start(_label_shape(self.problem)).after(self._changes[:version])

    # ---------------------------------------------------------------------------------------------- changes

    def add(
        self, rows: BankRows, embedding: np.ndarray, *, author: str, reason: str, relabel_identical: bool = False
    ) -> VersionEntry:
        """Add memes with embeddings [M, D]; a version.

        Args:
            rows: The memes.
            embedding: Theirs.
            author: Who adds them.
            reason: Why.
            relabel_identical: Whether rows that are the same memes with other labels get the new ones.

        Raises:
            UserError: ids that are in the bank or doubled, labels that are not the problem's, embeddings of another
                width or not finite; memes that the bank has with another label (`Contradicts`).
        """
        embedding = check_new(rows, embedding, self.problem, self.dimension)
        return self._commit("add", lambda bank: bank.addition(rows, relabel_identical), author, reason, embedding)

    def addition(self, rows: BankRows, relabel_identical: bool = False, state: BankState | None = None) -> Change:
        """The change that `add` would make, of this version or of a state that changes would lead to."""
        return addition(state or self._state, rows, relabel_identical, self.place)

    def remove(self, ids: Sequence[str], *, author: str, reason: str) -> VersionEntry:
        """Remove memes by id; a version.

        Raises:
            UserError: ids that the bank does not have.
        """
        return self._commit("remove", lambda bank: bank.removal(ids), author, reason)

    def removal(self, ids: Sequence[str]) -> Change:
        """The change that `remove` would make."""
        return Change.of(self._state.rows.labels, removed=np.unique(self._numbers(ids)))

    def relabel(
        self, labels: Mapping[str, Any], *, author: str, reason: str, relabel_identical: bool = False
    ) -> VersionEntry:
        """Give memes other labels, by id; a version. Those that have the label already stay untouched.

        Args:
            labels: Id to label.
            author: Who relabels.
            reason: Why.
            relabel_identical: Whether all rows of the same meme get its label.

        Raises:
            UserError: ids that the bank does not have, labels that are not the problem's; other rows of the same meme
                that would keep another label (`Contradicts`).
        """
        return self._commit("relabel", lambda bank: bank.relabelling(labels, relabel_identical), author, reason)

    def relabelling(self, labels: Mapping[str, Any], relabel_identical: bool = False) -> Change:
        """The change that `relabel` would make."""
        numbers = self._numbers(list(labels))
        try:
            new = np.array(list(labels.values()), dtype=np.int64)
        except ValueError as error:
            raise UserError(f"The new labels do not fit {self.place}: {error}.") from error
        if not len(new):
            return Change.of(_label_shape(self.problem))
        self.problem.check(new, "The new labels")
        return relabelling(self._state, numbers, new, relabel_identical, self.place)

    def answers(self, contents: Sequence[str]) -> list[int | None]:
        """Of each content the place of the row that answers it, because a person gave its label to this very meme; None
        where there is none.
        """
        with self._alone:
            if self._decided is None:
                self._decided = decided_rows(self._state)
            rows = [self._decided.get(content) for content in contents]
            return [None if row is None else int(np.searchsorted(self._members, row)) for row in rows]

    def identical(self, content: str) -> list[int]:
        """The places of all rows with this content."""
        with self._alone:
            found = rows_with(self._state, [content]).get(content, [])
            return np.searchsorted(self._members, found).tolist()

    def rollback(self, version: int, *, author: str, reason: str) -> VersionEntry:
        """Make a new version that holds what an earlier one held.

        Raises:
            UserError: no such version, or the bank holds the same already.
        """
        return self._commit(
            "rollback", lambda bank: bank._state.back_to(bank.at(version)), author, reason, restores=version
        )

    def _numbers(self, ids: Sequence[str]) -> np.ndarray:
        unknown = [f"id {name!r}" for name in ids if name not in self._row_of]
        raise_all(unknown, f"{self.place} does not have these, at version {self.version}")
        return np.array([self._row_of[name] for name in ids], dtype=np.int64)

    def _commit(
        self,
        action: Action,
        change_of: Callable[["Bank"], Change],
        author: str,
        reason: str,
        new: np.ndarray | None = None,
        *,
        restores: int | None = None,
    ) -> VersionEntry:
        """Decide on the change with the newest version in view, and make it a version: all of it alone."""
        check_entry(author, reason)
        with self._alone, self._store.writing():
            self.refresh()
            change = change_of(self)
            if change.empty:
                raise UserError(f"{self.place} would stay as it is at version {self.version}: nothing was changed.")
            rows = len(self) + len(change.added) - len(change.removed) + len(change.restored)
            entry = VersionEntry(self.version + 1, action, author, reason, now(), change.counts(rows), restores)
            self._store.write(entry, change, new, len(self._state.rows))
            self._follow([(entry, change)])
            return entry


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _label_shape(problem: Problem) -> np.ndarray:
    """No labels, of the shape that the problem's have."""
    return np.zeros((0, problem.outputs) if problem.kind == "multi_label" else 0, np.int64)


def open_bank(place: str | Path, *, wait: float = 60.0, **options: Any) -> Bank:
    """Open a bank at its newest version.

    Args:
        place: A folder, a file `….db`, or `http://host:port#name`.
        wait: Seconds to wait for other writers (Milvus Lite: for any other process).
        options: Of the backend; `milvus`: `lock`, `token`.

    Raises:
        UserError: no bank there, or one of another format.
    """
    store = backend_class(backend_of(place))(place, wait=wait, **options)
    if store.settings.get("format") != FORMAT:
        store.close()
        raise UserError(f"{place} has format {store.settings.get('format')!r}; this version reads {FORMAT}.")
    return Bank(store)


def create_bank(
    place: str | Path,
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
    wait: float = 60.0,
    **options: Any,
) -> Bank:
    """Make a bank with its first rows, and open it.

    Args:
        place: As for `open_bank`; nothing may be there.
        rows: The first memes; may be none.
        embedding: [N, D].
        fingerprint: What made the embeddings.
        author: Who makes it.
        reason: Why.
        problem: What labels mean.
        index: How the folder is searched, see `build_index`; Milvus has its own.
        recall_target: Least recall@20 where the search is approximate.
        seed: Of the index.
        wait: Seconds to wait for other processes.
        options: Of the backend; `milvus`: `lock`, `token`.

    Raises:
        UserError: as for `Bank.add`; there is something already.
    """
    check_entry(author, reason)
    resolve_kind(index, len(rows))
    if not 0 < recall_target <= 1:
        raise UserError(f"Recall {recall_target} is asked for, it must be in (0, 1].")
    embedding = check_new(rows, embedding, problem, np.asarray(embedding).shape[1])
    if rows.decided.any():
        check_one_label(rows)
    backend = backend_of(place)
    settings = run_manifest(
        "bank",
        format=FORMAT,
        backend=backend,
        dimension=embedding.shape[1],
        problem={"kind": problem.kind, "outputs": problem.outputs},
        fingerprint=plain(dict(fingerprint)),
        index=index,
        recall_target=recall_target,
        seed=seed,
    )
    change = Change.of(_label_shape(problem), added=rows)
    entry = VersionEntry(1, "create", author, reason, now(), change.counts(len(rows)))
    if backend == "milvus":
        options["wait"] = wait
    backend_class(backend).create(place, settings, entry, change, embedding, **options)
    return open_bank(
        place, wait=wait, **options if backend == "faiss" else {k: v for k, v in options.items() if k != "wait"}
    )
