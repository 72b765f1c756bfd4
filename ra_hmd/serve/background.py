"""Work of a service beside its requests, in threads."""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

_log = logging.getLogger("ra_hmd.serve")
_CLOSE_SECONDS = 120


class Background(Protocol):
    """Something that runs from the start of a service to its end."""

    def start(self) -> None:
        """Begin."""

    def close(self) -> None:
        """End, and wait for what is under way."""


class Periodic:
    """Calls a function at once and then again and again, in a thread. Its errors are logged, and do not end it.

    Args:
        name: Name of the thread, for the log.
        seconds: Pause between two calls.
        call: The function; it gets the event that is set when it should end early.
    """

    def __init__(self, name: str, seconds: float, call: Callable[[threading.Event], object]) -> None:
        self._name, self._seconds, self._call = name, seconds, call
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread after its present call."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._call(self._stop)
            except Exception:  # the database or the bank may be away for a while
                _log.exception("%s failed, and is tried again", self._name)
            self._stop.wait(self._seconds)
