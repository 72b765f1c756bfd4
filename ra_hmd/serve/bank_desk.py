"""Changes of the bank behind a service: memes become rows, each change is a version, its effect is seen before.

A change waits for the batch that is being judged, and the next batch votes with the new version.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.data.images import load_image, perceptual_hash
from ra_hmd.errors import UserError
from ra_hmd.evaluation.lockout import names_test, split_name
from ra_hmd.predict.detector import Prepared, Query
from ra_hmd.retrieval.bank import Bank, now
from ra_hmd.retrieval.effect import Planned, effect
from ra_hmd.retrieval.embedded import Embedded
from ra_hmd.retrieval.from_store import embed_store
from ra_hmd.retrieval.state import Entry, Rows
from ra_hmd.serve.service import Service


@dataclass(frozen=True)
class Labelled:
    """A meme and what a person says that it is: a class index, of several classes a list of 0 and 1."""

    query: Query
    label: int | list[int]
    note: str = ""


class BankDesk:
    """Where a bank is searched and changed while it votes.

    Args:
        service: Whose bank it is.
        reference: Memes, labelled or not, on which the effect of a change is shown, beside those judged last.

    Raises:
        UserError: the service has no example bank (a feature store cannot be changed).
    """

    def __init__(self, service: Service, reference: Embedded | None = None) -> None:
        self.service, self.reference = service, reference
        if service.detector.scorer.bank is None:
            raise UserError(
                "Only an example bank can be changed; make one with `ra-hmd bank create` and give it with --bank."
            )

    @classmethod
    def open(cls, service: Service, reference: str | Path | None = None) -> "BankDesk":
        """With a feature store as reference.

        Raises:
            UserError: it is of another LMM or head, or a test split: looking at its verdicts with every correction
                would fit the bank to it.
        """
        desk = cls(service)
        if reference is None:
            return desk
        found = embed_store(service.detector.scorer.checkpoint, reference, labelled=False)
        found.check_for(desk.bank)
        if names_test(split_name(found.features, reference)):
            raise UserError(f"{reference} is a test split; show effects on a dev split, and keep this one for the end.")
        desk.reference = found.embedded
        return desk

    @property
    def bank(self) -> Bank:
        """The bank, for reading; `Service.exclusive` refreshes it."""
        bank = self.service.detector.scorer.bank
        assert bank is not None
        return bank

    def add(self, memes: Sequence[Labelled], *, author: str, reason: str, source: str) -> Entry:
        """Add memes; a version.

        Raises:
            UserError: an id that is in the bank, a label that is not the problem's, a picture that cannot be used.
        """
        rows, prepared = self._rows(memes, source)
        with self.service.exclusive() as detector:
            embedding = detector.score(prepared).queries.embedding
            return self.bank.add(rows, embedding, author=author, reason=reason)

    def remove(self, ids: Sequence[str], *, author: str, reason: str) -> Entry:
        """Remove rows by id; a version. Raises `UserError` for ids that the bank does not have."""
        with self.service.exclusive():
            return self.bank.remove(ids, author=author, reason=reason)

    def relabel(self, labels: Mapping[str, Any], *, author: str, reason: str) -> Entry:
        """Give rows other labels; a version. Raises `UserError` for unknown ids or labels."""
        with self.service.exclusive():
            return self.bank.relabel(labels, author=author, reason=reason)

    def rollback(self, version: int, *, author: str, reason: str) -> Entry:
        """A new version that holds what an earlier one held. Raises `UserError` where there is no such version."""
        with self.service.exclusive():
            return self.bank.rollback(version, author=author, reason=reason)

    def effect(
        self, add: Sequence[Labelled] = (), remove: Sequence[str] = (), relabel: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """What a change would do to the verdicts of the RKC, by the threshold in force; nothing is changed.

        Returns:
            See `ra_hmd.retrieval.effect.effect`; asked about the reference and the memes judged last.

        Raises:
            UserError: a change that could not be made, or there is no meme to show its effect on.
        """
        queries, new = self._asked(), self._rows(add, "planned") if add else None
        with self.service.exclusive() as detector:
            rows = None if new is None else (new[0], detector.score(new[1]).queries.embedding)
            scorer = detector.scorer
            planned = Planned(rows, remove, relabel or {})
            return effect(self.bank, queries, planned, scorer.voting, scorer.rule("rkc").thresholds)

    def _asked(self) -> Embedded:
        recent = self.service.recent
        if self.reference is None and recent is None:
            raise UserError("There is no meme yet to show an effect on: judge some first, or give --reference STORE.")
        if self.reference is None or recent is None:
            return self.reference if recent is None else recent
        known = set(self.reference.ids)
        return self.reference.plus(
            recent.select(np.array([i for i, n in enumerate(recent.ids) if n not in known], int))
        )

    def _rows(self, memes: Sequence[Labelled], source: str) -> tuple[Rows, list[Prepared]]:
        """Memes as rows of the bank, and as the detector takes them to embed."""
        if not memes:
            raise UserError("No meme is given.")
        prepared = [self.service.detector.prepare(meme.query) for meme in memes]
        hashes = [perceptual_hash(_image(meme.query)) or 0 for meme in memes]
        rows = Rows(
            ids=[meme.query.id for meme in memes],
            labels=_labels([meme.label for meme in memes]),
            sources=[source] * len(memes),
            notes=[meme.note for meme in memes],
            times=[now()] * len(memes),
            image_hashes=np.array(hashes, dtype=np.uint64),
        )
        return rows, prepared


def _labels(labels: list[int | list[int]]) -> np.ndarray:
    try:
        return np.array(labels, dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise UserError(f"The labels {labels[:3]} are not all of one kind: {error}.") from error


def _image(query: Query) -> Any:
    return load_image(query.image) if isinstance(query.image, Path) else query.image
