"""The retrieval-augmented KNN classifier (RKC): a vote of the nearest labelled memes.

Shapes: Q queries, N bank rows, K neighbours, C outputs of the problem.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np

from ra_hmd.core.choices import VoteWeights
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.retrieval.knn import Neighbours


@dataclass(frozen=True)
class Votes:
    """The result of a vote.

    Attributes:
        contributions: float64 [Q, K, C], what each neighbour adds to each score of its query; 0 where it does not vote.
        abstained: bool [Q], queries without any neighbour that may vote, and those whose neighbours all have
            similarity 0, as an embedding of length 0 has to every row; their scores are 0.
    """

    contributions: np.ndarray
    abstained: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """float64 [Q, C] in [−1, 1]. Class 1 (binary) or a class of several (multi-label) from score 0; one of C
        classes: the highest.
        """
        return self.contributions.sum(axis=1)


@dataclass(frozen=True)
class Voting:
    """Settings of the vote of the nearest neighbours.

    For output c, with s_c = ±1 (binary, multi-label: neighbour is in the class or not) or 1/0 (one of C classes)::

        score_c = Σ_k w_k · s_c(y_k) · sim_k / Σ_k w_k         arithmetic: w = K, K−1, …        mean: w = 1
        score_c = Σ_k w_k · s_c(y_k) / Σ_k w_k                 similarity: w = max(sim_k, 0)

    Sums go over the neighbours that are found and vote; where a bank has fewer than K, the weights of the last ones are
    not used, as in the released code.

    Attributes:
        topk: K, number of neighbours to search for.
        weights: How neighbours are weighted.
        min_similarity: Neighbours less similar than this do not vote; if none is left, the query abstains.
        prior_correction: Divide a neighbour's weight by how common its class is in the bank, so that a bank of many
            benign memes does not outvote the rare class.

    Source: RA-HMD's RKC as in the official evaluation code (`use_sim`) for `arithmetic` and `mean`; the rest is ours.
    The official minimum similarity keeps the neighbours below it; here those above vote.
    """

    topk: int = 20
    weights: VoteWeights = "arithmetic"
    min_similarity: float | None = None
    prior_correction: bool = False

    def __post_init__(self) -> None:
        problems = [f"topk is {self.topk}, it must be at least 1."] if self.topk < 1 else []
        if self.weights not in get_args(VoteWeights):
            known = ", ".join(get_args(VoteWeights))
            problems.append(f"Vote weights {self.weights!r} are unknown; choose one of {known}.")
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            problems.append(f"min_similarity is {self.min_similarity}, a cosine lies in [-1, 1].")
        raise_all(problems, "The vote's settings do not fit")

    def vote(self, neighbours: Neighbours, bank_labels: np.ndarray, problem: Problem = BINARY) -> Votes:
        """Compute the votes of the neighbours of Q queries.

        Args:
            neighbours: Cosine neighbours [Q, K] of the queries.
            bank_labels: [N] or [N, C], as `problem` has them.
            problem: What labels mean.

        Raises:
            UserError: labels that are not the problem's; without `min_similarity`, a query that has no neighbour.
        """
        bank_labels = np.asarray(bank_labels)
        if len(bank_labels):
            problem.check(bank_labels, "The bank")
        voting = neighbours.present
        if self.min_similarity is not None:
            voting = voting & (neighbours.similarity >= self.min_similarity)
        elif not voting.any(axis=1).all():
            lonely = np.flatnonzero(~voting.any(axis=1))
            raise UserError(
                f"{len(lonely)} queries have no neighbour (first: row {lonely[0]}): the bank is empty or holds nothing "
                "but the query itself. Give a bank with other labelled memes, or `min_similarity`, to abstain."
            )
        if not len(bank_labels):
            empty = np.zeros((*neighbours.rows.shape, problem.outputs))
            return Votes(empty, np.ones(len(empty), dtype=bool))
        similarity = neighbours.similarity.astype(np.float64)
        # Row -1 is a valid index in NumPy: its weight of 0 takes it out.
        signs = problem.signs(bank_labels)[neighbours.rows]
        weights = np.where(voting, self._rank_weights(similarity), 0)[..., None]
        if self.prior_correction:
            weights = weights * _inverse_prior(bank_labels, problem)[neighbours.rows]
        total = weights.sum(axis=1, keepdims=True)
        share = np.divide(weights, total, out=np.zeros(weights.shape), where=total > 0)
        worth = 1.0 if self.weights == "similarity" else similarity[..., None]
        return Votes(share * signs * worth, ~((weights > 0).any(axis=2) & (similarity != 0)).any(axis=1))

    def _rank_weights(self, similarity: np.ndarray) -> np.ndarray:
        k = similarity.shape[1]
        if self.weights == "similarity":
            return np.maximum(similarity, 0)
        return np.broadcast_to(np.arange(k, 0, -1, dtype=np.float64) if self.weights == "arithmetic" else 1.0, (1, k))


def _inverse_prior(labels: np.ndarray, problem: Problem) -> np.ndarray:
    """Weight [N, 1] or, multi-label, [N, C] of each bank row with which every class weighs the same in the bank."""
    member = problem.membership(labels)
    if problem.kind == "single_label":
        share = member.mean(axis=0)
        return (1 / (problem.classes * share[labels]))[:, None]
    share = np.where(member, member.mean(axis=0), 1 - member.mean(axis=0))
    return 1 / (2 * share)
