"""Cases whose pictures are nearly identical, so that one decision may be for all of them."""

from collections.abc import Sequence

import numpy as np
from sqlalchemy import select

from ra_hmd.cases.database import Database
from ra_hmd.cases.tables import Case

BITS = 6
"""Most bits of the 64 of `Case.picture_hash` in which pictures differ that look alike."""
_NONE = ("", "0" * 16)


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
        distance = _distances(_bits([case.picture_hash]), hashes)[0]
        order = np.argsort(distance, kind="stable")
        near = [ids[place] for place in order.tolist() if distance[place] <= BITS]
    names = [*([case.id] if case.open else []), *(one for one in near if one != case.id)]
    with database.read() as session:
        found = {one.id: one for one in session.scalars(select(Case).where(Case.id.in_(names[:limit]), Case.open))}
    return [found[name] for name in names[:limit] if name in found], len(names)


def count_near(database: Database, cases: Sequence[Case]) -> dict[str, int]:
    """For each case the number of other open cases with nearly its picture."""
    wanted = [case for case in cases if case.picture_hash not in _NONE]
    if not wanted:
        return dict.fromkeys((case.id for case in cases), 0)
    with database.read() as session:
        hashes = session.scalars(select(Case.picture_hash).where(Case.open, Case.picture_hash.not_in(_NONE))).all()
    rows = _distances(_bits([case.picture_hash for case in wanted]), _bits(hashes)) <= BITS
    counts = {case.id: max(int(row.sum()) - case.open, 0) for case, row in zip(wanted, rows, strict=True)}
    return {case.id: counts.get(case.id, 0) for case in cases}


def _open_hashes(database: Database) -> tuple[list[str], np.ndarray]:
    """Ids of the N open cases whose pictures have a hash, oldest first, and the hashes, see `_bits`."""
    with database.read() as session:
        statement = select(Case.id, Case.picture_hash).where(Case.open, Case.picture_hash.not_in(_NONE))
        rows = session.execute(statement.order_by(Case.id)).tuples().all()
    return [name for name, _ in rows], _bits([value for _, value in rows])


def _bits(hashes: Sequence[str]) -> np.ndarray:
    """The bits of N hashes as -1 and 1, float32 [N, 64]: the product of two such rows counts where they agree."""
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), 8)
    return 2 * np.unpackbits(packed, axis=1).astype(np.float32) - 1


def _distances(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Number of bits in which hashes differ, [M, 64] and [N, 64] to [M, N]."""
    return (64 - hashes @ others.T) / 2
