"""Results of an evaluation."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ra_hmd.core.heads import Head
from ra_hmd.core.manifests import EvaluationManifest
from ra_hmd.core.problem import Problem
from ra_hmd.evaluation.request import EvaluationRequest
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.scoring.evidence import plain_score, vote_evidence
from ra_hmd.scoring.knn_classifier import LabelledIndex
from ra_hmd.scoring.operating_point import OperatingPoint
from ra_hmd.scoring.scores import ScoredSet


class EvaluationSummary(TypedDict):
    """Return value of `evaluate`.

    Keys:
        metrics: Query set → head → metric → `value`, `low`, `high`; over several heads also `std` and `runs`.
        updates: Query set → effect of the bank update, one entry per size; empty without an update.
        notes: Sentences that a reader of the results must know.
        rows: Query set → number of memes.
        output: Output folder.
        report: Path of report.md.
    """

    metrics: dict[str, dict[Head, dict[str, dict[str, Any]]]]
    updates: dict[str, list[dict[str, Any]]]
    notes: list[str]
    rows: dict[str, int]
    output: str
    report: str


@dataclass
class Evaluation:
    """Evaluation of one head: everything that the report shows.

    Attributes:
        request: Arguments of the evaluation.
        checkpoint: Folder of the head.
        problem: What labels mean.
        bank: The labelled examples, embedded by the head.
        operating_point: Thresholds and calibration chosen on dev, or None: the official thresholds.
        opened: Result of `open_labels`: which test splits were opened.
        sets: The scored query sets.
        metrics: Query set → head → metric → `value`, `low`, `high`.
        analysis: Query set → calibration, abstention, comparisons, classes and groups; see `analyse`.
        before: [N, D'], the bank embedded by the head that Stage 2 started from, or None.
        before_place: Folder of that head.
        updates: Query set → update curve; empty without an update.
        kernel: Description of the kernel head (`KernelClassifier.describe`), and as `choices` what other views give.
        evidence: Query set → its first memes with their nearest bank rows.
        notes: Sentences that a reader of the results must know.
        manifest: Manifest of the run.
    """

    request: EvaluationRequest
    checkpoint: Path
    problem: Problem
    bank: LabelledIndex
    operating_point: OperatingPoint | None
    opened: dict[str, Any]
    sets: list[ScoredSet] = field(default_factory=list)
    metrics: dict[str, dict[Head, dict[str, dict[str, Any]]]] = field(default_factory=dict)
    analysis: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: np.ndarray | None = None
    before_place: Path | None = None
    updates: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    kernel: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    manifest: EvaluationManifest = field(default_factory=lambda: EvaluationManifest(kind="evaluation"))

    @property
    def commands(self) -> list[str]:
        """Commands that led to this evaluation."""
        return list(self.request.commands) or [self.request.command()]

    @property
    def embedding(self) -> np.ndarray | None:
        """Embeddings of the bank [N, D]; None for an example bank, which is not in memory."""
        return self.bank.embedding if isinstance(self.bank, Embeddings) else None


def find_evidence(scored: ScoredSet, bank: LabelledIndex, memes: int = 5) -> list[dict[str, Any]]:
    """Scores and neighbours (`vote_evidence`) of the first memes of a set, for evidence.json.

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
    """Rows of predictions.jsonl: set, id, label and the score of each head, which is a list for several classes."""
    return [
        {
            "set": scored.name,
            "id": name,
            "label": scored.labels[row].tolist(),
            **{f"{head}_score": plain_score(values[row], scored.problem) for head, values in scored.scores.items()},
        }
        for row, name in enumerate(scored.queries.ids)
    ]
