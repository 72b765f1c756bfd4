"""The audit log for other programs: what people did with cases, and the versions of the bank, in the order of time."""

import csv
import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.row_history import RowChange, row_history
from ra_hmd.bank.versions import VersionEntry
from ra_hmd.cases.database import Database
from ra_hmd.cases.history import events
from ra_hmd.cases.tables import Event
from ra_hmd.core.artifacts import atomic_path
from ra_hmd.core.errors import UserError

Format = Literal["jsonl", "csv"]
COLUMNS = ("time", "person", "kind", "case", "row", "number", "details")
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class AuditFilter:
    """Lines that are wanted; all conditions must hold.

    Attributes:
        person: What this person did.
        case: What happened to this case.
        row: What happened to this row of the bank.
        since: From this time on.
        until: Before this time.
    """

    person: str | None = None
    case: str | None = None
    row: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def between(self, since: datetime | None, until: datetime | None) -> "AuditFilter":
        """The same between two times, which are in UTC where they name no zone.

        Raises:
            UserError: a time outside the years 1 to 9999.
        """
        return replace(self, since=in_utc(since), until=in_utc(until))

    def takes(self, line: dict[str, Any]) -> bool:
        """Whether a line of the bank is wanted; the database looks at its own lines."""
        time = datetime.fromisoformat(line["time"])
        late_enough = self.since is None or time >= self.since
        return self.person in (None, line["person"]) and late_enough and (self.until is None or time < self.until)


def audit_lines(
    database: Database, wanted: AuditFilter, bank: Iterable[VersionEntry | RowChange] = ()
) -> Iterator[dict[str, Any]]:
    """Lines of the audit log, oldest first, each with the fields of `COLUMNS`.

    Args:
        database: The case database.
        wanted: Which lines.
        bank: Versions of the bank or, where a row is wanted, its changes; they belong to no case.
    """
    found = events(database, person=wanted.person, case_id=wanted.case, row=wanted.row, since=wanted.since,
                   until=wanted.until)  # fmt: skip
    versions = (_of_bank(one, wanted.row) for one in (bank if wanted.case is None else ()))
    return heapq.merge(
        (_of_event(event) for event in found), filter(wanted.takes, versions), key=lambda one: one["time"]
    )


def as_text(lines: Iterable[dict[str, Any]], style: Format) -> Iterator[str]:
    """Lines as JSON Lines, or as CSV with a heading and the details as JSON.

    In CSV a text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    if style == "jsonl":
        yield from (json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        return
    yield ",".join(COLUMNS) + "\n"
    for line in lines:
        file = StringIO()
        csv.writer(file, lineterminator="\n").writerow([_cell(line[name]) for name in COLUMNS])
        yield file.getvalue()


def export(path: Path, place: str, wanted: AuditFilter, bank: str | None = None) -> int:
    """Write the audit log of a case database to a file, and return the number of its lines.

    Args:
        path: File to write, `.jsonl` or `.csv`.
        place: The case database.
        wanted: Which lines.
        bank: Location of an example bank.

    Raises:
        UserError: another suffix; no such database or bank.
    """
    style = path.suffix.removeprefix(".")
    if style not in get_args(Format):
        raise UserError(f"{path}: the log is written as JSON Lines or CSV; end the name in .jsonl or .csv.")
    check_database(place)
    count = 0
    with ExitStack() as stack:
        versions: Sequence[VersionEntry | RowChange] = []
        if bank is not None:
            opened = stack.enter_context(Bank.open(bank))
            versions = opened.log if wanted.row is None else row_history(opened, wanted.row)
        database = stack.enter_context(closing(Database(place)))
        file = stack.enter_context(stack.enter_context(atomic_path(path)).open("w", encoding="utf-8"))
        for text in as_text(audit_lines(database, wanted, versions), cast(Format, style)):
            count += 1
            file.write(text)
    return count - (style == "csv")


def check_database(place: str) -> None:
    """Raise `UserError` where a case database that is a file does not exist; opening it would create it."""
    if "://" not in place and not Path(place).is_file():
        raise UserError(f"--cases {place} does not exist; give the database that the service was started with.")


def in_utc(time: datetime | None) -> datetime | None:
    """A time with a zone, which is UTC where it names none.

    Raises:
        UserError: a time outside the years 1 to 9999.
    """
    if time is None:
        return None
    try:
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except OverflowError:
        raise UserError(f"The time {time.isoformat()} is outside the years 1 to 9999 in UTC; give another.") from None


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value


def _of_event(event: Event) -> dict[str, Any]:
    return {"time": _stamp(event.time), "person": event.person, "kind": event.kind, "case": event.case_id,
            "row": event.row, "number": event.id, "details": event.details}  # fmt: skip


def _of_bank(one: VersionEntry | RowChange, row: str | None) -> dict[str, Any]:
    entry = one.entry if isinstance(one, RowChange) else one
    if isinstance(one, RowChange):
        kind, details = f"bank row {one.operation}", {"before": one.before, "after": one.after}
    else:
        kind, details = f"bank {entry.action}", {**entry.counts, "restores": entry.restores}
    time = datetime.fromisoformat(entry.time)
    return {"time": _stamp(time if time.tzinfo else time.replace(tzinfo=UTC)), "person": entry.author, "kind": kind,
            "case": None, "row": row, "number": entry.version,
            "details": {"version": entry.version, "reason": entry.reason, **details}}  # fmt: skip


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds")
