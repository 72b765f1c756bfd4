"""What an evaluation found, as handed from `evaluate` to the report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.evaluation.metrics import THRESHOLDS, Head
from ra_hmd.evaluation.scores import ScoredSet
from ra_hmd.retrieval.embedded import Embedded
from ra_hmd.retrieval.voting import Voting

HEAD_NAMES: dict[Head, str] = {
    "lmh": "LMH (language-model head)",
    "lrc": "LRC (logistic regression)",
    "rkc": "RKC (KNN vote over the bank)",
}


@dataclass
class Evaluation:
    """Everything the report shows.

    Attributes:
        checkpoint: The head's folder.
        bank_place: The bank's folder.
        bank: Its rows, as embedded by the head.
        before: [N, D'], the bank as embedded by the head that Stage 2 started from, or None.
        before_place: Where that head is.
        sets: The query sets.
        voting: K and weights.
        metrics: Set name → head → metric → {value, low, high}.
        update_place: Folder of the rows added to the bank, or None.
        updates: Set name → update curve; empty without an update.
        evidence: Set name → the first memes with their nearest bank rows.
        samples: Bootstrap resamples.
        seed: Of the bootstrap and of the update's sample.
        notes: What a reader must know, in sentences.
        commands: The commands that made this.
        manifest: The run's manifest.
    """

    checkpoint: Path
    bank_place: Path
    bank: Embedded
    voting: Voting
    sets: list[ScoredSet]
    metrics: dict[str, dict[str, dict[str, dict[str, float | None]]]]
    samples: int
    seed: int
    before: np.ndarray | None = None
    before_place: Path | None = None
    update_place: Path | None = None
    updates: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    evidence: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)


def find_evidence(scored: ScoredSet, bank: Embedded, memes: int = 5) -> list[dict[str, Any]]:
    """For the first `memes` of a set: every head's score, and the neighbours behind the KNN vote.

    A neighbour's `vote` is what it adds to the score (the votes add up to it); its `share` is its part of all votes
    regardless of sign.
    """
    evidence = []
    for row, name in enumerate(scored.queries.ids[:memes]):
        strength = np.abs(scored.votes[row])
        total = float(strength.sum())
        neighbours = [
            {
                "id": bank.ids[found],
                "label": int(bank.labels[found]),
                "similarity": float(scored.neighbours.similarity[row, rank]),
                "vote": float(scored.votes[row, rank]),
                "share": float(strength[rank]) / total if total else 0.0,
            }
            for rank, found in enumerate(scored.neighbours.rows[row])
            if found >= 0
        ]
        scores = {head: float(values[row]) for head, values in scored.scores.items()}
        verdict = int(scores["rkc"] >= THRESHOLDS["rkc"])
        evidence.append(
            {
                "id": name,
                "label": int(scored.labels[row]),
                "scores": scores,
                "rkc_class": verdict,
                "neighbours": neighbours,
            }
        )
    return evidence


def predictions(scored: ScoredSet) -> list[dict[str, Any]]:
    """One row per meme of a set: set, id, label and each head's score."""
    columns = {f"{head}_score": values.tolist() for head, values in scored.scores.items()}
    return [
        {"set": scored.name, "id": name, "label": int(label), **{key: values[row] for key, values in columns.items()}}
        for row, (name, label) in enumerate(zip(scored.queries.ids, scored.labels, strict=True))
    ]
