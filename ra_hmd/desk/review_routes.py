"""Routes of the review page: the case on the screen, and what is done with it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.history import conflict_ids
from ra_hmd.cases.store import MANY
from ra_hmd.core.errors import UserError
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.others_view import others_view
from ra_hmd.desk.verdict_view import VerdictWords
from ra_hmd.desk.visits import Visit, first, visits


def add_review_routes(router: APIRouter, desk: Desk) -> None:
    """Add the review page and its actions."""
    visit = visits(desk)
    screen = ReviewScreen(desk)
    Visited = Annotated[Visit, Depends(visit)]

    @router.get("/review")
    async def review(visit: Visited, after: str | None = None) -> Response:
        return await screen.show(visit, after=after)

    @router.post("/cases/{case_id}/decide")
    async def decide(visit: Visited, case_id: str) -> Response:
        form, text = await visit.form(), visit.viewer.text
        reason = ": ".join(part for name in ("reason", "words") if (part := first(form, name)))

        def call() -> str:
            label = desk.label_of(form.get("label", []))
            case = desk.decide(visit.user, case_id, label, reason)
            said = text("Decided: {label}.", label=screen.words(visit).label(label))
            return said if case.state == "decided" else f"{said} {text('It waits for another opinion.')}"

        return await screen.act(visit, call)

    @router.post("/cases/{case_id}/escalate")
    async def escalate(visit: Visited, case_id: str) -> Response:
        form = await visit.form()
        words, colleague = first(form, "words"), first(form, "colleague")
        call = partial(desk.decide, visit.user, case_id, None, words, colleague=colleague)
        return await screen.act(visit, call, "Passed to a colleague.")

    @router.post("/cases/{case_id}/skip")
    async def skip(visit: Visited, case_id: str) -> Response:
        return await screen.act(visit, partial(desk.skip, visit.user, case_id), "Left to others.")

    @router.post("/cases/{case_id}/note")
    async def note(visit: Visited, case_id: str) -> Response:
        words = first(await visit.form(), "words")
        return await screen.act(visit, partial(desk.note, visit.user, case_id, words), "Noted.")

    @router.post("/undo")
    async def undo(visit: Visited) -> Response:
        opinion = first(await visit.form(), "opinion")
        call = partial(desk.undo, visit.user, int(opinion) if opinion.isdecimal() else None)
        return await screen.act(visit, call, "Taken back; the case is here again.")

    @router.get("/cases/{case_id}/effect")
    async def effect(visit: Visited, case_id: str, request: Request) -> Response:
        values = request.query_params.getlist("label")

        def look() -> Any:
            return desk.effect(desk.cases.store.get(case_id), desk.label_of(values))

        found, problem = None, ""
        try:
            found = await run_sync(look)
        except UserError as error:
            problem = visit.viewer.text(str(error))
        head = desk.cases.service.detector.head
        return visit.page("_effect.html", effect=found, problem=problem, words=screen.words(visit), head=head)


@dataclass(frozen=True)
class ReviewScreen:
    """The case that a person has on the screen."""

    desk: Desk

    def words(self, visit: Visit) -> VerdictWords:
        """Puts verdicts into words of the person's language."""
        return VerdictWords(self.desk.names, visit.viewer.text)

    async def show(self, visit: Visit, *, said: str = "", problem: str = "", after: str | None = None) -> Response:
        """Render the case that the person has, or gets now."""
        values = await run_sync(partial(self._values, visit, after))
        name, problem = "_case.html" if visit.fragment else "review.html", visit.viewer.text(problem)
        return visit.page(name, said=said, problem=problem, **values)

    async def act(self, visit: Visit, call: Callable[[], Any], said: str = "") -> Response:
        """Do something, and show the next case, or why it could not be done."""
        try:
            result = await run_sync(call)
        except UserError as error:
            return await self.show(visit, problem=str(error))
        if not visit.fragment:
            return visit.redirect("/review")
        return await self.show(visit, said=visit.viewer.text(said) if said else result)

    def _values(self, visit: Visit, after: str | None) -> dict[str, Any]:
        queue = visit.request.query_params.get("queue") or None
        wanted, user, desk = CaseFilter(queue=queue), visit.user, self.desk
        case, waiting = None, 0
        if user.may_decide:
            case = desk.next(user, wanted, after=after)
            waiting = desk.cases.store.waiting(user.name, wanted)
        values: dict[str, Any] = {"case": case, "waiting": waiting, "many": MANY, "last": desk.last(user),
                                  "conflicts": len(conflict_ids(desk.cases.store.database, user.name))}  # fmt: skip
        if case is None:
            return values | {"queue": queue, "view": None, "labels": [], "others": None}
        values["colleagues"] = desk.sessions.colleagues(user.name)
        words = self.words(visit)
        view, others = words.view(case.verdict, desk.thresholds), others_view(desk, case.id, user.name, words)
        return values | {
            "queue": queue,
            "view": view,
            "labels": words.choices(case.verdict.get("verdict")),
            "multi": words.problem.kind == "multi_label",
            "others": others,
        }
