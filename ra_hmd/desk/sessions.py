"""Who is logged in: sessions in the database of the cases, so that they outlive a restart and hold on every replica."""

import hashlib
import secrets
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete

from ra_hmd.cases.database import Database
from ra_hmd.cases.tables import LoginSession
from ra_hmd.core.errors import UserError
from ra_hmd.desk.people import User
from ra_hmd.serve.auth import KeyRing

COOKIE = "ra-hmd-session"
HOURS = 12
"""A shift; then the key is asked for again."""


class Sessions:
    """Sessions of people.

    Args:
        database: Where they are kept, by the hash of their token.
        keys: Keys of people; None: whoever reaches the address is the moderator `author`.
        author: Name of that moderator.
    """

    def __init__(self, database: Database, keys: KeyRing | None, author: str) -> None:
        self._database, self._keys, self._author = database, keys, author

    @property
    def locked(self) -> bool:
        """Whether a key is needed."""
        return self._keys is not None

    def colleagues(self, person: str) -> list[str]:
        """Names of the other people who may decide, sorted."""
        keys = () if self._keys is None else self._keys.keys
        return sorted({key.name for key in keys if key.role == "moderator"} - {person})

    def log_in(self, name: str, secret: str) -> str:
        """Begin a session, and return its token.

        Raises:
            UserError: The key is not that person's.
        """
        key = None if self._keys is None else self._keys.find(secret.strip())
        if key is None or key.name != name.strip():
            raise UserError("This name and this key do not belong together.")
        token, now = secrets.token_urlsafe(32), datetime.now(UTC)
        with self._database.write() as session:
            session.execute(delete(LoginSession).where(LoginSession.until < now))
            until = now + timedelta(hours=HOURS)
            session.add(LoginSession(token=_digest(token), person=key.name, key=key.sha256, until=until))
        return token

    def log_out(self, token: str) -> None:
        """End a session."""
        with self._database.write() as session:
            session.execute(delete(LoginSession).where(LoginSession.token == _digest(token)))

    def user(self, token: str) -> User | None:
        """The person of a session; None where there is none, it has ended, or the person's key was removed."""
        if self._keys is None:
            return User(self._author, "moderator")
        with self._database.read() as session:
            found = session.get(LoginSession, _digest(token))
        if found is None or found.until < datetime.now(UTC):
            return None
        key = next((one for one in self._keys.keys if one.sha256 == found.key and one.name == found.person), None)
        return None if key is None else User(key.name, key.role)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
