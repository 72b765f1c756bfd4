"""Settings of cases; the fields are options of `ra-hmd serve` and `ra-hmd console`."""

import base64
import binascii
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from ra_hmd.cases.alert_rules import AlertRules
from ra_hmd.core.artifacts import alone_in, atomic_path
from ra_hmd.core.errors import UserError
from ra_hmd.inference.options import Flag

_SECRET_BYTES = 32
_SECRET_PREFIX = "whsec_"  # noqa: S105 - how the Standard Webhooks scheme begins a secret


class CaseSettings(AlertRules):
    """Where cases are kept, and who is told of decisions."""

    TITLE = "cases"

    cases: str | None = Field(
        default=None,
        description="Case database: a SQLite file, made if it is missing, or the URL of a database that replicas "
        "share, as postgresql+psycopg://HOST/NAME (docs/console.md).",
    )
    case_pictures: Path | None = Field(
        default=None,
        description="Folder of the pictures that programs send with cases, which replicas share; default: beside the "
        "SQLite file.",
    )
    webhook_hosts: Annotated[list[str], Flag("--webhook-host")] = Field(
        default_factory=list, description="Host to which decisions may be posted; several times; default: none."
    )
    webhook_secret: Path | None = Field(
        default=None, description="File of the secret that signs webhooks; made if it is missing."
    )
    alert_url: str | None = Field(default=None, description="URL to which alerts are posted, as signed webhooks.")

    @field_validator("webhook_hosts")
    @classmethod
    def _lower(cls, values: list[str]) -> list[str]:
        return [value.lower() for value in values]

    @property
    def is_file(self) -> bool:
        """Whether the database is a SQLite file."""
        return self.cases is not None and "://" not in self.cases

    @property
    def pictures(self) -> Path:
        """Folder of pictures; call this with a database only."""
        return self.case_pictures or Path(str(self.cases)).with_suffix(".pictures")

    @property
    def sends(self) -> bool:
        """Whether there is anybody to post to."""
        return bool(self.webhook_hosts) or self.alert_url is not None

    def secret(self) -> bytes:
        """The secret that signs webhooks. Raises `UserError` for a file that holds none."""
        assert self.webhook_secret is not None
        return read_secret(self.webhook_secret)

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.sends and self.webhook_secret is None:
            yield "Webhooks are signed: give --webhook-secret FILE, which is made if it is missing."
        if self.cases is not None and not self.is_file and self.case_pictures is None:
            yield "--cases with a URL says nothing of pictures: give --case-pictures FOLDER, which replicas share."
        if self.alert_url is not None:
            parts = urlsplit(self.alert_url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                yield f"--alert-url {self.alert_url}: that is no http or https URL."


def read_secret(path: Path) -> bytes:
    """The secret of a file in the form of the Standard Webhooks scheme; a missing file is made, for this user alone.

    Raises:
        UserError: The file holds something else.
    """
    with alone_in(path.parent):
        if not path.exists():
            made = _SECRET_PREFIX + base64.b64encode(os.urandom(_SECRET_BYTES)).decode()
            with atomic_path(path, 0o600) as temporary:
                temporary.write_text(made + "\n", encoding="ascii")
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    try:
        secret = base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if not text.startswith(_SECRET_PREFIX) or len(secret) < _SECRET_BYTES // 2:
        raise UserError(
            f"--webhook-secret {path} does not hold {_SECRET_PREFIX} and a secret in base64; name a file that does not "
            "exist, and it is made."
        )
    return secret
