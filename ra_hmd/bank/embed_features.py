"""From a feature store and a head to the rows of a bank, or to its queries."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.bank.bank import Bank, now
from ra_hmd.bank.versions import BankRows
from ra_hmd.core.artifacts import plain, sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem
from ra_hmd.data.text import well_formed
from ra_hmd.features.compatibility import (
    DATA_KEYS,
    check_head_fits,
    check_same_origin,
    check_store,
    head_fingerprint,
    store_fingerprint,
)
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.head import HEAD_WEIGHTS, load_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.knn import as_matrix

HEAD_KEY = "embedding_head"


@dataclass(frozen=True)
class EmbeddedFeatures:
    """A feature store as a head sees it.

    Attributes:
        place: The store.
        checkpoint: Folder of the head.
        features: What the store holds.
        embedded: Ids, labels and embeddings.
        problem: What the head decides.
        fingerprint: What made the embeddings: LMM, adapter, prompt and pixels as the store states them, and the SHA-256
            of the head's weights.
    """

    place: Path
    checkpoint: Path
    features: Features
    embedded: Embeddings
    problem: Problem
    fingerprint: dict[str, Any]

    def rows(self, source: str | None = None, note: str = "", *, decided: bool = True) -> BankRows:
        """As rows of a bank.

        Args:
            source: Where they are from; default: the store's path.
            note: Kept with every row. The time is the data's, or now.
            decided: Whether people gave the labels to these very memes, so that they answer identical ones; else they
                are examples, which vote.
        """
        features, moment = self.features, now()
        extras = features.extras or [{}] * len(features)
        return BankRows(
            ids=features.ids,
            labels=features.labels,
            sources=[well_formed(str(self.place) if source is None else source)] * len(features),
            notes=[well_formed(note)] * len(features),
            times=[str(extra.get("time") or moment) for extra in extras],
            image_hashes=np.zeros(len(features), np.uint64) if features.image_hashes is None else features.image_hashes,
            contents=features.contents or (),
            decided=np.full(len(features), decided),
        )

    def check_for(self, bank: Bank) -> None:
        """Raise `UserError` unless these embeddings are comparable with the bank's: same LMM, adapter, prompt, head."""
        ours, banks = self.fingerprint[HEAD_KEY], bank.fingerprint.get(HEAD_KEY)
        if ours != banks:
            raise UserError(
                f"The head in {self.checkpoint} (sha256 {ours[:12]}…) is not the one that embedded {bank.place} "
                f"({str(banks)[:12]}…); give that head, or create a new bank with this one."
            )
        check_same_origin({str(bank.place): bank.fingerprint, str(self.place): self.fingerprint})
        if self.problem != bank.problem:
            raise UserError(f"{bank.place} holds labels of {bank.problem}, the head decides {self.problem}.")


def embed_store(checkpoint: str | Path, store: str | Path, *, labelled: bool = True) -> EmbeddedFeatures:
    """Embed a store's hidden states with the head of a Stage 1 run or Stage 2 folder.

    Args:
        checkpoint: Folder with a head.
        store: Feature store.
        labelled: Whether every row must have a label.

    Raises:
        UserError: no head, no store, one that does not fit the other, missing labels, values that are not finite.
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
    embedded = Embeddings.of(features, head)
    return EmbeddedFeatures(Path(store), Path(checkpoint), features, embedded, head.config.problem, fingerprint)
