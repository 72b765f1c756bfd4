"""What dev decided about a head: thresholds and calibration, stored beside it in `decision.json`.

Shapes: C outputs of the problem.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.errors import UserError
from ra_hmd.evaluation.calibration import Calibration, CalibrationKind, fit_calibration
from ra_hmd.evaluation.class_metrics import decide
from ra_hmd.evaluation.lockout import names_test, split_name, store_digest
from ra_hmd.evaluation.metrics import Head
from ra_hmd.evaluation.scores import Rule, ScoredSet
from ra_hmd.evaluation.thresholds import Criterion, best_thresholds, criterion_of
from ra_hmd.features.store import Features
from ra_hmd.manifest import plain, read_json, run_manifest, sha256_file, write_json
from ra_hmd.models.head import HEAD_WEIGHTS
from ra_hmd.problem import Problem
from ra_hmd.retrieval.voting import Voting

DECISION_NAME = "decision.json"
UNDECIDED = "The threshold is the official one, and scores are taken for probabilities as they are."


@dataclass(frozen=True)
class Decision:
    """Thresholds and calibration of each head, and what they hold for.

    Attributes:
        criterion: What the thresholds are best at on dev.
        problem: Of the head.
        head_sha256: Of the head's weights.
        bank: State of the bank that voted: `place`, `sha256`.
        voting: The vote's settings.
        dev: `place`, `split`, `rows`, `sha256` and `ids` of the store it was chosen on.
        rules: Per head.
        values: Per head the criterion on dev (`official`, `chosen`); a mean over classes of several.
    """

    criterion: Criterion
    problem: Problem
    head_sha256: str
    bank: Mapping[str, Any]
    voting: Mapping[str, Any]
    dev: Mapping[str, Any]
    rules: Mapping[Head, Rule]
    values: Mapping[Head, Mapping[str, float]]

    def write(self, head: str | Path) -> None:
        """Write `decision.json` into the head's folder, atomically."""
        heads = {
            name: {
                "thresholds": rule.thresholds.tolist(),
                "calibration": {"kind": rule.calibration.kind, **rule.calibration.parameters},
                "dev": dict(self.values[name]),
            }
            for name, rule in self.rules.items()
        }
        content = {name: plain(dict(getattr(self, name))) for name in ("bank", "voting", "dev")}
        write_json(
            Path(head) / DECISION_NAME,
            run_manifest("decision", format=1, criterion=self.criterion, problem=asdict(self.problem),
                         head_sha256=self.head_sha256, heads=heads, **content),
        )  # fmt: skip


def read_decision(head: str | Path) -> Decision | None:
    """The decision stored beside a head, or None where there is none.

    Raises:
        UserError: it was made for other weights, or is not one of ours.
    """
    path = Path(head) / DECISION_NAME
    if not path.is_file():
        return None
    stored = read_json(path)
    try:
        rules = {name: _read_rule(item) for name, item in stored.heads.items()}
        values = {name: dict(item.dev) for name, item in stored.heads.items()}
        decision = Decision(stored.criterion, Problem(**stored.problem), stored.head_sha256, stored.bank, stored.voting,
                            stored.dev, rules, values)  # fmt: skip
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a decision file ({error!r}); remove it and run with `--dev` again.") from error
    if decision.head_sha256 != sha256_file(Path(head) / HEAD_WEIGHTS):
        raise UserError(
            f"{path} was chosen for other weights than those in {HEAD_WEIGHTS} beside it: the head was trained again. "
            "Choose anew with `--dev`, or remove the file."
        )
    return decision


def _read_rule(item: Mapping[str, Any]) -> Rule:
    parameters = dict(item["calibration"])
    kind = parameters.pop("kind")
    return Rule(np.array(item["thresholds"], dtype=np.float64), Calibration(kind, parameters), chosen=True)


def check_dev(place: str | Path, features: Features, problem: Problem) -> None:
    """Refuse to choose on test data, or where there is nothing to choose between.

    Raises:
        UserError: the split is a test split; a binary dev set of one class.
    """
    name = split_name(features, place)
    if names_test(name):
        raise UserError(f"--dev {place} is of the split {name!r}: nothing is chosen on test data, give a dev split.")
    if problem.kind == "binary" and len(np.unique(features.labels)) < 2:
        raise UserError(f"--dev {place} has memes of class {features.labels[0]} only; a threshold needs both classes.")


