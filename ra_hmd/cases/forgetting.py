"""Removal of what cases hold of their memes: pictures, words, notes. Decisions and the audit log stay."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import delete, select

from ra_hmd.cases.audit import log
from ra_hmd.cases.database import Database
from ra_hmd.cases.export import check_database
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.tables import Case, Note
from ra_hmd.core.errors import UserError

_WORDS = ("caption_check", "rationale", "explanation")
_PAGE = 500


def forget(database: Database, pictures: CasePictures, before: datetime, person: str) -> int:
    """Remove pictures, captions, contexts and notes of the cases that were decided before a time; returns their number.

    Of a case there remain its ids, digest of the picture, verdict, decisions with their reasons, and its lines of the
    log. Pictures of files that somebody else keeps, as those of a queue, are left where they are.

    Args:
        database: The database.
        pictures: Where pictures are that came without a file.
        before: The time; cases that changed later are left as they are.
        person: Who removes them, for the log.
    """
    count = 0
    while found := _forget_some(database, pictures, before, person):
        count += found
    return count


def _forget_some(database: Database, pictures: CasePictures, before: datetime, person: str) -> int:
    due = select(Case).where(~Case.open, Case.changed < before.astimezone(UTC), Case.picture != "").limit(_PAGE)
    with database.write() as session:
        cases = list(session.scalars(due))
        names, digests = [case.id for case in cases], {case.picture_digest for case in cases}
        for case in cases:
            case.picture = case.picture_hash = case.caption = case.context = ""
            case.verdict = {name: value for name, value in case.verdict.items() if name not in _WORDS} | {"text": ""}
            log(session, person, "forgotten", case.id)
        session.execute(delete(Note).where(Note.case_id.in_(names)))
        session.flush()
        kept = select(Case.picture_digest).where(Case.picture_digest.in_(digests), Case.picture != "")
        unused = digests - set(session.scalars(kept))
        for digest in unused:  # before the end: a kill leaves cases that are removed with the next call
            pictures.remove(digest)
    return len(cases)


def forget_in(place: str, pictures: Path | None, before: datetime, person: str) -> int:
    """`forget` in a database.

    Args:
        place: SQLite file, or URL.
        pictures: Folder of the pictures; by default the one beside the SQLite file.
        before: See `forget`; without an offset it is UTC.
        person: See `forget`.

    Raises:
        UserError: There is no such database, or its pictures are not known.
    """
    check_database(place)
    if pictures is None and "://" in place:
        raise UserError("--cases with a URL says nothing of pictures: give --case-pictures FOLDER, as to the service.")
    folder = pictures or Path(place).with_suffix(".pictures")
    with closing(Database(place)) as database:
        time = before if before.tzinfo else before.replace(tzinfo=UTC)
        return forget(database, CasePictures(folder), time, person)
