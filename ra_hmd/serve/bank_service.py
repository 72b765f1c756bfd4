"""The example bank of a running service: searches, changes, and previews of their impact on verdicts.

Each change is a version of the bank. It waits for the batch that is being scored; the next batch votes with the new
version. Other processes may change the bank too: the lock of the bank excludes them while a change is checked and made.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.embed_features import embed_store
from ra_hmd.bank.planned_change import PlannedChange
from ra_hmd.bank.row_history import RowChange, RowDifference, difference, list_rows, row_history
from ra_hmd.bank.versions import BankRows, VersionEntry
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.heads import BANK_HEADS
from ra_hmd.data.images import content_hash
from ra_hmd.data.meme import Meme
from ra_hmd.features.test_lock import open_labels
from ra_hmd.inference.bank_rows import labelled_rows
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.types import PreparedMeme
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.scoring.change_impact import change_impact
from ra_hmd.serve.batching import BatchingService

MemeLabel = int | list[int]
"""A class index, or for a task with several classes per meme a list with 0 or 1 for each class."""


class AlreadyApplied(UserError):
    """The bank is already as the change would make it, as after a request that is sent twice. Nothing was changed."""


class NotInBank(UserError):
    """The bank has no such id or version, and never had one."""


class BankService:
    """Searches and changes an example bank while it votes.

    Changes are idempotent: a change that is sent a second time, because its response was lost, raises
    `AlreadyApplied`.

    Args:
        service: Batching service whose detector votes with the bank.
        reference: Memes, labelled or not, on which the impact of a change is measured, beside those scored last.
        timeout: Seconds to wait for the model and the bank; None waits without limit. After it every method raises
            `ServiceBusy`, and nothing was done.

    Raises:
        UserError: the service has no example bank (a feature store cannot be changed).
    """

    def __init__(
        self, service: BatchingService, reference: Embeddings | None = None, *, timeout: float | None = None
    ) -> None:
        self.service, self.reference, self.timeout = service, reference, timeout
        if service.detector.scorer.bank is None:
            raise UserError(
                "Only an example bank can be changed; make one with `ra-hmd bank create` and give it with --bank."
            )

    @classmethod
    def open(cls, service: BatchingService, reference: str | Path | None = None) -> "BankService":
        """Create a bank service with a feature store as reference.

        Raises:
            UserError: the store is of another LMM or head; or it is labelled, and a test split or one of unknown kind:
                looking at its verdicts with every correction would fit the bank to it.
        """
        if reference is None:
            return cls(service)
        bank_service = cls(service)
        store = embed_store(service.detector.scorer.checkpoint, reference, labelled=False)
        store.check_for(bank_service.bank)
        open_labels(chosen_by={reference: store.features})
        bank_service.reference = store.embeddings
        return bank_service

    @property
    def bank(self) -> Bank:
        """The bank. Only `BatchingService.exclusive` may refresh it: the neighbours of a search are row numbers, which
        are valid for one version only. Read values that belong together inside `exclusive` for the same reason.
        """
        bank = self.service.detector.scorer.bank
        assert bank is not None
        return bank

    def add(
        self,
        memes: Sequence[Meme],
        labels: Sequence[MemeLabel],
        *,
        author: str,
        reason: str,
        source: str,
        notes: Sequence[str] | None = None,
        relabel_identical: bool = False,
    ) -> VersionEntry:
        """Add labelled memes to the bank, as a new version.

        Args:
            memes: New memes.
            labels: Label of each meme.
            author: Author of the change, for the log.
            reason: Reason for the change, for the log.
            source: Source of the rows.
            notes: Note of each row; empty by default.
            relabel_identical: Give rows that are the same meme with another label the new label.

        Raises:
            UserError: an id that is in the bank (`AlreadyApplied`), the same meme with another label
                (`LabelConflictError`, without `relabel_identical`), a label that the task does not have, an image that
                cannot be used.
        """
        rows, prepared = self._rows(memes, labels, source, notes)
        with self._exclusive() as detector:
            self._check_new(rows.ids)
            new = detector.score(prepared).queries

            def change() -> VersionEntry:
                self._check_new(rows.ids)
                return self.bank.add(rows, new.embedding, author=author, reason=reason,
                                     relabel_identical=relabel_identical, views=new.views)  # fmt: skip

            return self.bank.exclusively(change)

    def remove(self, ids: Sequence[str], *, author: str, reason: str) -> VersionEntry:
        """Remove rows by id, as a new version.

        Raises:
            UserError: ids that the bank never had (`NotInBank`), or that were removed before (`AlreadyApplied`).
        """

        def change() -> VersionEntry:
            self._check_ids(ids)
            self._raise(AlreadyApplied, set(ids) - set(self.bank.ids), "had these, and they were removed")
            return self.bank.remove(ids, author=author, reason=reason)

        return self._change(change)

    def relabel(
        self, labels: Mapping[str, Any], *, author: str, reason: str, relabel_identical: bool = False
    ) -> VersionEntry:
        """Change the labels of rows, by id, as a new version.

        Raises:
            UserError: ids that the bank does not have (`NotInBank`); labels that the task does not have, or that the
                rows have already (`AlreadyApplied`); other rows of the same meme that would keep another label
                (`LabelConflictError`, without `relabel_identical`).
        """

        def change() -> VersionEntry:
            self._check_ids(labels, current=True)
            if self.bank.plan_relabel(labels, relabel_identical).empty:
                raise AlreadyApplied(f"{self._bank_name} has these labels already.")
            return self.bank.relabel(labels, author=author, reason=reason, relabel_identical=relabel_identical)

        return self._change(change)

    def rollback(self, version: int, *, author: str, reason: str) -> VersionEntry:
        """Restore the content of an earlier version, as a new version.

        Raises:
            UserError: there is no such version (`NotInBank`), or the bank has its content already (`AlreadyApplied`).
        """

        def change() -> VersionEntry:
            self._check_version(version)
            if self.bank.plan_rollback(version).empty:
                raise AlreadyApplied(f"{self._bank_name} holds what version {version} held.")
            return self.bank.rollback(version, author=author, reason=reason)

        return self._change(change)

    def take_back(self, name: str, version: int, *, author: str, reason: str) -> VersionEntry:
        """Take back what a version did to one row, as a new version. Raises `UserError`, see `Bank.take_back`."""
        return self._change(lambda: self.bank.take_back(name, version, author=author, reason=reason))

    def preview(
        self,
        add: Sequence[Meme] = (),
        labels: Sequence[MemeLabel] = (),
        remove: Sequence[str] = (),
        relabel: Mapping[str, Any] | None = None,
        *,
        relabel_identical: bool = False,
    ) -> dict[str, Any]:
        """Compute the impact of a change on the verdicts of RKC and KRR, by their current thresholds, without changing
        the bank.

        Returns:
            See `ra_hmd.scoring.change_impact.change_impact`; measured on the reference and the memes scored last.

        Raises:
            UserError: the change cannot be made, or there is no meme to measure its impact on.
        """
        queries, new = self._impact_queries(), self._rows(add, labels, "planned") if add else None
        with self._exclusive() as detector:
            scored = None if new is None else detector.score(new[1]).queries
            rows = None if new is None or scored is None else (new[0], scored.embedding)
            views = {} if scored is None else scored.views
            planned = PlannedChange(rows, remove, relabel or {}, None, relabel_identical, views)
            return self._impact(detector, queries, planned)

    def preview_rollback(self, version: int) -> dict[str, Any]:
        """Compute the impact of restoring an earlier version, as `preview` does."""
        queries = self._impact_queries()
        with self._exclusive() as detector:
            return self._impact(detector, queries, PlannedChange(rollback=version))

    def _impact(self, detector: Detector, queries: Embeddings, planned: PlannedChange) -> dict[str, Any]:
        scorer = detector.scorer
        vote, kernel = (scorer.rule(head).thresholds for head in BANK_HEADS)
        return change_impact(self.bank, queries, planned, scorer.voting, vote, scorer.kernel, kernel)

    def search(self, meme: Meme, k: int) -> dict[str, Any]:
        """Return the K rows nearest to a meme, by the embedding of the head; nothing of the meme is stored.

        Returns:
            `version` of the bank, and `neighbours`, nearest first: `similarity` and the fields of `Bank.row`.

        Raises:
            UserError: the image cannot be used.
        """
        prepared = self.service.detector.prepare(meme)
        with self._exclusive() as detector:
            (neighbours,) = self.bank.search(detector.score([prepared]).queries, k)
            return {"version": self.bank.version, "neighbours": neighbours}

    def version(self) -> int:
        """Return the newest version."""
        with self._exclusive():
            return self.bank.version

    def labels_of(self, meme: Meme) -> dict[str, MemeLabel]:
        """Return the labels, by id, of the rows that are a meme: with the same image and caption, or the same id."""
        content = content_hash(meme.load_image(), meme.text or "")
        with self._exclusive():
            bank = self.bank
            rows = bank.identical_positions(content)
            if meme.id in bank.ids and (own := bank.ids.index(meme.id)) not in rows:
                rows.append(own)
            return {bank.ids[row]: bank.labels[row].tolist() for row in rows}

    def labels(self, ids: Collection[str]) -> dict[str, MemeLabel]:
        """Return the labels, by id, of those ids that the bank has."""
        with self._exclusive():
            bank = self.bank
            places = {name: place for place, name in enumerate(bank.ids)}
            return {name: bank.labels[places[name]].tolist() for name in ids if name in places}

    def page(self, *, version: int | None = None, **wanted: Any) -> tuple[int, list[dict[str, Any]], int]:
        """Return a version, by default the newest, and `rows` of it. Raises `NotInBank` for an unknown version."""
        with self._exclusive():
            at = version or self.bank.version
            self._check_version(at)
            state = self.bank.state_at(at)
        return at, *list_rows(state, **wanted)  # a state does not change; memes need not wait for this

    def row(self, name: str) -> tuple[dict[str, Any] | None, list[RowChange]]:
        """Return a row, None where it was removed, and its `row_history`.

        Raises:
            NotInBank: the bank never had it.
        """
        with self._exclusive():
            self._check_ids([name])
            bank = self.bank
            return (bank.row(bank.ids.index(name)) if name in bank.ids else None), row_history(bank, name)

    def difference(self, first: int, last: int) -> list[RowDifference]:
        """Return the rows that differ between two versions.

        Raises:
            NotInBank: there is no such version.
        """
        with self._exclusive():
            for version in (first, last):
                self._check_version(version)
            return difference(self.bank, first, last)

    def info(self) -> dict[str, Any]:
        """Return `Bank.info` of the newest version."""
        with self._exclusive():
            return self.bank.info()

    def log(self) -> list[VersionEntry]:
        """Return the log up to the newest version, oldest first."""
        with self._exclusive():
            return list(self.bank.log)

    def _check_version(self, version: int) -> None:
        if not 1 <= version <= self.bank.version:
            raise NotInBank(f"{self.bank.location} has versions 1 to {self.bank.version}, not {version}.")

    def _exclusive(self) -> AbstractContextManager[Detector]:
        return self.service.exclusive(self.timeout)

    def _change(self, change: Callable[[], VersionEntry]) -> VersionEntry:
        """Check and make a change at the newest version, while no other process writes."""
        with self._exclusive():
            return self.bank.exclusively(change)

    @property
    def _bank_name(self) -> str:
        return f"{self.bank.location}, at version {self.bank.version},"

    def _check_new(self, ids: Collection[str]) -> None:
        """Raise `AlreadyApplied` if the bank has one of the ids."""
        present = set(ids) & set(self.bank.ids)
        self._raise(AlreadyApplied, present, "has these already; relabel or remove them, or leave them out")

    def _check_ids(self, ids: Collection[str], *, current: bool = False) -> None:
        """Raise `NotInBank` unless the bank has, or with `current` False ever had, all ids."""
        known = self.bank.ids if current else self.bank.state_at().rows.ids
        self._raise(NotInBank, set(ids) - set(known), "does not have these")

    def _raise(self, kind: type[UserError], ids: set[str], problem: str) -> None:
        try:
            raise_all([f"id {name!r}" for name in sorted(ids)], f"{self._bank_name} {problem}")
        except UserError as error:
            raise kind(str(error)) from None

    def _impact_queries(self) -> Embeddings:
        """The reference, and the memes scored last that are not in it."""
        recent = self.service.recent
        if recent is None:
            if self.reference is not None:
                return self.reference
            raise UserError("There is no meme yet to show an effect on: judge some first, or give --reference STORE.")
        if self.reference is None:
            return recent
        known = set(self.reference.ids)
        new = np.array([row for row, name in enumerate(recent.ids) if name not in known], int)
        return self.reference.plus(recent.select(new))

    def _rows(
        self, memes: Sequence[Meme], labels: Sequence[MemeLabel], source: str, notes: Sequence[str] | None = None
    ) -> tuple[BankRows, list[PreparedMeme]]:
        """Rows of the bank for new memes, and the prepared memes that give their embeddings."""
        if not memes:
            raise UserError("No meme is given.")
        array = _label_array(labels)
        self.bank.problem.check(array, "The new memes")
        prepared = [self.service.detector.prepare(meme) for meme in memes]
        return labelled_rows(memes, prepared, array, source, notes), prepared


def _label_array(labels: Sequence[MemeLabel]) -> np.ndarray:
    try:
        return np.array(labels, dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise UserError(f"The labels {labels[:3]} are not all of one kind: {error}.") from error
