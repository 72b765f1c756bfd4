"""Lists of cases, and the audit log: who did what, when and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import exists, func, select, union_all

from ra_hmd.cases.database import Database
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.tables import Case, Claim, Delivery, Event, Note, Opinion

_PAGE = 1000


@dataclass(frozen=True)
class CaseHistory:
    """A case with all that people said about it, oldest first."""

    case: Case
    opinions: list[Opinion]
    notes: list[Note]
    events: list[Event]

    def as_seen_by(self, person: str) -> "CaseHistory":
        """The history without opinions that a person may not see yet (see `shown_opinions`), and without the lines of
        the log that tell them. An opinion that was taken back is seen where it would be if it stood.
        """
        case = self.case
        told = {one.id for one in shown_opinions(case, self.opinions, person)}
        told |= {one.id for one in self.opinions if one.state == "undone"
                 and (one.person == person or one.round < case.round or case.state == "decided")}  # fmt: skip
        opinions = [one for one in self.opinions if one.id in told]
        events = [one for one in self.events if one.details.get("opinion", -1) in {-1, *told}]
        return CaseHistory(case, opinions, self.notes, events)


def list_cases(database: Database, wanted: CaseFilter, *, limit: int = 50, offset: int = 0) -> tuple[list[Case], int]:
    """A page of cases, and the number of all that pass the filter."""
    with database.read() as session:
        page = select(Case).where(Case.id.in_(_page_of(wanted, limit, offset))).order_by(*wanted.columns)
        count = session.scalar(wanted.apply(select(func.count(Case.id)), ordered=False))
        return list(session.scalars(page)), count or 0


def _page_of(wanted: CaseFilter, limit: int, offset: int) -> Any:
    """The ids of a page. Its place is found in an index alone: each order has one of open cases and of decided ones."""
    if len(wanted.halves) == 1:
        return wanted.apply(select(Case.id)).limit(limit).offset(offset)
    columns = [Case.id, *(one.label(f"of_order_{place}") for place, one in enumerate(wanted.keys))]
    parts = [wanted.apply(select(*columns).where(Case.open == half)).limit(limit + offset).subquery()
             for half in wanted.halves]  # fmt: skip
    both = union_all(*(select(part) for part in parts)).subquery()
    order = [both.c[f"of_order_{place}"] for place in range(len(wanted.keys))]
    directed = [one.desc() if down else one for one, down in zip(order, wanted.downwards, strict=True)]
    return select(both.c.id).order_by(*directed).limit(limit).offset(offset)


def cases_of_keys(database: Database, keys: Sequence[str]) -> dict[str, Case]:
    """The cases that were added with these request keys, by key."""
    with database.read() as session:
        return {str(case.request_key): case for case in session.scalars(select(Case).where(Case.request_key.in_(keys)))}


def cases_of_ids(database: Database, ids: Sequence[str]) -> dict[str, Case]:
    """Cases by id."""
    with database.read() as session:
        return {case.id: case for case in session.scalars(select(Case).where(Case.id.in_(ids)))}


def count_by_queue(database: Database) -> dict[str, dict[str, int]]:
    """Queue to the number of its cases by state."""
    with database.read() as session:
        found = session.execute(select(Case.queue, Case.state, func.count()).group_by(Case.queue, Case.state))
        counts: dict[str, dict[str, int]] = {}
        for queue, state, count in found.tuples():
            counts.setdefault(queue, {})[state] = count
        return counts


def webhooks_by_state(database: Database) -> dict[str, int]:
    """Number of webhooks that wait, and of those that were given up."""
    with database.read() as session:
        states = ("waiting", "failed")
        found = session.execute(
            select(Delivery.state, func.count()).where(Delivery.state.in_(states)).group_by(Delivery.state)
        )
        return dict.fromkeys(states, 0) | dict(found.tuples().all())


def history_of(database: Database, case_id: str) -> CaseHistory | None:
    """A case with its opinions, notes and events; None where there is no such case."""
    with database.read() as session:
        case = session.get(Case, case_id)
        if case is None:
            return None
        opinions = select(Opinion).where(Opinion.case_id == case_id).order_by(Opinion.id)
        notes = select(Note).where(Note.case_id == case_id).order_by(Note.id)
        log = select(Event).where(Event.case_id == case_id).order_by(Event.id)
        found = (list(session.scalars(opinions)), list(session.scalars(notes)), list(session.scalars(log)))
        return CaseHistory(case, *found)


def shown_opinions(case: Case, opinions: Sequence[Opinion], person: str) -> list[Opinion]:
    """The standing opinions that a person may see.

    Labels of the present round are hidden from whoever may still be asked for an opinion, so that opinions are
    independent: they are shown once the person has decided, people disagree, or the case is decided.
    """
    standing = [one for one in opinions if one.state == "standing"]
    own = any(one.person == person and one.round == case.round and one.action != "escalate" for one in standing)
    shown = own or case.state in ("conflict", "decided")
    return [one for one in standing if shown or one.round < case.round or one.action == "escalate"]


def conflict_ids(database: Database, person: str) -> list[str]:
    """The ids of cases on which a person's standing opinion is at odds with another one's, oldest first."""
    own = exists().where(Opinion.case_id == Case.id, Opinion.round == Case.round, Opinion.person == person,
                         Opinion.state == "standing", Opinion.action != "escalate")  # fmt: skip
    with database.read() as session:
        return list(session.scalars(select(Case.id).where(Case.state == "conflict", own).order_by(Case.id)))


def events(
    database: Database,
    *,
    person: str | None = None,
    case_id: str | None = None,
    row: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[Event]:
    """Lines of the audit log, oldest first, read in pages, so that the log may be of any length.

    Args:
        database: The database.
        person: Only what this person did.
        case_id: Only what happened to this case.
        row: Only what happened to this row of the bank.
        since: Only from this time on.
        until: Only before this time.
    """
    statement = select(Event).order_by(Event.id).limit(_PAGE)
    for column, value in ((Event.person, person), (Event.case_id, case_id), (Event.row, row)):
        statement = statement if value is None else statement.where(column == value)
    statement = statement if since is None else statement.where(Event.time >= since)
    statement = statement if until is None else statement.where(Event.time < until)
    last = 0
    while True:
        with database.read() as session:
            page = list(session.scalars(statement.where(Event.id > last)))
        yield from page
        if len(page) < _PAGE:
            return
        last = page[-1].id


def batch_of(database: Database, person: str, batch: str) -> list[Opinion]:
    """The opinions of a person's bulk decision that stand, newest first."""
    with database.read() as session:
        found = select(Opinion).where(Opinion.person == person, Opinion.batch == batch, Opinion.state == "standing")
        return list(session.scalars(found.order_by(Opinion.id.desc())))


def captions_of(database: Database, case_ids: Sequence[str]) -> dict[str, str]:
    """Case to its caption, for those ids that are cases."""
    with database.read() as session:
        return dict(session.execute(select(Case.id, Case.caption).where(Case.id.in_(case_ids))).tuples().all())


def claimed_by(database: Database, case_ids: Sequence[str]) -> dict[str, str]:
    """Case to the person who has it on the screen, for those of the cases that somebody has."""
    with database.read() as session:
        found = select(Claim.case_id, Claim.person).where(Claim.case_id.in_(case_ids), Claim.until > datetime.now(UTC))
        return dict(session.execute(found).tuples().all())
