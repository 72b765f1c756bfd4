"""Cases whose pictures are nearly identical, so that one decision may be for all of them."""

from collections.abc import Sequence

import numpy as np
from sqlalchemy import select

from ra_hmd.cases.database import Database
from ra_hmd.cases.tables import Case

BITS = 6
"""Most bits of the 64 of `Case.picture_hash` in which pictures differ that look alike."""
_NONE = ("", "0" * 16)
_ONES = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)


def near_copies(database: Database, case: Case, limit: int = 60) -> tuple[list[Case], int]:
    """The open cases with nearly the picture of a case, the nearest first, and the number of all of them.

    The case itself is the first of them, if it is open. A picture without a hash, which is of a single colour, is near
    to none but itself.

    Args:
        database: The database.
        case: The case; it may be decided.
        limit: Most cases that are returned.
    """
    ids, hashes = _open_hashes(database)
    near: list[str] = []
    if case.picture_hash not in _NONE:
        distance = _distances(np.array([int(case.picture_hash, 16)], np.uint64), hashes)[0]
        order = np.argsort(distance, kind="stable")
        near = [ids[place] for place in order.tolist() if distance[place] <= BITS]
    names = [*([case.id] if case.open else []), *(one for one in near if one != case.id)]
    with database.read() as session:
        found = {one.id: one for one in session.scalars(select(Case).where(Case.id.in_(names[:limit]), Case.open))}
    return [found[name] for name in names[:limit] if name in found], len(names)


def count_near(database: Database, cases: Sequence[Case]) -> dict[str, int]:
    """For each case the number of other open cases with nearly its picture."""
    wanted = [case for case in cases if case.picture_hash not in _NONE]
    ids, hashes = _open_hashes(database) if wanted else ([], np.zeros(0, np.uint64))
    rows = _distances(np.array([int(case.picture_hash, 16) for case in wanted], np.uint64), hashes) <= BITS
    own = set(ids)
    counts = {case.id: int(row.sum()) - (case.id in own) for case, row in zip(wanted, rows, strict=True)}
    return {case.id: counts.get(case.id, 0) for case in cases}


def _open_hashes(database: Database) -> tuple[list[str], np.ndarray]:
    """Ids of the open cases whose pictures have a hash, oldest first, and the hashes."""
    with database.read() as session:
        statement = select(Case.id, Case.picture_hash).where(Case.open, Case.picture_hash.not_in(_NONE))
        rows = session.execute(statement.order_by(Case.id)).tuples().all()
    return [name for name, _ in rows], np.array([int(value, 16) for _, value in rows], np.uint64)


def _distances(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Number of bits in which hashes differ, uint64 [M] and [N] to [M, N]."""
    different = (hashes[:, None] ^ others[None, :]).view(np.uint16).reshape(len(hashes), len(others), 4)
    return _ONES[different].sum(axis=2)
