"""The neighbours behind verdicts, as JSON values and as a table.

Shapes: Q queries, K neighbours, C outputs of the problem.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.embed_features import embed_store
from ra_hmd.core.artifacts import plain
from ra_hmd.core.manifests import BankSearchManifest
from ra_hmd.core.problem import UNLABELLED, Problem
from ra_hmd.features.test_lock import open_labels
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.knn_classifier import LabelledIndex, knn_classify
from ra_hmd.scoring.scores import ScoredSet

_NEIGHBOURS_SHOWN = 3


def vote_evidence(scored: ScoredSet, bank: LabelledIndex, memes: int | None = None) -> Iterator[list[dict[str, Any]]]:
    """For each meme of a set (of the first `memes`): the neighbours behind the KNN vote, the nearest first.

    A neighbour's `vote` is what it adds to the score (the votes add up to it), of several classes a list; its `share`
    is its part of all votes regardless of sign.
    """
    ids, labels = bank.ids, bank.labels  # an example bank computes `labels` on each access
    for line in range(len(scored))[:memes]:
        strength = np.abs(scored.votes[line]).sum(axis=1)
        total = float(strength.sum())
        yield [
            {
                "id": ids[row],
                "label": labels[row].tolist(),
                "similarity": float(scored.neighbours.similarity[line, rank]),
                "vote": plain_score(scored.votes[line, rank], scored.problem),
                "share": float(strength[rank]) / total if total else 0.0,
            }
            for rank, row in enumerate(scored.neighbours.rows[line])
            if row >= 0
        ]


def kernel_evidence(scored: ScoredSet, bank: LabelledIndex) -> Iterator[tuple[list[dict[str, Any]], Any]]:
    """For each meme of a set: the rows that add most to its KRR score, regardless of sign, and what all others add.

    A row's `share` is what it adds: the shares and the rest add up to the score; of several classes they are lists.
    """
    found, problem = scored.kernel, scored.problem
    assert found is not None
    ids, labels, rest = bank.ids, bank.labels, found.rest
    for line in range(len(scored)):
        rows = [
            {"id": ids[row], "label": labels[row].tolist(), "share": plain_score(share, problem)}
            for row, share in zip(found.rows[line], found.shares[line], strict=True)
            if row >= 0
        ]
        yield rows, plain_score(rest[line], problem)


def plain_score(values: np.ndarray, problem: Problem) -> float | list[float]:
    """Values [C] for JSON: one number if binary, else a list."""
    return float(values[0]) if problem.kind == "binary" else values.tolist()


def search_evidence(
    bank: Bank,
    checkpoint: str | Path,
    store: str | Path,
    voting: Voting,
    thresholds: np.ndarray,
    *,
    final: bool = False,
    command: str = "",
) -> BankSearchManifest:
    """Classify the memes of a feature store by the bank; `thresholds` [C] of the scores.

    Returns:
        A manifest (`kind: bank_search`; bank, version, voting, thresholds, fingerprint, and the record of
        `open_labels`) with `queries`: per meme `id`, `label` (None if unknown), `verdict`, `identical` (the row whose
        label is the verdict, because a person gave it to this very meme; None if there is none), `score` (one per
        output) and `neighbours`, each a row of the bank with `similarity` and `vote`, what it adds to each score.

    Raises:
        UserError: head, store and bank do not belong together; a query without any neighbour; labelled test data
            without `final`.
    """
    embedded = embed_store(checkpoint, store, labelled=False)
    embedded.check_for(bank)
    opened = open_labels({store: embedded.features}, [checkpoint], final=final, command=command)
    queries = embedded.embeddings
    found = knn_classify(queries, bank, voting, bank.problem, thresholds)
    near, votes, verdicts = found.neighbours, found.votes, found.verdict_values()
    decided = bank.decided_positions(queries.contents or [""] * len(queries))
    lines = []
    for line, name in enumerate(queries.ids):
        label, answer = queries.labels[line].tolist(), decided[line]
        lines.append(
            {
                "id": name,
                "label": None if UNLABELLED in (label if isinstance(label, list) else [label]) else label,
                "verdict": verdicts[line] if answer is None else bank.labels[answer].tolist(),
                "identical": None if answer is None else bank.row(answer),
                "score": votes.scores[line].tolist(),
                "neighbours": [
                    bank.row(near.rows[line, rank])
                    | {
                        "similarity": float(near.similarity[line, rank]),
                        "vote": votes.contributions[line, rank].tolist(),
                    }
                    for rank in range(int(near.present[line].sum()))
                ],
            }
        )
    arguments = {"bank": bank.location, "checkpoint": checkpoint, "queries": store, "voting": vars(voting)}
    return BankSearchManifest.new(
        **opened,
        arguments=plain(arguments),
        bank_version=bank.version,
        thresholds=thresholds.tolist(),
        fingerprint=bank.fingerprint,
        queries=lines,
    )


def print_evidence(evidence: BankSearchManifest, count: int) -> None:
    """Print the first `count` queries of `search_evidence`, each with its nearest neighbours."""
    table = Table("query", "label", "verdict", "score", "nearest neighbours (label, similarity)")
    for query in evidence.queries[:count]:
        near = "\n".join(
            f"{row['id']} ({row['label']}, {row['similarity']:.3f})" for row in query["neighbours"][:_NEIGHBOURS_SHOWN]
        )
        label = "" if query["label"] is None else query["label"]
        cells = query["id"], label, query["verdict"], format_scores(query["score"]), near
        table.add_row(*(escape(str(cell)) for cell in cells))
    console = Console()
    console.print(table)
    left = len(evidence.queries) - count
    if left > 0:
        console.print(f"… and {left} more; --output writes all.", markup=False)


def format_scores(values: list[float]) -> str:
    """Scores with sign and three decimals, separated by commas."""
    return ", ".join(f"{value:+.3f}" for value in values)
