"""Steps that transactions on cases share: finding and checking a case, claiming it, settling what opinions come to."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from ra_hmd.cases.outcome import OPEN, outcome
from ra_hmd.cases.tables import Case, Claim, Delivery, Opinion, Skip
from ra_hmd.core.errors import UserError

CLAIM_SECONDS = 900
"""How long a case is kept for whoever has it on the screen."""


class CaseConflict(UserError):
    """The case is not, or no longer, where the request takes it to be. Nothing was changed."""


class NoSuchCase(UserError):
    """There is no case, or no opinion, with that id."""


def now() -> datetime:
    """The present time."""
    return datetime.now(UTC)


def find_case(session: Session, case_id: str) -> Case:
    """A case, locked until the end of the transaction. Raises `NoSuchCase`."""
    case = session.get(Case, case_id, with_for_update=True)
    if case is None:
        raise NoSuchCase(f"There is no case {case_id!r}.")
    return case


def open_case(session: Session, case_id: str) -> Case:
    """`find_case` of one that somebody has to look at. Raises `CaseConflict` where it is decided."""
    case = find_case(session, case_id)
    if not case.open:
        raise CaseConflict("This case is decided already; take the next one, or appeal.")
    return case


def check_free_for(session: Session, case: Case, person: str) -> None:
    """Raise `CaseConflict` where somebody else has claimed an open case, or it waits for others than that person."""
    held = session.get(Claim, case.id)
    if held is not None and held.person != person and held.until > now():
        raise CaseConflict(f"{held.person} has this case on the screen; take the next one.")
    if case.assigned not in ("", person):
        raise CaseConflict(f"This case is assigned to {case.assigned}; assign it to yourself first.")
    given = select(Opinion.id).where(Opinion.case_id == case.id, Opinion.person == person, Opinion.state != "undone")
    if session.scalars(given.where(Opinion.round < case.round, Opinion.action != "escalate")).first() is not None:
        raise CaseConflict("You decided on this case before it was appealed; a colleague decides on the appeal.")
    standing = standing_opinions(session, case)
    if any(one.person == person and one.action != "escalate" for one in standing):
        raise CaseConflict("You have decided on this case already; it waits for a second opinion.")
    if standing and standing[-1].action == "escalate" and standing[-1].person == person:
        raise CaseConflict("You have passed this case to a colleague; take that back first.")


def find_opinion(session: Session, opinion_id: int) -> Opinion:
    """An opinion. Raises `NoSuchCase`."""
    opinion = session.get(Opinion, opinion_id)
    if opinion is None:
        raise NoSuchCase(f"There is no decision {opinion_id}.")
    return opinion


def claim(session: Session, case: Case, person: str) -> None:
    """Claim a case for a person, for `CLAIM_SECONDS`."""
    session.merge(Claim(case_id=case.id, person=person, until=now() + timedelta(seconds=CLAIM_SECONDS)))


def claim_alone(session: Session, case: Case, person: str) -> None:
    """Claim a case for a person, and give back what else the person has claimed."""
    session.execute(delete(Claim).where(Claim.person == person))
    claim(session, case, person)


def standing_opinions(session: Session, case: Case) -> list[Opinion]:
    """The opinions of a case's round that were not taken back, those that are being written among them."""
    found = select(Opinion).where(Opinion.case_id == case.id, Opinion.round == case.round, Opinion.state != "undone")
    return list(session.scalars(found.order_by(Opinion.id)))


def settle(session: Session, case: Case) -> None:
    """Bring the state of a case in line with its opinions, and let its source know where it changes."""
    session.flush()
    result = outcome([one for one in standing_opinions(session, case) if one.state == "standing"], case.opinions_needed)
    if (result.state, result.label) == (case.state, case.label):
        return
    case.state, case.label, case.changed = result.state, result.label, now()
    case.open, judged = case.state in OPEN, case.verdict.get("verdict")
    case.corrected = None if case.label is None or judged is None else case.label != judged
    if case.callback:
        body = {"case": case.id, "id": case.meme_id, "state": case.state, "label": case.label}
        session.add(Delivery.of(case.callback, body, now()))


def free_for(person: str) -> Any:
    """Cases that a person may be shown: open, claimed by nobody else, neither skipped nor decided on by that person."""
    claimed = exists().where(Claim.case_id == Case.id, Claim.person != person, Claim.until > now())
    skipped = exists().where(Skip.case_id == Case.id, Skip.person == person, Skip.round == Case.round)
    own = exists().where(Opinion.case_id == Case.id, Opinion.person == person, Opinion.state != "undone")
    writing = exists().where(Opinion.case_id == Case.id, Opinion.state == "writing")
    mine = Case.assigned.in_(("", person))
    return select(Case).where(Case.open, mine, ~claimed, ~skipped, ~own, ~writing)
