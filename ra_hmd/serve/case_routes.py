"""Routes of cases: programs send memes that people decide on, and read and send decisions."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response

from ra_hmd.cases.filters import CaseFilter, Order
from ra_hmd.cases.history import history_of, list_cases
from ra_hmd.cases.outcome import State
from ra_hmd.serve.auth import APIKey
from ra_hmd.serve.case_intake import KEY_HEADER, OF_ALL, OF_EACH, CaseIntake, sender
from ra_hmd.serve.case_schemas import (
    AppealRequest,
    CaseDetails,
    CaseFields,
    CaseList,
    CasesAnswer,
    CasesRequest,
    CaseSummary,
    DecisionRequest,
    TakenCase,
    UndoRequest,
)
from ra_hmd.serve.case_service import CaseService
from ra_hmd.serve.context import AppContext, require_moderator
from ra_hmd.serve.errors import APIError, error_responses
from ra_hmd.serve.routes import BODY_ERRORS, FORM, body
from ra_hmd.serve.uploads import read_json_body

_READ_ERRORS = error_responses(400, 401, 404, 422, 429, 503)
_SEND_ERRORS = error_responses(*BODY_ERRORS, 404)
_CHANGE_ERRORS = error_responses(*BODY_ERRORS, 403, 404, 409)
_TEXTS = {"type": "array", "items": {"type": "string"}}
_FORM: dict[str, Any] = {
    **FORM,
    "properties": {
        "images": FORM["properties"]["images"],
        **{field: {**_TEXTS, "description": f"`{name}` of each image, or none."} for field, name in OF_EACH.items()},
        **{name: {"type": "string", "description": f"{CaseFields.model_fields[name].description} Of all images."}
           for name in OF_ALL},
    },
}  # fmt: skip
_KEY = {
    "name": KEY_HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 200},
    "description": "Of the request as a whole: when it is sent again, each meme is the case that was made first. A "
    "meme's own `key` comes before it.",
}


def case_routes(context: AppContext) -> APIRouter:
    """`/v1/cases` and the routes below it."""
    router = APIRouter(prefix="/v1/cases", tags=["cases"])
    _add_intake_route(router, context)
    _add_read_routes(router, context)
    _add_appeal_route(router, context)
    _add_decision_routes(router, context)
    return router


def require_cases(context: AppContext) -> CaseService:
    """The cases of an app. Raises `APIError` (404) where there are none."""
    if context.cases is None:
        raise APIError(404, "There are no cases here; start the service with `--cases FILE`.", code="no_cases")
    return context.cases


def details(cases: CaseService, case_id: str, person: str) -> CaseDetails:
    """A case with its history, as far as a person may see it now. Raises `APIError` (404)."""
    history = history_of(cases.store.database, case_id)
    if history is None:
        raise APIError(404, "There is no case of this id.", code="no_such_case")
    return CaseDetails.of_history(history.as_seen_by(person))


def _add_intake_route(router: APIRouter, context: AppContext) -> None:
    intakes: dict[CaseService, CaseIntake] = {}

    @router.post(
        "",
        status_code=201,
        response_model=CasesAnswer,
        responses={
            200: {"model": CasesAnswer, "description": "All cases were there already, by their idempotency keys."},
            **_SEND_ERRORS,
        },
        openapi_extra={**body(CasesRequest, **{"multipart/form-data": _FORM}), "parameters": [_KEY]},
    )
    async def add(request: Request, response: Response) -> CasesAnswer:
        """Send memes that people shall decide on. Each is judged at once, and waits in its queue with that verdict.

        The answer is 201 where a case is new, and 200 where all were there already. In a batch a meme that cannot be
        judged has an `error` in its place; of a single one that is the answer's status, 422.
        """
        cases = require_cases(context)
        taken = await intakes.setdefault(cases, CaseIntake(context, cases))(request)
        if not any(isinstance(one, TakenCase) and one.new for one in taken):
            response.status_code = 200
        return CasesAnswer(results=taken)


def _add_read_routes(router: APIRouter, context: AppContext) -> None:
    @router.get("", operation_id="cases_list", response_model=CaseList, responses=_READ_ERRORS)
    async def cases(
        request: Request,
        queue: Annotated[str | None, Query(description="Name of the queue.")] = None,
        source: Annotated[str | None, Query(description="Where the memes come from.")] = None,
        state: Annotated[list[State] | None, Query(description="State; several times: any of these.")] = None,
        why: Annotated[str | None, Query(description="Why a person looks at them.")] = None,
        words: Annotated[str | None, Query(description="Text in caption, context or id, whatever its case.")] = None,
        label: Annotated[
            int | None, Query(ge=0, le=1_000_000, description="Decided label, or else that of the verdict.")
        ] = None,
        order: Annotated[Order, Query(description="`urgent` is the order of the desk.")] = "urgent",
        limit: Annotated[int, Query(ge=1, le=200, description="Most cases of the answer.")] = 50,
        offset: Annotated[int, Query(ge=0, le=1_000_000_000, description="Cases that are passed over.")] = 0,
    ) -> CaseList:
        """Cases, a page at a time."""
        values = {"queue": queue, "source": source, "why": why, "words": words}
        wanted = CaseFilter(
            states=tuple(state or ()), label=label, order=order, **{name: clean(one) for name, one in values.items()}
        )
        database = require_cases(context).store.database
        page, count = await run_sync(partial(list_cases, database, wanted, limit=limit, offset=offset))
        return CaseList(count=count, cases=[CaseSummary.of(case) for case in page])

    @router.get("/{case}", operation_id="cases_get", response_model=CaseDetails, responses=_READ_ERRORS)
    async def case(request: Request, case: str) -> CaseDetails:
        """A case, and what was said about it. While a case waits for further opinions, those that are there are shown
        to nobody who may still be asked for one.
        """
        return await run_sync(details, require_cases(context), clean(case) or "", sender(request))


def _add_appeal_route(router: APIRouter, context: AppContext) -> None:
    @router.post(
        "/{case}/appeal",
        response_model=CaseDetails,
        responses={**_SEND_ERRORS, **error_responses(409)},
        openapi_extra=body(AppealRequest),
    )
    async def appeal(request: Request, case: str) -> CaseDetails:
        """Ask that a decided case is decided again, by people who have not decided on it before. What was decided stays
        in force until then.
        """
        cases = require_cases(context)
        sent = await read_json_body(request, AppealRequest)
        person = sender(request)
        name = (await run_sync(details, cases, clean(case) or "", person)).case
        await run_sync(partial(cases.store.appeal, name, person, sent.reason, priority=sent.priority))
        return await run_sync(details, cases, name, person)


def _add_decision_routes(router: APIRouter, context: AppContext) -> None:
    async def act(request: Request, case: str, call: Callable[[CaseService], object]) -> CaseDetails:
        cases = require_cases(context)
        await context.bank_limit.run(partial(call, cases), request.state.deadline, finish=True)
        return await run_sync(details, cases, case, sender(request))

    async def begin(request: Request, case: str) -> tuple[APIKey, CaseDetails]:
        key = require_moderator(request, context.keys)
        return key, await run_sync(details, require_cases(context), clean(case) or "", key.name)

    @router.post(
        "/{case}/decisions",
        response_model=CaseDetails,
        responses=_CHANGE_ERRORS,
        openapi_extra=body(DecisionRequest),
    )
    async def decide(request: Request, case: str) -> CaseDetails:
        """Decide on a case, as on the desk. Needs the key of a moderator; its name is the person who decided.

        A label that is not the verdict teaches the bank, once as many people as are needed have given it.
        """
        key, found = await begin(request, case)
        sent = await read_json_body(request, DecisionRequest)

        def call(cases: CaseService) -> None:
            cases.decide(found.case, key.name, cases.decision(found.case, sent.label, sent.reason))

        return await act(request, found.case, call)

    @router.post(
        "/{case}/decisions/{number}/undo",
        response_model=CaseDetails,
        responses=_CHANGE_ERRORS,
        openapi_extra=body(UndoRequest),
    )
    async def undo(request: Request, case: str, number: int) -> CaseDetails:
        """Take a decision of one's own back, in the bank too, row by row; the case waits again."""
        key, found = await begin(request, case)
        sent = await read_json_body(request, UndoRequest)
        if number not in [one.number for one in found.opinions]:
            raise APIError(404, "This case has no decision of this number.", code="no_such_case")
        return await act(request, found.case, lambda cases: cases.undo(number, key.name, sent.reason))


def clean(value: str | None) -> str | None:
    """A value of an address without NUL, which PostgreSQL does not take."""
    return None if value is None else value.replace("\0", "�")
