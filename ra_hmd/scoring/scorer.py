"""A head that is opened for answering, with its bank and its rules: features in, scores and verdicts out.

What the features are of (a store, memes that were just sent), and what is done with the answers, is no part of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from ra_hmd.bank.backends.base import is_bank
from ra_hmd.bank.bank import Bank
from ra_hmd.core.config import choose
from ra_hmd.core.heads import Head
from ra_hmd.features.compatibility import (
    check_head_fits,
    check_same_origin,
    check_store,
    head_fingerprint,
    store_fingerprint,
)
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.head import MemeHead, load_head
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.operating_point import OperatingPoint, read_operating_point, rule_notes, rule_of, use_rules
from ra_hmd.scoring.reference_set import ReferenceSet, match_reference_set, open_reference_set
from ra_hmd.scoring.scores import DecisionRule, ScoredSet, score_set
from ra_hmd.scoring.threshold_basis import NO_MATCH, BankMatch, bank_record

_NO_BANK = {"place": None, "sha256": None}


@dataclass(frozen=True)
class Scorer:
    """A trained head, ready to answer.

    Attributes:
        checkpoint: Folder of the head.
        model: The head, on its device.
        examples: The bank that votes, or None: then there is no RKC.
        origins: Folder of the head, place of the bank → what is known of the features that they are for.
        decision: Thresholds and calibration from dev, or None: official thresholds, scores taken for probabilities.
        voting: The vote.
        standing: How the bank stands to the one that the RKC's rule was chosen with.
    """

    checkpoint: Path
    model: MemeHead
    reference_set: ReferenceSet | None
    origins: Mapping[str, Mapping[str, Any]]
    decision: OperatingPoint | None
    voting: Voting
    bank_match: BankMatch = NO_MATCH

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        bank: str | Path | None = None,
        voting: Voting | None = None,
        *,
        thresholds: Literal["stored", "official"] = "stored",
        device: str | torch.device | None = None,
    ) -> "Scorer":
        """Open a head.

        Args:
            checkpoint: Folder with a head.
            bank: Feature store of labelled examples, or an example bank; without it there is no RKC.
            voting: The vote; by default the official one.
            thresholds: `stored` takes what lies beside the head, if it is there, or the official ones.
            device: Where the head runs; by default what accelerate finds.

        Raises:
            UserError: no head; a bank of another head or LMM, or one that is not labelled as the head decides.
        """
        choose("thresholds", thresholds, ("stored", "official"))
        checkpoint = Path(checkpoint)
        model = load_head(checkpoint).to(device if device is not None else Accelerator().device)
        decision = read_operating_point(checkpoint) if thresholds == "stored" else None
        origins = {str(checkpoint): head_fingerprint(checkpoint)}
        reference_set, stores = None, {}
        if bank is not None and not is_bank(bank):
            features = stores[Path(bank)] = read_features(bank)
            check_store(features, bank, model.config.problem)
            check_head_fits(model.config, checkpoint, features, bank)
            check_same_origin({**origins, str(bank): store_fingerprint(features)})
            origins[str(bank)] = store_fingerprint(features)
        if bank is not None:
            reference_set = open_reference_set(bank, stores, model, checkpoint)
        bank_match = match_reference_set(reference_set, None if decision is None else decision.bank)
        return cls(checkpoint, model, reference_set, origins, decision, voting or Voting(), bank_match)

    @property
    def bank(self) -> Bank | None:
        """The example bank that votes, if it is one; a feature store that votes cannot be changed."""
        return None if self.reference_set is None else self.reference_set.bank

    def refreshed(self) -> "Scorer":
        """This scorer with the newest version of its example bank."""
        before = self.state.get("version")
        if self.reference_set is None or self.bank is None or self.bank.refresh() == before:
            return self
        reference_set = replace(self.reference_set, state=bank_record(self.bank))
        if self.bank_match.holds:  # a bank only grows: what held before it did holds after
            bank_match = BankMatch(True, self.bank_match.grown_from or before, self.bank.version)
        else:
            bank_match = match_reference_set(reference_set, None if self.decision is None else self.decision.bank)
        return replace(self, reference_set=reference_set, bank_match=bank_match)

    def __call__(self, place: str | Path, features: Features) -> ScoredSet:
        """Scores of Q memes by every head that has some; a meme's scores and verdicts depend on no other meme.

        Labels play no part. A meme whose id is in the bank does not vote for itself.

        Args:
            place: Where the features are from, for messages.
            features: Of the memes.

        Raises:
            UserError: features that this head, or this bank, cannot be asked about.
        """
        check_store(features, place, labelled=False)
        check_head_fits(self.model.config, self.checkpoint, features, place)
        self.check_origin(place, store_fingerprint(features))
        rows = None if self.reference_set is None else self.reference_set.rows
        scored = score_set(Path(place).name, place, features, self.model, rows, self.voting)
        if self.decision is not None:
            use_rules(self.decision, scored, self.bank_match, self.voting)
        return scored

    def identical(self, scored: ScoredSet) -> list[dict[str, Any] | None]:
        """Of each meme the row of the example bank that answers it: a person gave its label to this very picture and
        caption. None where there is no such row, and then the head that decides does. Evaluation does not ask this: its
        numbers are those of the heads.
        """
        contents = scored.queries.contents
        if self.bank is None or not contents:
            return [None] * len(scored)
        shown = ("id", "label", "source", "note", "time")
        rows = (None if i is None else self.bank.row(i) for i in self.bank.decided_positions(contents))
        return [None if row is None else {name: row[name] for name in shown} for row in rows]

    def notes(self, head: Head) -> list[str]:
        """What a reader of a head's verdicts must know of its threshold."""
        return rule_notes(self.decision, head, self.bank_match, self.voting)

    def told(self, head: Head) -> str:
        """How a head decides here, in words, with `notes`."""
        rule = self.rule(head)
        limits = ", ".join(f"{value:.4g}" for value in rule.thresholds)
        where = "the official threshold"
        if rule.chosen and self.decision is not None:
            where = f"chosen on {self.decision.dev.place} ({self.decision.dev.rows} memes)"
        said = f"{head.upper()}: class 1 from {limits} on, {where}; calibration: {rule.calibration.kind}."
        if self.model.config.problem.kind != "binary":
            said = f"{head.upper()}: thresholds {limits}, {where}; calibration: {rule.calibration.kind}."
        return " ".join([said, *self.notes(head)])

    def rule(self, head: Head) -> DecisionRule:
        """How a head decides here: as chosen on dev where that holds, else officially."""
        return rule_of(self.decision, head, self.model.config.problem, self.bank_match, self.voting)

    def check_origin(self, place: str | Path, fingerprint: Mapping[str, Any]) -> None:
        """Raise `UserError` unless features of this fingerprint are those that head and bank are for."""
        for origin, known in self.origins.items():
            check_same_origin({origin: known, str(place): fingerprint})

    @property
    def state(self) -> dict[str, Any]:
        """Of the bank: `place`, `sha256`, of an example bank also `version`."""
        return dict(_NO_BANK if self.reference_set is None else self.reference_set.state)
