"""The thread that judges jobs: chunk by chunk, on the model that answers requests, while none waits.

Of all processes that share a folder of jobs one judges them: the one that holds its lock, which the system releases
when the process ends in whatever way. A chunk is written in one step, so the next process continues with the first
chunk that is missing.
"""

import fcntl
import logging
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from ra_hmd.cases.database import UNAVAILABLE
from ra_hmd.core.artifacts import atomic_path, plain
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import JobManifest
from ra_hmd.core.workers import WorkerSettings, run_units
from ra_hmd.data.meme_dataset import json_line
from ra_hmd.inference.batch import detector_settings
from ra_hmd.inference.batch_chunks import ChunkFolder
from ra_hmd.inference.batch_judging import ChunkWorker, MemeChunk
from ra_hmd.inference.batch_reader import BatchRow
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.types import PreparedMeme
from ra_hmd.serve.batching import BatchingService, InferenceFailed
from ra_hmd.serve.case_service import CaseService
from ra_hmd.serve.jobs import Job, JobGone, JobStore, now
from ra_hmd.serve.jobs_cases import JobCases
from ra_hmd.serve.jobs_settings import JobSettings
from ra_hmd.serve.jobs_upload import PICTURES, kept_memes
from ra_hmd.serve.schemas import JudgedMeme, NotJudged

_log = logging.getLogger("ra_hmd.serve.jobs")
_CHUNK = 64  # memes
_POLL_SECONDS, _SWEEP_SECONDS, _PAUSE_SECONDS = 1.0, 60.0, 5.0
_FAILED = "the model failed on it; the log of this service says where"


class _Closing(Exception):
    """The service is shutting down; the job goes on when one starts again."""


