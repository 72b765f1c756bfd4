"""Memes of decided cases as a data set: a file of JSON Lines that `ra-hmd data import generic` reads."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select

from ra_hmd.cases.database import Database
from ra_hmd.cases.export import check_database, in_utc
from ra_hmd.cases.tables import Case
from ra_hmd.core.artifacts import atomic_path

_PAGE = 1000


def decided_memes(
    database: Database, since: datetime | None = None, until: datetime | None = None
) -> Iterator[dict[str, Any]]:
    """Records of decided cases, by their intake: `id`, `image`, `text` and the decided `label`; beside them `case`,
    `source`, `why` and `decided`, the time.

    Cases whose picture was removed are left out. The id is that of the meme; of several cases of one id the later ones
    have the case's id behind it.

    Args:
        database: The case database.
        since: Only cases decided from this time on.
        until: Only cases decided before this time.
    """
    statement = select(Case).where(~Case.open, Case.label.is_not(None), Case.picture != "").order_by(Case.id)
    statement = statement if since is None else statement.where(Case.changed >= since)
    statement = statement if until is None else statement.where(Case.changed < until)
    last, names = "", set[str]()
    while True:
        with database.read() as session:
            page = list(session.scalars(statement.where(Case.id > last).limit(_PAGE)))
        for case in page:
            name = f"{case.meme_id}-{case.id}" if case.meme_id in names else case.meme_id
            names.add(name)
            yield {"id": name, "image": str(Path(case.picture).absolute()), "text": case.caption, "label": case.label,
                   "case": case.id, "source": case.source, "why": case.why,
                   "decided": case.changed.isoformat(timespec="seconds")}  # fmt: skip
        if len(page) < _PAGE:
            return
        last = page[-1].id


def export_memes(path: Path, place: str, since: datetime | None = None, until: datetime | None = None) -> list[str]:
    """Write `decided_memes` to a file, and return their ids.

    Args:
        path: File to write.
        place: The case database.
        since: See `decided_memes`; without an offset it is UTC.
        until: See `decided_memes`.

    Raises:
        UserError: no such database.
    """
    check_database(place)
    names = []
    with (
        closing(Database(place)) as database,
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for meme in decided_memes(database, in_utc(since), in_utc(until)):
            names.append(meme["id"])
            file.write(json.dumps(meme, ensure_ascii=False) + "\n")
    return names
