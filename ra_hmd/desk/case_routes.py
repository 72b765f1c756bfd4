"""Routes of the cases: the list with its filters and saved views, one case, and near copies that are decided as one."""

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from starlette.datastructures import QueryParams

from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.history import claimed_by, list_cases
from ra_hmd.cases.near import count_near, near_copies
from ra_hmd.cases.outcome import OPEN
from ra_hmd.cases.steps import CaseConflict, NoSuchCase
from ra_hmd.cases.views import queues_of, remove_view, save_view, sources_of, views_of
from ra_hmd.core.errors import UserError
from ra_hmd.desk.bulk import BulkResult, decide_all
from ra_hmd.desk.case_view import EVENTS, case_view
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.verdict_view import VerdictWords
from ra_hmd.desk.visits import Visit, first, visits

PAGE = 50
STATES = {"": OPEN, "waiting": ("waiting",), "escalated": ("escalated",), "conflict": ("conflict",),
          "decided": ("decided",), "all": ()}  # fmt: skip
"""Choice of states in the list to the states; the empty one is the default."""
ORDERS = {"urgent": "Most urgent first", "oldest": "Oldest first", "newest": "Newest first",
          "least-similar": "Least like the bank first"}  # fmt: skip
_DONE = {
    "undone": "Taken back; the case waits again.",
    "appealed": "The case waits for others, who decide on the appeal.",
    "noted": "Noted.",
    "assigned": "The assignment is changed.",
    "checked": "The meme is a case now, with your decision.",
}
_FIELDS = ("queue", "source", "state", "why", "assigned", "words", "label", "order")


def filter_of(query: QueryParams) -> CaseFilter:
    """The filter that the query of a list stands for. Values that cannot be are left out."""
    label, state, order = query.get("label", ""), query.get("state", ""), query.get("order", "")
    return CaseFilter(
        queue=query.get("queue") or None,
        source=query.get("source") or None,
        why=query.get("why") or None,
        assigned=query.get("assigned") or None,
        words=(query.get("words") or "").strip()[:200] or None,
        states=STATES.get(state, OPEN),
        label=int(label) if label.isdecimal() and len(label) < 6 else None,
        order=order if order in ORDERS else "urgent",  # type: ignore[arg-type]
    )


def query_of(wanted: CaseFilter) -> dict[str, str]:
    """The query of a list that stands for a filter."""
    state = next((name for name, states in STATES.items() if set(states) == set(wanted.states)), "")
    values = {"queue": wanted.queue, "source": wanted.source, "state": state, "why": wanted.why,
              "assigned": wanted.assigned, "words": wanted.words,
              "label": wanted.label, "order": "" if wanted.order == "urgent" else wanted.order}  # fmt: skip
    return {name: str(value) for name, value in values.items() if value not in (None, "")}


def add_case_routes(router: APIRouter, desk: Desk) -> None:
    """Add the list, the page of a case and that of near copies."""
    _add_list(router, desk)
    _add_case(router, desk)
    _add_near(router, desk)


def _add_list(router: APIRouter, desk: Desk) -> None:
    Visited = Annotated[Visit, Depends(visits(desk))]
    database = desk.cases.store.database

    async def show(visit: Visit, query: QueryParams, problem: str = "") -> Response:
        wanted, number = filter_of(query), query.get("page", "1")
        page = max(int(number), 1) if number.isdecimal() and len(number) < 6 else 1

        def look() -> dict[str, Any]:
            cases, count = list_cases(database, wanted, limit=PAGE, offset=(page - 1) * PAGE)
            return {
                "cases": cases,
                "count": count,
                "pages": max(ceil(count / PAGE), 1),
                "near": count_near(database, cases),
                "claimed": claimed_by(database, [case.id for case in cases]),
                "views": [(view, query_of(CaseFilter(**view.query))) for view in views_of(database, visit.user.name)],
                "queues": queues_of(database),
                "sources": sources_of(database),
                "people": [visit.user.name, *desk.sessions.colleagues(visit.user.name)],
            }

        values = await run_sync(look)
        words = VerdictWords(desk.names, visit.viewer.text)
        return visit.page(
            "cases.html", 422 if problem else 200, wanted=wanted, query=query_of(wanted), page=page, words=words,
            names=desk.names.names, states=STATES, orders=ORDERS, problem=visit.viewer.text(problem), **values,
        )  # fmt: skip

    @router.get("/cases")
    async def cases(visit: Visited, request: Request) -> Response:
        return await show(visit, request.query_params)

    @router.post("/views")
    async def save(visit: Visited) -> Response:
        form = await visit.form()
        query = QueryParams({name: first(form, name) for name in _FIELDS})
        try:
            await run_sync(save_view, database, visit.user.name, first(form, "name"), filter_of(query))
        except UserError as error:
            return await show(visit, query, str(error))
        return visit.go("/cases", query_of(filter_of(query)))

    @router.post("/views/remove")
    async def remove(visit: Visited) -> Response:
        await run_sync(remove_view, database, visit.user.name, first(await visit.form(), "name"))
        return visit.go("/cases")


