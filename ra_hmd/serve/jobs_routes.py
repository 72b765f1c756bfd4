"""Routes of jobs: large batches that are judged beside the requests. A reader sees its own, a moderator all."""

from contextlib import ExitStack
from typing import Annotated, Any

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from ra_hmd.core.manifests import JobManifest, JobStatus
from ra_hmd.serve.case_routes import require_cases
from ra_hmd.serve.context import AppContext
from ra_hmd.serve.errors import APIError, error_responses
from ra_hmd.serve.jobs import Job, JobGone
from ra_hmd.serve.jobs_runner import JobRunner
from ra_hmd.serve.jobs_settings import JOBS, STREAMED
from ra_hmd.serve.jobs_upload import receive_job
from ra_hmd.serve.routes import BODY_ERRORS, FORM, body
from ra_hmd.serve.schemas import ClassifyRequest
from ra_hmd.serve.validation import RequestProblem

_LINES = {"type": "string", "description": "A meme per line, as in `memes` of JSON: id, image (base64), text."}
_TABLE = {"type": "string", "description": "Columns image (base64), and if there are any id and text."}
_BODIES = {kind: _TABLE if kind == "text/csv" else _LINES for kind in STREAMED}
_RESULT: dict[int | str, dict[str, Any]] = {200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}}}


_Cases = Annotated[
    bool,
    Query(description="Make cases of the verdicts that the service's policy chooses, as of those of `/v1/classify`."),
]


class JobAnswer(BaseModel):
    """A job."""

    __qualname__ = "Job"  # its public name, see `ra_hmd.serve.schemas`
    model_config = ConfigDict(title="Job")

    id: str
    status: JobStatus
    owner: str | None = Field(description="The name of the key that sent it.")
    sent: str = Field(description="Times are in UTC, ISO 8601.")
    started: str | None
    finished: str | None
    memes: int
    cases: bool = Field(description="Whether verdicts that the case policy chooses become cases.")
    judged: int = Field(description="Memes with a verdict so far.")
    rejected: int = Field(description="Memes without one so far, as their picture or caption cannot be used.")
    memes_per_second: float | None
    seconds_left: float | None = Field(description="At this rate; null where it is not known.")
    bank_versions: list[int] = Field(description="Versions of the example bank that voted.")
    head_sha256: str
    error: str = Field(description="Why it failed.")
    expires: str = Field(description="When the result is removed, or a job that is not done fails.")


class JobList(BaseModel):
    """Jobs, in the order in which they were sent."""

    jobs: list[JobAnswer]


def job_routes(context: AppContext, jobs: JobRunner | None) -> APIRouter:
    """`/v1/jobs` and the routes below it."""
    router = APIRouter(prefix=JOBS, tags=["jobs"])
    view = _View(context, jobs)
    _add_upload_route(router, context, view)
    _add_other_routes(router, view)
    return router


class _View:
    """The jobs that a request may see."""

    def __init__(self, context: AppContext, jobs: JobRunner | None) -> None:
        self.context, self.jobs = context, jobs

    @property
    def runner(self) -> JobRunner:
        """The jobs. Raises `APIError` (404) where there are none."""
        if self.jobs is None:
            raise APIError(404, "There are no jobs here; start the service with `--jobs FOLDER`.", code="no_jobs")
        return self.jobs

    def owner(self, request: Request) -> str | None:
        """Name of the request's key."""
        key: Any = getattr(request.state, "key", None)
        return None if key is None else key.name

    def sees(self, request: Request, state: JobManifest) -> bool:
        """Whether a request may see a job."""
        key: Any = getattr(request.state, "key", None)
        return self.context.keys is None or (key is not None and (key.role == "moderator" or key.name == state.owner))

    def find(self, request: Request, name: str) -> tuple[Job, JobManifest]:
        """A job and its state. Raises `APIError` (404)."""
        try:
            job = self.runner.store.find(name)
            if job is not None and self.sees(request, state := job.state):
                return job, state
        except JobGone:
            pass
        raise APIError(404, "There is no such job, or it was removed.")

    def answer(self, state: JobManifest) -> JobAnswer:
        """A job as clients see it."""
        left = state.memes - state.judged - state.rejected
        known = state.status == "running" and bool(state.memes_per_second)
        return JobAnswer(
            seconds_left=round(left / (state.memes_per_second or 1), 1) if known else None,
            expires=self.runner.store.expires(state).isoformat(timespec="seconds"),
            **{name: getattr(state, name) for name in JobAnswer.model_fields if name in JobManifest.model_fields},
        )


