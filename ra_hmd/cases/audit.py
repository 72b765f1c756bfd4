"""Writing of the audit log."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from ra_hmd.cases.tables import Event, Opinion


def log(session: Session, person: str, kind: str, case_id: str | None, row: str | None = None, **details: Any) -> None:
    """Add a line to the audit log."""
    session.add(Event(time=datetime.now(UTC), person=person, kind=kind, case_id=case_id, row=row, details=details))


def log_rows(session: Session, opinion: Opinion, *, undone: bool = False) -> None:
    """Add a line for each row of the bank that a decision changed, or that was changed back."""
    kind = "row changed back" if undone else "row changed"
    for row, before in opinion.change.get("rows", {}).items():
        labels = (opinion.label, before) if undone else (before, opinion.label)
        details = {"opinion": opinion.id, **dict(zip(("before", "after"), labels, strict=True))}
        log(session, opinion.person, kind, opinion.case_id, row, **details)
