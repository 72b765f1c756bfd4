"""Memes that wait for a moderator: judged in the background, the most uncertain first."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ra_hmd.console.reviews import Reviews
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.data.images import file_digest
from ra_hmd.data.meme import Meme
from ra_hmd.inference.batch_reader import read_batch
from ra_hmd.inference.types import Verdict
from ra_hmd.serve.batching import BatchingService, QueueFull, ServedVerdict, ServiceClosed, wait_for_all

_log = logging.getLogger("ra_hmd.serve")
SOURCE = "review"  # of the bank's rows that a moderator made
_AT_ONCE = 8
_CLAIM_SECONDS = 900
_PATIENCE = 0.2  # seconds, before a full service is asked again
_ANSWER_SECONDS = 120


def margin(detection: Verdict, service: BatchingService) -> float:
    """How far a meme is from another verdict, in probability; 0 where the detector has none, 1 where a person gave it.

    Of one of C classes the distance of the two most likely; else that of the probability from the threshold's, of
    several classes the smallest.
    """
    if detection.identical is not None:
        return 1.0
    if detection.verdict is None:
        return 0.0
    problem, head = service.detector.problem, detection.head
    found = np.atleast_1d(detection.probabilities[head])
    if problem.kind == "single_label":
        second, first = np.sort(found)[-2:]
        return float(first - second)
    return float(np.abs(found - threshold_probabilities(service, head)).min())


def threshold_probabilities(service: BatchingService, head: Head) -> np.ndarray:
    """[C], the probabilities at a head's thresholds."""
    rule = service.detector.scorer.rule(head)
    return rule.calibration.apply(rule.thresholds[None, :], head, service.detector.problem)[0]


@dataclass
class _Claim:
    by: str
    since: float


