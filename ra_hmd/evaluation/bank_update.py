"""Effect of a bank update on both bank heads: accuracy after adding n labelled memes, without retraining."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.heads import BANK_HEADS, Head, decide, exact_match
from ra_hmd.core.progress import track
from ra_hmd.evaluation.metrics.estimates import ThresholdedScores, metric_estimate
from ra_hmd.evaluation.metrics.intervals import mean_estimate
from ra_hmd.features.store import Features
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.kernel_classifier import fit_kernel_classifier
from ra_hmd.scoring.knn_classifier import knn_classify
from ra_hmd.scoring.scores import ScoredSet


def nested_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Order of row numbers of which every prefix is a class-balanced random sample.

    Classes are shuffled and interleaved, so that the sample of 8 is part of the sample of 32. The order ends where a
    class is exhausted. Label sets [N, C] cannot be balanced; their order is random.
    """
    generator = np.random.default_rng(seed)
    if labels.ndim > 1:
        return generator.permutation(len(labels))
    shuffled = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    shortest = min(len(rows) for rows in shuffled)
    return np.stack([rows[:shortest] for rows in shuffled], axis=1).reshape(-1)


def check_update(
    place: str | Path, update: Embeddings | Features, sizes: Sequence[int], queries: Mapping[str, Sequence[str]]
) -> None:
    """Check that an update shares no meme with a query set, has every class, and suffices for the sizes.

    Args:
        place: Folder of the update, for the messages.
        update: Rows of the update.
        sizes: Requested numbers of rows.
        queries: Query set → ids.

    Raises:
        UserError: the update does not qualify.
    """
    leaks = []
    for name, ids in queries.items():
        shared = sorted(set(update.ids) & set(ids))
        if shared:
            leaks.append(f"{len(shared)} ids are also in query set {name!r}, for example {shared[:3]}.")
    raise_all(leaks, f"{place}: rows that would be added to the bank are test rows, which is a leak")
    if len(np.unique(update.labels)) < 2:
        raise UserError(f"{place} has one class only; class-balanced samples need all.")
    reach = len(nested_order(update.labels, 0))
    problems = [f"size {size} is not a positive number." for size in sizes if size < 1]
    problems += [f"size {size} is more than the {reach} that {place} gives in equal parts of all classes."
                 for size in sizes if size > reach]  # fmt: skip
    if not sizes:
        problems.append("no size is given; for example 8, 32 and 128.")
    raise_all(problems, "The sizes of the bank update do not fit")


def update_curves(
    sets: Sequence[ScoredSet],
    bank: Embeddings,
    update: Embeddings,
    sizes: Sequence[int],
    voting: Voting,
    kernel: KernelSettings,
    *,
    draws: int = 1,
    samples: int,
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """Evaluate both bank heads on query sets with the bank, and with the bank plus n rows of `update`, n in `sizes`.

    The thresholds [C] stay the same throughout; the parameters of the kernel head are chosen on each bank, once for all
    query sets.

    Args:
        sets: The query sets with the scores of the bank as it is.
        bank: The bank in memory.
        update: Rows to sample from.
        sizes: Numbers of rows to add.
        voting: Settings of the vote.
        kernel: Settings of the kernel head.
        draws: Number of samples of each size; values are means over them, intervals are over the query memes.
        samples: Resamples behind an interval; 0 for none.
        seed: Seed of the resamples, and of the first sample.

    Returns:
        Name of the query set → one entry per size, starting at 0: `added`, and for the RKC `accuracy` and `auroc`
        (`value`, `low`, `high`, with several draws also `std` over them), `gain` and `auroc_gain`: the paired changes
        since size 0 (None there); the same for the KRR under `krr`.
    """
    orders = [nested_order(update.labels, seed + draw) for draw in range(draws)]
    settings = {"samples": samples, "seed": seed}
    starts = [{head: [_thresholded(one, head, one.scores[head])] for head in BANK_HEADS} for one in sets]
    curves: dict[str, list[dict[str, Any]]] = {one.name: [] for one in sets}
    sizes = [0, *sorted(set(sizes))]
    for size in track(((1, size) for size in sizes), "Updating the bank", len(sizes), "sizes"):
        runs: list[dict[Head, list[ThresholdedScores]]] = starts
        if size:
            runs = [{head: [] for head in BANK_HEADS} for _ in sets]
            for order in orders:
                grown = bank.plus(update.select(order[:size]))
                classifier = fit_kernel_classifier(grown, sets[0].problem, kernel)
                for scored, found in zip(sets, runs, strict=True):
                    voted = knn_classify(scored.queries, grown, voting, scored.problem).scores
                    found["rkc"].append(_thresholded(scored, "rkc", voted))
                    found["krr"].append(_thresholded(scored, "krr", classifier.predict(scored.queries, 0).scores))
        for scored, start, found in zip(sets, starts, runs, strict=True):
            measured = {
                head: _measure(scored, found[head], start[head] if size else [], settings) for head in BANK_HEADS
            }
            curves[scored.name].append({"added": size, **measured["rkc"], "krr": measured["krr"]})
    return curves


def _thresholded(scored: ScoredSet, head: Head, scores: np.ndarray) -> ThresholdedScores:
    return ThresholdedScores(scores, scored.rules[head].thresholds)


def _measure(
    scored: ScoredSet, runs: Sequence[ThresholdedScores], start: Sequence[ThresholdedScores], settings: dict[str, Any]
) -> dict[str, Any]:
    """Metrics of R runs, and their gains over `start` (None without it)."""
    measured: dict[str, Any] = {}
    for name in ("accuracy", "auroc"):
        found = metric_estimate(name, runs, scored.labels, scored.problem, **settings).as_dict()
        if len(runs) > 1:
            values = [
                metric_estimate(name, [run], scored.labels, scored.problem, samples=0, seed=0).value for run in runs
            ]
            found["std"] = float(np.std([value for value in values if value is not None], ddof=1))
        measured[name] = found
    if not start:
        return measured | {"gain": None, "auroc_gain": None}
    right = [
        np.mean(
            [exact_match(decide(run.scores, run.thresholds, scored.problem), scored.labels) for run in group], axis=0
        )
        for group in (start, runs)
    ]
    measured["gain"] = mean_estimate(right[1] - right[0], (-1.0, 1.0), **settings).as_dict()
    gained = metric_estimate("auroc", runs, scored.labels, scored.problem, base=start, **settings)
    return measured | {"auroc_gain": gained.as_dict()}
