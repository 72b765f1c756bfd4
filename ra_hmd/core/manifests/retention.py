"""Manifests of `ra-hmd retention`."""

from typing import Any, ClassVar

from pydantic import Field

from ra_hmd.core.manifests.base import Manifest


class RetentionManifest(Manifest):
    """Manifest of a comparison of a tuned model with what it was before.

    Attributes:
        command: The command line.
        arguments: Arguments.
        seed: Seed of pictures and resamples.
        fingerprint: What the answers depend on; of a comparison of predictions, the digests of both files.
        items: Number of questions, or of memes.
        gate: Verdict, and its rows.
        notes: Remarks.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("retention", "policy_retention")
    REMEDY: ClassVar[str] = "give another --output"

    command: str = ""
    arguments: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    fingerprint: dict[str, Any] = Field(default_factory=dict)
    items: int = 0
    gate: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
