"""The labelled examples of an evaluation: a feature store, embedded by the head, or an example bank on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ra_hmd.bank.backends.base import is_bank
from ra_hmd.bank.bank import Bank
from ra_hmd.bank.embed_features import check_embedded_by
from ra_hmd.core.artifacts import sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import BANK_HEADS, Head
from ra_hmd.core.manifests import BankReference, ViewDescription
from ra_hmd.core.storage import as_path
from ra_hmd.features.compatibility import check_same_origin, check_same_views, store_fingerprint, views_of
from ra_hmd.features.store import Features
from ra_hmd.features.test_lock import store_digest
from ra_hmd.models.head import HEAD_WEIGHTS, MemeHead
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.operating_point import OperatingPoint, rule_notes, rule_of
from ra_hmd.scoring.scores import DecisionRule
from ra_hmd.scoring.threshold_basis import (
    NO_MATCH,
    BankMatch,
    bank_record,
    match_bank,
    rows_digest,
    rows_sketch,
    same_sketch,
)


@dataclass(frozen=True)
class ReferenceSet:
    """The labelled examples that vote: an embedded feature store, or an example bank.

    Attributes:
        rows: The examples.
        state: Their identity for manifests: `place`, `sha256`, of an example bank also `version`.
        bank: The example bank that they are from; None for a feature store.
        views: Further views of the examples, as bank or store states them.
    """

    rows: Embeddings | Bank
    state: Mapping[str, Any]
    bank: Bank | None = None
    views: Mapping[str, ViewDescription] = field(default_factory=dict)

    def in_memory(self) -> Embeddings:
        """The examples in memory."""
        return self.rows if isinstance(self.rows, Embeddings) else self.rows.to_embeddings()


def open_reference_set(
    place: str | Path, stores: Mapping[Path, Features], head: MemeHead, checkpoint: Path, *, in_memory: bool = False
) -> ReferenceSet:
    """Open the examples at `place`, embedded by the head of `checkpoint`.

    Args:
        place: Folder of a feature store that is among `stores`, or location of an example bank.
        stores: The feature stores that were read, the query sets among them.
        head: The head, which embeds a feature store.
        checkpoint: Folder of the head.
        in_memory: Whether to copy an example bank into memory, so that rows can be added for a trial.

    Raises:
        UserError: an example bank of another head, LMM, adapter, prompt or problem.
    """
    if not is_bank(place):
        features = stores[as_path(place)]
        state, stated = {"place": str(place), "sha256": store_digest(features)}, views_of(features)
        check_same_views({str(place): stated, **{str(p): views_of(f) for p, f in stores.items()}})
        return ReferenceSet(Embeddings.of(features, head), state, views=stated)
    bank = Bank.open(place)
    check_embedded_by(bank, sha256_file(checkpoint / HEAD_WEIGHTS), checkpoint)
    if bank.problem != head.config.problem:
        raise UserError(
            f"{place} holds labels of {bank.problem}, the head in {checkpoint} decides {head.config.problem}."
        )
    check_same_origin({str(place): bank.fingerprint, **{str(p): store_fingerprint(f) for p, f in stores.items()}})
    check_same_views({str(place): bank.views, **{str(p): views_of(f) for p, f in stores.items()}})
    return ReferenceSet(bank.to_embeddings() if in_memory else bank, bank_record(bank), bank, bank.views)


def bank_rules(
    bank: Bank, decision: OperatingPoint | None, voting: Voting, kernel: KernelSettings
) -> tuple[dict[Head, DecisionRule], list[str]]:
    """The rules of RKC and KRR with this bank (the chosen ones where they hold, else the official ones), and the notes
    on them for their reader.
    """
    bank_match = NO_MATCH if decision is None else match_bank(bank, decision.bank)
    rules = {head: rule_of(decision, head, bank.problem, bank_match, voting, kernel) for head in BANK_HEADS}
    notes = [note for head in BANK_HEADS for note in rule_notes(decision, head, bank_match, voting, kernel)]
    return rules, list(dict.fromkeys(notes))


def match_reference_set(reference_set: ReferenceSet | None, chosen: BankReference | None) -> BankMatch:
    """Compare examples with the bank `chosen` that an operating point records (None: there is none)."""
    if reference_set is None or chosen is None:
        return NO_MATCH
    if reference_set.bank is not None:
        return match_bank(reference_set.bank, chosen)
    content = chosen.content
    if content is None:  # written by an earlier release
        return BankMatch(chosen.sha256 == reference_set.state["sha256"])
    rows = reference_set.rows
    if not isinstance(rows, Embeddings):
        raise TypeError(f"examples without a bank must be in memory, not {type(rows).__name__}")
    same = len(rows) == content.rows and rows_digest(list(rows.ids), rows.labels) == content.sha256
    return BankMatch(same and same_sketch(rows_sketch(list(rows.ids), rows.embedding), content.sketch))
