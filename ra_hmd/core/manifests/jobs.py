"""Manifests of jobs: large batches that the API judges beside its requests."""

from typing import ClassVar, Literal

from pydantic import Field

from ra_hmd.core.manifests.base import Manifest

JobStatus = Literal["waiting", "running", "done", "failed"]
"""Status of a job. A job that was cancelled is removed."""


class JobManifest(Manifest):
    """State of a job: the file `job.json` of its folder.

    Attributes:
        id: Name of the job and of its folder; ids sort by the time of the upload.
        owner: Name of the key that sent it; None without keys.
        sent: Time of the upload in UTC, ISO 8601.
        memes: Number of memes.
        cases: Whether verdicts that the case policy chooses become cases.
        status: See `JobStatus`.
        started: When its first meme was judged; None before.
        finished: When it was done or failed; None before.
        judged: Memes with a verdict so far.
        rejected: Memes that could not be judged so far.
        memes_per_second: Rate of the process that judges it.
        bank_versions: Versions of the example bank that voted, in ascending order.
        head_sha256: Digest of the head.
        error: Why it failed.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("job",)
    REMEDY: ClassVar[str] = "remove the folder of this job"

    id: str
    owner: str | None = None
    sent: str = ""
    memes: int = Field(ge=0)
    cases: bool = False
    status: JobStatus = "waiting"
    started: str | None = None
    finished: str | None = None
    judged: int = 0
    rejected: int = 0
    memes_per_second: float | None = None
    bank_versions: list[int] = Field(default_factory=list)
    head_sha256: str = ""
    error: str = ""
