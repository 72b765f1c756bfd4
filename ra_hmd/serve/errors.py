"""Error responses of the API: each has a status, a sentence with the remedy, and the single problems of the request."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException as AnyHTTPException

from ra_hmd.bank.identical import LabelConflictError
from ra_hmd.core.errors import UserError
from ra_hmd.data.text import well_formed
from ra_hmd.serve.bank_service import AlreadyApplied, NotInBank
from ra_hmd.serve.batching import InferenceFailed, QueueFull, ServiceBusy, ServiceClosed

RETRY_SECONDS = 1
_RETRY_HEADER = {"Retry-After": str(RETRY_SECONDS)}
_DESCRIPTIONS = {
    400: "The request is not well formed.",
    401: "A key is missing or unknown.",
    403: "The key, or the lack of keys, does not allow it.",
    404: "There is no such thing.",
    408: "The body did not arrive in time.",
    409: "The bank has, or lacks, this already, as after a change that was made, or has the same meme with another "
    "label; nothing was changed.",
    413: "The body, the pictures or their number are too large.",
    415: "The body is of another content type.",
    422: "A value cannot be used.",
    429: "Too much is waiting; ask again after the seconds in Retry-After.",
    503: "The service is starting, closing or broken.",
    504: "It took longer than a request may.",
}


class RequestProblem(BaseModel):
    """One thing that is wrong with a request."""

    __qualname__ = "Wrong"  # its public name, see `ra_hmd.serve.schemas`
    model_config = ConfigDict(title="Wrong")

    where: str
    what: str


class ErrorResponse(BaseModel):
    """Why a request was not answered."""

    __qualname__ = "Refused"
    model_config = ConfigDict(title="Refused")

    detail: str
    problems: list[RequestProblem] = Field(default_factory=list)
    bank_version: int | None = Field(default=None, description="Of a change that was made already: where the bank is.")


class APIError(HTTPException):
    """An error response as an exception.

    Args:
        status: HTTP status.
        detail: Sentence that names value, place and remedy.
        problems: Single problems of the request.
        bank_version: Current version of the bank.
        headers: Headers of the response; 429 and 503 get `Retry-After` by default.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        problems: Sequence[RequestProblem] = (),
        bank_version: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, headers or (_RETRY_HEADER if status in (429, 503) else None))
        self.body = ErrorResponse(detail=detail, problems=list(problems), bank_version=bank_version)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI description of the error statuses of a route."""
    return {status: {"model": ErrorResponse, "description": _DESCRIPTIONS[status]} for status in statuses}


def validation_problems(error: ValidationError | RequestValidationError) -> list[RequestProblem]:
    """Problems that pydantic found, without the values that were sent: they may be private."""
    return [
        RequestProblem(where=well_formed(".".join(map(str, one["loc"]))) or "body", what=str(one["msg"]))
        for one in list(error.errors())[:20]
    ]


def to_api_error(error: Exception) -> APIError | None:
    """Error response of an exception; None for an exception that is a bug of the service."""
    match error:
        case APIError():
            return error
        case QueueFull():
            return APIError(429, "As many memes are waiting as may wait; ask again later.")
        case ServiceClosed():
            return APIError(503, "The service is being shut down.")
        case InferenceFailed():
            return APIError(503, "The model or the bank failed; the log of this service says where.")
        case ServiceBusy():
            return APIError(504, "The model was busy for as long as a request may take; nothing was done. Ask again.")
        case AlreadyApplied() | LabelConflictError():
            return APIError(409, str(error))
        case NotInBank():
            return APIError(404, str(error))
        case UserError():
            return APIError(422, str(error))
    return None


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
        if isinstance(error, RequestValidationError):
            http_error: AnyHTTPException = APIError(422, "The request does not fit.", validation_problems(error))
        elif isinstance(error, AnyHTTPException):
            http_error = error
        else:
            http_error = to_api_error(error) or APIError(500, "An error of this service; its log has more.")
        body = http_error.body if isinstance(http_error, APIError) else ErrorResponse(detail=str(http_error.detail))
        for place in hidden:
            body.detail = body.detail.replace(place, public_name(place))
        return JSONResponse(body.model_dump(), http_error.status_code, http_error.headers)

    for kind in (
        AnyHTTPException,
        RequestValidationError,
        UserError,
        QueueFull,
        ServiceClosed,
        InferenceFailed,
        ServiceBusy,
    ):
        app.add_exception_handler(kind, respond)
