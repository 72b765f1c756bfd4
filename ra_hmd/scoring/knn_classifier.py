"""The retrieval-augmented KNN classifier (RKC): nearest neighbours, their vote, and the threshold on its score.

Every verdict of the RKC is made here: in evaluation, studies, validation, prediction and the commands of the bank.

Shapes: Q queries, N bank rows, K neighbours, C outputs of the problem (1 if binary).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ra_hmd.core.heads import decide, official_thresholds
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.knn import Neighbours
from ra_hmd.retrieval.voting import Votes, Voting

ABSTAINED = "abstained"


class LabelledIndex(Protocol):
    """Labelled examples with nearest-neighbour search: `Embeddings` in memory, or an example bank."""

    @property
    def ids(self) -> Sequence[str]:
        """N ids."""

    @property
    def labels(self) -> np.ndarray:
        """int64 [N] or [N, C]."""

    def nearest(self, queries: Embeddings, k: int) -> Neighbours:
        """The K nearest examples of each query, without the query itself."""


@dataclass(frozen=True)
class KNNPrediction:
    """Neighbours, votes and verdicts of Q queries.

    Attributes:
        neighbours: The K nearest examples of each query.
        votes: What each of them adds to the scores, and which queries abstain.
        verdicts: int64 [Q] or [Q, C], in the shape of labels. Those of queries that abstain mean nothing.
    """

    neighbours: Neighbours
    votes: Votes
    verdicts: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """float64 [Q, C]."""
        return self.votes.scores

    def verdict_values(self) -> list[Any]:
        """Per query the class, for `multi_label` a list of 0 and 1, or `ABSTAINED`."""
        return with_abstentions(self.verdicts, self.votes.abstained)


def with_abstentions(verdicts: np.ndarray, abstained: np.ndarray) -> list[Any]:
    """Verdicts as JSON values, `ABSTAINED` where `abstained` [Q] is True."""
    pairs = zip(verdicts.tolist(), abstained, strict=True)
    return [ABSTAINED if abstains else verdict for verdict, abstains in pairs]


def knn_classify(
    queries: Embeddings,
    examples: LabelledIndex,
    voting: Voting,
    problem: Problem = BINARY,
    thresholds: np.ndarray | None = None,
) -> KNNPrediction:
    """Classify queries by a vote of their nearest labelled examples. Labels of the queries play no part.

    Args:
        queries: Q queries. An example with the query's own id does not vote.
        examples: The examples that vote.
        voting: K, and how neighbours are weighted.
        problem: What labels mean.
        thresholds: [C], scores from which a class is assigned; default: the official ones. Unused for one of C classes,
            where the highest score decides.

    Raises:
        UserError: labels that are not the problem's; without `min_similarity`, a query that has no neighbour.
    """
    neighbours = examples.nearest(queries, voting.topk)
    votes = voting.vote(neighbours, examples.labels, problem)
    limits = official_thresholds("rkc", problem) if thresholds is None else thresholds
    return KNNPrediction(neighbours, votes, decide(votes.scores, limits, problem))
