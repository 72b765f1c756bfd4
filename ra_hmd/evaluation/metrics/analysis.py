"""Analysis of a query set beyond its metrics: calibration, abstention, comparisons, classes and groups.

Shapes: Q memes, C outputs of the problem.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ra_hmd.core.heads import BANK_HEADS, Head
from ra_hmd.evaluation.metrics.estimates import ThresholdedScores, estimates, metric_estimate, per_class
from ra_hmd.evaluation.metrics.groups import breakdown
from ra_hmd.evaluation.metrics.intervals import mean_estimate, rate
from ra_hmd.evaluation.metrics.selective import abstention_curve, aurc, confidence
from ra_hmd.evaluation.metrics.significance import OtherRun, compare_heads, compare_run
from ra_hmd.scoring.calibration import brier_losses, log_losses, reliability, stated_cases
from ra_hmd.scoring.scores import ScoredSet


def analyse(
    scored: ScoredSet, *, others: Sequence[OtherRun], groups: Sequence[str], samples: int, seed: int
) -> dict[str, Any]:
    """Analyse a query set, as analysis.json holds it.

    Args:
        scored: The query set; notes on what could not be compared are added to it.
        others: Earlier runs to compare with.
        groups: Fields to break results down by.
        samples: Resamples behind intervals without a closed form.
        seed: Seed of the resamples.

    Returns:
        `calibration` and `abstention` per head, `comparisons` of heads, `runs` (comparisons with each other run),
        `groups`, and for several classes `classes` per head.
    """
    settings = {"samples": samples, "seed": seed}
    runs = []
    for other in others:
        found, notes = compare_run(scored, other, **settings)
        runs.append({"run": str(other.place), "comparisons": found})
        scored.notes += notes
    result = {
        "calibration": {head: _calibration(scored, head, **settings) for head in scored.scores},
        "abstention": {head: _abstention(scored, head, **settings) for head in scored.scores},
        "comparisons": compare_heads(scored, **settings),
        "runs": runs,
        "groups": [breakdown(scored, text, **settings) for text in groups],
    }
    if scored.problem.kind != "binary":
        result["classes"] = {
            head: per_class(scores, scored.labels, scored.rules[head].thresholds, scored.problem, **settings)
            for head, scores in scored.scores.items()
        }
    return result


def _answered(scored: ScoredSet, head: Head) -> np.ndarray:
    """Row numbers of the memes on which a head did not abstain."""
    return np.flatnonzero(~scored.abstained) if head in BANK_HEADS else np.arange(len(scored))


def _calibration(scored: ScoredSet, head: Head, *, samples: int, seed: int) -> dict[str, Any] | None:
    """ECE, Brier score, NLL and bins, `before` and `after` calibration; None where the head abstained on all memes."""
    rows = _answered(scored, head)
    if not len(rows):
        return None
    worst_brier = 2.0 if scored.problem.kind == "single_label" else 1.0
    stages = {"before": False} | ({"after": True} if scored.rules[head].calibration.kind != "none" else {})
    found: dict[str, Any] = {"kind": scored.rules[head].calibration.kind, "before": None, "after": None}
    for stage, calibrated in stages.items():
        probabilities, labels = scored.probabilities(head, calibrated=calibrated)[rows], scored.labels[rows]
        bins = reliability(*stated_cases(probabilities, labels, scored.problem))
        losses = {
            "brier": (brier_losses(probabilities, labels, scored.problem), (0.0, worst_brier)),
            "nll": (log_losses(probabilities, labels, scored.problem), None),
        }
        found[stage] = {
            "ece": bins.error,
            **{
                name: mean_estimate(values, bounds, samples=samples, seed=seed).as_dict()
                for name, (values, bounds) in losses.items()
            },
            "bins": bins.as_dict(),
        }
    return found


def _abstention(scored: ScoredSet, head: Head, *, samples: int, seed: int) -> dict[str, Any]:
    """`aurc` and `curve`; where the vote abstained also `abstained`, `coverage` and metrics of the `answered` ones."""
    rule, right = scored.rules[head], scored.right(head)
    abstained = scored.abstained if head in BANK_HEADS else None
    certain = confidence(scored.probabilities(head), scored.verdicts(head), scored.problem, abstained)
    values = (scored.scores[head], scored.labels, rule.thresholds, scored.problem)

    def macro_f1(rows: np.ndarray) -> float:
        kept = [ThresholdedScores(values[0][rows], rule.thresholds)]
        return float(metric_estimate("macro_f1", kept, values[1][rows], scored.problem, samples=0, seed=0).value or 0)

    found: dict[str, Any] = {
        "aurc": aurc(certain, right),
        "curve": abstention_curve(certain, right, macro_f1),
    }
    if abstained is not None and abstained.any():
        rows = _answered(scored, head)
        found |= {"abstained": int(abstained.sum()), "coverage": rate(~abstained), "answered": {}}
        if len(rows):
            answered = estimates(
                values[0][rows], values[1][rows], rule.thresholds, scored.problem, samples=samples, seed=seed
            )
            found["answered"] = {name: item.as_dict() for name, item in answered.items()}
    return found
