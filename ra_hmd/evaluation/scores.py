"""The three heads' scores of a query set against a bank.

Shapes: N bank rows, Q queries, H hidden size, D embedding, K neighbours.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from ra_hmd.errors import UserError
from ra_hmd.evaluation.metrics import Head
from ra_hmd.features.store import Features
from ra_hmd.models.head import MemeHead
from ra_hmd.retrieval.knn import Neighbours, VoteWeights, rkc_scores, rkc_votes, search


def hidden_tensor(features: Features) -> Tensor:
    """The hidden states [N, H] as a float32 tensor on the CPU; shares memory where it can."""
    return torch.from_numpy(np.require(features.hidden, np.float32, ["C", "W"]))


def run_head(head: MemeHead, hidden: Tensor, batch_size: int = 4096) -> tuple[Tensor, Tensor]:
    """Embeddings [N, D] and logits [N, C] of hidden states [N, H], in evaluation mode, without gradient.

    Batches are moved to the head's device and results stay there; the head's mode is restored.
    """
    device = next(head.parameters()).device
    training = head.training
    head.eval()
    try:
        with torch.no_grad():
            parts = [head(batch.to(device)) for batch in hidden.split(batch_size)]
    finally:
        head.train(training)
    return torch.cat([part.embedding for part in parts]), torch.cat([part.logits for part in parts])


@dataclass(frozen=True)
class Bank:
    """Labelled examples that vote: N ids, labels [N], embeddings [N, D]."""

    ids: list[str]
    labels: np.ndarray
    embedding: np.ndarray

    @classmethod
    def of(cls, features: Features, head: MemeHead) -> "Bank":
        """Features as seen by `head`."""
        embedding, _ = run_head(head, hidden_tensor(features))
        return cls(features.ids, features.labels, embedding.cpu().numpy())

    def __len__(self) -> int:
        return len(self.ids)

    def plus(self, other: "Bank") -> "Bank":
        """This bank with the other's rows appended."""
        return Bank(
            [*self.ids, *other.ids],
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.embedding, other.embedding]),
        )

    def select(self, rows: np.ndarray) -> "Bank":
        """The given rows, in the given order."""
        return Bank([self.ids[row] for row in rows], self.labels[rows], self.embedding[rows])


@dataclass(frozen=True)
class Voting:
    """How the bank votes: K and the rank weights."""

    topk: int = 20
    weights: VoteWeights = "arithmetic"

    def neighbours(self, queries: Bank, bank: Bank) -> Neighbours:
        """The K nearest bank rows by cosine; rows with the query's own id are left out."""
        return search(queries.embedding, bank.embedding, self.topk, query_ids=queries.ids, bank_ids=bank.ids)

    def scores(self, queries: Bank, bank: Bank) -> np.ndarray:
        """RKC scores [Q]."""
        return rkc_scores(self.neighbours(queries, bank), bank.labels, self.weights)


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
    queries: Bank
    neighbours: Neighbours
    votes: np.ndarray
    in_bank: int
    scores: dict[Head, np.ndarray] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        """[Q], 0 or 1."""
        return self.queries.labels


def score_set(
    name: str, place: str | Path, features: Features, head: MemeHead, bank: Bank, voting: Voting
) -> ScoredSet:
    """Score a query set with every head that it has scores for.

    Raises:
        UserError: LMH scores that are not finite.
    """
    embedding, logits = run_head(head, hidden_tensor(features))
    queries = Bank(features.ids, features.labels, embedding.cpu().numpy())
    neighbours = voting.neighbours(queries, bank)
    votes = rkc_votes(neighbours, bank.labels, voting.weights)
    scores: dict[Head, np.ndarray] = {}
    if features.lmh_score is not None:
        scores["lmh"] = features.lmh_score[:, 0].astype(np.float64)
        if not np.isfinite(scores["lmh"]).all():
            raise UserError(f"{place} has LMH scores that are not finite; extract it again.")
    scores["lrc"] = expit(logits[:, 0].double().cpu().numpy())
    scores["rkc"] = votes.sum(axis=1)
    return ScoredSet(name, queries, neighbours, votes, len(set(bank.ids) & set(features.ids)), scores)
