"""Saved views: filters and an order of the list of cases, under a name, of one person."""

from sqlalchemy import delete, func, select
from sqlalchemy.orm import InstrumentedAttribute

from ra_hmd.cases.database import Database
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.tables import Case, SavedView
from ra_hmd.core.errors import UserError

MOST = 30
MOST_NAMES = 200
LONGEST_NAME = 60


def views_of(database: Database, person: str) -> list[SavedView]:
    """The views of a person, by name."""
    with database.read() as session:
        return list(session.scalars(select(SavedView).where(SavedView.person == person).order_by(SavedView.name)))


def save_view(database: Database, person: str, name: str, wanted: CaseFilter) -> None:
    """Keep a view; one with the same name is replaced.

    Raises:
        UserError: The name is empty or too long, or the person has too many views.
    """
    name = name.strip()
    if not name:
        raise UserError("Give the view a name.")
    if len(name) > LONGEST_NAME:
        raise UserError(f"The name has {len(name)} characters, {LONGEST_NAME} are allowed.")
    values = wanted.model_dump(mode="json", exclude_defaults=True)
    with database.write() as session:
        own = session.scalars(select(SavedView).where(SavedView.person == person)).all()
        known = next((view for view in own if view.name == name), None)
        if known is not None:
            known.query = values
            return
        if len(own) >= MOST:
            raise UserError(f"You have {MOST} views, and no more are kept; remove one first.")
        session.add(SavedView(person=person, name=name, query=values))


def remove_view(database: Database, person: str, name: str) -> None:
    """Remove a view of a person, if there is one of that name."""
    with database.write() as session:
        session.execute(delete(SavedView).where(SavedView.person == person, SavedView.name == name))


def sources_of(database: Database, most: int = MOST_NAMES) -> list[str]:
    """The sources of cases, by name, without the empty one; at most so many."""
    return [name for name in _names(database, Case.source, most + 1) if name][:most]


def queues_of(database: Database, most: int = MOST_NAMES) -> list[str]:
    """The queues that have or had cases, by name; at most so many."""
    return _names(database, Case.queue, most)


def _names(database: Database, column: InstrumentedAttribute[str], most: int) -> list[str]:
    """The different values of a column, in order. In its index, which begins with `open`, each is looked up behind the
    one before: there are few of them, and many cases.
    """
    names: set[str] = set()
    with database.read() as session:
        for half in (True, False):
            first = select(func.min(column)).where(Case.open == half)
            found, count = session.scalar(first), 0
            while found is not None and count < most:
                names.add(found)
                found, count = session.scalar(first.where(column > found)), count + 1
    return sorted(names)[:most]
