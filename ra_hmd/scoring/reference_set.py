"""The labelled examples of an evaluation: a feature store, embedded by the head, or an example bank on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ra_hmd.bank.bank import Bank, is_bank, open_bank
from ra_hmd.bank.embed_features import HEAD_KEY
from ra_hmd.core.artifacts import sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.features.compatibility import check_same_origin, store_fingerprint
from ra_hmd.features.store import Features
from ra_hmd.features.test_lock import store_digest
from ra_hmd.models.head import HEAD_WEIGHTS, MemeHead
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.knn_classifier import LabelledIndex
from ra_hmd.scoring.operating_point import OperatingPoint, rule_notes, rule_of
from ra_hmd.scoring.scores import DecisionRule
from ra_hmd.scoring.threshold_basis import (
    OTHER,
    BankMatch,
    bank_state,
    match_bank,
    rows_digest,
    rows_sketch,
    same_sketch,
)


@dataclass(frozen=True)
class ReferenceSet:
    """Labelled examples, and what tells this state of them from another.

    Attributes:
        rows: To search.
        state: For manifests: `place`, `sha256`, of an example bank also `version`.
        bank: The example bank that they are of; None for a feature store.
    """

    rows: LabelledIndex
    state: Mapping[str, Any]
    bank: Bank | None = None

    def in_memory(self) -> Embeddings:
        """The rows, read into memory where they are not."""
        return self.rows if isinstance(self.rows, Embeddings) else self.rows.to_embeddings()


def open_reference_set(
    place: str | Path, stores: Mapping[Path, Features], head: MemeHead, checkpoint: Path, *, in_memory: bool = False
) -> ReferenceSet:
    """The examples at `place`, as seen by the head of `checkpoint`.

    Args:
        place: Folder of a feature store that is among `stores`, or folder or URI of an example bank.
        stores: The feature stores that were read, the query sets among them.
        head: Embeds a feature store.
        checkpoint: Where the head is.
        in_memory: An example bank is copied into memory, so that rows can be added for a trial.

    Raises:
        UserError: an example bank of another head, LMM, adapter, prompt or problem.
    """
    if not is_bank(place):
        features = stores[Path(place)]
        return ReferenceSet(Embeddings.of(features, head), {"place": str(place), "sha256": store_digest(features)})
    bank = open_bank(place)
    weights = sha256_file(checkpoint / HEAD_WEIGHTS)
    if bank.fingerprint.get(HEAD_KEY) != weights:
        raise UserError(
            f"The head in {checkpoint} (sha256 {weights[:12]}…) is not the one that embedded {place} "
            f"({str(bank.fingerprint.get(HEAD_KEY))[:12]}…); give that head, or create a bank with this one."
        )
    if bank.problem != head.config.problem:
        raise UserError(
            f"{place} holds labels of {bank.problem}, the head in {checkpoint} decides {head.config.problem}."
        )
    check_same_origin({str(place): bank.fingerprint, **{str(p): store_fingerprint(f) for p, f in stores.items()}})
    return ReferenceSet(bank.to_embeddings() if in_memory else bank, bank_state(bank), bank)


def vote_rule(bank: Bank, decision: OperatingPoint | None, voting: Voting) -> tuple[DecisionRule, list[str]]:
    """How a vote of this bank decides: as chosen where that holds for it, else officially; and what a reader must
    know of that.
    """
    standing = OTHER if decision is None else match_bank(bank, decision.bank)
    rule = rule_of(decision, "rkc", bank.problem, standing, voting)
    return rule, rule_notes(decision, "rkc", standing, voting)


def match_reference_set(examples: ReferenceSet | None, chosen: Mapping[str, Any] | None) -> BankMatch:
    """How examples stand to the bank `chosen` that a decision states (None: there is no decision)."""
    if examples is None or chosen is None:
        return OTHER
    if examples.bank is not None:
        return match_bank(examples.bank, chosen)
    content = chosen.get("content")
    if content is None:  # a decision of an earlier version
        return BankMatch(chosen["sha256"] == examples.state["sha256"])
    rows = examples.rows
    if not isinstance(rows, Embeddings):
        raise TypeError(f"examples without a bank are rows in memory, not {type(rows).__name__}")
    same = len(rows) == content["rows"] and rows_digest(list(rows.ids), rows.labels) == content["sha256"]
    return BankMatch(same and same_sketch(rows_sketch(list(rows.ids), rows.embedding), content["sketch"]))
