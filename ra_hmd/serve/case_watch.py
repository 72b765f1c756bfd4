"""Cases that a policy makes of verdicts: beside the answers, which neither wait for them nor fail with them."""

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ra_hmd.cases.policy import Why
from ra_hmd.serve.batching import ServedVerdict

_log = logging.getLogger("ra_hmd.serve")
_MAX_WAITING = 256
_MAX_BYTES = 256 * 1024 * 1024
_CLOSE_SECONDS = 60


@dataclass(frozen=True)
class ChosenVerdict:
    """A verdict that the policy chose, and why; `audited`: whether it was drawn at random."""

    served: ServedVerdict
    why: Why
    audited: bool


@dataclass
class CaseStatistics:
    """What a service did with cases since its start.

    Attributes:
        added: Cases by why a person looks at them.
        decisions: Decisions by their action.
        undone: Decisions that were taken back.
    """

    added: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    undone: int = 0


class CaseWatcher:
    """Makes cases in a thread of its own.

    Args:
        add: Makes cases of verdicts from a source.
        most: Most verdicts that wait for it. Beyond them verdicts are passed over.
        most_bytes: Most bytes of their pictures, which are in memory.

    Attributes:
        missed: Verdicts that became no case: too many waited, or the database could not take them.
    """

    def __init__(
        self,
        add: Callable[[Sequence[ChosenVerdict], str], object],
        most: int = _MAX_WAITING,
        most_bytes: int = _MAX_BYTES,
    ) -> None:
        self._add, self.missed = add, 0
        self._lock, self._bytes, self._most_bytes = threading.Lock(), 0, most_bytes
        self._waiting: queue.Queue[tuple[ChosenVerdict, str] | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._run, name="cases of the policy", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Make cases of what waits, and end the thread."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join(_CLOSE_SECONDS)

    def offer(self, chosen: Sequence[ChosenVerdict], source: str) -> None:
        """Take verdicts, without waiting for anything."""
        for one in chosen:
            size = _size(one)
            try:
                if self._hold(size) > self._most_bytes:
                    raise queue.Full
                self._waiting.put_nowait((one, source))
            except queue.Full:
                self._hold(-size)
                self.missed += 1

    def _hold(self, size: int) -> int:
        """Count bytes, and return how many are held."""
        with self._lock:
            self._bytes += size
            return self._bytes

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            one, source = item
            try:
                self._add([one], source)
            except Exception:  # the database may be away for a while, or the disk full
                self.missed += 1
                _log.exception("a verdict that the policy chose became no case")
            finally:
                self._hold(-_size(one))


def _size(one: ChosenVerdict) -> int:
    image = one.served.meme.image
    return len(image) if isinstance(image, bytes) else 0
