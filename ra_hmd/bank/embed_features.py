"""Embedding a feature store with a head, for the rows of a bank or the queries to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.versions import BankRows, now
from ra_hmd.core.artifacts import plain, sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import ViewDescription
from ra_hmd.core.problem import Problem
from ra_hmd.core.storage import as_path
from ra_hmd.data.image_hashes import caption_digest
from ra_hmd.data.text import well_formed
from ra_hmd.features.compatibility import (
    DATA_KEYS,
    check_head_fits,
    check_same_origin,
    check_same_views,
    check_store,
    head_fingerprint,
    store_fingerprint,
    views_of,
)
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.head import HEAD_WEIGHTS, load_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.knn import as_matrix

HEAD_KEY = "embedding_head"


@dataclass(frozen=True)
class EmbeddedFeatures:
    """A feature store embedded by a head: rows for a bank, or queries to it.

    Attributes:
        store: The feature store.
        checkpoint: Folder of the head.
        features: Content of the store.
        embeddings: Ids, labels and embeddings of its memes.
        problem: What the head decides.
        fingerprint: What made the embeddings: LMM, adapter, prompt and pixel limits as the store states them, and the
            SHA-256 of the head's weights.
    """

    store: Path
    checkpoint: Path
    features: Features
    embeddings: Embeddings
    problem: Problem
    fingerprint: dict[str, Any]

    def rows(self, source: str | None = None, note: str = "", *, decided: bool = True) -> BankRows:
        """The memes as rows of a bank.

        Args:
            source: Where they come from; default: the store's path.
            note: Kept with every row. The time is the data's, or now.
            decided: Whether people gave the labels to these very memes, see `ra_hmd.bank.identical`.
        """
        return bank_rows(self.features, str(self.store) if source is None else source, note, decided=decided)

    @property
    def view_origins(self) -> dict[str, ViewDescription]:
        """What made the views of `embeddings`, by name."""
        return views_of(self.features)

    def views(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The views of these names, for a bank that is to keep them; the embedding, which it keeps anyway, is left out.

        Raises:
            UserError: the store does not have one of them.
        """
        return {name: self.embeddings.view(name) for name in names if name != "embedding"}

    def check_for(self, bank: Bank) -> None:
        """Raise `UserError` unless these embeddings are comparable with the bank's: same LMM, adapter, prompt,
        head, and the same models behind the views that the bank keeps.
        """
        check_embedded_by(bank, self.fingerprint[HEAD_KEY], self.checkpoint)
        check_same_origin({str(bank.location): bank.fingerprint, str(self.store): self.fingerprint})
        check_same_views({str(bank.location): bank.views, str(self.store): self.view_origins})
        if self.problem != bank.problem:
            raise UserError(f"{bank.location} holds labels of {bank.problem}, the head decides {self.problem}.")


def bank_rows(features: Features, source: str, note: str = "", *, decided: bool) -> BankRows:
    """Memes of a feature store as rows of a bank; see `EmbeddedFeatures.rows`."""
    moment = now()
    return BankRows(
        ids=features.ids,
        labels=features.labels,
        sources=[well_formed(source)] * len(features),
        notes=[well_formed(note)] * len(features),
        times=[str(extra.get("time") or moment) for extra in features.extras or [{}] * len(features)],
        image_hashes=np.zeros(len(features), np.uint64) if features.image_hashes is None else features.image_hashes,
        contents=features.contents or (),
        pdqs=features.pdqs or (),
        caption_digests=[caption_digest(text) for text in features.texts or ()],
        decided=np.full(len(features), decided),
    )


def check_embedded_by(bank: Bank, head_sha256: str, checkpoint: Path) -> None:
    """Raise `UserError` unless the bank's embeddings were made by the head of `checkpoint`."""
    banks = str(bank.fingerprint.get(HEAD_KEY))
    if head_sha256 != banks:
        raise UserError(
            f"The head in {checkpoint} (sha256 {head_sha256[:12]}…) is not the one that embedded {bank.location} "
            f"({banks[:12]}…); give that head, or create a new bank with this one."
        )


def embed_store(checkpoint: str | Path, store: str | Path, *, labelled: bool = True) -> EmbeddedFeatures:
    """Embed a feature store with the head of a Stage 1 run or Stage 2 folder.

    Args:
        checkpoint: Folder with a head.
        store: Feature store.
        labelled: Whether every row must have a label.

    Raises:
        UserError: no head, no store, a store that does not fit the head, missing labels, values that are not finite.
    """
    head, features = load_head(checkpoint), read_features(store)
    check_head_fits(head.config, checkpoint, features, store)
    if labelled:
        check_store(features, store, head.config.problem)
    as_matrix(features.hidden, f"{store}: hidden")
    made_by = store_fingerprint(features)
    check_same_origin({str(checkpoint): head_fingerprint(checkpoint), str(store): made_by})
    fingerprint = {key: plain(value) for key, value in made_by.items() if key not in DATA_KEYS}
    fingerprint[HEAD_KEY] = sha256_file(Path(checkpoint) / HEAD_WEIGHTS)
    embeddings = Embeddings.of(features, head)
    return EmbeddedFeatures(as_path(store), Path(checkpoint), features, embeddings, head.config.problem, fingerprint)


def create_bank(
    location: str | Path,
    run: str | Path,
    features: str | Path,
    *,
    author: str,
    reason: str = "created",
    source: str | None = None,
    note: str = "",
    decided: bool = False,
    views: Sequence[str] = (),
    **options: Any,
) -> Bank:
    """Create an example bank from a feature store, embedded by a head, and open it, as `ra-hmd bank create` does.

    Args:
        location: Place of the bank: a folder, `s3://bucket/path`, a file `….db`, or `http://host:port#name`.
        run: Folder of the head: a Stage 1 run, a Stage 2 output, or a head on an encoder's features.
        features: Feature store of labelled memes.
        author: Author of the first version.
        reason: Reason, for the log.
        source: Where the memes come from; default: the store's path.
        note: Note that is kept with every row.
        decided: Whether people labelled these very memes, so that identical memes get their labels. Otherwise they are
            examples, which only vote.
        views: Views of the store that the bank keeps beside the embedding.
        options: Further arguments of `Bank.create`: `index`, `recall_target`, `seed`, `wait`, and those of the backend.

    Raises:
        UserError: a store that does not fit the head or is not labelled; something is at the location already.
    """
    found = embed_store(run, features)
    return Bank.create(
        location,
        found.rows(source, note, decided=decided),
        found.embeddings.embedding,
        fingerprint=found.fingerprint,
        author=author,
        reason=reason,
        problem=found.problem,
        views=found.views(views),
        view_origins=found.view_origins,
        **options,
    )
