"""Users of the page, and what their role allows."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Any

from ra_hmd.core.errors import UserError
from ra_hmd.serve.auth import KeyRing, Role

SESSION_COOKIE = "ra_hmd_session"
_SESSION = re.compile(r"[\w-]{43}", re.ASCII)


def new_session() -> str:
    """Return a value of `SESSION_COOKIE` that nobody can guess."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True)
class User:
    """A user of the page; `name` is the author of the changes."""

    name: str
    role: Role

    @property
    def may_change(self) -> bool:
        """Whether the user may decide on memes and change the bank."""
        return self.role == "moderator"

    def check_may_change(self) -> None:
        """Raise `UserError` unless the user may make changes."""
        if not self.may_change:
            raise UserError(
                f"The key of {self.name} is a reader's: it may look, not decide. Ask for a moderator's key "
                "(`ra-hmd serve-key NAME --role moderator`)."
            )


class Authenticator:
    """Authenticates users by name and key. Without keys, whoever reaches the loopback address is a moderator.

    Args:
        author: Name of the user where there are no keys.
        keys: API keys of the service.
    """

    def __init__(self, author: str, keys: KeyRing | None = None) -> None:
        self._author, self._keys = author, keys
        self._roles: dict[str, Role] = {} if keys is None else {key.name: key.role for key in keys.keys}

    def check(self, name: str, secret: str) -> bool:
        """Return whether a key belongs to a name."""
        key = None if self._keys is None else self._keys.find(secret.strip())
        return key is not None and key.name == name

    @property
    def locked(self) -> bool:
        """Whether a key is required."""
        return self._keys is not None

    def session(self, request: Any) -> str:
        """Return the name of the session that sent a `gradio.Request`, which holds claims: user and browser, so that a
        page that is loaded anew is still of it. A client without cookies has a session for each page.
        """
        browser = request.cookies.get(SESSION_COOKIE, "")
        page = browser if _SESSION.fullmatch(browser) else request.session_hash or ""
        return hashlib.sha256(f"{self.user(request).name}\n{page}".encode()).hexdigest()

    def user(self, request: Any) -> User:
        """Return the user who sent a `gradio.Request`.

        Raises:
            UserError: the session is not logged in.
        """
        if not self.locked:
            return User(self._author, "moderator")
        role = self._roles.get(request.username or "")
        if role is None:
            raise UserError("Nobody is logged in; load the page again.")
        return User(request.username, role)
