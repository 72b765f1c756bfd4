"""The three heads' scores of a query set against a bank.

Shapes: N bank rows, Q queries, H hidden size, D embedding, K neighbours.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import expit

from ra_hmd.errors import UserError
from ra_hmd.evaluation.metrics import Head
from ra_hmd.features.store import Features
from ra_hmd.models.head import MemeHead
from ra_hmd.retrieval.embedded import Embedded, hidden_tensor, run_head
from ra_hmd.retrieval.knn import Neighbours
from ra_hmd.retrieval.voting import Voting


@dataclass(frozen=True)
class ScoredSet:
    """A query set with the scores of its heads.

    Attributes:
        name: Of the set.
        queries: Ids, labels and embeddings of the queries.
        scores: Head to scores [Q]; without `lmh` where the store has none.
        neighbours: Of the RKC.
        votes: [Q, K], what each neighbour adds to the RKC score.
        in_bank: How many query ids also occur in the bank.
    """

    name: str
    queries: Embedded
    neighbours: Neighbours
    votes: np.ndarray
    in_bank: int
    scores: dict[Head, np.ndarray] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        """[Q], 0 or 1."""
        return self.queries.labels


def score_set(
    name: str, place: str | Path, features: Features, head: MemeHead, bank: Embedded, voting: Voting
) -> ScoredSet:
    """Score a query set with every head that it has scores for.

    Raises:
        UserError: LMH scores that are not finite.
    """
    embedding, logits = run_head(head, hidden_tensor(features))
    queries = Embedded(features.ids, features.labels, embedding.cpu().numpy())
    neighbours = bank.nearest(queries, voting.topk)
    votes = voting.vote(neighbours, bank.labels).contributions[..., 0]
    scores: dict[Head, np.ndarray] = {}
    if features.lmh_score is not None:
        scores["lmh"] = features.lmh_score[:, 0].astype(np.float64)
        if not np.isfinite(scores["lmh"]).all():
            raise UserError(f"{place} has LMH scores that are not finite; extract it again.")
    scores["lrc"] = expit(logits[:, 0].double().cpu().numpy())
    scores["rkc"] = votes.sum(axis=1)
    return ScoredSet(name, queries, neighbours, votes, len(set(bank.ids) & set(features.ids)), scores)
