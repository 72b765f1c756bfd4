"""What a feature store's manifest says of where its rows are from: the one place where that is read.

Stores are made by `extract` and `encode`, imported from official files, written from Python, or by earlier versions of
this package, and each of these states something else. Readers ask a `Provenance`, never the manifest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Provenance:
    """What is stated; None, or empty, where nothing is.

    Attributes:
        fingerprint: What the features depend on.
        dataset: Name of the data set.
        task: Whose labels were taken.
        split: As it was asked for.
        dataset_split: As the data set's reader calls it.
        encoder: How another meme is encoded alike, where an encoder made the features.
        source: The data set as the manifest's field has it.
        made_from: A file that was imported.
    """

    fingerprint: dict[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    task: str | None = None
    split: str | None = None
    dataset_split: str | None = None
    encoder: dict[str, Any] | None = None
    source: dict[str, Any] | None = None
    made_from: str | None = None


def provenance_of(manifest: Mapping[str, Any] | None) -> Provenance:
    """Read the manifest of a store, or what a head's manifest says of one; a field of another kind than expected states
    nothing. `source` was a path in stores that were imported by earlier versions.
    """
    manifest = manifest or {}
    given = manifest.get("source")
    source = given if isinstance(given, Mapping) else {}
    split, dataset_split = _text(manifest.get("split")), _text(source.get("split"))
    fingerprint, encoder = manifest.get("fingerprint"), manifest.get("encoder")
    return Provenance(
        fingerprint=dict(fingerprint) if isinstance(fingerprint, Mapping) else {},
        dataset=_text(source.get("dataset")),
        task=_text(source.get("task")),
        split=split or dataset_split,
        dataset_split=dataset_split or split,
        encoder=dict(encoder) if isinstance(encoder, Mapping) else None,
        source=dict(source) or None,
        made_from=_text(manifest.get("imported_from")) or _text(given),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
