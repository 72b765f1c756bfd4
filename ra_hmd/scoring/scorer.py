"""Scoring features with a head, its bank and its decision rules.

Where the features come from (a store, memes of a request), and how verdicts are presented, is left to the caller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from ra_hmd.bank.backends.base import is_bank
from ra_hmd.bank.bank import Bank
from ra_hmd.core.config import choose
from ra_hmd.core.heads import Head
from ra_hmd.core.storage import as_path
from ra_hmd.features.compatibility import (
    check_head_fits,
    check_same_origin,
    check_same_views,
    check_store,
    head_fingerprint,
    store_fingerprint,
    views_of,
)
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.head import MemeHead, load_head
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.bank_kernel import kernel_classifier_of, refreshed_kernel
from ra_hmd.scoring.kernel_classifier import KernelClassifier
from ra_hmd.scoring.operating_point import OperatingPoint, read_operating_point, rule_notes, rule_of, use_rules
from ra_hmd.scoring.reference_set import ReferenceSet, match_reference_set, open_reference_set
from ra_hmd.scoring.scores import DecisionRule, ScoredSet, score_set
from ra_hmd.scoring.threshold_basis import NO_MATCH, BankMatch, bank_record

_NO_BANK = {"place": None, "sha256": None}


@dataclass(frozen=True)
class Scorer:
    """A trained head with the bank and the rules by which it decides.

    Attributes:
        checkpoint: Folder of the head.
        model: The head, on its device.
        reference_set: The bank that votes, or None: then there is no RKC.
        origins: Fingerprints of the features that head and bank are for, by folder or location.
        decision: Thresholds and calibration from dev, or None: official thresholds, scores used as probabilities.
        voting: Settings of the vote.
        bank_match: How the bank compares with the one that the rules of RKC and KRR were chosen with.
        kernel: The kernel classifier of the bank, or None: then there is no KRR.
    """

    checkpoint: Path
    model: MemeHead
    reference_set: ReferenceSet | None
    origins: Mapping[str, Mapping[str, Any]]
    decision: OperatingPoint | None
    voting: Voting
    bank_match: BankMatch = NO_MATCH
    kernel: KernelClassifier | None = None

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        bank: str | Path | None = None,
        voting: Voting | None = None,
        *,
        thresholds: Literal["stored", "official"] = "stored",
        device: str | torch.device | None = None,
        kernel: KernelSettings | None = None,
    ) -> "Scorer":
        """Open a head.

        Args:
            checkpoint: Folder with a head.
            bank: Feature store of labelled examples, or an example bank; without it there is no RKC.
            voting: Settings of the vote; default: the official ones.
            thresholds: `stored` uses the operating point beside the head, if there is one; else `official`.
            device: Device of the head; default: the one that accelerate finds.
            kernel: Settings of the kernel head; default: there is no KRR.

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
            features = stores[as_path(bank)] = read_features(bank)
            check_store(features, bank, model.config.problem)
            check_head_fits(model.config, checkpoint, features, bank)
            check_same_origin({**origins, str(bank): store_fingerprint(features)})
            origins[str(bank)] = store_fingerprint(features)
        if bank is not None:
            reference_set = open_reference_set(bank, stores, model, checkpoint)
        bank_match = match_reference_set(reference_set, None if decision is None else decision.bank)
        scorer = cls(checkpoint, model, reference_set, origins, decision, voting or Voting(), bank_match)
        return scorer if kernel is None else scorer.with_kernel(kernel)

    def with_kernel(self, settings: KernelSettings) -> "Scorer":
        """This scorer with a kernel head on its bank, if it has one.

        Raises:
            UserError: a view that the bank does not have.
        """
        if self.reference_set is None:
            return self
        kernel = kernel_classifier_of(self.reference_set.rows, self.model.config.problem, settings)
        return replace(self, kernel=kernel)

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
        if self.bank_match.holds:  # the versions of a bank only grow: a match stays one
            bank_match = BankMatch(True, self.bank_match.grown_from or before, self.bank.version)
        else:
            bank_match = match_reference_set(reference_set, None if self.decision is None else self.decision.bank)
        kernel = self.kernel if self.kernel is None else refreshed_kernel(self.kernel, self.bank)
        return replace(self, reference_set=reference_set, bank_match=bank_match, kernel=kernel)

    def __call__(self, place: str | Path, features: Features) -> ScoredSet:
        """Score Q memes with every head; the scores and verdicts of a meme do not depend on other memes.

        Labels are not used. A meme whose id is in the bank does not vote for itself.

        Args:
            place: Source of the features, for messages.
            features: Features of the memes.

        Raises:
            UserError: features that were not made for this head and bank.
        """
        check_store(features, place, labelled=False)
        check_head_fits(self.model.config, self.checkpoint, features, place)
        self.check_origin(place, store_fingerprint(features))
        rows = None
        if self.reference_set is not None:
            rows, stated = self.reference_set.rows, self.reference_set.views
            check_same_views({str(self.state["place"]): stated, str(place): views_of(features)})
        scored = score_set(Path(place).name, place, features, self.model, rows, self.voting, self.kernel)
        if self.decision is not None:
            use_rules(self.decision, scored, self.bank_match, self.voting, self._kernel_settings)
        return scored

    def decided_rows(self, scored: ScoredSet) -> list[dict[str, Any] | None]:
        """For each meme the decided row of the example bank that is the same meme (`ra_hmd.bank.identical`), or None.

        Its label replaces the verdict of the heads in predictions, but not in evaluation, which measures the heads.
        """
        return self.decided_rows_of(scored.queries.contents or [""] * len(scored))

    def decided_rows_of(self, contents: Sequence[str]) -> list[dict[str, Any] | None]:
        """`decided_rows` for memes by their content hashes."""
        if self.bank is None:
            return [None] * len(contents)
        shown = ("id", "label", "source", "note", "time")
        rows = (None if i is None else self.bank.row(i) for i in self.bank.decided_positions(contents))
        return [None if row is None else {name: row[name] for name in shown} for row in rows]

    def notes(self, head: Head) -> list[str]:
        """Notes on the rule of a head, for readers of its verdicts."""
        return rule_notes(self.decision, head, self.bank_match, self.voting, self._kernel_settings)

    def describe_rule(self, head: Head) -> str:
        """The rule of a head as a sentence, with `notes`."""
        rule = self.rule(head)
        limits = ", ".join(f"{value:.4g}" for value in rule.thresholds)
        where = "the official threshold"
        if rule.chosen and self.decision is not None:
            where = f"chosen on {self.decision.dev.place} ({self.decision.dev.rows} memes)"
        sentence = f"{head.upper()}: class 1 from {limits} on, {where}; calibration: {rule.calibration.kind}."
        if self.model.config.problem.kind != "binary":
            sentence = f"{head.upper()}: thresholds {limits}, {where}; calibration: {rule.calibration.kind}."
        return " ".join([sentence, *self.notes(head)])

    def rule(self, head: Head) -> DecisionRule:
        """The rule of a head: the one chosen on dev where it holds, else the official one."""
        return rule_of(
            self.decision, head, self.model.config.problem, self.bank_match, self.voting, self._kernel_settings
        )

    @property
    def _kernel_settings(self) -> KernelSettings | None:
        return None if self.kernel is None else self.kernel.settings

    def check_origin(self, place: str | Path, fingerprint: Mapping[str, Any]) -> None:
        """Raise `UserError` unless head and bank are for features of this fingerprint."""
        for origin, expected in self.origins.items():
            check_same_origin({origin: expected, str(place): fingerprint})

    @property
    def state(self) -> dict[str, Any]:
        """Identity of the bank: `place`, `sha256`, of an example bank also `version`."""
        return dict(_NO_BANK if self.reference_set is None else self.reference_set.state)
