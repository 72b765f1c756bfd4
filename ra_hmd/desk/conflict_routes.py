"""Routes of the page on which people who disagree about a case see each other's opinions and may come to agree."""

from functools import partial
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends
from fastapi.responses import Response

from ra_hmd.cases.history import conflict_ids, history_of, shown_opinions
from ra_hmd.cases.steps import CaseConflict, NoSuchCase
from ra_hmd.cases.tables import Case
from ra_hmd.core.errors import UserError
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.others_view import OthersView, view_of
from ra_hmd.desk.people import User
from ra_hmd.desk.verdict_view import VerdictWords
from ra_hmd.desk.visits import Visit, visits


def add_conflict_routes(router: APIRouter, desk: Desk) -> None:
    """Add the page of conflicts."""
    visit = visits(desk)
    Visited = Annotated[Visit, Depends(visit)]

    async def show(visit: Visit, said: str = "", problem: str = "") -> Response:
        words, name, database = VerdictWords(desk.names, visit.viewer.text), visit.user.name, desk.cases.store.database

        def find() -> list[tuple[Case, OthersView | None]]:
            found = (history_of(database, case_id) for case_id in conflict_ids(database, name))
            return [(one.case, view_of(one, name, words)) for one in found if one is not None]

        return visit.page("conflicts.html", conflicts=await run_sync(find), said=said, problem=problem)

    @router.get("/conflicts")
    async def conflicts(visit: Visited) -> Response:
        return await show(visit)

    @router.post("/cases/{case_id}/join")
    async def join(visit: Visited, case_id: str) -> Response:
        (opinion, *_) = [*(await visit.form()).get("opinion", []), ""]
        try:
            if not opinion.isdecimal():
                raise NoSuchCase(f"There is no decision {opinion}.")
            await run_sync(partial(agree_with, desk, visit.user, case_id, int(opinion)))
        except UserError as error:
            return await show(visit, problem=str(error))
        return await show(visit, said="You agree now.")


def agree_with(desk: Desk, user: User, case_id: str, opinion_id: int) -> Case:
    """Take one's own opinion on a case back, and give that of somebody else.

    Raises:
        UserError: The person has no opinion on the case, or the other one's no longer stands; see `Desk.undo` and
            `Desk.decide`.
    """
    history = history_of(desk.cases.store.database, case_id)
    if history is None:
        raise NoSuchCase(f"There is no case {case_id}.")
    case = history.case
    present = [one for one in shown_opinions(case, history.opinions, user.name)
               if one.round == case.round and one.action != "escalate"]  # fmt: skip
    own = next((one for one in present if one.person == user.name), None)
    other = next((one for one in present if one.id == opinion_id and one is not own), None)
    if case.state != "conflict" or own is None or other is None:
        raise CaseConflict("This conflict is over; look at the case to see how it was decided.")
    why = f"agrees with {other.person}"
    desk.undo(user, own.id, why)
    return desk.decide(user, case_id, other.label, f"{why}: {other.reason}" if other.reason else why)
