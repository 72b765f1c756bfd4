"""Memes of a file or folder that become cases, also those that are added while the service runs."""

import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from ra_hmd.cases.files import known_keys, set_priorities
from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.errors import UserError
from ra_hmd.data.images import file_digest
from ra_hmd.data.meme import Meme
from ra_hmd.inference.batch_reader import read_batch
from ra_hmd.serve.background import Periodic
from ra_hmd.serve.batching import QueueFull, ServedVerdict, ServiceClosed
from ra_hmd.serve.case_service import CaseService, Intake

_log = logging.getLogger("ra_hmd.serve")
_BATCH = 8  # requests wait for it
_LOOK_SECONDS, _RETRY_SECONDS, _TIMEOUT = 5.0, 0.2, 120


class QueueFile:
    """Feeds a file or folder to the cases, as a queue of its name. A meme of which there is a case is left out.

    Args:
        cases: The cases.
        source: File or folder, see `ra_hmd.inference.batch_reader.read_batch`. It is read again when it changes.
        media_dir: Folder that relative paths of pictures start from.
        order: Id to place of the memes that come before all others (`ra-hmd bank suggest`).
        decided: Id of memes on which people decided before, and the digest of the picture; empty: any picture.

    Raises:
        UserError: There is no such file or folder.
    """

    def __init__(
        self,
        cases: CaseService,
        source: Path,
        media_dir: Path | None = None,
        order: Mapping[str, int] | None = None,
        decided: Mapping[str, str] | None = None,
    ) -> None:
        if not source.exists():
            raise UserError(f"--queue {source} does not exist; give a .jsonl or .csv file, or a folder.")
        self.cases, self.source, self.media_dir = cases, source, media_dir
        self.order, self.decided = dict(order or {}), dict(decided or {})
        self._seen: bytes | None = None
        self._work = Periodic(f"reading --queue {source}", _LOOK_SECONDS, self._look)
        self.start, self.close = self._work.start, self._work.close

    def _look(self, stop: threading.Event) -> None:
        """Read the source, if it has changed, unless another process of this machine does so just now."""
        state = _state(self.source)
        if state == self._seen:
            return
        folder = self.cases.pictures.folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with FileLock(folder / f"{self.source.name}.lock", timeout=0):
                if self._feed(stop):
                    self._seen = state  # as before reading: what is written meanwhile is a change
        except (Timeout, ServiceClosed):
            return

    def _feed(self, stop: threading.Event) -> bool:
        """Make cases of all memes; False where it ended early, or a meme is to be tried again."""
        with TemporaryDirectory(prefix="ra-hmd-queue-") as unpacked:
            return self._feed_from(Path(unpacked), stop)

    def _feed_from(self, unpacked: Path, stop: threading.Event) -> bool:
        whole, problems = True, list[str]()
        memes = self._memes(unpacked, problems)
        size = min(_BATCH, self.cases.service.settings.max_queue)
        while chunk := list(islice(memes, size)):
            if stop.is_set():
                return False
            keyed = {self._key(meme): meme for meme in chunk}
            known = known_keys(self.cases.store.database, keyed)
            self._reorder({key: meme for key, meme in keyed.items() if key in known})
            new = {key: meme for key, meme in keyed.items() if key not in known}
            whole &= self._add(new, problems, stop)
        if problems:
            _log.warning("--queue %s: %d memes cannot be used; the first: %s", self.source, len(problems), problems[0])
        return whole

    def _memes(self, unpacked: Path, problems: list[str]) -> Iterator[Meme]:
        """The memes of the source; of a picture that lies in its file, which the cases must keep, the bytes."""
        for row in read_batch(self.source, self.media_dir, unpack_to=unpacked):
            if row.meme is None:
                problems.append(f"{row.place}: {row.problem}")
                continue
            path = row.meme.path.absolute()
            try:
                if self.decided.get(row.meme.id, "no digest") not in ("", file_digest(path)):
                    yield replace(row.meme, image=path.read_bytes() if path.is_relative_to(unpacked) else path)
            except OSError as error:
                problems.append(f"{row.place}: {error}")

    def _key(self, meme: Meme) -> str:
        picture = sha256_bytes(meme.image) if isinstance(meme.image, bytes) else file_digest(meme.path)
        parts = (self.source.name, meme.id, picture, "" if meme.text is None else meme.text)
        return "file:" + hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def _priority(self, meme: Meme) -> int:
        return len(self.order) - self.order[meme.id] if meme.id in self.order else 0

    def _reorder(self, known: Mapping[str, Meme]) -> None:
        chosen = {key: self._priority(meme) for key, meme in known.items() if meme.id in self.order}
        if chosen:
            set_priorities(self.cases.store.database, chosen)

    def _add(self, memes: Mapping[str, Meme], problems: list[str], stop: threading.Event) -> bool:
        served: list[ServedVerdict] = []
        intakes: list[Intake] = []
        whole, name = True, self.source.name
        judged = zip(memes.items(), self._submit(list(memes.values()), stop), strict=False)
        for (key, meme), future in judged:
            try:
                served.append(future.result(_TIMEOUT))
            except UserError as error:
                problems.append(f"{meme.id}: {error}")
                continue
            except (ServiceClosed, CancelledError):
                raise ServiceClosed from None
            except Exception:  # the model or the bank failed, which is logged there; the meme is tried again
                whole = False
                continue
            intakes.append(Intake(name, name, key, "file", self._priority(meme)))
        if served:
            self.cases.add(served, intakes, name)
        return whole and not stop.is_set()

    def _submit(self, memes: Sequence[Meme], stop: threading.Event) -> "list[Future[ServedVerdict]]":
        """Submit memes as soon as there is room; nothing where the end comes first."""
        while memes and not stop.is_set():
            try:
                return self.cases.service.submit(memes)
            except QueueFull:
                stop.wait(_RETRY_SECONDS)
        return []


def _state(source: Path) -> bytes:
    """A digest that changes when the file, or a file below the folder, does."""
    digest = hashlib.sha256()
    folders = [str(source)] if source.is_dir() else []
    if not folders:
        about = source.stat()
        digest.update(f"{about.st_mtime_ns} {about.st_size}".encode())
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                about = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    digest.update(os.fsencode(f"{entry.path} {about.st_mtime_ns} {about.st_size}\n"))
    return digest.digest()
