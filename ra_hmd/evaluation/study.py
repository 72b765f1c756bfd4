"""What the studies share: stores as a head sees them, and scores of several runs as one estimate.

Studies (`cross-eval`, `ablate`, `staleness`) are of binary problems: only there do data sets share their classes.

Shapes: Q queries, N bank rows, R runs.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from ra_hmd.errors import UserError
from ra_hmd.evaluation.estimates import Judged, metric_estimate
from ra_hmd.evaluation.intervals import Estimate
from ra_hmd.evaluation.metrics import Head
from ra_hmd.features.store import Features
from ra_hmd.models.head import HeadConfig, MemeHead
from ra_hmd.problem import BINARY
from ra_hmd.retrieval.embedded import Embedded, hidden_tensor, run_head
from ra_hmd.retrieval.voting import Voting

STUDY_METRICS = ("accuracy", "auroc")
METRIC_TITLES = {"accuracy": "accuracy", "auroc": "AUROC"}

Cell = dict[str, dict[str, Any]]
"""Metric → `value` (mean over runs), `low`, `high` (interval over memes), `runs` (each value), `std` (over runs)."""


@dataclass(frozen=True)
class Seen:
    """A store as a head sees it.

    Attributes:
        rows: Ids, labels, embeddings.
        scores: Scores [Q] that need no bank: `lrc`, and `lmh` where the store has them.
    """

    rows: Embedded
    scores: dict[Head, np.ndarray]

    @classmethod
    def of(cls, features: Features, place: str | Path, head: MemeHead) -> "Seen":
        """Raises `UserError` where LMH scores are not finite."""
        embedding, logits = run_head(head, hidden_tensor(features))
        scores: dict[Head, np.ndarray] = {}
        if features.lmh_score is not None:
            scores["lmh"] = features.lmh_score[:, 0].astype(np.float64)
            if not np.isfinite(scores["lmh"]).all():
                raise UserError(f"{place} has LMH scores that are not finite; extract it again.")
        scores["lrc"] = expit(logits[:, 0].double().cpu().numpy())
        return cls(Embedded(features.ids, features.labels, embedding.cpu().numpy()), scores)

    def vote(self, bank: Embedded, voting: Voting) -> np.ndarray:
        """RKC scores [Q] against `bank`; a row with the query's own id has no vote."""
        return voting.vote(bank.nearest(self.rows, voting.topk), bank.labels).scores[:, 0]


def require_binary(config: HeadConfig, place: str | Path) -> None:
    """Raise `UserError` unless the head in `place` decides between two classes."""
    if config.problem != BINARY:
        raise UserError(
            f"The head in {place} has `problem_type: {config.problem_type}`; this study compares data sets by "
            "the class that they share, of binary heads. Use `ra-hmd evaluate` for the others."
        )


def estimate(
    runs: Sequence[np.ndarray],
    labels: np.ndarray,
    threshold: float,
    *,
    samples: int,
    seed: int,
    names: Sequence[str] = STUDY_METRICS,
) -> Cell:
    """Metrics of R runs' scores [Q] on the same memes: the mean over runs, with its interval over memes.

    The interval tells what other memes would give, the standard deviation what another run (seed, sample) would.
    """
    cell: Cell = {}
    judged = [Judged.binary(scores, threshold) for scores in runs]
    for name in names:
        values = [metric_estimate(name, [one], labels, samples=0, seed=seed).value for one in judged]
        known = [value for value in values if value is not None]
        whole = bool(values) and len(known) == len(values)
        found = metric_estimate(name, judged, labels, samples=samples, seed=seed) if whole else Estimate(None)
        spread = statistics.stdev(known) if whole and len(known) > 1 else None
        cell[name] = {**found.as_dict(), "runs": values, "std": spread}
    return cell


def paired_change(
    runs: Sequence[np.ndarray],
    base: Sequence[np.ndarray],
    labels: np.ndarray,
    threshold: float,
    *,
    samples: int,
    seed: int,
    name: str = "auroc",
) -> dict[str, float | str | None]:
    """The metric's mean over `runs` minus that over `base`, on the same memes [Q], with its paired interval.

    Returns:
        `value`, `low`, `high`; None where the metric is undefined.
    """
    if not runs or not base:
        return Estimate(None).as_dict()
    after, before = ([Judged.binary(scores, threshold) for scores in group] for group in (runs, base))
    return metric_estimate(name, after, labels, base=before, samples=samples, seed=seed).as_dict()


def error_bars(items: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Lengths [2, N] of the error bars below and above the values, 0 where there is no interval."""
    # Of an earlier version an interval need not hold the value itself; a bar's length cannot be negative.
    bounds = [
        (0.0, 0.0) if i["low"] is None else (max(0.0, i["value"] - i["low"]), max(0.0, i["high"] - i["value"]))
        for i in items
    ]
    return np.array(bounds).reshape(-1, 2).T
