"""The impact of a planned change of the bank on verdicts, measured before the change is made.

Shapes: Q queries, C outputs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.stats import binomtest

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.identical import decided_labels
from ra_hmd.bank.planned_change import PlannedChange, PreviewedBank
from ra_hmd.core.heads import BANK_HEADS, Head, decide, official_thresholds
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.bank_kernel import previewed_kernel
from ra_hmd.scoring.evidence import format_scores
from ra_hmd.scoring.kernel_classifier import KernelClassifier
from ra_hmd.scoring.knn_classifier import knn_classify, with_abstentions


def change_impact(
    bank: Bank,
    queries: Embeddings,
    planned: PlannedChange,
    voting: Voting,
    thresholds: np.ndarray | None = None,
    kernel: KernelClassifier | None = None,
    kernel_thresholds: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compare verdicts of RKC and KRR with the bank as it is and as it would be.

    A query that is the same meme as a decided row has that row's label; the heads decide on the others.

    Args:
        bank: The bank as it is.
        queries: Q queries, with the views of the kernel.
        planned: The change.
        voting: Settings of the vote.
        thresholds: [C], of the vote; default: the official ones.
        kernel: The kernel head of the bank as it is; without it the KRR is left out.
        kernel_thresholds: [C], of the KRR; default: the official ones.

    Returns:
        `version`, `queries`, `flips` (`id`, `label`, `from`, `to`, `score_before`, `score_after`), `flip_counts` of
        (from → to), `abstained`; where queries are labelled, `paired`: their number, accuracy before and after,
        `gained` and `lost` verdicts, and the two-sided exact p of McNemar's test. An abstention counts as wrong. These
        are of the RKC; `krr` has `flips`, `flip_counts` and `paired` of the KRR, which abstains where the RKC does, and
        is None without a kernel head.

    Raises:
        UserError: nothing is planned, or the plan cannot be carried out; a view that the queries do not have.
    """
    before = knn_classify(queries, bank, voting, bank.problem, thresholds)
    changed = PreviewedBank(bank, planned)
    after = knn_classify(queries, changed, voting, bank.problem, thresholds)
    decided = decided_labels(bank.state_at()), changed.decided
    rkc = _comparison(
        queries, decided, (before.scores, after.scores), (before.verdict_values(), after.verdict_values())
    )
    krr = None
    if kernel is not None:
        limits = official_thresholds("krr", bank.problem) if kernel_thresholds is None else kernel_thresholds
        heads = kernel, previewed_kernel(kernel, bank, changed)
        scores = tuple(head.predict(queries, evidence=0).scores for head in heads)
        verdicts = tuple(
            with_abstentions(decide(values, limits, bank.problem), found.votes.abstained)
            for values, found in zip(scores, (before, after), strict=True)
        )
        krr = _comparison(queries, decided, scores, verdicts)
    abstained = {"before": int(before.votes.abstained.sum()), "after": int(after.votes.abstained.sum())}
    return {"version": bank.version, "queries": len(queries), **rkc, "abstained": abstained, "krr": krr}


def _comparison(
    queries: Embeddings,
    decided: Sequence[Mapping[str, Any]],
    scores: Sequence[np.ndarray],
    verdicts: Sequence[list[Any]],
) -> dict[str, Any]:
    """`flips`, `flip_counts` and `paired` of one head; each argument but the queries has a value before and after."""
    old, new = (_with_decided(said, queries, by_person) for said, by_person in zip(verdicts, decided, strict=True))
    flips = [
        {
            "id": name,
            "label": label,
            "from": one,
            "to": other,
            "score_before": scores[0][line].tolist(),
            "score_after": scores[1][line].tolist(),
        }
        for line, (name, label, one, other) in enumerate(
            zip(queries.ids, queries.labels.tolist(), old, new, strict=True)
        )
        if one != other
    ]
    counts = Counter(f"{flip['from']} → {flip['to']}" for flip in flips)
    return {
        "flips": flips,
        "flip_counts": dict(counts.most_common()),
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
    """Print the flips and counts of `change_impact`, first of the RKC, then of the KRR."""
    console = Console()
    print(f"From version {impact['version']}:")
    for head in BANK_HEADS:
        found = impact if head == "rkc" else impact[head]
        if found is not None:
            _print_comparison(console, head, found, impact["queries"], limit)
    abstained = impact["abstained"]
    if abstained["before"] or abstained["after"]:
        print(f"abstained: {abstained['before']} → {abstained['after']}")


def _print_comparison(console: Console, head: Head, found: Mapping[str, Any], queries: int, limit: int) -> None:
    flips, paired = found["flips"], found["paired"]
    if flips:
        table = Table("query", "label", "from", "to", "score before", "score after")
        for flip in flips[:limit]:
            scores = format_scores(flip["score_before"]), format_scores(flip["score_after"])
            label = "" if flip["label"] == UNLABELLED else flip["label"]
            table.add_row(*(escape(str(cell)) for cell in (flip["id"], label, flip["from"], flip["to"], *scores)))
        console.print(table)
        if len(flips) > limit:
            console.print(f"… and {len(flips) - limit} more; --json lists all.", markup=False)
    print(f"{head.upper()}: {len(flips)} of {queries} verdicts would flip")
    for kind, count in found["flip_counts"].items():
        print(f"  {kind}: {count}")
    if paired is not None:
        print(
            f"  accuracy on {paired['labelled']} labelled: {paired['accuracy_before']:.3f} → "
            f"{paired['accuracy_after']:.3f} ({paired['gained']} gained, {paired['lost']} lost, exact McNemar p "
            f"{paired['p']:.3g})"
        )
