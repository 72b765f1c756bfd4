"""Operating points: thresholds and calibrations chosen on dev, stored beside a head in `decision.json`.

Shapes: C outputs of the problem.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from ra_hmd.core.artifacts import plain, sha256_file
from ra_hmd.core.config import choose
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import BANK_HEADS, Head, decide
from ra_hmd.core.manifests import (
    BankReference,
    DecisionManifest,
    DevReference,
    HeadDecision,
    read_manifest,
    write_manifest,
)
from ra_hmd.core.problem import Problem
from ra_hmd.features.store import Features
from ra_hmd.features.test_lock import open_labels, split_name, store_digest
from ra_hmd.models.head import HEAD_WEIGHTS
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.calibration import UNCALIBRATED, Calibration, CalibrationKind, Uncalibrated, fit_calibration
from ra_hmd.scoring.scores import DecisionRule, ScoredSet
from ra_hmd.scoring.threshold_basis import BankMatch
from ra_hmd.scoring.thresholds import Criterion, best_thresholds, criterion_of

DECISION_NAME = "decision.json"
OFFICIAL_NOTE = "The threshold is the official one, and scores are taken for probabilities as they are."


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds and calibration of each head, and the conditions under which they hold.

    Attributes:
        criterion: The metric that the thresholds maximise on dev.
        problem: What the head decides.
        head_sha256: SHA-256 of the head's weights.
        bank: The bank that voted.
        voting: Settings of the vote.
        dev: The dev rows.
        rules: Decision rule of each head.
        values: Value of the criterion on dev for each head (`official`, `chosen`); a mean over several classes.
        uncalibrated: Reason why a head has no calibration, for heads without one.
        kernel: Settings of the kernel head; None where it was not scored.
    """

    criterion: Criterion
    problem: Problem
    head_sha256: str
    bank: BankReference
    voting: Mapping[str, Any]
    dev: DevReference
    rules: Mapping[Head, DecisionRule]
    values: Mapping[Head, Mapping[str, float]]
    uncalibrated: Mapping[Head, str] = field(default_factory=dict)
    kernel: Mapping[str, Any] | None = None

    def write(self, head: str | Path) -> None:
        """Write `decision.json` into the head's folder, atomically."""
        heads = {
            name: {
                "thresholds": rule.thresholds.tolist(),
                "calibration": {"kind": rule.calibration.kind, **rule.calibration.parameters},
                "dev": dict(self.values[name]),
                **({"uncalibrated": self.uncalibrated[name]} if name in self.uncalibrated else {}),
            }
            for name, rule in self.rules.items()
        }
        manifest = DecisionManifest.new(
            criterion=self.criterion,
            problem=asdict(self.problem),
            head_sha256=self.head_sha256,
            heads=heads,
            bank=self.bank.to_json(),
            voting=plain(dict(self.voting)),
            dev=self.dev.to_json(),
            **({} if self.kernel is None else {"kernel": plain(dict(self.kernel))}),
        )
        write_manifest(Path(head) / DECISION_NAME, manifest)