def _add_upload_route(router: APIRouter, context: AppContext, view: _View) -> None:
    @router.post(
        "",
        status_code=202,
        response_model=JobAnswer,
        responses=error_responses(*BODY_ERRORS, 404),
        openapi_extra=body(ClassifyRequest, **{"multipart/form-data": FORM}, **_BODIES),
    )
    async def send(request: Request, response: Response, cases: _Cases = False) -> JobAnswer:
        """Send memes to be judged while no request waits. JSON Lines and CSV may be larger than other bodies.

        The result has a line for each meme, in their order, as `results` of `/v1/classify`. Pictures are removed from
        the disk when the job is done, and everything else when it expires.
        """
        runner, settings = view.runner, view.runner.settings
        if cases:
            _check_policy(context)
        if await run_sync(runner.store.unfinished) >= settings.job_max_waiting:
            raise APIError(429, f"{settings.job_max_waiting} jobs are waiting or being judged; ask again later.")
        upload = ExitStack()
        job = upload.enter_context(runner.store.new())
        try:
            count = await receive_job(request, job, settings, context.limits)
            state = await run_sync(runner.store.publish, job, count, view.owner(request), cases)
        except OSError as error:
            raise APIError(503, f"The job cannot be written: {error.strerror}; ask again later.") from error
        finally:
            with CancelScope(shield=True):  # also when the client has gone
                await run_sync(upload.close)
        request.state.memes = count
        runner.wake()
        response.headers["Location"] = f"{request.scope.get('root_path', '')}{JOBS}/{state.id}"
        return view.answer(state)


def _check_policy(context: AppContext) -> None:
    """Refuse to make cases where there are none, or where the policy chooses no verdict. Raises `APIError`."""
    draw = require_cases(context).draw
    if draw is None or not draw.policy.active:
        reason = "the policy of this service chooses no verdict; start it with `--review-margin`, say"
        problem = RequestProblem(where="query.cases", what=reason, parameter="cases")
        raise APIError(422, "The job cannot make cases.", [problem], code="invalid_request")


def _add_other_routes(router: APIRouter, view: _View) -> None:
    found = error_responses(400, 401, 404, 422, 429)

    @router.get("", operation_id="jobs_list", response_model=JobList, responses=found)
    def jobs(request: Request) -> JobList:
        """The jobs of this key; for a moderator, and where there are no keys, all."""
        states = [state for state in view.runner.store.states() if view.sees(request, state)]
        return JobList(jobs=[view.answer(state) for state in states])

    @router.get("/{job}", operation_id="jobs_get", response_model=JobAnswer, responses=found)
    def job(request: Request, job: str) -> JobAnswer:
        """How far a job is."""
        return view.answer(view.find(request, job)[1])

    @router.get("/{job}/result", response_class=FileResponse, responses={**_RESULT, **found, **error_responses(409)})
    def result(request: Request, job: str) -> FileResponse:
        """The result of a job that is done: JSON Lines, a result of `/v1/classify` for each meme, in their order."""
        found_job, state = view.find(request, job)
        if state.status != "done":
            raise APIError(409, f"The job is not done: its status is {state.status}.", code="job_not_done")
        return FileResponse(found_job.result, media_type="application/jsonl", filename=f"{state.id}.jsonl")

    @router.delete("/{job}", status_code=204, response_class=Response, responses=found)
    def remove(request: Request, job: str) -> None:
        """Cancel a job that is not done, or remove the result of one that is, with everything of it."""
        try:
            view.find(request, job)[0].remove()
        except JobGone:
            raise APIError(404, "There is no such job, or it was removed.") from None
