"""Saved views: filters and an order of the list of cases, under a name, of one person."""

from sqlalchemy import delete, select

from ra_hmd.cases.database import Database
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.tables import Case, SavedView
from ra_hmd.core.errors import UserError

MOST = 30
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


def sources_of(database: Database, most: int = 200) -> list[str]:
    """The sources of cases, by name, without the empty one; at most so many."""
    with database.read() as session:
        found = select(Case.source).where(Case.source != "").distinct().order_by(Case.source).limit(most)
        return list(session.scalars(found))
