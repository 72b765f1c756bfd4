"""Error responses of the API: problem documents (RFC 9457), each with a stable code, a sentence that names the remedy,
and the single problems of the request.
"""

import logging
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as AnyHTTPException

from ra_hmd.bank.identical import LabelConflictError
from ra_hmd.bank.versions import BankInUse, VersionTaken
from ra_hmd.cases.database import UNAVAILABLE
from ra_hmd.cases.steps import CaseConflict, NoSuchCase
from ra_hmd.core.errors import UserError
from ra_hmd.serve.bank_service import AlreadyApplied, NotInBank
from ra_hmd.serve.batching import InferenceFailed, QueueFull, ServiceBusy, ServiceClosed
from ra_hmd.serve.validation import RequestProblem, parameter_problems

_log = logging.getLogger("ra_hmd.serve")
PROBLEM_JSON = "application/problem+json"
RETRY_SECONDS = 1
_RETRY_HEADER = {"Retry-After": str(RETRY_SECONDS)}
_TYPE = "urn:ra-hmd:problem:"
CODES = {
    400: "bad_request",
    401: "key_required",
    403: "not_allowed",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    409: "conflict",
    413: "too_large",
    415: "unsupported_type",
    422: "unusable_value",
    429: "queue_full",
    500: "internal_error",
    503: "not_available",
    504: "time_limit",
}
"""Code of an error by its status, where it has none of its own."""
_DESCRIPTIONS = {
    400: "The request is not well formed, or names another host.",
    401: "A key is missing or unknown.",
    403: "The key, or the lack of keys, does not allow it.",
    404: "There is no such thing.",
    405: "The route has other methods; they are in the header Allow.",
    408: "The body did not arrive in time.",
    409: "The bank has, or lacks, this already, as after a change that was made, or has the same meme with another "
    "label; nothing was changed.",
    413: "The body, the pictures or their number are too large.",
    415: "The body is of another content type.",
    422: "A value cannot be used.",
    429: "Too much is waiting, or the key has asked too often; ask again after the seconds in Retry-After.",
    500: "An error of this service; its log has more.",
    503: "The service is starting, closing or broken.",
    504: "It took longer than a request may.",
}

_SENTENCES = {
    "Not Found": "There is no such route; /docs has those of this service.",
    "Method Not Allowed": "The route has other methods; they are in the header Allow.",
}
"""Sentences instead of those of the framework."""


class ErrorResponse(BaseModel):
    """Why a request was not answered: a problem document (RFC 9457)."""

    __qualname__ = "Refused"
    model_config = ConfigDict(title="Refused")

    type: str = Field(description="Stable name of the kind of problem as a URI: the code behind a fixed beginning.")
    title: str = Field(description="The status in words.")
    status: int = Field(description="The status of the answer.")
    code: str = Field(description="Stable name of the kind of problem, for programs.")
    detail: str = Field(description="A sentence for people, with the remedy.")
    problems: list[RequestProblem] = Field(default_factory=list, description="What is wrong with single values.")
    bank_version: int | None = Field(default=None, description="Of a change that was made already: where the bank is.")


class APIError(HTTPException):
    """An error response as an exception.

    Args:
        status: HTTP status.
        detail: Sentence that names value, place and remedy.
        problems: Single problems of the request.
        bank_version: Current version of the bank.
        headers: Headers of the response; 429 and 503 get `Retry-After` by default.
        code: Stable name of the kind of problem; by default that of the status in `CODES`.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        problems: Sequence[RequestProblem] = (),
        bank_version: int | None = None,
        headers: dict[str, str] | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(status, detail, headers or (_RETRY_HEADER if status in (429, 503) else None))
        self.body = ErrorResponse(
            **_kind_of(status, code), detail=detail, problems=list(problems), bank_version=bank_version
        )

    def response(self) -> JSONResponse:
        """The response of this error."""
        return JSONResponse(self.body.model_dump(), self.status_code, self.headers, media_type=PROBLEM_JSON)


def _kind_of(status: int, code: str | None = None) -> dict[str, Any]:
    code = code or CODES.get(status, "error")
    return {"type": _TYPE + code, "title": HTTPStatus(status).phrase, "status": status, "code": code}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI description of the error statuses of a route."""
    return {status: _described(status) for status in statuses}


