"""API keys: a file of names, roles and hashes. The keys themselves are not stored."""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from pydantic import ConfigDict, Field

from ra_hmd.core.artifacts import alone_in, atomic_path, read_json
from ra_hmd.core.config import Settings, choose, load_settings
from ra_hmd.core.errors import UserError

Role = Literal["reader", "moderator"]
"""A reader may send memes and search the bank; a moderator may also change the bank."""

_NAME = re.compile(r"[\w.@+-][\w.@+ -]{0,63}")
_MODE = 0o600


class APIKey(Settings):
    """An entry of the key file."""

    name: str = Field(description="Name of the owner, recorded as the author of changes.")
    role: Role = Field(description="Role of the owner.")
    sha256: str = Field(description="Hash of the key; unsalted, because the key has 256 random bits.")
    created: str = Field(description="Time in UTC, ISO 8601.")
    rate_limit: int | None = Field(
        default=None, ge=1, description="Most requests a minute, in place of the service's `--rate-limit`."
    )


class _KeyFile(Settings):
    TITLE = "keys"
    model_config = ConfigDict(extra="ignore")

    keys: list[APIKey]


class KeyRing:
    """The keys of a file, as read when it was opened.

    Args:
        keys: Entries of the file.
    """

    def __init__(self, keys: Sequence[APIKey]) -> None:
        self.keys = list(keys)

    @classmethod
    def open(cls, path: str | Path) -> "KeyRing":
        """Read a key file. Raises `UserError` where it is missing, or is no key file."""
        values = read_json(path)
        try:
            return cls(load_settings(_KeyFile, values, path).keys)
        except UserError as error:
            remedy = f"make one with `ra-hmd serve-key NAME --keys {path}`"
            raise UserError(f"{path} is no file of keys; {remedy}. {error}") from error

    def find(self, secret: str) -> APIKey | None:
        """Return the entry of a key, or None. All entries are compared, in constant time, against timing attacks."""
        digest = _digest(secret)
        matches = [key for key in self.keys if hmac.compare_digest(key.sha256, digest)]
        return matches[0] if matches else None


def make_key(path: str | Path, name: str, role: str, rate_limit: int | None = None) -> str:
    """Add a new key to a file, which is created if missing, and return it; it cannot be shown again.

    Args:
        path: The file.
        name: Name of the owner.
        role: Role of the owner.
        rate_limit: Most requests a minute, in place of the service's limit.

    Raises:
        UserError: the name is taken or not valid; the role is unknown.
    """
    choose("--role", role, get_args(Role))
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name for a key; use up to 64 letters, digits, blanks and `.@+-_`.")
    secret = secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with alone_in(Path(path).parent):
        keys = KeyRing.open(path).keys if Path(path).exists() else []
        if any(key.name == name for key in keys):
            raise UserError(
                f"{path} has a key of the name {name!r}; take another name, or remove it with --remove first."
            )
        entry = {"name": name, "role": role, "sha256": _digest(secret), "created": created, "rate_limit": rate_limit}
        _write(path, [*keys, load_settings(APIKey, entry, path)])
    return secret


def remove_key(path: str | Path, name: str) -> None:
    """Remove a key from a file. Raises `UserError` where no key has that name."""
    with alone_in(Path(path).parent):
        keys = KeyRing.open(path).keys
        if all(key.name != name for key in keys):
            raise UserError(f"{path} has no key of the name {name!r}; it has {', '.join(key.name for key in keys)}.")
        _write(path, [key for key in keys if key.name != name])


def _write(path: str | Path, keys: Sequence[APIKey]) -> None:
    with atomic_path(path, _MODE) as temporary:
        temporary.write_text(
            json.dumps({"keys": [key.model_dump(exclude_none=True) for key in keys]}, indent=2) + "\n", encoding="utf-8"
        )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
