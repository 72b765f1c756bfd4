"""Review queue: the memes of a file or folder, scored in the background. Suggested ones come first, then the most
uncertain.
"""

import heapq
import logging
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, Future
from pathlib import Path

import numpy as np

from ra_hmd.console.claims import Claims
from ra_hmd.console.reviews import Reviews
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.data.images import file_digest
from ra_hmd.data.meme import Meme
from ra_hmd.inference.batch_reader import read_batch
from ra_hmd.inference.types import Verdict
from ra_hmd.serve.batching import BatchingService, QueueFull, ServedVerdict, ServiceClosed, wait_for_all
from ra_hmd.serve.database import Database

_log = logging.getLogger("ra_hmd.serve")
SOURCE = "review"
"""Source of the bank rows that moderators make."""
_BATCH_SIZE = 8
_RETRY_SECONDS = 0.2
_TIMEOUT = 120


def margin(verdict: Verdict, service: BatchingService) -> float:
    """Return how far a meme is from another verdict, in probability.

    It is the distance between the two most likely classes for a single-label task, else the distance between the
    probability and that of the threshold (the smallest for a multi-label task). It is 0 where the detector abstained,
    and 1 where a person labelled the meme, or it is known.
    """
    if verdict.identical is not None or not verdict.scores:
        return 1.0
    if verdict.verdict is None:
        return 0.0
    problem, head = service.detector.problem, verdict.head
    probabilities = np.atleast_1d(verdict.probabilities[head])
    if problem.kind == "single_label":
        second, first = np.sort(probabilities)[-2:]
        return float(first - second)
    return float(np.abs(probabilities - threshold_probabilities(service, head)).min())


def threshold_probabilities(service: BatchingService, head: Head) -> np.ndarray:
    """Return the calibrated probabilities at the thresholds of a head, [C]."""
    rule = service.detector.scorer.rule(head)
    return rule.calibration.apply(rule.thresholds[None, :], head, service.detector.problem)[0]


