"""What an evaluation found, as handed from `evaluate` to the report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.core.problem import Problem
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.evidence import plain_score, vote_evidence
from ra_hmd.scoring.knn_classifier import LabelledIndex
from ra_hmd.scoring.operating_point import OperatingPoint
from ra_hmd.scoring.scores import ScoredSet


@dataclass
class Evaluation:
    """Everything the report shows.

    Attributes:
        checkpoint: The head's folder.
        problem: What it decides.
        bank_place: The bank's folder or URI.
        bank: Its rows, as embedded by the head.
        before: [N, D'], the bank as embedded by the head that Stage 2 started from, or None.
        before_place: Where that head is.
        sets: The query sets.
        voting: The vote's settings.
        opened: What `open_labels` said of test data.
        decision: What dev decided, or None: official thresholds.
        metrics: Set name → head → metric → {value, low, high}.
        analysis: Set name → calibration, abstention, comparisons, classes, groups.
        update_place: Folder of the rows added to the bank, or None.
        updates: Set name → update curve; empty without an update.
        evidence: Set name → the first memes with their nearest bank rows.
        samples: Bootstrap resamples.
        seed: Of the intervals and of the update's sample.
        notes: What a reader must know, in sentences.
        commands: The commands that made this.
        manifest: The run's manifest.
    """

    checkpoint: Path
    problem: Problem
    bank_place: Path | str
    bank: LabelledIndex
    voting: Voting
    opened: dict[str, Any]
    decision: OperatingPoint | None
    sets: list[ScoredSet]
    metrics: dict[str, dict[str, dict[str, dict[str, float | None]]]]
    samples: int
    seed: int
    analysis: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: np.ndarray | None = None
    before_place: Path | None = None
    update_place: Path | None = None
    updates: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    evidence: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def embedding(self) -> np.ndarray | None:
        """[N, D], the bank's embeddings where they are in memory."""
        return self.bank.embedding if isinstance(self.bank, Embeddings) else None


def find_evidence(scored: ScoredSet, bank: LabelledIndex, memes: int = 5) -> list[dict[str, Any]]:
    """For the first `memes` of a set: every head's score, and the neighbours behind the KNN vote (`vote_evidence`).

    `rkc_class` is None where the vote abstained.
    """
    verdicts = scored.verdicts("rkc")
    return [
        {
            "id": scored.queries.ids[row],
            "label": scored.labels[row].tolist(),
            "scores": {head: plain_score(values[row], scored.problem) for head, values in scored.scores.items()},
            "rkc_class": None if scored.abstained[row] else verdicts[row].tolist(),
            "neighbours": neighbours,
        }
        for row, neighbours in enumerate(vote_evidence(scored, bank, memes))
    ]


def predictions(scored: ScoredSet) -> list[dict[str, Any]]:
    """One row per meme of a set: set, id, label and each head's score; lists where there are several classes."""
    return [
        {
            "set": scored.name,
            "id": name,
            "label": scored.labels[row].tolist(),
            **{f"{head}_score": plain_score(values[row], scored.problem) for head, values in scored.scores.items()},
        }
        for row, name in enumerate(scored.queries.ids)
    ]
