"""Routes that read the rows of the example bank: a page of them, one with its history, the difference of versions."""

from collections import Counter
from functools import partial
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from ra_hmd.bank.row_history import RowDifference as RowChanged
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.context import AppContext
from ra_hmd.serve.errors import error_responses
from ra_hmd.serve.schemas import Label, Source

GET_ERRORS = error_responses(400, 401, 404, 422, 429, 503, 504)
Limit = Annotated[int, Query(ge=1, le=1000, description="Most entries of the answer.")]
Offset = Annotated[int, Query(ge=0, le=1_000_000_000, description="Entries that are passed over.")]


class StoredRow(BaseModel):
    """A row of the bank."""

    id: str
    label: Label
    source: Source
    note: str
    time: str
    image_hash: str


class BankRows(BaseModel):
    """Rows of one version, newest first. Ask for further pages with the same version, and none is missed."""

    version: int
    count: int = Field(description="Number of all rows that fit.")
    rows: list[StoredRow]


class RowChange(BaseModel):
    """A version that changed a row."""

    version: int
    action: str = Field(description="What the version did as a whole.")
    operation: Literal["added", "removed", "restored", "relabelled"] = Field(description="What it did to the row.")
    label_before: Label | None = Field(description="null: the bank did not hold the row before.")
    label_after: Label | None = Field(description="null: the bank does not hold the row after it.")
    author: str
    reason: str
    time: str


class RowHistory(BaseModel):
    """A row, and all that happened to it."""

    id: str
    row: StoredRow | None = Field(description="null: the bank had it, and does not have it now.")
    changes: list[RowChange] = Field(description="Oldest first.")


class RowDifference(BaseModel):
    """A row that differs between two versions, as the later one has it, or else the earlier one."""

    id: str
    kind: Literal["added", "removed", "relabelled"]
    label_before: Label | None
    label_after: Label | None
    source: Source
    note: str
    time: str
    image_hash: str


class BankDifference(BaseModel):
    """What two versions differ in."""

    first: int
    last: int
    count: int = Field(description="Number of all rows that differ.")
    kinds: dict[str, int] = Field(description="The same by kind.")
    rows: list[RowDifference] = Field(description="In the order in which they were added.")


def add_row_routes(router: APIRouter, context: AppContext) -> None:
    """Add `/v1/bank/rows`, `/v1/bank/rows/{row}` and `/v1/bank/diff`."""

    @router.get("/rows", response_model=BankRows, responses=GET_ERRORS)
    async def rows(
        request: Request,
        version: Annotated[int | None, Query(ge=1, description="A version; default: the newest.")] = None,
        label: Annotated[int | None, Query(ge=0, le=1_000_000, description="A class that rows must have.")] = None,
        source: Annotated[str | None, Query(description="Where rows come from.")] = None,
        words: Annotated[str, Query(description="Text in the id or the note, whatever its case.")] = "",
        limit: Limit = 100,
        offset: Offset = 0,
    ) -> Any:
        """Rows of the bank, a page at a time, as this or an earlier version has them."""
        wanted: dict[str, Any] = {"words": words, "label": label, "source": source, "limit": limit, "offset": offset}
        read = partial(BankService.page, version=version, **wanted)
        at, page, count = await context.query_bank(request, read)
        return {"version": at, "count": count, "rows": page}

    @router.get("/rows/{row:path}", response_model=RowHistory, responses=GET_ERRORS)
    async def row(request: Request, row: str) -> Any:
        """One row and its history: each version that changed it, with its author and reason."""
        present, changes = await context.query_bank(request, lambda bank: bank.row(row))
        return {"id": row, "row": present, "changes": [one.to_dict() for one in changes]}

    @router.get("/diff", response_model=BankDifference, responses=GET_ERRORS)
    async def diff(
        request: Request,
        first: Annotated[int, Query(alias="from", ge=1, description="A version.")],
        last: Annotated[int | None, Query(alias="to", ge=1, description="Another; default: the newest.")] = None,
        limit: Limit = 100,
        offset: Offset = 0,
    ) -> Any:
        """Rows in which two versions of the bank differ."""

        def read(bank: BankService) -> tuple[int, list[RowChanged]]:
            until = last or bank.version()
            return until, bank.difference(first, until)

        until, found = await context.query_bank(request, read)
        counts = Counter(one.kind for one in found)
        kinds = {kind: counts[kind] for kind in get_args(RowDifference.model_fields["kind"].annotation)}
        page = [one.to_dict() for one in found[offset : offset + limit]]
        return {"first": first, "last": until, "count": len(found), "kinds": kinds, "rows": page}