def choose_decision(
    scored: ScoredSet,
    place: str | Path,
    features: Features,
    *,
    head: str | Path,
    bank: Mapping[str, Any],
    voting: Voting,
    criterion: Criterion,
    calibration: CalibrationKind,
) -> Decision:
    """Choose thresholds and fit calibrations on a scored dev set; what the RKC abstains on takes no part in its own.

    Args:
        scored: The dev set.
        place: Of its store.
        features: Its store.
        head: Folder of the head.
        bank: State of the bank (`place`, `sha256`).
        voting: The vote.
        criterion: What the thresholds must be best at.
        calibration: Which map to fit.

    Raises:
        UserError: the vote abstained on so many memes that one class is left.
    """
    problem, rules, values = scored.problem, {}, {}
    for name, scores in scored.scores.items():
        used = ~scored.abstained if name == "rkc" else np.ones(len(scored), dtype=bool)
        labels, official = scored.labels[used], Rule.official(name, problem)
        if not used.any() or (problem.kind == "binary" and len(np.unique(labels)) < 2):
            raise UserError(
                f"{place}: the vote abstains on {int((~used).sum())} of {len(used)} memes, and those left are of one "
                "class; lower --min-similarity."
            )
        thresholds = best_thresholds(scores[used], labels, criterion, official.thresholds, problem)
        fitted = fit_calibration(calibration, scores[used], labels, name, problem)
        rules[name] = Rule(thresholds, fitted, chosen=True)
        values[name] = {
            key: criterion_of(criterion, decide(scores[used], tried, problem), labels, problem)
            for key, tried in (("official", official.thresholds), ("chosen", thresholds))
        }
    dev = {
        "place": str(place),
        "split": split_name(features, place),
        "rows": len(features),
        "sha256": store_digest(features),
        "ids": list(features.ids),
    }
    weights = sha256_file(Path(head) / HEAD_WEIGHTS)
    return Decision(criterion, problem, weights, dict(bank), asdict(voting), dev, rules, values)


def apply_decision(decision: Decision, scored: ScoredSet, bank: Mapping[str, Any], voting: Voting) -> None:
    """Give a query set the chosen rules, where they hold, and a note where not.

    They do not hold for memes that they were chosen on; those of the RKC only with the same bank and vote.
    """
    shared = len(set(decision.dev["ids"]) & set(scored.queries.ids))
    if shared:
        scored.notes.append(
            f"official thresholds, no calibration: {shared} memes are among those that the stored ones were chosen on."
        )
        return
    use_rules(decision, scored, bank, voting)


def use_rules(decision: Decision, scored: ScoredSet, bank: Mapping[str, Any], voting: Voting) -> None:
    """Give a set the chosen rules, those of the RKC only with the bank and vote that they were chosen with.

    Unlike `apply_decision` this does not ask whether the memes are those of dev. So a meme's verdict does not depend on
    which other memes are asked for; metrics of such verdicts would be too good.
    """
    for name in scored.scores:
        note = rule_note(decision, name, bank, voting)
        if note is None:
            scored.rules[name] = decision.rules[name]
        else:
            scored.notes.append(note)


def rule_of(decision: Decision | None, head: Head, problem: Problem, bank: Mapping[str, Any], voting: Voting) -> Rule:
    """How a head decides with this bank and vote: as chosen where that holds, else officially."""
    if decision is None or rule_note(decision, head, bank, voting) is not None:
        return Rule.official(head, problem)
    return decision.rules[head]


def rule_note(decision: Decision, head: Head, bank: Mapping[str, Any], voting: Voting) -> str | None:
    """Why a head's chosen rule does not hold with this bank and vote; None where it does."""
    if head not in decision.rules:
        return f"{head.upper()} has its official threshold, none was chosen for it."
    if head != "rkc":
        return None
    changed = ["bank"] if decision.bank["sha256"] != bank["sha256"] else []
    changed += ["vote"] if plain(dict(decision.voting)) != plain(asdict(voting)) else []
    if not changed:
        return None
    return (
        f"RKC has its official threshold and no calibration: the stored ones were chosen with another "
        f"{' and another '.join(changed)}; choose anew with `--dev`."
    )