class ReviewQueue:
    """The memes of a file or folder that nobody has decided on yet.

    Args:
        service: Batching service that scores memes.
        reviews: Log of decisions.
        source: File or folder, see `ra_hmd.inference.batch_reader`; None: an empty queue.
        media_dir: Folder that relative image paths start from.
        order: Id to place of the memes that come before all others, in that order (`ra-hmd bank suggest`).
        database: Where claims are kept, which all processes that show this queue must share: path or URL; default: a
            SQLite file beside the reviews.

    Attributes:
        problems: Place and reason of each row that cannot be scored.
        scoring: Whether memes are still being scored in the background.

    Raises:
        UserError: no such file or folder; the database cannot be opened.
    """

    def __init__(
        self,
        service: BatchingService,
        reviews: Reviews,
        source: Path | None = None,
        media_dir: Path | None = None,
        order: Mapping[str, int] | None = None,
        database: str | Path | None = None,
    ) -> None:
        self.service, self.reviews, self.source, self.media_dir = service, reviews, source, media_dir
        if source is not None and not source.exists():
            raise UserError(f"--queue {source} does not exist; give a .jsonl or .csv file, or a folder.")
        self.order = dict(order or {})
        self.problems: list[tuple[str, str]] = []
        self.scoring = False
        self._memes: dict[str, Meme] = {}
        self._margins: dict[str, float] = {}
        self._digests: dict[str, str] = {}
        self._claims: Claims | None = None
        if source is not None:
            database = database or reviews.path.with_suffix(".sqlite")
            # By its name alone: another process may have the same file at another place.
            self._claims = Claims(Database(database), source.name)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._worker: threading.Thread | None = None

    def start(self) -> None:
        """Score all memes without a decision in a background thread."""
        if self.source is None:
            return
        self._settle()
        self.scoring = True
        self._worker = threading.Thread(target=self._score_all, name="review", daemon=True)
        self._worker.start()

    def close(self) -> None:
        """Stop the background thread."""
        self._stop.set()
        if self._worker is not None:
            self._worker.join(_TIMEOUT)

    @property
    def pending(self) -> int:
        """Number of memes that are scored and not decided."""
        return sum(not self._is_decided(name) for name in list(self._margins))

    def next(self, session: str) -> Meme | None:
        """Return the first meme without a decision that no other session has claimed, and claim it.

        Memes that are in `order` come first, then the most uncertain. A session that has claimed one already gets that
        again, as after it loaded its page anew.
        """
        if self._claims is None:
            return None
        self.reviews.refresh()
        with self._lock:
            waiting = [
                (self.order.get(name, len(self.order)), value, name)
                for name, value in self._margins.items()
                if not self._is_decided(name)
            ]
        names, taken = {name for *_, name in waiting}, self._claims.held_by_others(session)
        for name in self._claims.held_by(session):
            if name in names and self._claims.claim(name, session):
                return self._shown(name)
            self._claims.release(name, session)
        heapq.heapify(waiting)
        while waiting:
            name = heapq.heappop(waiting)[-1]
            if name not in taken and self._claims.claim(name, session):
                return self._shown(name)
        return None

    def _shown(self, name: str) -> Meme:
        with self._lock:
            meme = self._memes[name]
            self._digests[name] = file_digest(meme.image) if isinstance(meme.image, Path) else ""
            return meme

    def holds(self, name: str, session: str) -> bool:
        """Return whether a session has claimed a meme that is still without a decision."""
        self.reviews.refresh()
        return self._claims is not None and name in self._claims.held_by(session) and not self._is_decided(name)

    def release(self, name: str, session: str) -> bool:
        """Give up a claim, before a decision is recorded. Returns whether the session had it, once for each claim."""
        return self._claims is not None and self._claims.release(name, session)

    def judge(self, meme: Meme) -> ServedVerdict:
        """Score a meme with the present bank."""
        return wait_for_all(self.service.submit([meme]), _TIMEOUT)[0]

    def set_aside(self, name: str, reason: str) -> None:
        """Take a meme that cannot be scored out of the queue."""
        with self._lock:
            self._margins.pop(name, None)
            self.problems.append((name, reason))

    def _is_decided(self, name: str) -> bool:
        """Whether there is a decision on a meme with its present image; old reviews do not tell the image."""
        review = self.reviews.done.get(name)
        return review is not None and review.picture in ("", self._digests.get(name, ""))

    def _settle(self) -> None:
        bank = self.service.detector.scorer.bank
        if bank is not None:
            with self.service.exclusive():
                labels, version = dict(zip(bank.ids, bank.labels.tolist(), strict=True)), bank.version
            self.reviews.settle(labels, version)

    def _reviewed_rows(self) -> set[str]:
        """Ids of the bank rows that reviews made, even where the line of the review is lost."""
        bank = self.service.detector.scorer.bank
        if bank is None:
            return set()
        with self.service.exclusive():
            rows = [bank.row(place) for place in range(len(bank))]
        return {row["id"] for row in rows if row["source"] == SOURCE}

    def _score_all(self) -> None:
        try:
            in_bank = self._reviewed_rows()
            batch: list[Meme] = []
            size = min(_BATCH_SIZE, self.service.settings.max_queue)
            for meme in self._valid_memes():
                if isinstance(meme.image, Path):
                    self._digests[meme.id] = file_digest(meme.image)
                reviewed = meme.id in in_bank and meme.id not in self.reviews.done
                if not reviewed and not self._is_decided(meme.id):
                    batch.append(meme)
                if len(batch) == size:
                    self._score(batch)
                    batch = []
                if self._stop.is_set():
                    return
            self._score(batch)
        except ServiceClosed:
            pass  # the queue ends with its service
        except Exception as error:  # whatever it is, the page must say that the queue is incomplete
            _log.exception("the review queue was not read to its end")
            self.problems.append((self.source.name if self.source else "", f"not read to its end: {error}"))
        finally:
            self.scoring = False

    def _valid_memes(self) -> Iterator[Meme]:
        assert self.source is not None
        try:
            for row in read_batch(self.source, self.media_dir):
                if row.meme is None:
                    self.problems.append((row.place, row.problem))
                else:
                    yield row.meme
        except UserError as error:
            self.problems.append((str(self.source), str(error)))

    def _score(self, batch: list[Meme]) -> None:
        for meme, future in zip(batch, self._submit(batch), strict=False):
            try:
                verdict = future.result(_TIMEOUT).verdict
            except (UserError, TimeoutError, CancelledError) as error:
                self.problems.append((meme.id, str(error) or "it took too long"))
                continue
            except Exception:  # the service has logged it; the memes after this one are scored all the same
                self.problems.append((meme.id, "the model or the bank failed"))
                continue
            with self._lock:
                self._memes[meme.id] = meme
                self._margins[meme.id] = margin(verdict, self.service)

    def _submit(self, batch: list[Meme]) -> "list[Future[ServedVerdict]]":
        """Submit a batch, with retries while the service is full; empty where the queue was closed meanwhile."""
        while not self._stop.is_set():
            try:
                return self.service.submit(batch)
            except QueueFull:
                self._stop.wait(_RETRY_SECONDS)
        return []