def read_operating_point(head: str | Path) -> OperatingPoint | None:
    """Read the operating point stored beside a head; None where there is none.

    Raises:
        UserError: it was chosen for other weights, or the file has another format.
    """
    path = Path(head) / DECISION_NAME
    if not path.is_file():
        return None
    stored = read_manifest(path, DecisionManifest)
    try:
        decision = OperatingPoint(
            _criterion(stored.criterion, path),
            Problem(stored.problem.kind, stored.problem.outputs),
            stored.head_sha256,
            stored.bank,
            stored.voting,
            stored.dev,
            {name: _read_rule(item) for name, item in stored.heads.items()},
            {name: item.dev for name, item in stored.heads.items()},
            {name: item.uncalibrated for name, item in stored.heads.items() if item.uncalibrated},
            stored.kernel,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a decision file ({error!r}); {DecisionManifest.REMEDY}.") from error
    if decision.head_sha256 != sha256_file(Path(head) / HEAD_WEIGHTS):
        raise UserError(
            f"{path} was chosen for other weights than those in {HEAD_WEIGHTS} beside it: the head was trained again. "
            "Choose anew with `--dev`, or remove the file."
        )
    return decision


def _criterion(name: str, path: Path) -> Criterion:
    choose(f"{path}: criterion", name, get_args(Criterion))
    return cast(Criterion, name)


def _read_rule(item: HeadDecision) -> DecisionRule:
    parameters = dict(item.calibration)
    kind = parameters.pop("kind")
    return DecisionRule(np.array(item.thresholds, dtype=np.float64), Calibration(kind, parameters), chosen=True)


def check_dev(place: str | Path, features: Features, problem: Problem) -> None:
    """Validate a dev store for choosing thresholds.

    Raises:
        UserError: a test split, or one of unknown kind; a binary dev set of one class.
    """
    open_labels(chosen_by={place: features})
    if problem.kind == "binary" and len(np.unique(features.labels)) < 2:
        raise UserError(f"--dev {place} has memes of class {features.labels[0]} only; a threshold needs both classes.")


def choose_operating_point(
    scored: ScoredSet,
    place: str | Path,
    features: Features,
    *,
    left_out: Sequence[str] = (),
    head: str | Path,
    bank: Mapping[str, Any],
    voting: Voting,
    criterion: Criterion,
    calibration: CalibrationKind,
    kernel: KernelSettings | None = None,
) -> OperatingPoint:
    """Choose thresholds and fit calibrations on a scored dev set; those of RKC and KRR without memes that the
    RKC abstains on.

    Args:
        scored: The dev set.
        place: Its feature store.
        features: Its rows.
        left_out: Ids of the store that were left out.
        head: Folder of the head.
        bank: Identity of the bank, see `OperatingPoint`.
        voting: Settings of the vote.
        criterion: The metric to maximise.
        calibration: The kind of map to fit.
        kernel: Settings of the kernel head; None where it was not scored.

    Raises:
        UserError: the vote abstained on so many memes that one class is left.
    """
    rules: dict[Head, DecisionRule] = {}
    values: dict[Head, dict[str, float]] = {}
    uncalibrated: dict[Head, str] = {}
    for name in scored.scores:
        rules[name], values[name], reason = _choose_rule(scored, name, place, criterion, calibration)
        if reason is not None:
            uncalibrated[name] = reason
    dev = DevReference(
        place=str(place),
        split=split_name(features, place),
        rows=len(features),
        sha256=store_digest(features),
        ids=features.ids,
        left_out=list(left_out),
    )
    weights = sha256_file(Path(head) / HEAD_WEIGHTS)
    return OperatingPoint(
        criterion,
        scored.problem,
        weights,
        BankReference.model_validate(dict(bank)),
        asdict(voting),
        dev,
        rules,
        values,
        uncalibrated,
        None if kernel is None else kernel.model_dump(),
    )


def _choose_rule(
    scored: ScoredSet, head: Head, place: str | Path, criterion: Criterion, calibration: CalibrationKind
) -> tuple[DecisionRule, dict[str, float], str | None]:
    """The rule of one head, the values of its criterion, and the reason if it has no calibration."""
    problem, scores = scored.problem, scored.scores[head]
    used = ~scored.abstained if head in BANK_HEADS else np.ones(len(scored), dtype=bool)
    labels, official = scored.labels[used], DecisionRule.official(head, problem)
    if not used.any() or (problem.kind == "binary" and len(np.unique(labels)) < 2):
        raise UserError(
            f"{place}: the vote abstains on {int((~used).sum())} of {len(used)} memes, and those left are of one "
            "class; lower --min-similarity."
        )
    thresholds = best_thresholds(scores[used], labels, criterion, official.thresholds, problem)
    fitted = fit_calibration(calibration, scores[used], labels, head, problem)
    values = {
        key: criterion_of(criterion, decide(scores[used], limits, problem), labels, problem)
        for key, limits in (("official", official.thresholds), ("chosen", thresholds))
    }
    if isinstance(fitted, Uncalibrated):
        return DecisionRule(thresholds, UNCALIBRATED, chosen=True), values, fitted.reason
    return DecisionRule(thresholds, fitted, chosen=True), values, None


def apply_operating_point(
    decision: OperatingPoint,
    scored: ScoredSet,
    bank_match: BankMatch,
    voting: Voting,
    kernel: KernelSettings | None = None,
) -> None:
    """Set the rules of a query set to the chosen ones where they hold, and add a note where they do not.

    They do not hold for memes that they were chosen on, and those of RKC and KRR only with the bank and the
    settings that they were chosen with, see `BankMatch`.
    """
    shared = len(set(decision.dev.ids) & set(scored.queries.ids))
    if shared:
        scored.notes.append(
            f"official thresholds, no calibration: {shared} memes are among those that the stored ones were chosen on."
        )
        return
    use_rules(decision, scored, bank_match, voting, kernel)


def check_judged(decision: OperatingPoint, place: str | Path, ids: Sequence[str]) -> None:
    """Raise `UserError` where a query set overlaps with the dev rows but is not a part of them.

    One shared meme would disable the thresholds for all others, or make their metrics too good.
    """
    chosen_on = set(decision.dev.ids)
    shared = sorted(chosen_on & set(ids))
    if shared and not set(ids) <= chosen_on | set(decision.dev.left_out):
        raise UserError(
            f"{len(shared)} of {len(ids)} memes of {place} are among those that the stored thresholds were chosen on "
            f"({decision.dev.place}), for example {shared[:3]}. Give `--dev` again, which leaves them out of the "
            "choice, or `--thresholds official`."
        )


def dev_rows(
    place: str | Path, dev: Features, queries: Mapping[str | Path, Sequence[str]]
) -> tuple[Features, list[str]]:
    """Split a dev store into the rows that are in no query set, for choosing rules, and the ids of the others.

    A query set that is the dev set itself removes no row: its verdicts are made by the official rules.

    Raises:
        UserError: no row is left.
    """
    judged = set().union(*(ids for ids in queries.values() if set(ids) != set(dev.ids)))
    keep = np.array([name not in judged for name in dev.ids])
    if not keep.any():
        raise UserError(
            f"All {len(dev)} memes of --dev {place} are among those that are judged ({', '.join(map(str, queries))}): "
            "thresholds are not chosen on what they are measured on; give another dev split."
        )
    left_out = [name for name, kept in zip(dev.ids, keep, strict=True) if not kept]
    return (dev.select(np.flatnonzero(keep)), left_out) if left_out else (dev, [])


def use_rules(
    decision: OperatingPoint,
    scored: ScoredSet,
    bank_match: BankMatch,
    voting: Voting,
    kernel: KernelSettings | None = None,
) -> None:
    """Set the rules of a query set to the chosen ones; those of RKC and KRR only with bank and settings of it.

    Unlike `apply_operating_point`, this does not check whether the memes are those of dev, so a meme's verdict does not
    depend on the other memes of the call. Metrics of such verdicts on dev would be too good.
    """
    for name in scored.scores:
        scored.rules[name] = rule_of(decision, name, scored.problem, bank_match, voting, kernel)
        scored.notes += rule_notes(decision, name, bank_match, voting, kernel)


def rule_of(
    decision: OperatingPoint | None,
    head: Head,
    problem: Problem,
    bank_match: BankMatch,
    voting: Voting,
    kernel: KernelSettings | None = None,
) -> DecisionRule:
    """The rule of a head with this bank and vote: the chosen one where it holds, else the official one."""
    if decision is None or _refusal(decision, head, bank_match, voting, kernel) is not None:
        return DecisionRule.official(head, problem)
    return decision.rules[head]


def rule_notes(
    decision: OperatingPoint | None,
    head: Head,
    bank_match: BankMatch,
    voting: Voting,
    kernel: KernelSettings | None = None,
) -> list[str]:
    """Notes on the threshold and calibration of a head, for readers of its verdicts."""
    if decision is None:
        return [OFFICIAL_NOTE]
    refusal = _refusal(decision, head, bank_match, voting, kernel)
    if refusal is not None:
        return [refusal]
    why = decision.uncalibrated.get(head)
    notes = [] if why is None else [f"{head.upper()} has no calibration: {why}."]
    return notes + (bank_match.notes(head) if head in BANK_HEADS else [])


def _refusal(
    decision: OperatingPoint, head: Head, bank_match: BankMatch, voting: Voting, kernel: KernelSettings | None
) -> str | None:
    """The reason why the chosen rule of a head does not hold with this bank and vote; None where it holds."""
    if head not in decision.rules:
        return f"{head.upper()} has its official threshold, none was chosen for it."
    if head not in BANK_HEADS:
        return None
    changed = [] if bank_match.holds else ["bank"]
    if head == "rkc" and plain(dict(decision.voting)) != plain(asdict(voting)):
        changed.append("vote")
    settings = None if kernel is None else plain(kernel.model_dump())
    if head == "krr" and settings != plain(decision.kernel):
        changed.append("kernel")
    if not changed:
        return None
    return (
        f"{head.upper()} has its official threshold and no calibration: the stored ones were chosen with another "
        f"{' and another '.join(changed)}; choose anew with `--dev`."
    )
