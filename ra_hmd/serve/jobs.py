"""Jobs on disk: large batches that are sent at once, judged beside the requests, and fetched later.

    <jobs>/.runner              locked by the process that judges jobs
    <jobs>/.upload-<id>/        an upload that is not complete
    <jobs>/.removed-<id>/       a job that was removed, until its files are
    <jobs>/<id>/job.json        its state (`JobManifest`)
    <jobs>/<id>/work/           its pictures and finished chunks, removed when it is done
    <jobs>/<id>/result.jsonl    a line for each meme, once it is done

Every change of a state is one rename, so that a process may be killed at any time, and any process that has the folder
can read the jobs, take new ones, and remove one.
"""

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import JobManifest, read_manifest, write_manifest

_ID = re.compile(r"\d{8}T\d{12}-[0-9a-f]{16}")
_UPLOAD, _REMOVED, _STATE = ".upload-", ".removed-", "job.json"
_YOUNG_SECONDS = 60


class JobGone(Exception):
    """The job was removed."""


@dataclass(frozen=True)
class Job:
    """The folder of a job."""

    folder: Path

    @property
    def id(self) -> str:
        """Its name."""
        return self.folder.name

    @property
    def work(self) -> Path:
        """Folder of what is needed until the job is done."""
        return self.folder / "work"

    @property
    def result(self) -> Path:
        """File of the results; it is there once the job is done."""
        return self.folder / "result.jsonl"

    @property
    def state(self) -> JobManifest:
        """The present state. Raises `JobGone`."""
        try:
            return read_manifest(self.folder / _STATE, JobManifest)
        except UserError:
            if self.folder.exists():
                raise
            raise JobGone from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the job, so that it cannot be removed meanwhile. Raises `JobGone` where it was."""
        try:
            handle = os.open(self.folder, os.O_RDONLY)
        except FileNotFoundError:
            raise JobGone from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # released when the process ends, however it ends
            if not (self.folder.exists() and self.folder.stat().st_ino == os.fstat(handle).st_ino):
                raise JobGone
            yield
        finally:
            os.close(handle)

    def update(self, **changes: Any) -> JobManifest:
        """Change the state. Raises `JobGone`."""
        with self.held():
            state = self.state.model_copy(update=changes)
            write_manifest(self.folder / _STATE, state)
        return state

    def remove(self) -> None:
        """Remove the job, which ends it if it is being judged. Raises `JobGone`."""
        removed = self.folder.with_name(f"{_REMOVED}{self.id}")
        with self.held():
            self.folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


class JobStore:
    """All jobs of a folder, which is made if it is missing, for its owner alone.

    Args:
        folder: The folder.
        hours: See `JobSettings.job_hours`.

    Raises:
        UserError: The folder cannot be made.
    """

    def __init__(self, folder: Path, hours: float) -> None:
        self.folder, self._kept = folder.absolute(), timedelta(hours=hours)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--jobs {folder}: {error.strerror}; give a folder that can be written.") from error

    def _names(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()]

    def jobs(self) -> list[Job]:
        """The jobs in the order of their uploads."""
        return [Job(self.folder / name) for name in sorted(self._names()) if _ID.fullmatch(name)]

    def states(self) -> list[JobManifest]:
        """Their states, in this order."""
        states = []
        for job in self.jobs():
            with suppress(JobGone):
                states.append(job.state)
        return states

    def find(self, name: str) -> Job | None:
        """The job of a name, if there is one."""
        job = Job(self.folder / name)
        return job if _ID.fullmatch(name) and job.folder.is_dir() else None

    def unfinished(self) -> int:
        """Number of jobs that are not done, uploads included."""
        uploads = sum(name.startswith(_UPLOAD) for name in self._names())
        return uploads + sum(state.finished is None for state in self.states())

    @contextmanager
    def new(self) -> Iterator[Job]:
        """A job that is being uploaded; what is in its folder is removed unless `publish` is called."""
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(8)}"
        job = Job(self.folder / f"{_UPLOAD}{name}")
        job.folder.mkdir(mode=0o700)
        handle = os.open(job.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # so that it is seen whose process has ended
            yield job
        finally:
            os.close(handle)
            shutil.rmtree(job.folder, ignore_errors=True)

    def publish(self, upload: Job, memes: int, owner: str | None, cases: bool = False) -> JobManifest:
        """Make a complete upload a job that waits."""
        name = upload.id.removeprefix(_UPLOAD)
        state = JobManifest.new(id=name, owner=owner, sent=now(), memes=memes, cases=cases, status="waiting")
        write_manifest(upload.folder / _STATE, state)
        upload.folder.rename(self.folder / name)
        return state

    def expires(self, state: JobManifest) -> datetime:
        """When a finished job is removed, or another one fails."""
        return datetime.fromisoformat(state.finished or state.sent) + self._kept

    def sweep(self) -> None:
        """Remove what is out of date, and what ended processes left. Called by the process that judges jobs."""
        for name in self._names():
            if name.startswith(_REMOVED) or (name.startswith(_UPLOAD) and _is_abandoned(self.folder / name)):
                shutil.rmtree(self.folder / name, ignore_errors=True)
        for job in self.jobs():
            with suppress(JobGone):
                state = job.state
                late = self.expires(state) < datetime.now(UTC)
                if late and state.finished is not None:
                    job.remove()
                elif late:
                    self.fail(job, f"it was not done {self._kept.total_seconds() / 3600:g} hours after it was sent")
                elif state.finished is not None:
                    shutil.rmtree(job.work, ignore_errors=True)  # of a process that was killed just then

    def fail(self, job: Job, reason: str) -> None:
        """End a job without a result, and remove its pictures."""
        job.update(status="failed", finished=now(), error=reason)
        shutil.rmtree(job.work, ignore_errors=True)


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _is_abandoned(upload: Path) -> bool:
    """Whether the process that received an upload has ended."""
    try:
        handle = os.open(upload, os.O_RDONLY)
    except FileNotFoundError:
        return False
    if time.time() - os.fstat(handle).st_mtime < _YOUNG_SECONDS:  # it may not be locked yet
        os.close(handle)
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(handle)
