"""One writer at a time for a folder that a command fills over several starts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

from filelock import FileLock, Timeout

from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.errors import UserError
from ra_hmd.core.storage import RemotePath, as_path

_LOCK = ".writer.lock"
_PATIENCE_S = 10.0  # processes that decode images hold the lock of a killed command until they notice


@contextmanager
def only_writer_of(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is missing. It is free when the process ends, however it ends.

    Where the file system has no locks, nothing is held. A folder of an object store is locked for this machine only:
    what two machines write there at a time is whole, but done twice.

    Raises:
        UserError: another process holds it.
    """
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_lock_file(folder), timeout=_PATIENCE_S)
    try:
        lock.acquire()
    except NotImplementedError:  # what `filelock` makes of ENOSYS
        pass
    except Timeout as error:
        raise UserError(
            f"Another process writes {folder}; wait for its end, or give this one another output folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _lock_file(folder: Path) -> Path:
    if isinstance(folder, RemotePath):
        return Path(gettempdir()) / f"ra_hmd-{os.getuid()}-{sha256_bytes(str(folder).encode())[:32]}.lock"
    return folder / _LOCK
