"""Routes of the example bank. Every key may search it; changes need the key of a moderator."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from ra_hmd.serve.bank_row_routes import GET_ERRORS, add_row_routes
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.context import AppContext
from ra_hmd.serve.errors import APIError, error_responses
from ra_hmd.serve.routes import BODY_ERRORS, body
from ra_hmd.serve.schemas import (
    AddRequest,
    BankInfo,
    BankLog,
    Effect,
    EffectRequest,
    LogEntry,
    RelabelRequest,
    RemoveRequest,
    RollbackRequest,
    SearchAnswer,
    SearchRequest,
    to_meme,
)
from ra_hmd.serve.uploads import read_json_body

_SEARCH_ERRORS = error_responses(*BODY_ERRORS, 404)
_PREVIEW_ERRORS = error_responses(*BODY_ERRORS, 404, 409)
_CHANGE_ERRORS = error_responses(*BODY_ERRORS, 403, 404, 409)


def bank_routes(context: AppContext) -> APIRouter:
    """`/v1/bank` and the routes below it."""
    router = APIRouter(prefix="/v1/bank", tags=["bank"])
    _add_read_routes(router, context)
    add_row_routes(router, context)
    _add_change_routes(router, context)
    return router


def _add_read_routes(router: APIRouter, context: AppContext) -> None:
    @router.get("", response_model=BankInfo, responses=GET_ERRORS)
    async def info(request: Request) -> Any:
        """Size, classes, version and what made its embeddings."""
        return await context.query_bank(request, BankService.info)

    @router.get("/log", response_model=BankLog, responses=GET_ERRORS)
    async def log(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[int | None, Query(ge=1, description="Only versions before this one.")] = None,
    ) -> Any:
        """Its versions, newest first: who changed what, and why."""
        entries = await context.query_bank(request, BankService.log)
        newest_first = [entry.to_dict() for entry in reversed(entries) if before is None or entry.version < before]
        return {"version": entries[-1].version, "entries": newest_first[:limit]}

    @router.post("/search", response_model=SearchAnswer, responses=_SEARCH_ERRORS, openapi_extra=body(SearchRequest))
    async def search(request: Request) -> Any:
        """The rows nearest to a meme, of which nothing is kept."""
        sent = await read_json_body(request, SearchRequest)
        meme = to_meme(sent.meme)
        return await context.query_bank(request, partial(BankService.search, meme=meme, k=sent.k), [meme])

    @router.post("/effect", response_model=Effect, responses=_PREVIEW_ERRORS, openapi_extra=body(EffectRequest))
    async def effect(request: Request) -> Any:
        """What a change would do to verdicts on the reference and on the memes judged last; nothing is changed."""
        sent = await read_json_body(request, EffectRequest)
        if sent.rollback is not None:
            if sent.add or sent.remove or sent.relabel:
                raise APIError(422, "`rollback` stands alone: look at it, or at the other changes.")
            return await context.query_bank(request, partial(BankService.preview_rollback, version=sent.rollback))
        memes = [to_meme(one) for one in sent.add]
        call = partial(BankService.preview, add=memes, labels=[one.label for one in sent.add], remove=sent.remove,
                       relabel=sent.relabel, relabel_identical=sent.relabel_identical)  # fmt: skip
        return await context.query_bank(request, call, memes)


def _add_change_routes(router: APIRouter, context: AppContext) -> None:
    @router.post("/add", response_model=LogEntry, responses=_CHANGE_ERRORS, openapi_extra=body(AddRequest))
    async def add(request: Request) -> Any:
        """Add memes with labels. Needs the key of a moderator, as all changes do; its name is the author.

        A change whose answer was lost can be asked for again: if it was made, the answer is 409. So it is where the
        bank has the same picture and caption with another label, unless `relabel_identical` is set.
        """
        sent = await context.read_change(request, AddRequest)
        memes = [to_meme(one) for one in sent.memes]
        call = partial(BankService.add, memes=memes, labels=[one.label for one in sent.memes], reason=sent.reason,
                       source=sent.source, notes=[one.note for one in sent.memes],
                       relabel_identical=sent.relabel_identical)  # fmt: skip
        return (await context.change_bank(request, call, memes)).to_dict()

    @router.post("/remove", response_model=LogEntry, responses=_CHANGE_ERRORS, openapi_extra=body(RemoveRequest))
    async def remove(request: Request) -> Any:
        """Take rows out."""
        sent = await context.read_change(request, RemoveRequest)
        call = partial(BankService.remove, ids=sent.ids, reason=sent.reason)
        return (await context.change_bank(request, call)).to_dict()

    @router.post("/relabel", response_model=LogEntry, responses=_CHANGE_ERRORS, openapi_extra=body(RelabelRequest))
    async def relabel(request: Request) -> Any:
        """Give rows other labels."""
        sent = await context.read_change(request, RelabelRequest)
        call = partial(BankService.relabel, labels=sent.labels, reason=sent.reason,
                       relabel_identical=sent.relabel_identical)  # fmt: skip
        return (await context.change_bank(request, call)).to_dict()

    @router.post("/rollback", response_model=LogEntry, responses=_CHANGE_ERRORS, openapi_extra=body(RollbackRequest))
    async def rollback(request: Request) -> Any:
        """Make a new version that holds what an earlier one held."""
        sent = await context.read_change(request, RollbackRequest)
        call = partial(BankService.rollback, version=sent.version, reason=sent.reason)
        return (await context.change_bank(request, call)).to_dict()
