"""One detector that many ask at once: a bounded queue, micro-batches, and a bank that changes between two of them.

A meme travels: `submit` → prepared (decoded, resized, tokenised) by one of a few threads → queue → judged by the one
thread that uses the model, together with whatever else is ready → its future.
"""

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.meme import Meme
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.types import PreparedMeme, Verdict
from ra_hmd.retrieval.embeddings import Embeddings

_log = logging.getLogger("ra_hmd.serve")
_REMEMBERED = 1000


class QueueFull(Exception):
    """As many memes as may wait are waiting already; try again later."""


class ServiceBusy(Exception):
    """The model is still used by others after the time that was given; nothing was done."""


class InferenceFailed(Exception):
    """The model or the bank failed; it is no fault of the meme. The log says where."""


class ServiceClosed(Exception):
    """The service takes no more memes: it is being shut down."""


@dataclass(frozen=True)
class ServedVerdict:
    """What is said of a meme, and by which model and bank."""

    detection: Verdict
    version: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the detection's fields, and `version`."""
        return self.detection.to_dict() | {"version": self.version}


@dataclass(frozen=True)
class BatchingSettings:
    """Of the service.

    Attributes:
        max_batch: Most memes in a forward pass.
        max_wait_ms: How long a batch waits for memes that are being prepared, in milliseconds.
        max_queue: Most memes that are accepted and not answered.
        prepare_threads: Threads that decode, resize and tokenise.

    Raises:
        UserError: limits that make no sense, all listed.
    """

    max_batch: int = 32
    max_wait_ms: float = 5.0
    max_queue: int = 256
    prepare_threads: int = 2

    def __post_init__(self) -> None:
        low = [
            f"{name} is {getattr(self, name)}, it must be at least 1"
            for name in ("max_batch", "max_queue", "prepare_threads")
            if getattr(self, name) < 1
        ]
        low += [f"max_wait_ms is {self.max_wait_ms}, it must not be negative"] if self.max_wait_ms < 0 else []
        raise_all(low, "Limits of the service")


class _Waiting:
    """A prepared meme in the queue. One that is cancelled is let go at once: it may lie there for long."""

    def __init__(self, meme: PreparedMeme, future: "Future[ServedVerdict]") -> None:
        self.meme: PreparedMeme | None = meme
        self.future = future
        future.add_done_callback(self._let_go)

    def _let_go(self, _: "Future[ServedVerdict]") -> None:
        self.meme = None


@dataclass
class BatchStatistics:
    """What was done so far, for metrics.

    Attributes:
        refused: Memes for which the queue was full.
        sizes: Memes of a forward pass → how many passes had so many.
    """

    refused: int = 0
    sizes: Counter[int] = field(default_factory=Counter)

    @property
    def batches(self) -> int:
        """Forward passes."""
        return self.sizes.copy().total()

    @property
    def memes(self) -> int:
        """Memes that were judged."""
        return sum(size * passes for size, passes in self.sizes.copy().items())


