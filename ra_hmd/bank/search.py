"""The neighbours behind verdicts, as JSON and as tables."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.change_impact import verdicts
from ra_hmd.bank.embed_features import embed_store
from ra_hmd.core.artifacts import plain, run_manifest
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.features.test_lock import open_labels
from ra_hmd.retrieval.voting import Voting

_SHOWN = 3


def search_evidence(
    bank: Bank,
    checkpoint: str | Path,
    store: str | Path,
    voting: Voting,
    thresholds: np.ndarray,
    *,
    final: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Judge the memes of a feature store by the bank; `thresholds` [C] of the scores.

    Returns:
        A manifest (`kind: bank_search`; bank, version, voting, thresholds, fingerprint, and what `open_labels` tells)
        with `queries`: per meme `id`, `label` (None if unknown), `verdict`, `identical` (the row whose label is the
        verdict, because a person gave it to this very meme; None if there is none), `score` (one per output) and
        `neighbours`, each a row of the bank with `similarity` and `vote`, what it adds to each score.

    Raises:
        UserError: head, store and bank do not belong together; a query without any neighbour; labelled test data
            without `final`.
    """
    asked = embed_store(checkpoint, store, labelled=False)
    asked.check_for(bank)
    opened = open_labels({store: asked.features}, [checkpoint], final=final, command=command)
    near = bank.nearest(asked.embedded, voting.topk)
    votes = voting.vote(near, bank.labels, bank.problem)
    scores, decided = votes.scores, verdicts(votes, bank.problem, thresholds)
    answers = bank.answers(asked.embedded.contents or [""] * len(asked.embedded))
    lines = []
    for line, name in enumerate(asked.embedded.ids):
        label = asked.embedded.labels[line].tolist()
        lines.append(
            {
                "id": name,
                "label": None if UNLABELLED in (label if isinstance(label, list) else [label]) else label,
                "verdict": decided[line] if answers[line] is None else bank.labels[answers[line]].tolist(),
                "identical": None if answers[line] is None else bank.row(answers[line]),
                "score": scores[line].tolist(),
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
    arguments = {"bank": bank.place, "checkpoint": checkpoint, "queries": store, "voting": vars(voting)}
    return run_manifest(
        "bank_search",
        **opened,
        arguments=plain(arguments),
        bank_version=bank.version,
        thresholds=thresholds.tolist(),
        fingerprint=bank.fingerprint,
        queries=lines,
    )


def print_evidence(evidence: dict[str, Any], count: int) -> None:
    """The first `count` queries, each with its nearest neighbours."""
    table = Table("query", "label", "verdict", "score", "nearest neighbours (label, similarity)")
    for query in evidence["queries"][:count]:
        near = "\n".join(
            f"{row['id']} ({row['label']}, {row['similarity']:.3f})" for row in query["neighbours"][:_SHOWN]
        )
        label = "" if query["label"] is None else query["label"]
        table.add_row(
            *(escape(str(cell)) for cell in (query["id"], label, query["verdict"], _score(query["score"]), near))
        )
    console = Console()
    console.print(table)
    left = len(evidence["queries"]) - count
    if left > 0:
        console.print(f"… and {left} more; --output writes all.", markup=False)


def print_effect(result: dict[str, Any], limit: int = 50) -> None:
    """Flips and counts of `effect`."""
    console = Console()
    if result["flips"]:
        table = Table("query", "label", "from", "to", "score before", "score after")
        for flip in result["flips"][:limit]:
            scores = _score(flip["score_before"]), _score(flip["score_after"])
            label = "" if flip["label"] == UNLABELLED else flip["label"]
            table.add_row(*(escape(str(cell)) for cell in (flip["id"], label, flip["from"], flip["to"], *scores)))
        console.print(table)
        if len(result["flips"]) > limit:
            console.print(f"… and {len(result['flips']) - limit} more; --json lists all.", markup=False)
    lines = [f"{len(result['flips'])} of {result['queries']} verdicts would flip, from version {result['version']}"]
    lines += [f"  {kind}: {count}" for kind, count in result["flip_counts"].items()]
    abstained = result["abstained"]
    if abstained["before"] or abstained["after"]:
        lines.append(f"abstained: {abstained['before']} → {abstained['after']}")
    paired = result["paired"]
    if paired is not None:
        lines.append(
            f"accuracy on {paired['labelled']} labelled: {paired['accuracy_before']:.3f} → "
            f"{paired['accuracy_after']:.3f} ({paired['gained']} gained, {paired['lost']} lost, exact McNemar p "
            f"{paired['p']:.3g})"
        )
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _score(values: list[float]) -> str:
    return ", ".join(f"{value:+.3f}" for value in values)
