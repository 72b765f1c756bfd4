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
from ra_hmd.evaluation.bootstrap import Estimate, interval
from ra_hmd.evaluation.metrics import Head, binary_metrics, resampled_metric
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
    """Metrics of R runs' scores [Q] on the same memes: the mean over runs, with its interval over resampled memes.

    The interval tells what other memes would give, the standard deviation what another run (seed, sample) would.
    """
    cell: Cell = {}
    for name in names:
        values = [binary_metrics(scores, labels, threshold, (name,))[name] for scores in runs]
        known = bool(values) and None not in values
        low = high = None
        if known:
            resampled = [resampled_metric(name, scores, labels, threshold) for scores in runs]
            low, high = interval(
                lambda rows, parts=resampled: np.mean([part(rows) for part in parts], axis=0),
                len(labels),
                samples=samples,
                seed=seed,
            )
        cell[name] = {
            "value": statistics.fmean(values) if known else None,
            "low": low,
            "high": high,
            "runs": values,
            "std": statistics.stdev(values) if known and len(values) > 1 else None,
        }
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
) -> dict[str, float | None]:
    """The metric's mean over `runs` minus that over `base`, on the same memes [Q], with its paired interval.

    Returns:
        `value`, `low`, `high`; None where the metric is undefined.
    """
    means: list[float] = []
    for group in (runs, base):
        values = [binary_metrics(scores, labels, threshold, (name,))[name] for scores in group]
        if not values or None in values:
            return Estimate(None).as_dict()
        means.append(statistics.fmean(values))
    after, before = ([resampled_metric(name, scores, labels, threshold) for scores in group] for group in (runs, base))
    low, high = interval(
        lambda rows: np.mean([part(rows) for part in after], axis=0) - np.mean([part(rows) for part in before], axis=0),
        len(labels),
        samples=samples,
        seed=seed,
    )
    return Estimate(means[0] - means[1], low, high).as_dict()


def error_bars(items: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Lengths [2, N] of the error bars below and above the values, 0 where there is no interval."""
    # A percentile interval need not hold the value itself; a bar's length cannot be negative.
    bounds = [
        (0.0, 0.0) if i["low"] is None else (max(0.0, i["value"] - i["low"]), max(0.0, i["high"] - i["value"]))
        for i in items
    ]
    return np.array(bounds).reshape(-1, 2).T
