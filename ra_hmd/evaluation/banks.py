"""The labelled examples of an evaluation: a feature store, embedded by the head, or an example bank on disk."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.errors import UserError
from ra_hmd.evaluation.checks import check_same_origin, store_fingerprint
from ra_hmd.evaluation.decision import Decision, rule_of
from ra_hmd.evaluation.lockout import store_digest
from ra_hmd.evaluation.scores import Bank, Rule
from ra_hmd.features.store import Features
from ra_hmd.manifest import sha256_bytes, sha256_file
from ra_hmd.models.head import HEAD_WEIGHTS, MemeHead
from ra_hmd.retrieval.bank import Bank as StoredBank
from ra_hmd.retrieval.bank import is_bank, open_bank
from ra_hmd.retrieval.embedded import Embedded
from ra_hmd.retrieval.from_store import HEAD_KEY
from ra_hmd.retrieval.voting import Voting


@dataclass(frozen=True)
class Examples:
    """Labelled examples, and what tells this state of them from another.

    Attributes:
        rows: To search.
        state: For manifests: `place`, `sha256`, of an example bank also `version`.
    """

    rows: Bank
    state: Mapping[str, Any]


def open_examples(
    place: str | Path, stores: Mapping[Path, Features], head: MemeHead, checkpoint: Path, *, in_memory: bool = False
) -> Examples:
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
        return Examples(Embedded.of(features, head), {"place": str(place), "sha256": store_digest(features)})
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
    return Examples(bank.to_embedded() if in_memory else bank, bank_state(bank))


def bank_state(bank: StoredBank, version: int | None = None) -> dict[str, Any]:
    """`place`, `version` and `sha256` (of origin, ids, labels) of a version, by default the one shown."""
    state = bank.at(version)
    members = np.flatnonzero(state.alive)
    stated = json.dumps(bank.fingerprint, sort_keys=True)
    ids = json.dumps([state.rows.ids[row] for row in members], ensure_ascii=False)
    digest = sha256_bytes(stated.encode(), ids.encode(), state.rows.labels[members].astype("<i8").tobytes())
    return {"place": str(bank.place), "version": state.version, "sha256": digest}


def chosen_with(bank: StoredBank, decision: Decision | None) -> int | None:
    """The version, before the one that is shown, of this very bank with which rules were chosen; None: another bank, or
    this version itself.
    """
    version = None if decision is None else decision.bank.get("version")
    if version is None or not 1 <= version < bank.version:
        return None
    return version if bank_state(bank, version)["sha256"] == decision.bank["sha256"] else None


def vote_thresholds(bank: StoredBank, decision: Decision | None, voting: Voting) -> np.ndarray:
    """The thresholds [C] in force for a vote of this bank: those of `decision` where it was chosen with this bank, or
    with an earlier version of it, and this vote; else the official ones.
    """
    if decision is None:
        return Rule.official("rkc", bank.problem).thresholds
    state = bank_state(bank) if chosen_with(bank, decision) is None else decision.bank
    return rule_of(decision, "rkc", bank.problem, state, voting).thresholds
