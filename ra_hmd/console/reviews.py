"""What moderators decided, line by line in a file that only grows: nothing is asked twice, nothing is lost.

A correction is two things, a change of the bank and a line here. The line `begun` is written before the bank is changed
and the line of the decision after it; of a `begun` without a decision the bank itself tells whether it was made.
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
    """One line. No picture and no caption: the file may be kept for long.

    Attributes:
        id: Of the meme.
        decision: `agree`, `correct` (the bank was changed), `skip`, or `begun`: a correction is about to be made.
        verdict: The detector's; None: it left the meme to a person.
        label: What the moderator says; None: skipped.
        author: Who.
        time: UTC, ISO 8601.
        run: The model.
        bank_version: The bank's that voted; of `correct` that of the change; None without an example bank.
        picture: Digest of the picture's file, where it has one: of another picture nothing is decided.
        row: Id of the bank's row that is this meme, where that is another one.
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
    """The file, open for appending. Threads and processes may share it.

    Args:
        path: The file; it is made with the first decision.

    Raises:
        UserError: a file that is not one of these.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._alone = threading.Lock()
        self._lock = FileLock(self.path.with_name(self.path.name + ".lock"))
        self.done: dict[str, Review] = {}
        self.begun: dict[str, Review] = {}
        self._read_to = 0
        self.refresh()

    def refresh(self) -> None:
        """Read what was appended since, by whomever."""
        with self._alone:
            for review in self._new_lines():
                self._take(review)

    def append(self, review: Review) -> None:
        """Write a line that survives a power cut."""
        line = json.dumps(asdict(review), ensure_ascii=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone, self._lock, self.path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            whole = file.read() in (b"", b"\n")
            file.write(line if whole else b"\n" + line)  # what a kill cut short stays a line of its own
            file.flush()
            os.fsync(file.fileno())
            self._take(review)

    def settle(self, labels: Mapping[str, Any], version: int) -> None:
        """Corrections that were begun and not ended: made, if the bank has the label since, else to be asked again.

        Args:
            labels: Of the bank's rows, by id.
            version: Of the bank.
        """
        for review in [one for name, one in self.begun.items() if name not in self.done]:
            if version > (review.bank_version or 0) and labels.get(review.row or review.id) == review.label:
                self.append(Review(**asdict(review) | {"decision": "correct", "bank_version": version}))

    def count(self, decision: Decision) -> int:
        """How many memes have that as their last decision."""
        return sum(review.decision == decision for review in list(self.done.values()))

    def _take(self, review: Review) -> None:
        (self.begun if review.decision == "begun" else self.done)[review.id] = review

    def _new_lines(self) -> Iterator[Review]:
        """Lines that are whole; one that a kill cut short is left out, and what is no start of ours refused."""
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
