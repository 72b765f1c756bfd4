"""The routes about the example bank: anyone with a key looks, a moderator changes."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from ra_hmd.serve.bank_service import BankService, Labelled
from ra_hmd.serve.context import AppContext
from ra_hmd.serve.errors import APIError, error_responses
from ra_hmd.serve.routes import ASKING, body
from ra_hmd.serve.schemas import (
    AddRequest,
    BankInfo,
    BankLog,
    Effect,
    EffectRequest,
    LabelledMeme,
    LogEntry,
    RelabelRequest,
    RemoveRequest,
    RollbackRequest,
    SearchAnswer,
    SearchRequest,
)
from ra_hmd.serve.uploads import read_json

_LOOKING = error_responses(400, 401, 404, 422, 429, 503, 504)
_ASKING = error_responses(*ASKING, 404)
_LOOKING_AT_CHANGES = error_responses(*ASKING, 404, 409)
_CHANGING = error_responses(*ASKING, 403, 404, 409)


def bank_routes(context: AppContext) -> APIRouter:
    """`/v1/bank` and what is below it."""
    router = APIRouter(prefix="/v1/bank", tags=["bank"])
    _looking(router, context)
    _changing(router, context)
    return router


def _looking(router: APIRouter, context: AppContext) -> None:
    @router.get("", response_model=BankInfo, responses=_LOOKING)
    async def info(request: Request) -> Any:
        """Size, classes, version and what made its embeddings."""
        return await context.look(request, BankService.info)

    @router.get("/log", response_model=BankLog, responses=_LOOKING)
    async def log(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[int | None, Query(ge=1, description="Only versions before this one.")] = None,
    ) -> Any:
        """Its versions, newest first: who changed what, and why."""
        entries = await context.look(request, BankService.log)
        shown = [entry.to_dict() for entry in reversed(entries) if before is None or entry.version < before]
        return {"version": entries[-1].version, "entries": shown[:limit]}

    @router.post("/search", response_model=SearchAnswer, responses=_ASKING, openapi_extra=body(SearchRequest))
    async def search(request: Request) -> Any:
        """The rows nearest to a meme, of which nothing is kept."""
        asked = await read_json(request, SearchRequest)
        query = asked.meme.query()
        return await context.look(request, lambda bank_service: bank_service.search(query, asked.k), [query])

    @router.post("/effect", response_model=Effect, responses=_LOOKING_AT_CHANGES, openapi_extra=body(EffectRequest))
    async def effect(request: Request) -> Any:
        """What a change would do to verdicts on the reference and on the memes judged last; nothing is changed."""
        asked = await read_json(request, EffectRequest)
        if asked.rollback is not None:
            if asked.add or asked.remove or asked.relabel:
                raise APIError(422, "`rollback` stands alone: look at it, or at the other changes.")
            return await context.look(request, partial(BankService.rollback_effect, version=asked.rollback))
        memes = _labelled(asked.add)
        call = partial(BankService.effect, add=memes, remove=asked.remove, relabel=asked.relabel,
                       relabel_identical=asked.relabel_identical)  # fmt: skip
        return await context.look(request, call, [meme.query for meme in memes])


def _changing(router: APIRouter, context: AppContext) -> None:
    @router.post("/add", response_model=LogEntry, responses=_CHANGING, openapi_extra=body(AddRequest))
    async def add(request: Request) -> Any:
        """Add memes with labels. Needs the key of a moderator, as all changes do; its name is the author.

        A change whose answer was lost can be asked for again: if it was made, the answer is 409. So it is where the
        bank has the same picture and caption with another label, unless `relabel_identical` is set.
        """
        asked = await context.read(request, AddRequest)
        memes = _labelled(asked.memes)
        call = partial(BankService.add, memes=memes, reason=asked.reason, source=asked.source,
                       relabel_identical=asked.relabel_identical)  # fmt: skip
        return (await context.change(request, call, [meme.query for meme in memes])).to_dict()

    @router.post("/remove", response_model=LogEntry, responses=_CHANGING, openapi_extra=body(RemoveRequest))
    async def remove(request: Request) -> Any:
        """Take rows out."""
        asked = await context.read(request, RemoveRequest)
        call = partial(BankService.remove, ids=asked.ids, reason=asked.reason)
        return (await context.change(request, call)).to_dict()

    @router.post("/relabel", response_model=LogEntry, responses=_CHANGING, openapi_extra=body(RelabelRequest))
    async def relabel(request: Request) -> Any:
        """Give rows other labels."""
        asked = await context.read(request, RelabelRequest)
        call = partial(BankService.relabel, labels=asked.labels, reason=asked.reason,
                       relabel_identical=asked.relabel_identical)  # fmt: skip
        return (await context.change(request, call)).to_dict()

    @router.post("/rollback", response_model=LogEntry, responses=_CHANGING, openapi_extra=body(RollbackRequest))
    async def rollback(request: Request) -> Any:
        """Make a new version that holds what an earlier one held."""
        asked = await context.read(request, RollbackRequest)
        call = partial(BankService.rollback, version=asked.version, reason=asked.reason)
        return (await context.change(request, call)).to_dict()


def _labelled(memes: Sequence[LabelledMeme]) -> list[Labelled]:
    return [Labelled(meme.query(), meme.label, meme.note) for meme in memes]
