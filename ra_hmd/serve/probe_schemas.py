"""Response models of the probes. Like those of `schemas`, they are part of the OpenAPI document."""

from typing import Literal

from pydantic import BaseModel, Field


class Health(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Following(BaseModel):
    """How far this replica is behind its bank, which others change too."""

    version: int = Field(description="Version that votes here.")
    newest: int = Field(description="Newest version that is known here.")
    versions_behind: int
    seconds_behind: float = Field(description="Since this replica was last known to be at the newest version.")


class Ready(BaseModel):
    """Memes are accepted."""

    status: Literal["ready"] = "ready"
    waiting: int
    bank: Following | None = Field(None, description="Of an example bank.")
