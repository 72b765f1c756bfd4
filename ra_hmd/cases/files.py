"""Cases that come from files: those that are there already, and their places in the queue."""

from collections.abc import Collection, Mapping

from sqlalchemy import select, update

from ra_hmd.cases.database import Database
from ra_hmd.cases.tables import Case


def known_keys(database: Database, keys: Collection[str]) -> set[str]:
    """Those request keys for which there are cases."""
    with database.read() as session:
        found = session.scalars(select(Case.request_key).where(Case.request_key.in_(keys)))
        return {key for key in found if key is not None}


def set_priorities(database: Database, priorities: Mapping[str, int]) -> None:
    """Give open cases, by their request key, other priorities."""
    with database.write() as session:
        for key, priority in priorities.items():
            case = update(Case).where(Case.request_key == key, Case.open, Case.priority != priority)
            session.execute(case.values(priority=priority))
