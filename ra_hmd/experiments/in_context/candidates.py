"""Queries and examples for the selection of demonstrations, with features from stores where these are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ra_hmd.core.artifacts import sha256_file
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.meme import Meme
from ra_hmd.experiments.in_context.demonstrations import Candidates, DemonstrationSettings
from ra_hmd.features.columns import label_array
from ra_hmd.features.compatibility import (
    check_head_fits,
    check_same_origin,
    check_store,
    head_fingerprint,
    store_fingerprint,
)
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.checkpoint import Run
from ra_hmd.models.head import HEAD_WEIGHTS, load_head
from ra_hmd.retrieval.embeddings import hidden_tensor, run_head


@dataclass(frozen=True)
class DemonstrationFeatures:
    """Features by which demonstrations are retrieved.

    Attributes:
        examples: Feature store of the examples.
        queries: Feature store of the queries.
        head: Folder of the head whose embeddings are compared. Default: the run's own head; without one, hidden states
            are compared.
    """

    examples: Path
    queries: Path
    head: Path | None = None

    def compared_by(self, run: Run) -> str:
        """SHA-256 of the weights of the head that embeds, or `hidden` where hidden states are compared."""
        head = self.head if self.head is not None else run.head
        return "hidden" if head is None else sha256_file(head / HEAD_WEIGHTS)


def open_candidates(
    run: Run,
    queries: Sequence[Meme],
    examples: Sequence[Meme],
    settings: DemonstrationSettings,
    stores: DemonstrationFeatures | None,
) -> tuple[Candidates, Candidates]:
    """Load queries and examples with labels, and with embeddings and image hashes where stores are given.

    Raises:
        UserError: no stores for retrieved demonstrations, missing memes, or stores of different origin.
    """
    if stores is None or not settings.shots:
        if settings.shots and settings.kind == "retrieved":
            raise UserError(
                "Retrieved demonstrations need --bank-features and --query-features: stores of the examples and of the "
                "queries, by `ra-hmd extract` with the same checkpoint. Or take --demonstrations random."
            )
        return _plain(queries), _plain(examples)
    read = {place: read_features(place) for place in (stores.queries, stores.examples)}
    head = stores.head if stores.head is not None else run.head
    fingerprints = {str(place): store_fingerprint(features) for place, features in read.items()}
    check_same_origin(fingerprints if head is None else {str(head): head_fingerprint(head), **fingerprints})
    return (
        _with_features(queries, stores.queries, read[stores.queries], head),
        _with_features(examples, stores.examples, read[stores.examples], head),
    )


def _plain(memes: Sequence[Meme], **columns: Any) -> Candidates:
    return Candidates([meme.id for meme in memes], label_array(memes), **columns)


def _with_features(memes: Sequence[Meme], place: Path, features: Features, head: Path | None) -> Candidates:
    row_of: Mapping[str, int] = {name: row for row, name in enumerate(features.ids)}
    absent = [f"meme {meme.id!r}" for meme in memes if meme.id not in row_of]
    raise_all(absent, f"{place} has no features of these; extract them, with the same --data and --split")
    found = features.select(np.array([row_of[meme.id] for meme in memes], dtype=np.int64))
    texts = found.texts or [meme.caption for meme in memes]
    other = [f"meme {meme.id!r}" for meme, text in zip(memes, texts, strict=True) if text != meme.text]
    raise_all(other, f"{place} was made from memes of the same ids with other captions")
    check_store(found, place, labelled=False)
    embedding = found.hidden
    if head is not None:
        loaded = load_head(head)
        check_head_fits(loaded.config, head, found, place)
        with torch.no_grad():
            embedding = run_head(loaded, hidden_tensor(found))[0].numpy()
    return _plain(memes, embedding=embedding, image_hashes=found.image_hashes)


@dataclass(frozen=True)
class MemeSplit:
    """A labelled split of a data set.

    Attributes:
        memes: Memes with one class each.
        described: `describe_source` of the split: `dataset`, `split`, `task`, `place`.
    """

    memes: list[Meme]
    described: Mapping[str, str | None]

    @property
    def split(self) -> str:
        """Name of the split for the lock of test data, with the name of the file, which may say test as well."""
        place, split = Path(str(self.described["place"])), str(self.described["split"])
        return f"{split}, {place.stem}" if place.is_file() else split
