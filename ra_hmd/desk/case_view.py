"""A case with all that people said about it, as far as a person may see it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ra_hmd.cases.history import CaseHistory, claimed_by, history_of
from ra_hmd.cases.near import count_near
from ra_hmd.cases.steps import NoSuchCase
from ra_hmd.cases.tables import Case, Event, Note, Opinion
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.people import User
from ra_hmd.desk.verdict_view import VerdictView, VerdictWords

EVENTS = {
    "case added": "Arrived",
    "decided": "Decided",
    "undone": "Taken back",
    "appealed": "Appealed",
    "skipped": "Skipped",
    "noted": "Noted",
    "assigned": "Assigned",
    "forgotten": "Picture and words removed",
    "row changed": "Row of the bank changed",
    "row changed back": "Row of the bank changed back",
}
"""Kind of a line of the log to its word on the page."""


@dataclass(frozen=True)
class CaseView:
    """What the page of a case shows.

    Attributes:
        case: The case.
        verdict: The verdict in words.
        opinions: The opinions that the person may see, oldest first, undone ones included.
        hidden: Number of standing opinions that the person may not see yet.
        notes: The notes.
        events: The lines of the log that tell no hidden opinion.
        undoable: Ids of the opinions that the person may take back.
        near: Number of other open cases with nearly the picture.
        claimed: Who has it on the screen; empty: nobody.
        takeable: Whether the person may decide on it now.
        assignable: Names of the people to whom the person may assign it.
    """

    case: Case
    verdict: VerdictView
    opinions: list[Opinion]
    hidden: int
    notes: list[Note]
    events: list[Event]
    undoable: set[int]
    near: int
    claimed: str
    takeable: bool
    assignable: list[str]


def case_view(desk: Desk, case_id: str, user: User, words: VerdictWords) -> CaseView:
    """The view of a case. Raises `NoSuchCase`."""
    database = desk.cases.store.database
    history = history_of(database, case_id)
    if history is None:
        raise NoSuchCase(f"There is no case {case_id!r}.")
    case = history.case
    seen = history.as_seen_by(user.name)
    known = {one.id for one in seen.opinions}
    given = [one for one in history.opinions if one.person == user.name and one.state == "standing"]
    standing = [one for one in given if one.round == case.round]
    claimed = claimed_by(database, [case_id]).get(case_id, "")
    free = case.open and claimed in ("", user.name) and case.assigned in ("", user.name)
    people = [user.name, *desk.sessions.colleagues(user.name)] if user.may_decide and case.open else []
    return CaseView(
        case=case,
        verdict=words.view(case.verdict, desk.thresholds),
        opinions=seen.opinions,
        hidden=sum(one.state != "undone" and one.id not in known for one in history.opinions),
        notes=history.notes,
        events=seen.events,
        undoable={one.id for one in standing} if user.may_decide else set(),
        near=count_near(database, [case])[case_id],
        claimed=claimed,
        takeable=user.may_decide and free and not _spoken(given, history),
        assignable=[name for name in people if name != case.assigned],
    )


def _spoken(own: Sequence[Opinion], history: CaseHistory) -> bool:
    """Whether a person's opinion is given: it has a label, or it passed the case on and nobody has answered."""
    last = history.opinions[-1] if history.opinions else None
    return any(one.action != "escalate" or one is last for one in own)