def _described(status: int) -> dict[str, Any]:
    example = {**_kind_of(status), "detail": _DESCRIPTIONS[status], "problems": [], "bank_version": None}
    content = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Refused"}, "example": example}}
    described: dict[str, Any] = {"description": _DESCRIPTIONS[status], "content": content}
    if status in (429, 503):
        header = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
        described["headers"] = {"Retry-After": header}
    return described


_DATABASE = "The case database is away, busy or full; the log of this service says where. Ask again."
_CHANGING = "Other processes are changing the bank; nothing was done. Ask again."


class _Known(NamedTuple):
    """The error response of a kind of exception; without a sentence, its message is told."""

    kind: type[Exception]
    status: int
    sentence: str = ""
    code: str | None = None


_KNOWN = (
    _Known(QueueFull, 429, "As many memes are waiting as may wait; ask again later."),
    _Known(ServiceClosed, 503, "The service is being shut down.", code="shutting_down"),
    _Known(InferenceFailed, 503, "The model or the bank failed; the log of this service says where.",
           code="inference_failed"),
    _Known(ServiceBusy, 504, "The model was busy for as long as a request may take; nothing was done. Ask again."),
    _Known(AlreadyApplied, 409, code="already_applied"),
    _Known(LabelConflictError, 409, code="label_conflict"),
    _Known(BankInUse, 503, _CHANGING, code="bank_in_use"),
    _Known(VersionTaken, 503, _CHANGING, code="bank_in_use"),
    _Known(NotInBank, 404, code="not_in_bank"),
    _Known(CaseConflict, 409, code="case_conflict"),
    _Known(NoSuchCase, 404, code="no_such_case"),
    *(_Known(kind, 503, _DATABASE, code="cases_not_available") for kind in UNAVAILABLE),
    _Known(UserError, 422),
)  # fmt: skip
"""Kinds of exceptions; of several that fit, the first."""


def to_api_error(error: Exception) -> APIError | None:
    """Error response of an exception; None for an exception that is a bug of the service."""
    match error:
        case APIError():
            return error
        case RequestValidationError():
            problems = parameter_problems(error.errors())
            return APIError(422, "The request does not fit.", problems, code="invalid_request")
        case AnyHTTPException():
            headers = dict(error.headers) if error.headers else None
            return APIError(error.status_code, _SENTENCES.get(error.detail, str(error.detail)), headers=headers)
    found = next((known for known in _KNOWN if isinstance(error, known.kind)), None)
    return None if found is None else APIError(found.status, found.sentence or str(error), code=found.code)


def public_name(place: str) -> str:
    """Name of a folder or URI without its location, which clients must not learn."""
    return place.rpartition("#")[2] if "://" in place else Path(place).name


def public_source(source: str) -> str:
    """Source of a bank row as clients see it: of a folder of features, which `ra-hmd bank` writes there, the name."""
    return public_name(source) if source.startswith("/") else source


def install_error_handlers(app: FastAPI, places: Sequence[str] = ()) -> None:
    """Give all error responses of an app the form of `ErrorResponse`.

    Args:
        app: App to install the handlers in.
        places: Folders and URIs that error messages may contain; clients see only their names.
    """
    hidden = sorted(places, key=len, reverse=True)

    def respond(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, UNAVAILABLE):
            _log.exception("the case database failed", exc_info=error)
        http_error = to_api_error(error) or APIError(500, "An error of this service; its log has more.")
        for place in hidden:
            http_error.body.detail = http_error.body.detail.replace(place, public_name(place))
        return http_error.response()

    for kind in (AnyHTTPException, RequestValidationError, *(known.kind for known in _KNOWN)):
        app.add_exception_handler(kind, respond)
