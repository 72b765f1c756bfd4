"""Changes of the bank behind a service: memes become rows, each change is a version, its effect is seen before.

A change waits for the batch that is being judged, and the next batch votes with the new version.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.embed_features import embed_store
from ra_hmd.bank.planned_change import PlannedChange
from ra_hmd.bank.versions import BankRows, VersionEntry
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.images import content_hash, perceptual_hash
from ra_hmd.data.meme import Meme
from ra_hmd.features.test_lock import open_labels
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.types import PreparedMeme
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.scoring.change_impact import change_impact
from ra_hmd.serve.batching import BatchingService


@dataclass(frozen=True)
class Labelled:
    """A meme and what a person says that it is: a class index, of several classes a list of 0 and 1."""

    query: Meme
    label: int | list[int]
    note: str = ""


class AlreadyApplied(UserError):
    """The bank has what a change asks for: it was made before. Nothing was changed."""


class NotInBank(UserError):
    """The bank never had such an id or version."""


class BankService:
    """Searches and changes an example bank while it votes.

    Changes are idempotent: a change that is sent a second time, because its response was lost, raises
    `AlreadyApplied`.

    Args:
        service: Whose bank it is.
        reference: Memes, labelled or not, on which the effect of a change is shown, beside those judged last.
        patience: Seconds to wait for the model and the bank; None is as long as it takes. Past it every method raises
            `ServiceBusy`, and nothing was done.

    Raises:
        UserError: the service has no example bank (a feature store cannot be changed).
    """

    def __init__(
        self, service: BatchingService, reference: Embeddings | None = None, *, patience: float | None = None
    ) -> None:
        self.service, self.reference, self.patience = service, reference, patience
        if service.detector.scorer.bank is None:
            raise UserError(
                "Only an example bank can be changed; make one with `ra-hmd bank create` and give it with --bank."
            )

    @classmethod
    def open(cls, service: BatchingService, reference: str | Path | None = None) -> "BankService":
        """With a feature store as reference.

        Raises:
            UserError: it is of another LMM or head, or labelled and a test split or one of unknown kind: looking at its
                verdicts with every correction would fit the bank to it.
        """
        bank_service = cls(service)
        if reference is None:
            return bank_service
        found = embed_store(service.detector.scorer.checkpoint, reference, labelled=False)
        found.check_for(bank_service.bank)
        open_labels(chosen_by={reference: found.features})
        bank_service.reference = found.embeddings
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
        self, memes: Sequence[Labelled], *, author: str, reason: str, source: str, relabel_identical: bool = False
    ) -> VersionEntry:
        """Add memes; a version.

        Raises:
            UserError: an id that is in the bank (`AlreadyApplied`), the same meme with another label
                (`LabelConflictError`, unless such rows are to be relabelled), a label that is not the problem's, a
                picture that cannot be used.
        """
        rows, prepared = self._rows(memes, source)
        with self._exclusive() as detector:
            present = set(rows.ids) & set(self.bank.ids)
            self._raise(AlreadyApplied, present, "has these already; relabel or remove them, or leave them out")
            embedding = detector.score(prepared).queries.embedding
            return self.bank.add(rows, embedding, author=author, reason=reason, relabel_identical=relabel_identical)

    def remove(self, ids: Sequence[str], *, author: str, reason: str) -> VersionEntry:
        """Remove rows by id; makes a version. Raises `NotInBank` for unknown ids, `AlreadyApplied` for removed ones."""
        with self._exclusive():
            self._check_known(ids)
            self._raise(AlreadyApplied, set(ids) - set(self.bank.ids), "had these, and they were removed")
            return self.bank.remove(ids, author=author, reason=reason)

    def relabel(
        self, labels: Mapping[str, Any], *, author: str, reason: str, relabel_identical: bool = False
    ) -> VersionEntry:
        """Give rows other labels; a version.

        Raises:
            UserError: ids that the bank does not have (`NotInBank`), labels that are not the problem's or that the
                rows have already (`AlreadyApplied`), other rows of the same meme that would keep another label
                (`LabelConflictError`, unless they are to be relabelled too).
        """
        with self._exclusive():
            self._check_known(labels, now=True)
            if self.bank.plan_relabel(labels, relabel_identical).empty:
                raise AlreadyApplied(f"{self._bank_now} has these labels already.")
            return self.bank.relabel(labels, author=author, reason=reason, relabel_identical=relabel_identical)

    def rollback(self, version: int, *, author: str, reason: str) -> VersionEntry:
        """A new version that holds what an earlier one held. Raises `NotInBank` where there is no such version, and
        `AlreadyApplied` where the bank holds the same.
        """
        with self._exclusive():
            if not 1 <= version <= self.bank.version:
                raise NotInBank(f"{self.bank.location} has versions 1 to {self.bank.version}, not {version}.")
            if self.bank.plan_rollback(version).empty:
                raise AlreadyApplied(f"{self._bank_now} holds what version {version} held.")
            return self.bank.rollback(version, author=author, reason=reason)

    def effect(
        self,
        add: Sequence[Labelled] = (),
        remove: Sequence[str] = (),
        relabel: Mapping[str, Any] | None = None,
        *,
        relabel_identical: bool = False,
    ) -> dict[str, Any]:
        """What a change would do to the verdicts of the RKC, by the threshold in force; nothing is changed.

        Returns:
            See `ra_hmd.scoring.change_impact.change_impact`; asked about the reference and the memes judged last.

        Raises:
            UserError: a change that could not be made, or there is no meme to show its effect on.
        """
        queries, new = self._asked(), self._rows(add, "planned") if add else None
        with self._exclusive() as detector:
            rows = None if new is None else (new[0], detector.score(new[1]).queries.embedding)
            scorer = detector.scorer
            planned = PlannedChange(rows, remove, relabel or {}, relabel_identical=relabel_identical)
            return change_impact(self.bank, queries, planned, scorer.voting, scorer.rule("rkc").thresholds)

    def rollback_effect(self, version: int) -> dict[str, Any]:
        """What going back to an earlier version would do to verdicts, as `effect` has it; nothing is changed."""
        queries = self._asked()
        with self._exclusive() as detector:
            scorer = detector.scorer
            planned = PlannedChange(rollback=version)
            return change_impact(self.bank, queries, planned, scorer.voting, scorer.rule("rkc").thresholds)

    def search(self, query: Meme, k: int) -> dict[str, Any]:
        """The K rows nearest to a meme, by the head's embedding; nothing is kept of the meme.

        Returns:
            `version` of the bank, and `neighbours`, nearest first: `similarity` and what `Bank.row` tells.

        Raises:
            UserError: a picture that cannot be used.
        """
        prepared = self.service.detector.prepare(query)
        with self._exclusive() as detector:
            (neighbours,) = self.bank.search(detector.score([prepared]).queries, k)
            return {"version": self.bank.version, "neighbours": neighbours}

    def version(self) -> int:
        """The newest version."""
        with self._exclusive():
            return self.bank.version

    def labels_of(self, query: Meme) -> dict[str, int | list[int]]:
        """Id → label of the rows that are a meme: those with its picture and caption, and the one with its id."""
        content = content_hash(query.load_image(), query.text or "")
        with self._exclusive():
            bank = self.bank
            places = bank.identical_positions(content)
            if query.id in bank.ids and (own := bank.ids.index(query.id)) not in places:
                places.append(own)
            return {bank.ids[place]: bank.labels[place].tolist() for place in places}

    def info(self) -> dict[str, Any]:
        """See `Bank.info`; of the newest version."""
        with self._exclusive():
            return self.bank.info()

    def log(self) -> list[VersionEntry]:
        """The log, oldest first, up to the newest version."""
        with self._exclusive():
            return list(self.bank.log)

    def _exclusive(self) -> AbstractContextManager[Detector]:
        return self.service.exclusive(self.patience)

    @property
    def _bank_now(self) -> str:
        return f"{self.bank.location}, at version {self.bank.version},"

    def _check_known(self, ids: Collection[str], *, now: bool = False) -> None:
        """Raise `NotInBank` unless the bank has all ids now, or at least had them once."""
        known = self.bank.ids if now else self.bank.state_at().rows.ids
        self._raise(NotInBank, set(ids) - set(known), "does not have these")

    def _raise(self, kind: type[UserError], ids: set[str], what: str) -> None:
        try:
            raise_all([f"id {name!r}" for name in sorted(ids)], f"{self._bank_now} {what}")
        except UserError as error:
            raise kind(str(error)) from None

    def _asked(self) -> Embeddings:
        recent = self.service.recent
        if self.reference is None and recent is None:
            raise UserError("There is no meme yet to show an effect on: judge some first, or give --reference STORE.")
        if self.reference is None or recent is None:
            return self.reference if recent is None else recent
        known = set(self.reference.ids)
        return self.reference.plus(
            recent.select(np.array([i for i, n in enumerate(recent.ids) if n not in known], int))
        )

    def _rows(self, memes: Sequence[Labelled], source: str) -> tuple[BankRows, list[PreparedMeme]]:
        """Memes as rows of the bank, and as the detector takes them to embed."""
        if not memes:
            raise UserError("No meme is given.")
        prepared = [self.service.detector.prepare(meme.query) for meme in memes]
        hashes = [perceptual_hash(meme.query.load_image()) or 0 for meme in memes]
        rows = BankRows(
            ids=[meme.query.id for meme in memes],
            labels=_labels([meme.label for meme in memes]),
            sources=[source] * len(memes),
            notes=[meme.note for meme in memes],
            image_hashes=np.array(hashes, dtype=np.uint64),
            contents=[meme.content for meme in prepared],
            decided=np.ones(len(memes), bool),
        )
        return rows, prepared


def _labels(labels: list[int | list[int]]) -> np.ndarray:
    try:
        return np.array(labels, dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise UserError(f"The labels {labels[:3]} are not all of one kind: {error}.") from error
