"""Manifest of a trained system as it is published: `hub.json` of the folder that `ra-hmd push` writes."""

from pathlib import PurePosixPath
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from ra_hmd.core.manifests.base import Manifest, Section

PUBLISHED_NAME = "hub.json"


def _inside(place: str) -> str:
    if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
        raise ValueError("leads out of the folder")
    return place


Inside = Annotated[str, AfterValidator(_inside)]
"""A place relative to the folder, and within it."""


class PublishedBase(Section):
    """The model underneath: the LMM that was adapted, or the encoder.

    Attributes:
        name: Its name on the hub; None where nobody gave one.
        revision: Its revision there.
        folder: Folder of its copy among the published files; None without one.
        fingerprint: Its fingerprint.
    """

    name: str | None = None
    revision: str | None = None
    folder: Inside | None = None
    fingerprint: str = ""


class PublishedManifest(Manifest):
    """Manifest of a published system; the head lies beside it. Places are relative to its folder.

    Attributes:
        base: The model underneath.
        encoder: Whether that is an encoder.
        stage1: Folder of the Stage 1 run of a refined head; None where the head's own folder is the run, or none.
        bank: Folder of the example bank; None without one.
        files: File to its SHA-256, the card and the copy of the model underneath left out.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("published",)
    REMEDY: ClassVar[str] = "give a folder or repository that `ra-hmd push` wrote"

    base: PublishedBase = Field(default_factory=PublishedBase)
    encoder: bool = False
    stage1: Inside | None = None
    bank: Inside | None = None
    files: dict[Inside, str] = Field(default_factory=dict)
