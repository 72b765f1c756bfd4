"""`GET /v1/audit`: the audit log of cases and of the bank, in one stream."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from ra_hmd.bank.row_history import RowChange
from ra_hmd.bank.versions import VersionEntry
from ra_hmd.cases.export import AuditFilter, Format, as_text, audit_lines
from ra_hmd.serve.bank_service import BankService, NotInBank
from ra_hmd.serve.case_routes import clean, require_cases
from ra_hmd.serve.context import AppContext, require_moderator
from ra_hmd.serve.errors import error_responses

_LINE: dict[str, Any] = {
    "time": "2026-11-29T12:01:00.000+00:00",
    "person": "ana",
    "kind": "row changed",
    "case": "18b7f2a9d1c4e6005b0a4d7c",
    "row": "cat",
    "number": 13,
    "details": {"opinion": 7, "before": 1, "after": 0},
}
_LINES = 500
_TYPES: dict[Format, str] = {"jsonl": "application/jsonl", "csv": "text/csv"}
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A line for each thing that was done, oldest first.",
        "content": {
            kind: {"schema": {"type": "string"}, "example": "".join(as_text([_LINE], style))}
            for style, kind in _TYPES.items()
        },
    }
}


def audit_routes(context: AppContext) -> APIRouter:
    """`/v1/audit`."""
    router = APIRouter(prefix="/v1", tags=["cases"])
    errors = error_responses(400, 401, 403, 404, 422, 429, 503, 504)

    @router.get("/audit", response_class=StreamingResponse, responses={**_ANSWER, **errors})
    async def audit(
        request: Request,
        person: Annotated[str | None, Query(description="What this person did.")] = None,
        case: Annotated[str | None, Query(description="What happened to this case.")] = None,
        row: Annotated[str | None, Query(description="What happened to this row of the bank.")] = None,
        since: Annotated[datetime | None, Query(description="From this time on; without an offset it is UTC.")] = None,
        until: Annotated[datetime | None, Query(description="Before this time.")] = None,
        format: Annotated[Format, Query(description="JSON Lines, or CSV.")] = "jsonl",
    ) -> StreamingResponse:
        """Who did what, when and why: cases, decisions, and versions of the bank. Needs the key of a moderator."""
        if context.keys is not None:
            require_moderator(request, context.keys)
        cases = require_cases(context)
        wanted = AuditFilter(clean(person), clean(case), clean(row)).between(since, until)
        bank: Sequence[VersionEntry | RowChange] = []
        if context.bank_service is not None:
            bank = await context.query_bank(request, lambda one: _versions(one, wanted.row))
        text = as_text(audit_lines(cases.store.database, wanted, bank), format)
        name = {"Content-Disposition": f'attachment; filename="audit.{format}"'}
        body = () if request.method == "HEAD" else _pieces(text)
        return StreamingResponse(body, media_type=_TYPES[format], headers=name)

    return router


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """Lines joined into larger pieces: a piece costs a change of threads."""
    while piece := "".join(islice(lines, _LINES)):
        yield piece


def _versions(bank: BankService, row: str | None) -> Sequence[VersionEntry | RowChange]:
    if row is None:
        return bank.log()
    try:
        return bank.row(row)[1]
    except NotInBank:
        return []
