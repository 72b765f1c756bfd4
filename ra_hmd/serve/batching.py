"""Micro-batching around one detector: a bounded queue, batched inference, and a bank that may change between batches.

A meme passes through `submit`, the preparation threads (decode, resize, tokenize), the queue, and the worker thread,
which scores it in one batch with the other memes that are ready and sets the result of its future.
"""

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.types import PreparedMeme, Verdict
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.serve.durations import Durations
from ra_hmd.serve.limits import BatchingSettings

_log = logging.getLogger("ra_hmd.serve")
_RECENT_MEMES = 1000


class QueueFull(Exception):
    """The queue holds as many memes as it may; retry later."""


class ServiceBusy(Exception):
    """The model was not free within the timeout; nothing was done."""


class InferenceFailed(Exception):
    """The model or the bank failed, through no fault of the meme. The log has the traceback."""


class ServiceClosed(Exception):
    """The service is shutting down and accepts no more memes."""


@dataclass(frozen=True)
class ServedVerdict:
    """A verdict with its meme, and the versions of the model and the bank that gave it.

    The caption of `meme` is the one that was scored: as given, or as read from the image.
    """

    meme: Meme
    verdict: Verdict
    version: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the fields of the verdict, and `version`."""
        return self.verdict.to_dict() | {"version": self.version}


class _QueuedMeme:
    """A prepared meme in the queue. Its tensors are released as soon as its future is done or cancelled."""

    def __init__(self, meme: Meme, prepared: PreparedMeme, future: "Future[ServedVerdict]", waited: float) -> None:
        self.meme: Meme | None = meme
        self.prepared: PreparedMeme | None = prepared
        self.future = future
        self._waited, self._since = waited, time.monotonic()
        future.add_done_callback(self._release)

    @property
    def waited(self) -> float:
        """Seconds that it has waited, without the time in which it was prepared."""
        return self._waited + time.monotonic() - self._since

    def _release(self, _: "Future[ServedVerdict]") -> None:
        self.meme = self.prepared = None


@dataclass
class BatchStatistics:
    """Counters of a service, for metrics.

    Attributes:
        refused: Memes refused because the queue was full.
        sizes: Number of forward passes by batch size.
        known: Known memes, answered without a forward pass.
        verdicts: Number of memes by the head that decided and its verdict: a class, `none` of several, or `person`.
        waiting: Seconds that each meme waited, for a thread that prepares it and for its forward pass.
        preparing: Seconds in which each meme was decoded, resized and tokenised.
        computing: Seconds of each forward pass with its vote.
    """

    refused: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    known: int = 0
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    waiting: Durations = field(default_factory=Durations)
    preparing: Durations = field(default_factory=Durations)
    computing: Durations = field(default_factory=Durations)

    def count_verdict(self, verdict: Verdict) -> None:
        """Count a verdict."""
        decided = verdict.verdict
        names = [str(n) for n, member in enumerate(decided) if member] if isinstance(decided, list) else [str(decided)]
        for name in names or ["none"]:
            self.verdicts[verdict.head, "person" if decided is None else name] += 1

    @property
    def batches(self) -> int:
        """Number of forward passes."""
        return self.sizes.copy().total()

    @property
    def memes(self) -> int:
        """Number of memes that were judged."""
        return self.known + sum(size * passes for size, passes in self.sizes.copy().items())


class BatchingService:
    """Thread-safe micro-batching service around a detector. Use it as a context manager, or call `close`.

    Args:
        detector: Detector to run.
        settings: Sizes of the queue and of batches.
    """

    def __init__(self, detector: Detector, settings: BatchingSettings | None = None) -> None:
        self.detector, self.settings, self.statistics = detector, settings or BatchingSettings(), BatchStatistics()
        detector.batch_size = self.settings.max_batch
        self._model_lock = threading.Lock()  # guards the model and the bank
        self._turnstile = threading.Lock()  # keeps the worker thread from starving waiters of the model lock
        self._exclusive_thread: int | None = None  # the thread inside `exclusive`
        self._count_lock = threading.Lock()
        self._idle = threading.Condition(self._count_lock)
        self._accepted = 0
        self._closing = False
        self._queue: queue.SimpleQueue[_QueuedMeme | None] = queue.SimpleQueue()
        self._recent: deque[Embeddings] = deque(maxlen=_RECENT_MEMES)
        self._preparation = ThreadPoolExecutor(self.settings.prepare_threads, thread_name_prefix="prepare")
        self._worker = threading.Thread(target=self._work, name="inference", daemon=True)
        self._worker.start()

    def __enter__(self) -> "BatchingService":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pending(self) -> int:
        """Number of memes that are accepted and not yet answered."""
        return self._accepted

    @property
    def ready(self) -> bool:
        """Whether memes are accepted and scored."""
        return not self._closing and self._worker.is_alive()

    @property
    def recent(self) -> Embeddings | None:
        """Embeddings of the memes that were scored last, without labels; None before the first."""
        newest = {meme.ids[0]: meme for meme in self._recent.copy()}
        if not newest:
            return None
        first, *others = newest.values()
        return first.plus(*others)

    def submit(self, memes: Sequence[Meme]) -> "list[Future[ServedVerdict]]":
        """Queue memes, all or none. A future that is cancelled before its meme is scored costs no forward pass.

        A future raises `UserError` where its image cannot be used, `InferenceFailed` where the model or the bank
        failed.

        Raises:
            QueueFull: the queue has no room for all of them.
            ServiceClosed: the service is shutting down.
        """
        with self._count_lock:
            if not self.ready:
                raise ServiceClosed
            if self._accepted + len(memes) > self.settings.max_queue:
                self.statistics.refused += len(memes)
                raise QueueFull
            self._accepted += len(memes)
            futures: list[Future[ServedVerdict]] = [Future() for _ in memes]
            for future in futures:
                future.add_done_callback(self._count_down)
            for meme, future in zip(memes, futures, strict=True):
                self._preparation.submit(self._prepare, meme, future, time.monotonic())
        return futures

    def judge_together(self, memes: Sequence[Meme], timeout: float | None = None) -> list[ServedVerdict]:
        """Score memes at one version of the bank, however many batches they take; others wait meanwhile.

        Args:
            memes: The memes.
            timeout: Seconds to wait for the model; None waits without limit.

        Raises:
            UserError: an image that cannot be used.
            ServiceBusy, InferenceFailed: see `exclusive`.
        """
        prepared = [self.detector.prepare(meme) for meme in memes]
        with self.exclusive(timeout):
            return self._verdicts(list(zip(memes, prepared, strict=True)))

    @contextmanager
    def exclusive(self, timeout: float | None = None) -> Iterator[Detector]:
        """Lock the model and the bank for the caller, to change the bank or to generate text; memes wait meanwhile.

        The lock is reentrant within a thread.

        Args:
            timeout: Seconds to wait for the lock; None waits without limit.

        Raises:
            ServiceBusy: the timeout passed.
            InferenceFailed: the bank cannot be read.
        """
        if self._exclusive_thread == threading.get_ident():
            yield self.detector
            return
        if not self._acquire(timeout):
            raise ServiceBusy
        try:
            self._exclusive_thread = threading.get_ident()
            self._refresh()
            yield self.detector
            self._refresh()
        finally:
            self._exclusive_thread = None
            self._model_lock.release()

    @contextmanager
    def when_idle(self, patience: float) -> Iterator[Detector]:
        """Lock the model and the bank as `exclusive` does, for work that can wait.

        Args:
            patience: Seconds to wait for a moment at which no meme is accepted and unanswered; after it the lock is
                taken as soon as the batch that is being scored ends, so that this work goes on under any load.

        Raises:
            InferenceFailed: the bank cannot be read.
        """
        with self._idle:
            self._idle.wait_for(lambda: not self._accepted or self._closing, patience)
        with self.exclusive() as detector:
            yield detector

    def _acquire(self, timeout: float | None) -> bool:
        """Acquire the model lock through the turnstile; False where the timeout passed."""
        end = None if timeout is None else time.monotonic() + timeout
        if not self._turnstile.acquire(timeout=-1 if timeout is None else timeout):
            return False
        try:
            return self._model_lock.acquire(timeout=-1 if end is None else max(end - time.monotonic(), 0))
        finally:
            self._turnstile.release()

    def close(self, timeout: float | None = None) -> None:
        """Stop accepting memes, answer those that were accepted, and end the threads.

        Args:
            timeout: Seconds to wait for the answers; None waits without limit.
        """
        with self._count_lock:
            self._closing = True
        self._preparation.shutdown(wait=True)
        self._queue.put(None)
        self._worker.join(timeout)

    def _count_down(self, _: "Future[ServedVerdict]") -> None:
        with self._idle:
            self._accepted -= 1
            if not self._accepted:
                self._idle.notify_all()

    def _prepare(self, meme: Meme, future: "Future[ServedVerdict]", accepted: float) -> None:
        if future.cancelled():
            return
        start = time.monotonic()
        try:
            prepared = self.detector.prepare(meme)
            with self._count_lock:
                self.statistics.preparing.add(time.monotonic() - start)
            self._queue.put(_QueuedMeme(meme, prepared, future, waited=start - accepted))
        except Exception as error:  # any error is the result of this meme, not the end of the thread
            _fail(future, error)

    def _work(self) -> None:
        last = False
        while not last and (first := self._queue.get()) is not None:
            with self._turnstile:
                pass  # waiters of the model lock go first
            with self._model_lock:  # taken before the batch is filled: memes that wait for it may still be cancelled
                batch, last = self._fill(first)
                active = [one for one in batch if one.future.set_running_or_notify_cancel()]
                for one in active:
                    self.statistics.waiting.add(one.waited)
                if active:
                    self._score_batch(active)

    def _fill(self, first: _QueuedMeme) -> tuple[list[_QueuedMeme], bool]:
        """Collect a batch, with a short wait for memes in preparation; the flag is True at the end of the queue."""
        batch, deadline = [first], time.monotonic() + self.settings.max_wait_ms / 1000
        while len(batch) < self.settings.max_batch:
            left = deadline - time.monotonic()
            wait = len(batch) < self._accepted and left > 0
            try:
                queued = self._queue.get(timeout=left) if wait else self._queue.get_nowait()
            except queue.Empty:
                break
            if queued is None:
                return batch, True
            batch.append(queued)
        return batch, False

    def _score_batch(self, batch: list[_QueuedMeme]) -> None:
        """Set the results of a batch. After an error each meme is scored by itself, so that only its cause fails."""
        try:
            results = self._verdicts([(one.meme, one.prepared) for one in batch if one.meme and one.prepared])
        except Exception as error:
            if len(batch) == 1:
                _log.exception("inference failed")
                # Errors of the meme itself were raised when it was prepared.
                batch[0].future.set_exception(InferenceFailed() if isinstance(error, UserError) else error)
                return
            for one in batch:
                self._score_batch([one])
            return
        for one, result in zip(batch, results, strict=True):
            one.future.set_result(result)

    def _refresh(self) -> None:
        try:
            self.detector.refresh()
        except Exception as error:
            _log.exception("the bank cannot be read")
            raise InferenceFailed from error

    def _verdicts(self, memes: list[tuple[Meme, PreparedMeme]]) -> list[ServedVerdict]:
        self._refresh()
        prepared = [item for _, item in memes]
        start = time.monotonic()
        verdicts, scored = self.detector.judge_and_score(prepared)
        version = self.detector.version
        for verdict in verdicts:
            self.statistics.count_verdict(verdict)
        if scored is not None:
            self.statistics.sizes[len(scored)] += 1
            self.statistics.computing.add(time.monotonic() - start)
            self._recent.extend(scored.queries.select(np.array([row])) for row in range(len(scored)))
        self.statistics.known += len(memes) - (0 if scored is None else len(scored))
        return [
            ServedVerdict(replace(meme, text=verdict.text), verdict, version)
            for (meme, _), verdict in zip(memes, verdicts, strict=True)
        ]


def _fail(future: "Future[Any]", error: Exception) -> None:
    if not isinstance(error, UserError):
        _log.error("a meme failed", exc_info=error)
    if future.running() or future.set_running_or_notify_cancel():
        future.set_exception(error)


def wait_for_all(futures: "Sequence[Future[ServedVerdict]]", seconds: float) -> list[ServedVerdict]:
    """Wait for the results of `submit`; cancel the rest after an error or a timeout.

    Raises:
        TimeoutError: not all results were there in time.
        UserError: the first meme that cannot be scored.
    """
    end = time.monotonic() + seconds
    try:
        return [future.result(max(end - time.monotonic(), 0)) for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise
