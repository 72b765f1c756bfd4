"""Audit of a bank: doubtful labels, copies with different labels, rows without effect, and classes with few rows.

Shapes: N rows, C outputs of the problem (1 if binary), E rows of evidence, K neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.bank.versions import BankRows
from ra_hmd.bank_review.duplicates import Duplicates, opposed_duplicates
from ra_hmd.bank_review.reviewed_bank import ReviewedBank
from ra_hmd.bank_review.settings import AuditSettings
from ra_hmd.core.artifacts import plain
from ra_hmd.core.manifests import (
    BankAuditManifest,
    ContradictedRow,
    DuplicateRow,
    OpposedDuplicates,
    SupportingRow,
    ThinClass,
)
from ra_hmd.core.problem import Problem
from ra_hmd.core.progress import track
from ra_hmd.retrieval.distinct_vectors import ABSENT
from ra_hmd.scoring.bank_kernel import kernel_classifier_of
from ra_hmd.scoring.evidence import plain_score
from ra_hmd.scoring.kernel_classifier import KernelClassifier, KernelPrediction
from ra_hmd.scoring.label_audit import Contradictions, find_contradictions

EVIDENCE = NEIGHBOURS = 20
"""A row matters where it is among so many largest shares, or nearest neighbours, of another."""
SHOWN_ROWS = 5
"""Rows that are named for a contradicted one."""
_BLOCK = 256  # rows between two updates of the progress bar


@dataclass(frozen=True)
class AuditFindings:
    """What the vectors and labels of N rows say of them.

    Attributes:
        contradictions: Rows whose label the others contradict.
        prediction: Score of each row by the others, and the rows with the largest shares of it.
        unused: int64, positions of the rows that matter to no other.
        kernel: Method and parameters of the kernel head.
    """

    contradictions: Contradictions
    prediction: KernelPrediction
    unused: np.ndarray
    kernel: dict[str, Any]


def audit_labels(reviewed: ReviewedBank, settings: AuditSettings, *, show: bool = False) -> AuditFindings:
    """Score each row by the others, and look for labels that are contradicted and for rows without effect.

    The time is quadratic in the rows up to `KernelSettings.exact_rows`. Beyond, each row costs a system of
    its nearest rows and a search, which is exhaustive up to 200,000 rows.

    Raises:
        UserError: a view that the rows do not have, labels that are not the problem's.
    """
    classifier = kernel_classifier_of(reviewed.rows, reviewed.problem, settings.kernel)
    prediction = score_by_the_others(classifier, show=show)
    queries = reviewed.rows.select(np.arange(len(reviewed)), [])
    near = reviewed.rows.nearest(queries, NEIGHBOURS).rows if len(reviewed) else prediction.rows
    return AuditFindings(
        find_contradictions(prediction.scores, reviewed.table.labels, reviewed.problem),
        prediction,
        unused_rows(len(reviewed), prediction.rows, near),
        classifier.describe(),
    )


def score_by_the_others(classifier: KernelClassifier, *, show: bool = False) -> KernelPrediction:
    """The leave-one-out score [N, C] of each row of a classifier, with the `EVIDENCE` rows that add most to it."""
    count, outputs = len(classifier.rows), classifier.problem.outputs
    starts = [np.arange(count)[start : start + _BLOCK] for start in range(0, count, _BLOCK)]
    blocks = track(((len(rows), rows) for rows in starts), "Rows by the others", count, "rows", show=show)
    used = classifier.kernel.used
    parts = [classifier.predict(classifier.rows.select(rows, used), EVIDENCE) for rows in blocks]
    if not parts:
        return KernelPrediction(np.zeros((0, outputs)), np.zeros((0, 0), np.int64), np.zeros((0, 0, outputs)))
    return KernelPrediction(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "rows", "shares"))
    )


def unused_rows(count: int, *named: np.ndarray) -> np.ndarray:
    """Positions of the rows that are in no line of the matrices, of lists of positions with `ABSENT` for none."""
    used = np.zeros(count, bool)
    for rows in named:
        used[rows[rows != ABSENT]] = True
    return np.flatnonzero(~used)


def thin_classes(table: BankRows, problem: Problem, least: int) -> list[ThinClass]:
    """Sources and classes with fewer than `least` rows, the fewest first; also those without any."""
    member = problem.membership(table.labels)
    if problem.kind == "binary":
        member = np.concatenate([~member, member], axis=1)
    names, source = np.unique(np.array(table.sources, dtype=object), return_inverse=True)
    counts = np.zeros((len(names), member.shape[1]), np.int64)
    np.add.at(counts, source.reshape(-1), member.astype(np.int64))
    found = [
        ThinClass(source=str(names[place]), label=int(label), rows=int(counts[place, label]))
        for place, label in np.argwhere(counts < least)
    ]
    return sorted(found, key=lambda entry: (entry.rows, entry.source, entry.label))


def audit_bank(
    reviewed: ReviewedBank, checkpoint: str | Path, settings: AuditSettings, *, show: bool = False
) -> BankAuditManifest:
    """Audit a bank.

    Args:
        reviewed: The bank.
        checkpoint: Folder of the head.
        settings: Settings of the audit.
        show: Whether to show a progress bar.

    Raises:
        UserError: see `audit_labels`.
    """
    found, table = audit_labels(reviewed, settings, show=show), reviewed.table
    return BankAuditManifest.new(
        **reviewed.record,
        bank=dict(reviewed.state),
        checkpoint=str(checkpoint),
        fingerprint=plain(dict(reviewed.fingerprint)),
        arguments=settings.model_dump(mode="json"),
        kernel=plain(found.kernel),
        problem={"kind": reviewed.problem.kind, "outputs": reviewed.problem.outputs},
        rows=len(reviewed),
        contradicted=[entry.to_json() for entry in _contradicted(found, table, reviewed.problem)],
        duplicates=[_duplicates(entry, table).to_json() for entry in opposed_duplicates(table, settings.near)],
        unused=[table.ids[row] for row in found.unused.tolist()],
        thin=[entry.to_json() for entry in thin_classes(table, reviewed.problem, settings.thin)],
        notes=list(_notes(found, table)),
    )


def _contradicted(found: AuditFindings, table: BankRows, problem: Problem) -> Iterator[ContradictedRow]:
    contradictions, prediction = found.contradictions, found.prediction
    for row in contradictions.worst.tolist():
        named = zip(prediction.rows[row].tolist(), prediction.shares[row], strict=True)
        rows = [
            SupportingRow(id=table.ids[other], label=table.labels[other].tolist(), share=plain_score(share, problem))
            for other, share in named
            if other != ABSENT
        ]
        yield ContradictedRow(
            id=table.ids[row],
            label=table.labels[row].tolist(),
            suggested=contradictions.suggested[row].tolist(),
            probability=float(contradictions.probability[row]),
            score=plain_score(prediction.scores[row], problem),
            source=table.sources[row],
            rows=rows[:SHOWN_ROWS],
        )


def _duplicates(found: Duplicates, table: BankRows) -> OpposedDuplicates:
    rows = [
        DuplicateRow(
            id=table.ids[row],
            label=table.labels[row].tolist(),
            source=table.sources[row],
            decided=bool(table.decided[row]),
        )
        for row in found.rows
    ]
    return OpposedDuplicates(kind=found.kind, distance=found.distance, rows=rows)


def _notes(found: AuditFindings, table: BankRows) -> Iterator[str]:
    """What could not be looked at."""
    count = len(table)
    if found.contradictions.note:
        yield found.contradictions.note
    no_content = sum(not content for content in table.contents)
    if no_content:
        yield f"{no_content} of {count} rows have no hash of image and caption: their exact copies are not found."
    hashed = [bool(pdq) or bool(short) for pdq, short in zip(table.pdqs, table.image_hashes, strict=True)]
    able = sum(bool(digest) and has for digest, has in zip(table.caption_digests, hashed, strict=True))
    if able < count:
        yield f"{count - able} of {count} rows have no image hash or no caption: their near copies are not found."
    if found.kernel["method"] == "local":
        yield f"Each of the {count} rows was scored by its nearest rows alone."