def _add_case(router: APIRouter, desk: Desk) -> None:
    Visited = Annotated[Visit, Depends(visits(desk))]

    async def show(visit: Visit, case_id: str, problem: str = "", status: int = 200) -> Response:
        words = VerdictWords(desk.names, visit.viewer.text)
        try:
            view = await run_sync(case_view, desk, case_id, visit.user, words)
        except NoSuchCase as error:
            return visit.missing(error)
        said = visit.viewer.text(_DONE.get(visit.request.query_params.get("done", ""), ""))
        return visit.page("case.html", status, problem=visit.viewer.text(problem), said=said, words=words,
                          view=view, events=EVENTS)  # fmt: skip

    async def act(visit: Visit, case_id: str, done: str, call: Callable[[], Any]) -> Response:
        try:
            await run_sync(call)
        except UserError as error:
            return await show(visit, case_id, str(error), 409 if isinstance(error, CaseConflict) else 422)
        return visit.go(f"/cases/{case_id}", {"done": done}) if done else visit.go("/review")

    @router.get("/cases/{case_id}")
    async def case(visit: Visited, case_id: str) -> Response:
        return await show(visit, case_id)

    @router.post("/cases/{case_id}/take")
    async def take(visit: Visited, case_id: str) -> Response:
        return await act(visit, case_id, "", partial(desk.take, visit.user, case_id))

    @router.post("/cases/{case_id}/assign")
    async def assign(visit: Visited, case_id: str) -> Response:
        colleague = first(await visit.form(), "colleague")
        return await act(visit, case_id, "assigned", partial(desk.assign, visit.user, [case_id], colleague))

    @router.post("/cases/{case_id}/notes")
    async def note(visit: Visited, case_id: str) -> Response:
        words = first(await visit.form(), "words")
        return await act(visit, case_id, "noted", partial(desk.note, visit.user, case_id, words))

    @router.post("/cases/{case_id}/appeal")
    async def appeal(visit: Visited, case_id: str) -> Response:
        words = first(await visit.form(), "words")
        return await act(visit, case_id, "appealed", partial(desk.appeal, visit.user, case_id, words))

    @router.post("/cases/{case_id}/undo")
    async def undo(visit: Visited, case_id: str) -> Response:
        form = await visit.form()
        number, why = first(form, "opinion"), first(form, "why")

        def call() -> None:
            if not number.isdecimal() or len(number) > 18:
                raise NoSuchCase(f"There is no decision {number[:18]!r}.")
            desk.undo(visit.user, int(number), why)

        return await act(visit, case_id, "undone", call)


def _add_near(router: APIRouter, desk: Desk) -> None:
    Visited = Annotated[Visit, Depends(visits(desk))]

    async def show(visit: Visit, case_id: str, problem: str = "", status: int = 200,
                   result: BulkResult | None = None) -> Response:  # fmt: skip
        try:
            case = await run_sync(desk.cases.store.get, case_id)
        except NoSuchCase as error:
            return visit.missing(error)
        copies, count = await run_sync(near_copies, desk.cases.store.database, case)
        words = VerdictWords(desk.names, visit.viewer.text)
        return visit.page("near.html", status, case=case, copies=copies, count=count, result=result, words=words,
                          labels=words.choices(), problem=visit.viewer.text(problem))  # fmt: skip

    @router.get("/cases/{case_id}/near")
    async def near(visit: Visited, case_id: str) -> Response:
        return await show(visit, case_id)

    @router.post("/cases/{case_id}/near")
    async def decide(visit: Visited, case_id: str) -> Response:
        form = await visit.form()
        reason = ": ".join(part for name in ("reason", "words") if (part := first(form, name)))

        def call() -> BulkResult:
            label = desk.label_of(form.get("label", []))
            return decide_all(desk, visit.user, case_id, form.get("case", []), label, reason)

        try:
            result = await run_sync(call)
        except UserError as error:
            return await show(visit, case_id, str(error), 409 if isinstance(error, CaseConflict) else 422)
        return await show(visit, case_id, result=result)

    @router.post("/batches/{batch}/undo")
    async def undo(visit: Visited, batch: str) -> Response:
        form = await visit.form()
        case_id, why = first(form, "case"), first(form, "why")
        try:
            await run_sync(desk.undo_batch, visit.user, batch, why)
        except UserError as error:
            return await show(visit, case_id, str(error), 409)
        return visit.go(f"/cases/{case_id}/near")