class JobRunner:
    """Judges the jobs of a folder in a thread of its own, whenever this process holds the folder's lock.

    Args:
        store: The jobs.
        service: Batching service whose detector judges them.
        settings: Their sizes.
        cases: Cases of the service, for the jobs that make some.
    """

    def __init__(
        self, store: JobStore, service: BatchingService, settings: JobSettings, cases: CaseService | None = None
    ) -> None:
        self.store, self.service, self.settings, self.cases = store, service, settings, cases
        self.active = False
        """Whether this process is the one that judges jobs."""
        self.memes = 0
        """Memes of jobs that this process has judged or rejected."""
        self._swept = -_SWEEP_SECONDS
        self._closing, self._news = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look for a new job at once."""
        self._news.set()

    def close(self) -> None:
        """End the thread after the forward pass that it is in; an unfinished job goes on when a service starts."""
        self._closing.set()
        self._news.set()
        self._thread.join()

    # ---------------------------------------------------------------------------------------------- the thread

    def _work(self) -> None:
        with (self.store.folder / ".runner").open("a") as lock:
            while not self._closing.is_set():
                self._news.clear()
                try:
                    if not self._take(lock) or not self._next():
                        self._news.wait(_POLL_SECONDS)
                except _Closing:
                    return
                except Exception:  # of the disk, say: jobs go on when it is mended
                    _log.exception("jobs cannot be judged")
                    self._closing.wait(_PAUSE_SECONDS)

    def _take(self, lock: Any) -> bool:
        """Whether this process holds the lock of the folder, after another attempt to get it."""
        if not self.active:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.active = True
            except BlockingIOError:
                return False
        return True

    def _next(self) -> bool:
        """Judge the oldest job that is not finished; False where there is none."""
        self._sweep()
        for job in self.store.jobs():
            try:
                if job.state.finished is None:
                    self._run(job)
                    return True
            except JobGone:
                continue
        return False

    def _sweep(self) -> None:
        if time.monotonic() - self._swept >= _SWEEP_SECONDS:
            self.store.sweep()
            self._swept = time.monotonic()

    def _run(self, job: Job) -> None:
        try:
            self._judge(job)
        except (_Closing, JobGone):
            raise
        except InferenceFailed:  # logged where it happened; the bank may be read again soon
            self._closing.wait(_PAUSE_SECONDS)
        except UNAVAILABLE:
            _log.exception("the cases of a job cannot be written; it waits for their database")
            self._closing.wait(_PAUSE_SECONDS)
        except Exception as error:
            if not job.folder.exists():
                raise JobGone from error
            _log.exception("a job failed")
            reason = str(error) if isinstance(error, UserError) else "an error of the service; its log has more"
            self.store.fail(job, reason.replace(f"{job.folder}/", ""))

    def _judge(self, job: Job) -> None:
        detector, state = self.service.detector, job.state
        cases = self._cases_of(job, state)
        folder = _open_chunks(job, state, detector, cases)
        todo = set(folder.missing())
        counts = _Counts.of(line for number in range(len(folder.images)) if number not in todo
                            for line in folder.lines_of(number))  # fmt: skip
        job.update(status="running", started=state.started or now(), head_sha256=detector.version["head_sha256"],
                   **counts.stated)  # fmt: skip
        chunks: Iterator[MemeChunk] = (
            MemeChunk(number, rows) for number, rows in enumerate(_chunks(job)) if number in todo
        )
        if cases is not None:
            chunks = cases.read(chunks)
        worker = ChunkWorker(detector, folder, 1, partial(self._answers, job, cases))
        began, before = time.monotonic(), counts.total
        for number in run_units(
            lambda: worker, chunks, WorkerSettings(), description="", total=None, noun="memes", show=False
        ):
            done = counts.total
            counts.add(folder.lines_of(number))
            self.memes += counts.total - done
            rate = (counts.total - before) / max(time.monotonic() - began, 1e-9)
            self._sweep()
            if job.update(memes_per_second=round(rate, 3), **counts.stated).finished is not None:
                raise JobGone  # it had to be done by now
        _finish(job, folder, counts)

    def _cases_of(self, job: Job, state: JobManifest) -> JobCases | None:
        if not state.cases:
            return None
        if self.cases is None:
            raise UserError("its verdicts are to become cases, and this service has none; start it with --cases")
        return JobCases(job, state.owner, self.cases)

    def _answers(self, job: Job, cases: JobCases | None, memes: Sequence[PreparedMeme]) -> list[dict[str, Any] | str]:
        """Results of the memes of a chunk, a few memes at a time, so that requests wait for few of them."""
        answers: list[dict[str, Any] | str] = []
        for start in range(0, len(memes), self.settings.job_batch):
            if self._closing.is_set():
                raise _Closing
            if not job.folder.exists():
                raise JobGone
            answers += self._answer(memes[start : start + self.settings.job_batch], cases)
        return answers

    def _answer(self, memes: Sequence[PreparedMeme], cases: JobCases | None) -> list[dict[str, Any] | str]:
        """Results of one forward pass. After an error each meme is judged by itself, so that only its cause fails."""
        try:
            with self.service.when_idle(self.settings.job_patience) as detector:
                verdicts, version = detector.judge(memes), detector.version
        except InferenceFailed:
            raise
        except Exception:
            if len(memes) == 1:
                _log.exception("inference failed")
                return [_FAILED]
            return [one for meme in memes for one in self._answer([meme], cases)]
        answers = [
            JudgedMeme(**one.to_dict() | {"version": version}).model_dump(exclude_unset=True) for one in verdicts
        ]
        if cases is not None:
            cases.note(verdicts, answers)
        return list(answers)


def open_jobs(settings: JobSettings, service: BatchingService, cases: CaseService | None = None) -> JobRunner | None:
    """Open the folder of jobs, and judge those that wait there; None without a folder. `cases` are the service's.

    Raises:
        UserError: the folder cannot be made.
    """
    if settings.jobs is None:
        return None
    return JobRunner(JobStore(settings.jobs, settings.job_hours), service, settings, cases)


@dataclass(frozen=True)
class _JobChunks(ChunkFolder):
    """The chunks of a job, which may be removed at any time."""

    job: Job
    cases: JobCases | None

    def write(self, number: int, seconds: float, lines: list[dict[str, Any]]) -> None:
        with self.job.held():
            if self.cases is not None:
                self.cases.add(number, lines)
            super().write(number, seconds, lines)


class _Counts:
    """What is known of the finished chunks of a job."""

    def __init__(self) -> None:
        self.judged = self.rejected = 0
        self.versions: set[int] = set()

    @classmethod
    def of(cls, lines: Iterable[dict[str, Any]]) -> "_Counts":
        counts = cls()
        counts.add(lines)
        return counts

    @property
    def total(self) -> int:
        return self.judged + self.rejected

    @property
    def stated(self) -> dict[str, Any]:
        return {"judged": self.judged, "rejected": self.rejected, "bank_versions": sorted(self.versions)}

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        for line in lines:
            self.rejected += "reject" in line
            if "answer" in line:
                self.judged += 1
                version = line["answer"]["version"]["bank"].get("version")
                self.versions |= set() if version is None else {version}


def _open_chunks(job: Job, state: JobManifest, detector: Detector, cases: JobCases | None) -> _JobChunks:
    """The chunks of a job; those of another head, or of other settings, are removed, so that one system judges all."""
    settings = plain({**detector_settings(detector), "chunk_size": _CHUNK})
    folder = _JobChunks(job.work / "parts", settings, [job.id] * -(-state.memes // _CHUNK), job, cases)
    with job.held():
        try:
            folder.prepare()
        except UserError:
            shutil.rmtree(folder.folder)
            folder.prepare()
    return folder


def _chunks(job: Job) -> Iterator[list[BatchRow]]:
    rows = kept_memes(job)
    return iter(lambda: list(islice(rows, _CHUNK)), [])


def _finish(job: Job, folder: ChunkFolder, counts: _Counts) -> None:
    """Write the result and the last state, and remove the pictures."""
    with job.held(), atomic_path(job.result) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for line in folder.lines():
            if "answer" in line:
                file.write(json_line(line["answer"]))
            elif "reject" in line:
                file.write(json_line(_not_judged(job, line["reject"]).model_dump()))
    shutil.rmtree(job.work / PICTURES, ignore_errors=True)  # no longer needed, wherever the process ends from here on
    job.update(status="done", finished=now(), **counts.stated)
    shutil.rmtree(job.work, ignore_errors=True)


def _not_judged(job: Job, reject: dict[str, Any]) -> NotJudged:
    """The result of a meme without a verdict, with its id in the sentence, and without paths of this machine."""
    reason, prefix = str(reject["reason"]).replace(f"{job.work}/", ""), f"meme {reject['id']!r}: "
    return NotJudged(id=reject["id"], error=reason if reason.startswith(prefix) else prefix + reason)
