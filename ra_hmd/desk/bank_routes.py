"""Routes of the example bank: its rows and versions, what differs between two, the history of one row, restoring."""

import contextlib
from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from starlette.datastructures import QueryParams

from ra_hmd.bank.row_history import RowDifference
from ra_hmd.cases.steps import CaseConflict, NoSuchCase
from ra_hmd.core.errors import UserError
from ra_hmd.desk.bank_changes import read_bank, restore, take_back
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.verdict_view import VerdictWords
from ra_hmd.desk.visits import Visit, first, visits
from ra_hmd.serve.bank_service import BankService

PAGE = 50
MOST_DIFFERENCES = 500
OPERATIONS = {"added": "Added", "removed": "Taken out", "restored": "Put back", "relabelled": "Labelled anew"}
ACTIONS = {"create": "Created", "add": "Rows added", "remove": "Rows taken out", "relabel": "Rows labelled anew",
           "rollback": "Changes taken back"}  # fmt: skip
_DONE = {
    "row": "This change of the row is taken back.",
    "restored": "The bank has the content of the earlier version.",
}


def number(values: QueryParams | dict[str, str], name: str, default: int) -> int:
    """A positive whole number of a query or a form; the default where it is none."""
    value = values.get(name, "")
    return int(value) if value.isdecimal() and len(value) < 10 and int(value) > 0 else default


def add_bank_routes(router: APIRouter, desk: Desk) -> None:
    """Add the pages of the bank."""
    pages = BankPages(desk)
    _add_reading(router, desk, pages)
    _add_changes(router, desk, pages)


