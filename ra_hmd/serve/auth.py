"""Keys of the API: a file of names, roles and hashes. The keys themselves are kept nowhere."""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from ra_hmd.core.artifacts import alone_in, atomic_path, read_json
from ra_hmd.core.config import choose, load_dataclass
from ra_hmd.core.errors import UserError

Role = Literal["reader", "moderator"]
"""A reader asks; a moderator also changes the bank."""

_NAME = re.compile(r"[\w.@+-][\w.@+ -]{0,63}")
_MODE = 0o600


@dataclass(frozen=True)
class APIKey:
    """One line of the file.

    Attributes:
        name: Whose it is: the author of the changes that are made with it.
        role: What it allows.
        sha256: Of the key. It has 256 random bits, so its hash needs no salt.
        created: UTC, ISO 8601.
    """

    name: str
    role: Role
    sha256: str
    created: str


class KeyRing:
    """The keys of a file, as they were when it was read.

    Args:
        keys: Its lines.
    """

    def __init__(self, keys: Sequence[APIKey]) -> None:
        self.keys = list(keys)

    @classmethod
    def open(cls, path: str | Path) -> "KeyRing":
        """Raises `UserError` where the file is missing, or is none of keys."""
        values: Any = read_json(path).get("keys")
        if not isinstance(values, list):
            raise UserError(f"{path} is no file of keys; make one with `ra-hmd serve-key NAME --keys {path}`.")
        return cls([load_dataclass(APIKey, value, str(path)) for value in values])

    def find(self, secret: str) -> APIKey | None:
        """Whose key this is. All are compared, each in constant time, so that the time tells nothing."""
        digest = _digest(secret)
        found = [key for key in self.keys if hmac.compare_digest(key.sha256, digest)]
        return found[0] if found else None


def make_key(path: str | Path, name: str, role: str) -> str:
    """Add a key to a file, which is made if it is missing; returns the key, which cannot be shown again.

    Raises:
        UserError: a name that is taken or cannot be one, an unknown role.
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
        _write(path, [*keys, APIKey(name, role, _digest(secret), created)])  # type: ignore[arg-type]
    return secret


def remove_key(path: str | Path, name: str) -> None:
    """Take a key out of a file. Raises `UserError` where there is none of that name."""
    with alone_in(Path(path).parent):
        keys = KeyRing.open(path).keys
        if all(key.name != name for key in keys):
            raise UserError(f"{path} has no key of the name {name!r}; it has {', '.join(key.name for key in keys)}.")
        _write(path, [key for key in keys if key.name != name])


def _write(path: str | Path, keys: Sequence[APIKey]) -> None:
    with atomic_path(path, _MODE) as temporary:
        temporary.write_text(json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n", encoding="utf-8")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
