"""Settings of OpenAI-compatible endpoints."""

import os
import re
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError


class EndpointSettings(Settings):
    """Model behind an OpenAI-compatible endpoint."""

    TITLE: ClassVar[str] = "endpoint"

    endpoint: str = Field(description="Base URL of the API, such as http://127.0.0.1:8000/v1.")
    model: str = Field(description="Name of the model at the endpoint.")
    temperature: float = Field(default=0.0, ge=0, description="Sampling temperature.")
    max_tokens: int = Field(default=500, ge=1, description="Most tokens of an answer.")
    retries: int = Field(default=3, ge=0, description="Repetitions of a request that failed or had no usable answer.")
    timeout: float = Field(default=60.0, gt=0, description="Seconds until a request counts as failed.")

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        check_url(endpoint)
        return endpoint

    @property
    def host(self) -> str:
        """Host and port of the endpoint."""
        return urlsplit(self.endpoint).netloc


def check_url(url: str) -> None:
    """Raise `ValueError` unless `url` is the base URL of an API, without anything that must not be recorded."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # malformed brackets or port
        whole = False
    if not whole:
        raise ValueError(f"{url!r} is no URL of an API, such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise ValueError("it holds a user name or password, which would be recorded; leave it out")
    if parts.query or parts.fragment:
        raise ValueError("it holds a query (?…), which would be recorded; give the base URL alone")


def api_key(variable: str) -> str | None:
    """The API key in an environment variable, if it is set.

    Raises:
        UserError: the value cannot be a key.
    """
    key = os.environ.get(variable)
    if key and not re.fullmatch("[!-~]+", key):
        raise UserError(f"The value of {variable} is no key: it has blanks, a line's end or letters beyond ASCII.")
    return key
