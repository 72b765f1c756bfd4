"""Keeps a service at the newest version of its bank, which other processes change too, and measures its lag."""

import logging
import threading
import time
from dataclasses import dataclass

from ra_hmd.bank.bank import Bank
from ra_hmd.serve.batching import BatchingService, ServiceBusy
from ra_hmd.serve.limits import FollowSettings

_log = logging.getLogger("ra_hmd.serve")


@dataclass(frozen=True)
class BankLag:
    """How far a replica is behind its bank.

    Attributes:
        version: Version that votes.
        newest: Newest version that is known to exist.
        seconds: Time since this replica was last known to be at the newest version. It also grows while nobody can tell
            which version that is.
        limit: Seconds beyond which the replica is not ready.
    """

    version: int
    newest: int
    seconds: float
    limit: float

    @property
    def versions(self) -> int:
        """Number of versions behind."""
        return self.newest - self.version

    @property
    def too_large(self) -> bool:
        """Whether the replica is not ready."""
        return self.seconds > self.limit


class BankFollower:
    """Looks for newer versions of a service's bank in a thread, and moves the service to them.

    Every batch is scored at the newest version in any case. The thread makes a replica without requests follow as well,
    so that its next request does not wait for many versions, and its metrics and its readiness are up to date.

    Args:
        service: Batching service with an example bank.
        bank: The bank.
        settings: How often to look, and how far behind is too far.
    """

    def __init__(self, service: BatchingService, bank: Bank, settings: FollowSettings) -> None:
        self._service, self._bank, self._settings = service, bank, settings
        self._newest = bank.version
        self._current_at: float | None = None  # time at which the bank was last known to be at its newest version
        self._failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)

    def start(self) -> None:
        """Start to look for newer versions."""
        self._current_at = time.monotonic()
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self._settings.follow_seconds)

    @property
    def lag(self) -> BankLag:
        """The lag at this moment. It reads no file and waits for no lock, so any number of probes may ask."""
        version = self._bank.version
        seconds = 0.0 if self._current_at is None else time.monotonic() - self._current_at
        return BankLag(version, max(self._newest, version), seconds, self._settings.max_lag)

    def _run(self) -> None:
        while not self._stop.wait(self._settings.follow_seconds):
            try:
                self._follow()
                self._failing = False
            except ServiceBusy:
                pass  # the batch that is being scored has the newest version or the one before
            except Exception:  # the lag grows until the bank can be read again
                if not self._failing:
                    _log.exception("the newest version of the bank cannot be told or read")
                self._failing = True

    def _follow(self) -> None:
        began = time.monotonic()
        self._newest = self._bank.newest()
        if self._newest > self._bank.version:
            with self._service.exclusive(self._settings.follow_seconds):
                pass  # entering it moves to the newest version
        if self._bank.version >= self._newest:
            self._current_at = began
