"""Who sits before the page, and what that person may do."""

from dataclasses import dataclass
from typing import Any

from ra_hmd.core.errors import UserError
from ra_hmd.serve.auth import KeyRing, Role


@dataclass(frozen=True)
class User:
    """Somebody at the page: `name` is the author of changes."""

    name: str
    role: Role

    @property
    def may_change(self) -> bool:
        """Whether decisions and changes of the bank are theirs to make."""
        return self.role == "moderator"

    def check_may_change(self) -> None:
        """Raise `UserError` unless they may."""
        if not self.may_change:
            raise UserError(
                f"The key of {self.name} is a reader's: it may look, not decide. Ask for a moderator's key "
                "(`ra-hmd serve-key NAME --role moderator`)."
            )


class Authenticator:
    """Who comes in: with keys, each with a name and a key; without, whoever reaches the loopback address.

    Args:
        author: The name of who comes in without keys.
        keys: Of the service.
    """

    def __init__(self, author: str, keys: KeyRing | None = None) -> None:
        self._author, self._keys = author, keys
        self._roles: dict[str, Role] = {} if keys is None else {key.name: key.role for key in keys.keys}

    def check(self, name: str, secret: str) -> bool:
        """Whether that is the key of that name."""
        key = None if self._keys is None else self._keys.find(secret.strip())
        return key is not None and key.name == name

    @property
    def locked(self) -> bool:
        """Whether a key is needed."""
        return self._keys is not None

    def person(self, request: Any) -> User:
        """Who sent a request (`gradio.Request`).

        Raises:
            UserError: nobody that is known.
        """
        if not self.locked:
            return User(self._author, "moderator")
        role = self._roles.get(request.username or "")
        if role is None:
            raise UserError("Nobody is logged in; load the page again.")
        return User(request.username, role)
