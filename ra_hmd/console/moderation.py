"""What a moderator does to the bank: a plan with its effect, then a second act that carries it out, once."""

import hashlib
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ra_hmd.bank.versions import VersionEntry, now
from ra_hmd.console.review_queue import SOURCE
from ra_hmd.console.reviews import Decision, Review, Reviews
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.images import file_digest
from ra_hmd.data.meme import Meme
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.bank_service import BankService, Labelled
from ra_hmd.serve.batching import ServedVerdict

_LONGEST = 2000  # characters of a reason or a note


@dataclass(frozen=True)
class Subject:
    """The meme that somebody looks at.

    Attributes:
        id: Under which it is, or would be, a row of the bank.
        query: As it was judged.
        answer: What was said of it.
    """

    id: str
    query: Meme
    answer: ServedVerdict


@dataclass(frozen=True)
class ChangePreview:
    """A change whose effect was shown.

    Attributes:
        target: Id of the meme; of a rollback the version.
        label: That the meme shall have; None: a rollback.
        version: Of the bank when the effect was computed.
        effect: As `ra_hmd.scoring.change_impact.change_impact` has it.
        rows: Ids of the rows that get another label, because they are this meme; empty: it becomes a new row.
    """

    target: str | int
    label: int | list[int] | None
    version: int
    effect: dict[str, Any]
    rows: tuple[str, ...] = ()

    @property
    def relabels(self) -> bool:
        """Whether rows get another label, instead of a new row."""
        return bool(self.rows)


def content_id(picture: bytes, text: str) -> str:
    """The id of a meme that came without one: the same picture and caption have the same."""
    return "meme-" + hashlib.sha256(hashlib.sha256(picture).digest() + text.encode()).hexdigest()[:20]


class Moderation:
    """Plans and carries out. One change at a time.

    Args:
        desk: Where the bank is changed; None: there is no bank that could be.
        reviews: Where decisions are kept.
    """

    def __init__(self, bank_service: BankService | None, reviews: Reviews) -> None:
        self._desk, self.reviews = bank_service, reviews
        self._alone = threading.Lock()

    @property
    def bank_service(self) -> BankService:
        """Raises `UserError` where there is no bank that can be changed."""
        if self._desk is None:
            raise UserError("No example bank is open, so nothing can be corrected; start the console with --bank BANK.")
        return self._desk

    @property
    def can_change(self) -> bool:
        """Whether there is a bank that can be changed."""
        return self._desk is not None

    def labels_in_bank(self, subject: Subject) -> dict[str, int | list[int]]:
        """Id → label of the bank's rows that are this meme: by picture and caption, or by its id."""
        return self.bank_service.labels_of(self._row(subject, 0, "").query)

    def plan(self, subject: Subject, label: int | list[int]) -> ChangePreview:
        """What a correction would do; nothing is changed.

        Raises:
            UserError: the bank says so already, or there is nothing to show the effect on.
        """
        known = self.labels_in_bank(subject)
        rows = tuple(name for name, other in known.items() if other != label)
        if known and not rows:
            raise UserError("The bank holds this meme with this label already; there is nothing to correct.")
        version = self.bank_service.bank.version
        if rows:
            effect = self.bank_service.effect(relabel=dict.fromkeys(rows, label), relabel_identical=True)
        else:
            effect = self.bank_service.effect(add=[self._row(subject, label, "")])
        return ChangePreview(subject.id, label, version, effect, rows)

    def plan_rollback(self, version: int) -> ChangePreview:
        """What going back to a version would do; nothing is changed. Raises `UserError` where it cannot be done."""
        return ChangePreview(version, None, self.bank_service.version(), self.bank_service.rollback_effect(version))

    def correct(
        self, subject: Subject, plan: ChangePreview | None, author: str, reason: str, note: str = ""
    ) -> VersionEntry:
        """Carry a plan out; a version of the bank, and a line of the reviews.

        Raises:
            UserError: no effect was shown, or the bank changed since; no reason; it was done already.
        """
        reason = self._said(plan, subject.id, reason, note)
        assert plan is not None
        assert plan.label is not None
        with self._alone, self._bank_alone():
            self._check_current(plan)
            self.record(subject, "begun", plan.label, author, plan.version, plan.rows)
            if plan.rows:
                reason = f"{reason}; {note.strip()}" if note.strip() else reason
                labels = dict.fromkeys(plan.rows, plan.label)
                entry = self.bank_service.relabel(labels, author=author, reason=reason, relabel_identical=True)
            else:
                row = self._row(subject, plan.label, note.strip())
                entry = self.bank_service.add([row], author=author, reason=reason, source=SOURCE)
            self.record(subject, "correct", plan.label, author, entry.version, plan.rows)
            return entry

    def rollback(self, version: int, plan: ChangePreview | None, author: str, reason: str) -> VersionEntry:
        """Go back to a version whose effect was shown; a new version. Raises `UserError` as `correct` does."""
        reason = self._said(plan, version, reason)
        assert plan is not None
        with self._alone, self._bank_alone():
            self._check_current(plan)
            return self.bank_service.rollback(version, author=author, reason=reason)

    def _bank_alone(self) -> AbstractContextManager[Detector]:
        """So that nobody changes the bank through this service between the look at its version and the change."""
        return self.bank_service.service.exclusive(self.bank_service.patience)

    def record(
        self,
        subject: Subject,
        decision: Decision,
        label: int | list[int] | None,
        author: str,
        bank_version: int | None = None,
        rows: tuple[str, ...] = (),
    ) -> None:
        """Write a line of the reviews."""
        version = subject.answer.version
        voted = version["bank"].get("version")
        self.reviews.append(
            Review(
                id=subject.id,
                decision=decision,
                verdict=subject.answer.detection.verdict,
                label=label,
                author=author,
                time=now(),
                run=version["run"],
                bank_version=voted if bank_version is None else bank_version,
                picture=file_digest(image) if isinstance(image := subject.query.image, Path) else "",
                row=None if not rows or subject.id in rows else rows[0],
            )
        )

    def _row(self, subject: Subject, label: int | list[int], note: str) -> Labelled:
        found = subject.answer.detection  # with the caption that was judged, read from the picture or not
        return Labelled(Meme(subject.id, subject.query.image, found.text), label, note)

    def _said(self, plan: ChangePreview | None, target: str | int, reason: str, note: str = "") -> str:
        if plan is None or plan.target != target:
            raise UserError("Look at the effect first: press “Show the effect”, then write the change to the bank.")
        long = [f"the {name} has {len(text)} characters, {_LONGEST} are allowed"
                for name, text in (("reason", reason), ("note", note)) if len(text) > _LONGEST]  # fmt: skip
        raise_all(long, "Too long")
        if not reason.strip():
            raise UserError("Say why: choose a reason, or write one. The log keeps it.")
        return reason.strip()

    def _check_current(self, plan: ChangePreview) -> None:
        version = self.bank_service.version()
        if version != plan.version:
            raise UserError(
                f"The bank was changed meanwhile: its version is {version}, the effect was of {plan.version}. "
                "Look at the effect again."
            )
