"""Settings of jobs; the fields are options of `ra-hmd serve` and `ra-hmd console`."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from ra_hmd.core.config import Settings

JOBS = "/v1/jobs"
STREAMED = {
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".jsonl",
    "application/jsonlines": ".jsonl",
    "text/csv": ".csv",
}
"""Content types of jobs whose bodies go to disk while they arrive, and the suffixes of their files."""


class JobSettings(Settings):
    """Where jobs are kept, and how large they may be."""

    TITLE = "jobs"

    jobs: Path | None = Field(
        default=None,
        description="Folder of jobs: large batches that are judged while no request waits (docs/api.md).",
    )
    job_max_memes: int = Field(default=100_000, gt=0, description="Most memes of a job.")
    job_max_bytes: int = Field(default=1 << 30, gt=0, description="Largest upload of a job in bytes.")
    job_max_waiting: int = Field(default=16, gt=0, description="Most jobs that wait, are uploaded or are judged.")
    job_upload_time: float = Field(default=600.0, gt=0, description="Seconds for the upload of a job.")
    job_hours: float = Field(
        default=72.0,
        gt=0,
        description="Hours after which the result of a job is removed, or a job that is not done fails.",
    )
    job_batch: int = Field(default=8, gt=0, description="Most memes of a job in a forward pass; requests wait for it.")
    job_patience: float = Field(
        default=1.0, ge=0, description="Seconds after which a batch of a job goes ahead of waiting requests."
    )

    def _problems(self) -> Iterator[str]:
        fields = type(self).model_fields
        changed = [name for name in fields if name != "jobs" and getattr(self, name) != fields[name].default]
        if self.jobs is None and changed:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in changed)
            yield f"{options}: these belong to --jobs FOLDER; give it, or leave them out."
