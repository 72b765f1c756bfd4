"""Decisions of moderators, in an append-only file of JSON lines.

A correction is a change of the bank and a line in this file. A line `begun` is written before the change, and the line
of the decision after it; of a `begun` without a decision the bank tells whether the correction was made.
"""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from ra_hmd.core.errors import UserError

Decision = Literal["agree", "correct", "skip", "begun"]


@dataclass(frozen=True)
class Review:
    """A line of the file. It has no image and no caption, because the file may be kept for long.

    Attributes:
        id: Id of the meme.
        decision: `agree`, `correct` (the bank was changed), `skip`, or `begun`: a correction is about to be made.
        verdict: Verdict of the detector; None where it abstained.
        label: Label given by the moderator; None for `skip`.
        author: Name of the moderator.
        time: Time in UTC, ISO 8601.
        run: Folder of the model.
        bank_version: Version of the bank that voted; of `correct` the version of the change; None without a bank.
        picture: Digest of the image file, if any: the decision does not hold for another image.
        row: Id of the bank row that is this meme, where it differs from `id`.
    """

    id: str
    decision: Decision
    verdict: int | list[int] | None
    label: int | list[int] | None
    author: str
    time: str
    run: str
    bank_version: int | None
    picture: str = ""
    row: str | None = None


class Reviews:
    """Log of decisions, which threads and processes may share.

    Args:
        path: File of the log; created with the first decision.

    Attributes:
        done: Last decision on each meme, by id.
        begun: Last `begun` line of each meme, by id.

    Raises:
        UserError: the file is no log of decisions.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._thread_lock = threading.Lock()
        self._file_lock = FileLock(self.path.with_name(self.path.name + ".lock"))
        self.done: dict[str, Review] = {}
        self.begun: dict[str, Review] = {}
        self._read_to = 0
        self.refresh()

    def refresh(self) -> None:
        """Read the lines that were appended since, by any process."""
        with self._thread_lock:
            for review in self._new_lines():
                self._add(review)

    def append(self, review: Review) -> None:
        """Append a line, synchronized to disk."""
        line = json.dumps(asdict(review), ensure_ascii=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._thread_lock, self._file_lock, self.path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            whole = file.read() in (b"", b"\n")
            file.write(line if whole else b"\n" + line)  # a line that a kill cut short is ended first
            file.flush()
            os.fsync(file.fileno())
            self._add(review)

    def settle(self, labels: Mapping[str, Any], version: int) -> None:
        """Complete corrections that were begun and not ended, where the bank has their label.

        Args:
            labels: Labels of the bank's rows, by id.
            version: Version of the bank.
        """
        for review in [one for name, one in self.begun.items() if name not in self.done]:
            if version > (review.bank_version or 0) and labels.get(review.row or review.id) == review.label:
                self.append(Review(**asdict(review) | {"decision": "correct", "bank_version": version}))

    def count(self, decision: Decision) -> int:
        """Return the number of memes with that last decision."""
        return sum(review.decision == decision for review in list(self.done.values()))

    def _add(self, review: Review) -> None:
        (self.begun if review.decision == "begun" else self.done)[review.id] = review

    def _new_lines(self) -> Iterator[Review]:
        """New complete lines; lines that a kill cut short are skipped. Raises `UserError` for any other line."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read_to += len(line)
                try:
                    yield Review(**json.loads(line))
                except (TypeError, ValueError) as error:
                    if not line.startswith(b'{"id": '):
                        raise UserError(
                            f"{self.path} is not a file of reviews ({error}); give another one with --reviews."
                        ) from error