class BatchingService:
    """A detector with its queue. Use it as a context manager, or call `close`.

    Args:
        detector: Judges.
        limits: Of the queue and of batches.
    """

    def __init__(self, detector: Detector, limits: BatchingSettings | None = None) -> None:
        self.detector, self.limits, self.statistics = detector, limits or BatchingSettings(), BatchStatistics()
        detector.batch_size = self.limits.max_batch
        self._using = threading.Lock()  # the model and the bank, for as long as one of them is used
        self._next = threading.Lock()  # held by who waits for it, or the judging thread would take it again and again
        self._alone: int | None = None  # the thread that is in `exclusive`
        self._counting = threading.Lock()
        self._accepted = 0
        self._closing = False
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._recent: deque[tuple[str, tuple[np.ndarray, str]]] = deque(maxlen=_REMEMBERED)
        self._preparing = ThreadPoolExecutor(self.limits.prepare_threads, thread_name_prefix="prepare")
        self._worker = threading.Thread(target=self._work, name="judge", daemon=True)
        self._worker.start()

    def __enter__(self) -> "BatchingService":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Memes that are accepted and not answered."""
        return self._accepted

    @property
    def ready(self) -> bool:
        """Whether memes are accepted and judged."""
        return not self._closing and self._worker.is_alive()

    @property
    def recent(self) -> Embeddings | None:
        """The last memes that were judged, without labels, as the bank is asked about them; None before the first."""
        newest = dict(self._recent.copy())
        if not newest:
            return None
        labels = self.detector.problem.unlabelled(len(newest))
        embedding, contents = zip(*newest.values(), strict=True)
        return Embeddings(list(newest), labels, np.stack(embedding), contents)

    def submit(self, queries: Sequence[Meme]) -> "list[Future[ServedVerdict]]":
        """Accept memes, all or none. A future that is cancelled before its meme is judged costs no forward pass.

        A future raises `UserError` where its image cannot be used, `InferenceFailed` where the model or the bank
        failed.

        Raises:
            QueueFull: they would be more than may wait.
            Closed: the service shuts down.
        """
        with self._counting:
            if not self.ready:
                raise ServiceClosed
            if self._accepted + len(queries) > self.limits.max_queue:
                self.statistics.refused += len(queries)
                raise QueueFull
            self._accepted += len(queries)
            futures: list[Future[ServedVerdict]] = [Future() for _ in queries]
            for future in futures:
                future.add_done_callback(self._answered)
            for query, future in zip(queries, futures, strict=True):
                self._preparing.submit(self._prepare, query, future)
        return futures

    @contextmanager
    def exclusive(self, timeout: float | None = None) -> Iterator[Detector]:
        """The detector for the caller alone, for a change of the bank or for generation; memes wait meanwhile.

        Args:
            timeout: Seconds to wait for it; None is as long as it takes.

        Raises:
            Busy: it was not free in that time.
            Unable: the bank cannot be read.
        """
        if self._alone == threading.get_ident():  # it has it already
            yield self.detector
            return
        if not self._take(timeout):
            raise ServiceBusy
        try:
            self._alone = threading.get_ident()
            self._refresh()
            yield self.detector
            self._refresh()
        finally:
            self._alone = None
            self._using.release()

    def _take(self, timeout: float | None) -> bool:
        """Whether the model and the bank could be had in that time."""
        end = None if timeout is None else time.monotonic() + timeout
        if not self._next.acquire(timeout=-1 if timeout is None else timeout):
            return False
        try:
            return self._using.acquire(timeout=-1 if end is None else max(end - time.monotonic(), 0))
        finally:
            self._next.release()

    def close(self, timeout: float | None = None) -> None:
        """Take no more memes, answer those that were accepted, and end.

        Args:
            timeout: Seconds to wait for the answers; None is as long as it takes.
        """
        with self._counting:
            self._closing = True
        self._preparing.shutdown(wait=True)
        self._queue.put(None)
        self._worker.join(timeout)

    def _answered(self, _: "Future[ServedVerdict]") -> None:
        with self._counting:
            self._accepted -= 1

    def _prepare(self, query: Meme, future: "Future[ServedVerdict]") -> None:
        if future.cancelled():
            return
        try:
            self._queue.put(_Waiting(self.detector.prepare(query), future))
        except Exception as error:  # whatever it is, it is this meme's answer, not the thread's end
            _fail(future, error)

    def _work(self) -> None:
        end = False
        while not end and (first := self._queue.get()) is not None:
            with self._next:
                pass  # who waited is first
            with self._using:  # taken before the batch is put together: who waits for it may still cancel
                batch, end = self._fill(first)
                alive = [one for one in batch if one.future.set_running_or_notify_cancel()]
                if alive:
                    self._judge(alive)

    def _fill(self, first: _Waiting) -> tuple[list[_Waiting], bool]:
        """What is ready, up to a batch, after a short wait for what is in preparation; and whether it is the end."""
        batch, deadline = [first], time.monotonic() + self.limits.max_wait_ms / 1000
        while len(batch) < self.limits.max_batch:
            left = deadline - time.monotonic()
            patient = len(batch) < self._accepted and left > 0
            try:
                one = self._queue.get(timeout=left) if patient else self._queue.get_nowait()
            except queue.Empty:
                break
            if one is None:
                return batch, True
            batch.append(one)
        return batch, False

    def _judge(self, batch: list[_Waiting]) -> None:
        try:
            answers = self._answers([one.meme for one in batch if one.meme is not None])
        except Exception as error:  # one meme must not take its batch along
            if len(batch) == 1:
                _log.exception("judging failed")
                # What a meme itself can be blamed for was found when it was prepared.
                batch[0].future.set_exception(InferenceFailed() if isinstance(error, UserError) else error)
                return
            for one in batch:
                self._judge([one])
            return
        for one, answer in zip(batch, answers, strict=True):
            one.future.set_result(answer)

    def _refresh(self) -> None:
        try:
            self.detector.refresh()
        except Exception as error:  # whatever it is, it is no fault of who asks
            _log.exception("the bank cannot be read")
            raise InferenceFailed from error

    def _answers(self, memes: list[PreparedMeme]) -> list[ServedVerdict]:
        self._refresh()
        scored = self.detector.score(memes)
        found, version = self.detector.verdicts(memes, scored), self.detector.version
        self.statistics.sizes[len(memes)] += 1
        asked = scored.queries
        self._recent.extend(zip(asked.ids, zip(asked.embedding, asked.contents, strict=True), strict=True))
        return [ServedVerdict(one, version) for one in found]


def _fail(future: "Future[Any]", error: Exception) -> None:
    if not isinstance(error, UserError):
        _log.error("a meme failed", exc_info=error)
    if future.running() or future.set_running_or_notify_cancel():
        future.set_exception(error)


def wait_for_all(futures: "Sequence[Future[ServedVerdict]]", seconds: float) -> list[ServedVerdict]:
    """The answers of memes that were submitted together, within a time; those that come too late are cancelled.

    Raises:
        TimeoutError: not all were there in time.
        UserError: the first meme that cannot be judged.
    """
    end = time.monotonic() + seconds
    try:
        return [future.result(max(end - time.monotonic(), 0)) for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise
