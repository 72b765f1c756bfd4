"""Effect of a bank update on the KNN vote: accuracy after adding n labelled memes, without retraining."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.heads import exact_match
from ra_hmd.core.problem import Problem
from ra_hmd.evaluation.metrics.estimates import estimates
from ra_hmd.evaluation.metrics.intervals import paired_gain
from ra_hmd.features.store import Features
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.knn_classifier import knn_classify


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


def update_curve(
    queries: Embeddings,
    bank: Embeddings,
    update: Embeddings,
    sizes: Sequence[int],
    voting: Voting,
    *,
    thresholds: np.ndarray,
    problem: Problem,
    samples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Evaluate the KNN vote on one query set with the bank, and with the bank plus n rows of `update`, n in `sizes`.

    The thresholds [C] stay the same throughout.

    Returns:
        One entry per size, starting at 0: `added`, `accuracy` and `auroc` (`value`, `low`, `high`), and `gain`: the
        paired change in accuracy since size 0 (None there).
    """
    order = nested_order(update.labels, seed)
    curve: list[dict[str, Any]] = []
    correct_at_start = None
    for size in [0, *sorted(set(sizes))]:
        grown = bank.plus(update.select(order[:size]))
        predicted = knn_classify(queries, grown, voting, problem, thresholds)
        scores, correct = predicted.scores, exact_match(predicted.verdicts, queries.labels)
        found = estimates(
            scores, queries.labels, thresholds, problem, samples=samples, seed=seed, names=("accuracy", "auroc")
        )
        gain = None
        if correct_at_start is None:
            correct_at_start = correct
        else:
            gain = paired_gain(correct_at_start, correct, samples=samples, seed=seed).as_dict()
        curve.append({"added": size, **{name: item.as_dict() for name, item in found.items()}, "gain": gain})
    return curve
