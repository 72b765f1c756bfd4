"""What runs in the actors of a Ray cluster."""

import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

from ra_hmd.core.errors import UserError
from ra_hmd.core.package_versions import installed_version
from ra_hmd.core.workers.protocol import R, Step, U, Worker

_SAME = ("ra-hmd", "torch", "transformers", "peft", "numpy", "pillow")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results depend on, in this process."""
    return {"python": platform.python_version()} | {name: installed_version(name) for name in _SAME}


class WorkerActor:
    """Holds the worker of one actor. Bad input is returned, not raised: the driver raises it as it is."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def versions(self) -> dict[str, str | None]:
        """The first call: it is answered when a node has room for the actor."""
        return versions()

    def open(self, open_worker: Callable[[], Worker[U, R]], folder: str) -> UserError | None:
        """Open the worker in the driver's working directory, where this node has it, for relative paths."""
        if Path(folder).is_dir():
            os.chdir(folder)
        try:
            self._worker = open_worker()
        except UserError as error:
            return error
        return None

    def work(self, unit: U) -> Iterator[Step | UserError]:
        """Do one unit."""
        if self._worker is None:
            raise RuntimeError("the worker is not open; call `open` first")
        try:
            yield from self._worker(iter([unit]))
        except UserError as error:
            yield error
