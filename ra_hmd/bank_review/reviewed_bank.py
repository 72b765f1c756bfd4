"""The labelled rows that are reviewed: an example bank, or a feature store embedded by a head.

Shapes: N rows.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ra_hmd.bank.backends.base import is_bank
from ra_hmd.bank.bank import Bank
from ra_hmd.bank.embed_features import bank_rows, embed_store
from ra_hmd.bank.versions import BankRows
from ra_hmd.core.manifests import ViewDescription
from ra_hmd.core.problem import Problem
from ra_hmd.features.store import Features
from ra_hmd.features.test_lock import open_labels, store_digest
from ra_hmd.models.head import load_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.scoring.reference_set import open_reference_set


@dataclass(frozen=True)
class ReviewedBank:
    """Labelled rows with their vectors and with what is known of the memes.

    Attributes:
        rows: The N rows with their vectors.
        table: Ids, labels, sources and hashes of the same rows.
        problem: What labels mean.
        state: Identity of the rows for manifests: `place`, `sha256`, of an example bank also `version`.
        fingerprint: What made the vectors.
        views: Further views of the rows, as bank or store states them.
        record: The record of `open_labels`.
    """

    rows: Embeddings | Bank
    table: BankRows
    problem: Problem
    state: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    views: Mapping[str, ViewDescription]
    record: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.table)


@contextmanager
def open_reviewed_bank(
    place: str | Path, checkpoint: Path, *, final: bool = False, command: str = ""
) -> Iterator[ReviewedBank]:
    """Open an example bank, or a feature store as a bank, embedded by the head of a checkpoint.

    Args:
        place: Example bank or folder of a feature store.
        checkpoint: Folder of the head.
        final: Whether rows of a test split may be opened.
        command: The command line, for the record.

    Raises:
        UserError: bank or store are of another head, rows without labels, a test split without `final`.
    """
    if is_bank(place):
        head = load_head(checkpoint)
        opened = open_reference_set(place, {}, head, checkpoint)
        bank = opened.bank
        assert bank is not None
        with bank:
            state = bank.state_at()
            table = state.rows.select(state.members)
            record = open_labels()
            yield ReviewedBank(bank, table, bank.problem, opened.state, bank.fingerprint, bank.views, record)
        return
    found = embed_store(checkpoint, place)
    features: Features = found.features
    record = open_labels(heads=[checkpoint], examples={place: features}, final=final, command=command)
    yield ReviewedBank(
        found.embeddings,
        bank_rows(features, str(place), decided=False),
        found.problem,
        {"place": str(place), "sha256": store_digest(features)},
        found.fingerprint,
        found.view_origins,
        record,
    )
