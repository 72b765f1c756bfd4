"""Claims of the review queue: a meme that is shown to one session is shown to no other, in any process."""

import time

from sqlalchemy import Float, String, Text, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.serve.database import Base, Database

CLAIM_SECONDS = 900.0


class ClaimRow(Base):
    """A claim.

    Attributes:
        queue: Name of the queue.
        key: Digest of the meme's id, which may be longer than a key of a database.
        meme: Id of the meme.
        holder: Session that holds it.
        until: Time of expiry, in seconds since 1970.
    """

    __tablename__ = "claims"

    queue: Mapped[str] = mapped_column(String(255), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    meme: Mapped[str] = mapped_column(Text)
    holder: Mapped[str] = mapped_column(String(255), index=True)
    until: Mapped[float] = mapped_column(Float)


class Claims:
    """Claims of one queue, which processes share.

    Args:
        database: Where they are kept.
        queue: Name of the queue; the same in all processes that share it, wherever its file is there.
        seconds: Time after which a claim expires.
    """

    def __init__(self, database: Database, queue: str, seconds: float = CLAIM_SECONDS) -> None:
        self._database, self._queue, self._seconds = database, queue[:255], seconds

    def claim(self, meme: str, holder: str) -> bool:
        """Claim a meme, or renew a claim on it. Of several that ask at once, one gets it.

        Returns:
            Whether it is the holder's now.
        """
        now = time.time()
        values = {"meme": meme, "holder": holder, "until": now + self._seconds}
        free = (ClaimRow.until <= now) | (ClaimRow.holder == holder)
        with self._database.begin() as session:  # an update is one step in every database
            if session.execute(update(ClaimRow).where(*self._of(meme), free).values(**values)).rowcount:  # type: ignore[attr-defined]
                return True
        try:
            with self._database.begin() as session:
                session.execute(insert(ClaimRow).values(queue=self._queue, key=_key(meme), **values))
        except IntegrityError:  # somebody else has it
            return False
        return True

    def held_by(self, holder: str) -> list[str]:
        """Return the memes that a holder has claimed."""
        query = select(ClaimRow.meme).where(
            ClaimRow.queue == self._queue, ClaimRow.holder == holder, ClaimRow.until > time.time()
        )
        with self._database.begin() as session:
            return list(session.scalars(query))

    def held_by_others(self, holder: str) -> set[str]:
        """Return the memes that others have claimed."""
        query = select(ClaimRow.meme).where(
            ClaimRow.queue == self._queue, ClaimRow.holder != holder, ClaimRow.until > time.time()
        )
        with self._database.begin() as session:
            return set(session.scalars(query))

    def release(self, meme: str, holder: str) -> bool:
        """Give up a claim. Returns whether the holder had it until now, which is true for one of several calls."""
        query = delete(ClaimRow).where(*self._of(meme), ClaimRow.holder == holder, ClaimRow.until > time.time())
        with self._database.begin() as session:
            return bool(session.execute(query).rowcount)  # type: ignore[attr-defined]

    def _of(self, meme: str) -> tuple:
        return ClaimRow.queue == self._queue, ClaimRow.key == _key(meme)


def _key(meme: str) -> str:
    return sha256_bytes(meme.encode("utf-8", "surrogatepass"))
