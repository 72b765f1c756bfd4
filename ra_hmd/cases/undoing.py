"""Taking opinions back, in three steps like a decision: it is begun, the bank is changed back, it is finished.

    begin_undo ─► … the bank is changed back … ─► finish_undo
        └► abandon_undo: the bank refused, and the opinion stands as before

Until it is finished the opinion stands. What was begun and not finished is found by `unfinished_undos`.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ra_hmd.cases.audit import log, log_rows
from ra_hmd.cases.database import Database
from ra_hmd.cases.steps import CaseConflict, claim, claim_alone, find_opinion, now, settle
from ra_hmd.cases.tables import Case, Opinion


def begin_undo(database: Database, opinion_ids: Sequence[int], person: str, why: str) -> list[Opinion]:
    """Record that opinions of a person's own are to be taken back: all of them, or none.

    Args:
        database: The database.
        opinion_ids: The opinions.
        person: Whose they are.
        why: Why they are taken back.

    Raises:
        NoSuchCase, CaseConflict: See `check_undo`.
    """
    with database.write() as session:
        opinions = [_undoable(session, opinion_id, person) for opinion_id in opinion_ids]
        for opinion in opinions:
            opinion.undoing, opinion.undone_by, opinion.undone_why = now(), person, why
        return opinions


def check_undo(database: Database, opinion_id: int, person: str) -> Opinion:
    """The opinion, if the person may take it back now.

    Raises:
        NoSuchCase: There is no such opinion.
        CaseConflict: It is somebody else's, is taken back already, or the case went on: it was appealed since.
    """
    with database.read() as session:
        return _undoable(session, opinion_id, person)


def finish_undo(
    database: Database, opinion_id: int, change: Mapping[str, Any] | None = None, *, on_screen: bool = True
) -> Case:
    """Complete the undoing of an opinion, after its change of the bank is taken back; the case follows.

    Args:
        database: The database.
        opinion_id: The opinion. Finishing it twice is finishing it once.
        change: What was changed back in the bank.
        on_screen: The case takes the place of what the person has on the screen; otherwise it comes beside that.
    """
    with database.write() as session:
        opinion = find_opinion(session, opinion_id)
        case = session.get_one(Case, opinion.case_id)
        if opinion.undoing is None:
            return case
        person = opinion.undone_by
        opinion.state, opinion.undoing, case.assigned = "undone", None, ""
        log(session, person, "undone", case.id, opinion=opinion.id, reason=opinion.undone_why, **dict(change or {}))
        log_rows(session, opinion, undone=True)
        settle(session, case)
        if case.open:
            (claim_alone if on_screen else claim)(session, case, person)
        return case


def abandon_undo(database: Database, opinion_ids: Sequence[int]) -> None:
    """Let opinions stand whose undoing was begun."""
    with database.write() as session:
        found = select(Opinion).where(Opinion.id.in_(opinion_ids), Opinion.undoing.is_not(None))
        for opinion in session.scalars(found):
            opinion.undoing, opinion.undone_by, opinion.undone_why = None, "", ""


def unfinished_undos(database: Database, seconds: float = 0.0) -> list[Opinion]:
    """Opinions whose undoing was begun at least so many seconds ago and not finished, newest first."""
    with database.read() as session:
        due = select(Opinion).where(Opinion.undoing <= now() - timedelta(seconds=seconds)).order_by(Opinion.id.desc())
        return list(session.scalars(due))


def _undoable(session: Session, opinion_id: int, person: str) -> Opinion:
    opinion = find_opinion(session, opinion_id)
    case = session.get_one(Case, opinion.case_id)
    if opinion.person != person:
        raise CaseConflict(f"{opinion.person} decided that; only they can take it back. Appeal instead.")
    if opinion.state == "undone":
        raise CaseConflict("This decision is taken back already.")
    if opinion.undoing is not None:
        raise CaseConflict("This decision is being taken back; try again in a moment.")
    if opinion.state != "standing":
        raise CaseConflict("This decision is still being written; try again in a moment.")
    if opinion.round != case.round:
        raise CaseConflict("The case was appealed since; decide on the appeal instead.")
    return opinion
