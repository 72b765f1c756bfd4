"""The base of all manifest models.

A manifest is the JSON file that a run leaves beside its results: the kind of run, its time and versions, and what later
commands need to know of it. Every kind has one pydantic model. Keys that a model does not name are kept
(`extra="allow"`), so a manifest survives being read and written by a version that knows less of it.
"""

from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field

from ra_hmd.core.artifacts import versions


class Section(BaseModel):
    """A part of a manifest."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        """The values that were read or given, as the JSON file holds them; defaults are left out."""
        return self.model_dump(exclude_unset=True)


class Manifest(Section):
    """Fields of every manifest.

    Attributes:
        kind: Kind of run.
        created: Time of writing, ISO 8601.
        versions: Package to version.
        format: Version of the kind's format.
    """

    KINDS: ClassVar[tuple[str, ...]] = ()
    """The kinds that the model describes."""
    FORMAT: ClassVar[int] = 1
    """The newest format of the kind that this version reads; the one that it writes."""
    REMEDY: ClassVar[str] = "give the folder of another run"
    """Remedy for a file that is not such a manifest: the end of the error message."""

    kind: str
    created: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    format: int = 1

    @classmethod
    def new(cls, kind: str | None = None, **content: Any) -> Self:
        """A manifest of now, with the installed versions.

        Args:
            kind: For models of several kinds.
            content: The values of the model's fields, and further keys.
        """
        stated = {
            "kind": kind or cls.KINDS[0],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "format": cls.FORMAT,
        }
        return cls.model_validate(stated | content)
