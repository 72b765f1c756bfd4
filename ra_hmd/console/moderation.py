"""Corrections of the bank: a preview of the impact first, then the change itself, made once."""

import hashlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ra_hmd.bank.versions import VersionEntry, now
from ra_hmd.console.review_queue import SOURCE
from ra_hmd.console.reviews import Decision, Review, Reviews
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.images import file_digest
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.bank_service import BankService, MemeLabel
from ra_hmd.serve.batching import ServedVerdict

_MAX_CHARACTERS = 2000  # of a reason or a note


@dataclass(frozen=True)
class ChangePreview:
    """A change whose impact was shown to the moderator.

    Attributes:
        target: Id of the meme; for a rollback the version.
        label: New label of the meme; None for a rollback.
        version: Version of the bank for which the impact was computed.
        impact: Result of `ra_hmd.scoring.change_impact.change_impact`.
        rows: Ids of the rows that are this meme and get the new label; empty: the meme becomes a new row.
    """

    target: str | int
    label: MemeLabel | None
    version: int
    impact: dict[str, Any]
    rows: tuple[str, ...] = ()


def content_id(image: bytes, text: str) -> str:
    """Return an id for a meme without one, derived from its image and its caption."""
    return "meme-" + hashlib.sha256(hashlib.sha256(image).digest() + text.encode()).hexdigest()[:20]


class Moderation:
    """Previews and makes changes of the bank, one at a time, and records decisions.

    Args:
        bank_service: Changes the bank; None: no example bank is open.
        reviews: Log of decisions.
    """

    def __init__(self, bank_service: BankService | None, reviews: Reviews) -> None:
        self._bank_service, self.reviews = bank_service, reviews
        self._lock = threading.Lock()

    @property
    def bank_service(self) -> BankService:
        """The bank service. Raises `UserError` where no example bank is open."""
        if self._bank_service is None:
            raise UserError("No example bank is open, so nothing can be corrected; start the console with --bank BANK.")
        return self._bank_service

    @property
    def can_change(self) -> bool:
        """Whether an example bank is open."""
        return self._bank_service is not None

    def labels_in_bank(self, served: ServedVerdict) -> dict[str, MemeLabel]:
        """Return the labels, by id, of the bank's rows that are this meme: by image and caption, or by id."""
        return self.bank_service.labels_of(served.meme)

    def preview(self, served: ServedVerdict, label: MemeLabel) -> ChangePreview:
        """Compute the impact of a correction, without making it.

        Raises:
            UserError: the bank has the meme with this label already; there is no meme to measure the impact on.
        """
        with self._exclusive():
            known = self.labels_in_bank(served)
            rows = tuple(name for name, other in known.items() if other != label)
            if known and not rows:
                raise UserError("The bank holds this meme with this label already; there is nothing to correct.")
            if rows:
                impact = self.bank_service.preview(relabel=dict.fromkeys(rows, label), relabel_identical=True)
            else:
                impact = self.bank_service.preview([served.meme], [label])
            return ChangePreview(served.meme.id, label, self.bank_service.bank.version, impact, rows)

    def preview_rollback(self, version: int) -> ChangePreview:
        """Compute the impact of restoring a version. Raises `UserError` where that is not possible."""
        with self._exclusive():
            impact = self.bank_service.preview_rollback(version)
            return ChangePreview(version, None, self.bank_service.bank.version, impact)

    def correct(
        self, served: ServedVerdict, preview: ChangePreview | None, author: str, reason: str, note: str = ""
    ) -> VersionEntry:
        """Make a correction that was previewed: a version of the bank, and a line in the reviews.

        Raises:
            UserError: there was no preview, or the bank has changed since; the reason is missing or too long; the
                correction was made before.
        """
        shown, why = self._checked(preview, served.meme.id, reason, note)
        label, note = shown.label, note.strip()
        assert label is not None

        def change() -> VersionEntry:
            self._check_current(shown)
            self.record(served, "begun", label, author, shown.version, shown.rows)
            if shown.rows:
                entry = self.bank_service.relabel(
                    dict.fromkeys(shown.rows, label),
                    author=author,
                    reason=f"{why}; {note}" if note else why,
                    relabel_identical=True,
                )
            else:
                entry = self.bank_service.add(
                    [served.meme], [label], author=author, reason=why, source=SOURCE, notes=[note]
                )
            self.record(served, "correct", label, author, entry.version, shown.rows)
            return entry

        return self._change(change)

    def rollback(self, version: int, preview: ChangePreview | None, author: str, reason: str) -> VersionEntry:
        """Restore a version after a preview, as a new version. Raises `UserError` as `correct` does."""
        shown, why = self._checked(preview, version, reason)

        def change() -> VersionEntry:
            self._check_current(shown)
            return self.bank_service.rollback(version, author=author, reason=why)

        return self._change(change)

    def _change(self, change: Callable[[], VersionEntry]) -> VersionEntry:
        """Make a change while nobody else, in this process or another, changes the bank."""
        with self._lock, self._exclusive():
            return self.bank_service.bank.exclusively(change)

    def _exclusive(self) -> AbstractContextManager[Detector]:
        """Lock the model and the bank of this process, which then stays at one version."""
        return self.bank_service.service.exclusive(self.bank_service.timeout)

    def record(
        self,
        served: ServedVerdict,
        decision: Decision,
        label: MemeLabel | None,
        author: str,
        bank_version: int | None = None,
        rows: tuple[str, ...] = (),
    ) -> None:
        """Append a decision to the reviews; `bank_version` is by default the version that voted."""
        meme, version = served.meme, served.version
        self.reviews.append(
            Review(
                id=meme.id,
                decision=decision,
                verdict=served.verdict.verdict,
                label=label,
                author=author,
                time=now(),
                run=version["run"],
                bank_version=version["bank"].get("version") if bank_version is None else bank_version,
                picture=file_digest(meme.image) if isinstance(meme.image, Path) else "",
                row=None if not rows or meme.id in rows else rows[0],
            )
        )

    def _checked(
        self, preview: ChangePreview | None, target: str | int, reason: str, note: str = ""
    ) -> tuple[ChangePreview, str]:
        if preview is None or preview.target != target:
            raise UserError("Look at the effect first: press “Show the effect”, then write the change to the bank.")
        long = [f"the {name} has {len(text)} characters, {_MAX_CHARACTERS} are allowed"
                for name, text in (("reason", reason), ("note", note)) if len(text) > _MAX_CHARACTERS]  # fmt: skip
        raise_all(long, "Too long")
        if not reason.strip():
            raise UserError("Say why: choose a reason, or write one. The log keeps it.")
        return preview, reason.strip()

    def _check_current(self, preview: ChangePreview) -> None:
        version = self.bank_service.version()
        if version != preview.version:
            raise UserError(
                f"The bank was changed meanwhile: its version is {version}, the effect was of {preview.version}. "
                "Look at the effect again."
            )