@dataclass
class ReviewQueue:
    """The memes of a file or folder that nobody has decided on.

    Args:
        service: Judges.
        reviews: What was decided.
        source: File or folder, see `ra_hmd.inference.batch_reader`; None: an empty queue.
        media_dir: Where relative image paths start.

    Raises:
        UserError: no such file or folder.

    Attributes:
        problems: Rows and pictures that cannot be used: place, reason.
        reading: Whether memes are still being judged in the background.
    """

    service: BatchingService
    reviews: Reviews
    source: Path | None = None
    media_dir: Path | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)
    reading: bool = False

    def __post_init__(self) -> None:
        if self.source is not None and not self.source.exists():
            raise UserError(f"--queue {self.source} does not exist; give a .jsonl or .csv file, or a folder.")
        self._queries: dict[str, Meme] = {}
        self._margins: dict[str, float] = {}
        self._pictures: dict[str, str] = {}
        self._claims: dict[str, _Claim] = {}
        self._alone = threading.Lock()
        self._stop = threading.Event()
        self._worker: threading.Thread | None = None

    def start(self) -> None:
        """Judge all that is not decided, in the background."""
        if self.source is None:
            return
        self._settle()
        self.reading = True
        self._worker = threading.Thread(target=self._judge_all, name="review", daemon=True)
        self._worker.start()

    def close(self) -> None:
        """Stop judging."""
        self._stop.set()
        if self._worker is not None:
            self._worker.join(_ANSWER_SECONDS)

    @property
    def waiting(self) -> int:
        """Memes that are judged and not decided."""
        return sum(not self._is_decided(name) for name in list(self._margins))

    def next(self, who: str) -> Meme | None:
        """The most uncertain meme that nobody has decided on or has before them; it is kept for `who` for a while."""
        self.reviews.refresh()
        with self._alone:
            self._release(who)
            now = time.monotonic()
            free = [
                (value, name)
                for name, value in self._margins.items()
                if not self._is_decided(name)
                and ((claim := self._claims.get(name)) is None or now - claim.since > _CLAIM_SECONDS)
            ]
            if not free:
                return None
            name = min(free)[1]
            self._claims[name] = _Claim(who, now)
            query = self._queries[name]
            self._pictures[name] = file_digest(query.image) if isinstance(query.image, Path) else ""
            return query

    def holds(self, name: str, who: str) -> bool:
        """Whether a meme is before `who`, and still undecided: what is decided is not decided again."""
        self.reviews.refresh()
        with self._alone:
            claim = self._claims.get(name)
            return claim is not None and claim.by == who and not self._is_decided(name)

    def judge(self, query: Meme) -> ServedVerdict:
        """What the model and the bank say of a meme now."""
        return wait_for_all(self.service.submit([query]), _ANSWER_SECONDS)[0]

    def set_aside(self, name: str, reason: str) -> None:
        """A meme that cannot be judged is not asked for again."""
        with self._alone:
            self._margins.pop(name, None)
            self.problems.append((name, reason))

    def _is_decided(self, name: str) -> bool:
        """Whether somebody decided on a meme with the picture that it has now; old lines do not tell of the picture."""
        review = self.reviews.done.get(name)
        return review is not None and review.picture in ("", self._pictures.get(name, ""))

    def _release(self, who: str) -> None:
        self._claims = {name: claim for name, claim in self._claims.items() if claim.by != who}

    def _settle(self) -> None:
        bank = self.service.detector.scorer.bank
        if bank is not None:
            with self.service.exclusive():
                labels, version = dict(zip(bank.ids, bank.labels.tolist(), strict=True)), bank.version
            self.reviews.settle(labels, version)

    def _decided_in_bank(self) -> set[str]:
        """Memes that a review made rows of the bank, whatever became of its line."""
        bank = self.service.detector.scorer.bank
        if bank is None:
            return set()
        with self.service.exclusive():
            rows = [bank.row(place) for place in range(len(bank))]
        return {row["id"] for row in rows if row["source"] == SOURCE}

    def _judge_all(self) -> None:
        try:
            in_bank = self._decided_in_bank()
            part: list[Meme] = []
            most = min(_AT_ONCE, self.service.limits.max_queue)
            for query in self._readable():
                if isinstance(query.image, Path):
                    self._pictures[query.id] = file_digest(query.image)
                known = query.id in in_bank and query.id not in self.reviews.done
                if not known and not self._is_decided(query.id):
                    part.append(query)
                if len(part) == most:
                    self._judge_part(part)
                    part = []
                if self._stop.is_set():
                    return
            self._judge_part(part)
        except ServiceClosed:
            pass  # the service ends, and with it the queue
        except Exception as error:  # whatever it is, the page must say that the queue is not all there
            _log.exception("the review queue was not read to its end")
            self.problems.append((self.source.name if self.source else "", f"not read to its end: {error}"))
        finally:
            self.reading = False

    def _readable(self) -> Iterator[Meme]:
        assert self.source is not None
        try:
            for asked in read_batch(self.source, self.media_dir):
                if asked.meme is None:
                    self.problems.append((asked.place, asked.problem))
                else:
                    yield asked.meme
        except UserError as error:
            self.problems.append((str(self.source), str(error)))

    def _judge_part(self, part: list[Meme]) -> None:
        for query, answer in zip(part, self._submit(part), strict=False):
            try:
                detection = answer.result(_ANSWER_SECONDS).detection
            except (UserError, TimeoutError, CancelledError) as error:
                self.problems.append((query.id, str(error) or "it took too long"))
                continue
            except Exception:  # the service has logged it; the memes after this one are to be judged all the same
                self.problems.append((query.id, "the model or the bank failed"))
                continue
            with self._alone:
                self._queries[query.id] = query
                self._margins[query.id] = margin(detection, self.service)

    def _submit(self, part: list[Meme]) -> "list[Future[ServedVerdict]]":
        """The answers to come; none where the queue is closed meanwhile."""
        while not self._stop.is_set():
            try:
                return self.service.submit(part)
            except QueueFull:
                self._stop.wait(_PATIENCE)
        return []