class BankPages:
    """Renders the pages of one desk's bank."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    async def show(self, visit: Visit, name: str, look: Callable[[], dict[str, Any]], problem: str = "",
                   status: int = 200) -> Response:  # fmt: skip
        """Render a template with what a call reads, or the reason for which it cannot be read."""
        words = VerdictWords(self.desk.names, visit.viewer.text)
        said = visit.viewer.text(_DONE.get(visit.request.query_params.get("done", ""), ""))
        try:
            values = await run_sync(look)
        except UserError as error:
            return visit.missing(error, "bank")
        return visit.page(name, status, words=words, said=said, problem=visit.viewer.text(problem),
                          operations=OPERATIONS, actions=ACTIONS, **values)  # fmt: skip

    def rows(self, query: QueryParams) -> dict[str, Any]:
        """A page of rows, by the filters of a query."""
        label, page = query.get("label", ""), number(query, "page", 1)
        wanted: dict[str, Any] = {
            "words": query.get("words", "").strip()[:200],
            "label": int(label) if label.isdecimal() and len(label) < 6 else None,
            "source": query.get("source") or None,
            "version": number(query, "version", 0) or None,
        }
        call = partial(BankService.page, limit=PAGE, offset=(page - 1) * PAGE, **wanted)
        version, rows, count = read_bank(self.desk, call)
        newest = read_bank(self.desk, BankService.version)
        kept = {name: str(value) for name, value in wanted.items() if value not in (None, "")}
        return {
            "rows": rows,
            "captions": self.desk.captions([row["id"] for row in rows]),
            "count": count,
            "version": version,
            "newest": newest,
            "page": page,
            "pages": max(ceil(count / PAGE), 1),
            "query": kept,
            "wanted": wanted,
            "names": self.desk.names.names,
        }

    def row(self, name: str, may_change: bool) -> dict[str, Any]:
        """A row with its history, newest change first."""
        row, history = read_bank(self.desk, partial(BankService.row, name=name))
        meme, case = self.desk.row_meme(name), None
        with contextlib.suppress(NoSuchCase):
            case = self.desk.cases.store.get(name)
        last = history[-1].entry.version
        return {"id": name, "row": row, "history": history[::-1], "meme": meme, "case": case,
                "undoable": last if may_change and last > 1 else 0}  # fmt: skip

    def versions(self, query: QueryParams) -> dict[str, Any]:
        """A page of versions, newest first."""
        log = read_bank(self.desk, BankService.log)[::-1]
        page = number(query, "page", 1)
        first_one = (page - 1) * PAGE
        return {"entries": log[first_one : first_one + PAGE], "newest": log[0].version, "page": page,
                "pages": max(ceil(len(log) / PAGE), 1)}  # fmt: skip

    def difference(self, query: QueryParams) -> dict[str, Any]:
        """The rows that differ between two versions, by default the newest and the one before."""
        newest = read_bank(self.desk, BankService.version)
        to = number(query, "to", newest)
        start = number(query, "from", max(to - 1, 1))
        found = read_bank(self.desk, partial(BankService.difference, first=start, last=to))
        return {**self._some(found, MOST_DIFFERENCES), "start": start, "to": to, "newest": newest}

    def _some(self, found: list[RowDifference], most: int) -> dict[str, Any]:
        """The first rows that differ with their captions, and the number of all."""
        shown = found[:most]
        return {"rows": shown, "count": len(found), "captions": self.desk.captions([one.row["id"] for one in shown])}

    def restoring(self, version: int) -> dict[str, Any]:
        """What restoring a version would change, in rows and in verdicts."""
        newest = read_bank(self.desk, BankService.version)
        found = read_bank(self.desk, partial(BankService.difference, first=newest, last=version))
        effect, unknown = None, ""
        if found:
            try:
                effect = read_bank(self.desk, partial(BankService.preview_rollback, version=version))
            except UserError as error:  # there is no meme yet to measure it on
                unknown = str(error)
        head = self.desk.cases.service.detector.head
        return {**self._some(found, 20), "version": version, "newest": newest, "effect": effect, "unknown": unknown,
                "head": head}  # fmt: skip


def _add_reading(router: APIRouter, desk: Desk, pages: BankPages) -> None:
    Visited = Annotated[Visit, Depends(visits(desk))]

    @router.get("/bank")
    async def rows(visit: Visited, request: Request) -> Response:
        return await pages.show(visit, "bank.html", partial(pages.rows, request.query_params))

    @router.get("/bank/row")
    async def row(visit: Visited, request: Request) -> Response:
        name = request.query_params.get("id", "")
        return await pages.show(visit, "bank_row.html", partial(pages.row, name, visit.user.may_decide))

    @router.get("/bank/versions")
    async def versions(visit: Visited, request: Request) -> Response:
        return await pages.show(visit, "bank_versions.html", partial(pages.versions, request.query_params))

    @router.get("/bank/diff")
    async def difference(visit: Visited, request: Request) -> Response:
        return await pages.show(visit, "bank_diff.html", partial(pages.difference, request.query_params))

    @router.get("/bank/restore")
    async def restoring(visit: Visited, request: Request) -> Response:
        version = number(request.query_params, "version", 1)
        return await pages.show(visit, "bank_restore.html", partial(pages.restoring, version))


def _add_changes(router: APIRouter, desk: Desk, pages: BankPages) -> None:
    Visited = Annotated[Visit, Depends(visits(desk))]

    @router.post("/bank/row/undo")
    async def undo(visit: Visited) -> Response:
        form = {name: values[0] for name, values in (await visit.form()).items() if values}
        name, version = form.get("id", ""), number(form, "version", 1)
        try:
            await run_sync(take_back, desk, visit.user, name, version, form.get("why", ""))
        except UserError as error:
            look = partial(pages.row, name, visit.user.may_decide)
            return await pages.show(visit, "bank_row.html", look, str(error), _status(error))
        return visit.go("/bank/row", {"id": name, "done": "row"})

    @router.post("/bank/restore")
    async def restored(visit: Visited) -> Response:
        sent = await visit.form()
        form = {name: first(sent, name) for name in ("version", "seen", "why")}
        version, seen = number(form, "version", 1), number(form, "seen", 0)
        try:
            await run_sync(restore, desk, visit.user, version, seen, form["why"])
        except UserError as error:
            look = partial(pages.restoring, version)
            return await pages.show(visit, "bank_restore.html", look, str(error), _status(error))
        return visit.go("/bank/versions", {"done": "restored"})


def _status(error: UserError) -> int:
    return 409 if isinstance(error, CaseConflict) else 422
