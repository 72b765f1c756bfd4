"""Common parts of the studies `cross-eval`, `ablate` and `staleness`.

The studies are limited to binary problems, because only there do data sets share their classes.

Shapes: Q queries, N bank rows, R runs.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit

from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.core.problem import BINARY
from ra_hmd.features.store import Features
from ra_hmd.models.head import HeadConfig, MemeHead
from ra_hmd.retrieval.embeddings import Embeddings, hidden_tensor, run_head
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.kernel_classifier import fit_kernel_classifier
from ra_hmd.scoring.knn_classifier import knn_classify


@dataclass(frozen=True)
class HeadView:
    """A feature store as embedded and scored by a head.

    Attributes:
        rows: Ids, labels, embeddings and further views.
        scores: Scores [Q] without a bank: `lrc`, and `lmh` where the store has them.
    """

    rows: Embeddings
    scores: dict[Head, np.ndarray]

    @classmethod
    def of(cls, features: Features, place: str | Path, head: MemeHead) -> "HeadView":
        """Embed and score a store; raise `UserError` if LMH scores are not finite."""
        embedding, logits = run_head(head, hidden_tensor(features))
        scores: dict[Head, np.ndarray] = {}
        if features.lmh_score is not None:
            scores["lmh"] = features.lmh_score[:, 0].astype(np.float64)
            if not np.isfinite(scores["lmh"]).all():
                raise UserError(f"{place} has LMH scores that are not finite; extract it again.")
        scores["lrc"] = expit(logits[:, 0].double().cpu().numpy())
        return cls(Embeddings.with_features(features, embedding.cpu().numpy()), scores)

    def vote(self, bank: Embeddings, voting: Voting) -> np.ndarray:
        """RKC scores [Q] with `bank`; a row with the query's own id does not vote."""
        return knn_classify(self.rows, bank, voting).scores[:, 0]

    def regress(self, bank: Embeddings, kernel: KernelSettings) -> np.ndarray:
        """KRR scores [Q] with `bank`; a row with the query's own id has no part in its score."""
        return regress(self.rows, bank, kernel)


def regress(queries: Embeddings, bank: Embeddings, kernel: KernelSettings) -> np.ndarray:
    """KRR scores [Q] of a binary problem; a row with the query's own id has no part in its score.

    Raises:
        UserError: a view that queries or bank do not have.
    """
    return fit_kernel_classifier(bank, BINARY, kernel).predict(queries, evidence=0).scores[:, 0]


def require_binary(config: HeadConfig, place: str | Path) -> None:
    """Raise `UserError` unless the head in `place` is binary."""
    if config.problem != BINARY:
        raise UserError(
            f"The head in {place} has `problem_type: {config.problem_type}`; this study compares data sets by "
            "the class that they share, of binary heads. Use `ra-hmd evaluate` for the others."
        )
