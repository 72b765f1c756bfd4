"""The impact of a planned change of the bank on verdicts, measured before the change is made.

Shapes: Q queries, C outputs.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.stats import binomtest

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.identical import decided_labels
from ra_hmd.bank.planned_change import PlannedChange, PreviewedBank
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.evidence import format_scores
from ra_hmd.scoring.knn_classifier import knn_classify


def change_impact(
    bank: Bank, queries: Embeddings, planned: PlannedChange, voting: Voting, thresholds: np.ndarray | None = None
) -> dict[str, Any]:
    """Compare verdicts with the bank as it is and as it would be; `thresholds` [C], by default the official ones.

    A query that is the same meme as a decided row has that row's label; the others are voted on.

    Returns:
        `version`, `queries`, `flips` (`id`, `label`, `from`, `to`, `score_before`, `score_after`), `flip_counts` of
        (from → to), `abstained`; where queries are labelled, `paired`: their number, accuracy before and after,
        `gained` and `lost` verdicts, and the two-sided exact p of McNemar's test. An abstention counts as wrong.

    Raises:
        UserError: nothing is planned, or the plan cannot be carried out.
    """
    before = knn_classify(queries, bank, voting, bank.problem, thresholds)
    changed = PreviewedBank(bank, planned)
    after = knn_classify(queries, changed, voting, bank.problem, thresholds)
    old = _with_decided(before.verdict_values(), queries, decided_labels(bank.state_at()))
    new = _with_decided(after.verdict_values(), queries, changed.decided)
    flips = [
        {
            "id": name,
            "label": label,
            "from": one,
            "to": other,
            "score_before": before.scores[line].tolist(),
            "score_after": after.scores[line].tolist(),
        }
        for line, (name, label, one, other) in enumerate(
            zip(queries.ids, queries.labels.tolist(), old, new, strict=True)
        )
        if one != other
    ]
    counts = Counter(f"{flip['from']} → {flip['to']}" for flip in flips)
    abstained = {"before": int(before.votes.abstained.sum()), "after": int(after.votes.abstained.sum())}
    return {
        "version": bank.version,
        "queries": len(queries),
        "flips": flips,
        "flip_counts": dict(counts.most_common()),
        "abstained": abstained,
        "paired": _paired(queries.labels, old, new),
    }


def _with_decided(voted: list[Any], queries: Embeddings, decided: Mapping[str, Any]) -> list[Any]:
    """Verdicts of votes, replaced by the labels of decided rows that are the same memes."""
    contents = queries.contents or [""] * len(queries)
    return [decided.get(content, verdict) for content, verdict in zip(contents, voted, strict=True)]


def _paired(labels: np.ndarray, old: list[Any], new: list[Any]) -> dict[str, Any] | None:
    """The paired comparison on labelled queries, or None where there are none."""
    labelled = (labels != UNLABELLED).reshape(len(labels), -1).all(axis=1)
    if not labelled.any():
        return None
    truth = labels.tolist()
    right = np.array([[verdict == truth[line] for line, verdict in enumerate(side)] for side in (old, new)])
    right = right[:, labelled]
    gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    accuracy = right.mean(axis=1).tolist()
    return {
        "labelled": int(labelled.sum()),
        "accuracy_before": accuracy[0],
        "accuracy_after": accuracy[1],
        "gained": gained,
        "lost": lost,
        "p": p,
    }


def print_change_impact(impact: Mapping[str, Any], limit: int = 50) -> None:
    """Print the flips and counts of `change_impact`."""
    console = Console()
    if impact["flips"]:
        table = Table("query", "label", "from", "to", "score before", "score after")
        for flip in impact["flips"][:limit]:
            scores = format_scores(flip["score_before"]), format_scores(flip["score_after"])
            label = "" if flip["label"] == UNLABELLED else flip["label"]
            table.add_row(*(escape(str(cell)) for cell in (flip["id"], label, flip["from"], flip["to"], *scores)))
        console.print(table)
        if len(impact["flips"]) > limit:
            console.print(f"… and {len(impact['flips']) - limit} more; --json lists all.", markup=False)
    lines = [f"{len(impact['flips'])} of {impact['queries']} verdicts would flip, from version {impact['version']}"]
    lines += [f"  {kind}: {count}" for kind, count in impact["flip_counts"].items()]
    abstained = impact["abstained"]
    if abstained["before"] or abstained["after"]:
        lines.append(f"abstained: {abstained['before']} → {abstained['after']}")
    paired = impact["paired"]
    if paired is not None:
        lines.append(
            f"accuracy on {paired['labelled']} labelled: {paired['accuracy_before']:.3f} → "
            f"{paired['accuracy_after']:.3f} ({paired['gained']} gained, {paired['lost']} lost, exact McNemar p "
            f"{paired['p']:.3g})"
        )
    for line in lines:
        console.print(line, markup=False, highlight=False)
