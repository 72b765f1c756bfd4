"""Scores of a query set by the heads.

Shapes: N bank rows, Q queries, H hidden size, D embedding, K neighbours, C outputs of the problem (1 if binary).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head, decide, exact_match, official_thresholds
from ra_hmd.core.problem import Problem
from ra_hmd.features.store import Features
from ra_hmd.models.head import MemeHead
from ra_hmd.retrieval.embeddings import Embeddings, hidden_tensor, run_head
from ra_hmd.retrieval.knn import Neighbours
from ra_hmd.retrieval.voting import Votes, Voting
from ra_hmd.scoring.calibration import UNCALIBRATED, Calibration
from ra_hmd.scoring.kernel_classifier import KernelClassifier, KernelPrediction
from ra_hmd.scoring.knn_classifier import LabelledIndex, knn_classify


@dataclass(frozen=True)
class DecisionRule:
    """The rule that turns a head's scores into verdicts and probabilities.

    Attributes:
        thresholds: float64 [C]; unused for one of C classes, where the highest score decides.
        calibration: Map from scores to probabilities.
        chosen: Whether the rule was chosen on dev; else the official thresholds, and scores used as probabilities.
    """

    thresholds: np.ndarray
    calibration: Calibration = UNCALIBRATED
    chosen: bool = False

    @classmethod
    def official(cls, head: Head, problem: Problem) -> "DecisionRule":
        """The rule of the released code."""
        return cls(official_thresholds(head, problem))


@dataclass
class ScoredSet:
    """A query set with the scores of its heads.

    Attributes:
        name: Name of the query set.
        problem: What labels and scores mean.
        queries: Ids, labels and embeddings of the queries.
        neighbours: Neighbours of the RKC; none (K = 0) without a bank.
        votes: [Q, K, C], what each neighbour adds to the RKC scores.
        abstained: bool [Q], queries on which the RKC abstains.
        in_bank: Number of query ids that also occur in the bank.
        scores: Scores [Q, C] by head; without `lmh` where the store has none, without `rkc` where there is no bank,
            without `krr` where there is no kernel classifier.
        rules: Decision rules by head.
        extras: Further fields of each meme, or None where the store has none.
        notes: Notes for readers of the results.
        kernel: Scores of the KRR and the rows behind them; None without a kernel classifier.
    """

    name: str
    problem: Problem
    queries: Embeddings
    neighbours: Neighbours
    votes: np.ndarray
    abstained: np.ndarray
    in_bank: int
    scores: dict[Head, np.ndarray]
    rules: dict[Head, DecisionRule]
    extras: list[dict[str, Any]] | None = None
    notes: list[str] = field(default_factory=list)
    kernel: KernelPrediction | None = None

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def labels(self) -> np.ndarray:
        """[Q], or [Q, C] of 0 and 1, as `problem` has them."""
        return self.queries.labels

    def verdicts(self, head: Head) -> np.ndarray:
        """Verdicts of a head, in the shape of labels."""
        return decide(self.scores[head], self.rules[head].thresholds, self.problem)

    def right(self, head: Head) -> np.ndarray:
        """bool [Q], queries whose verdict by a head equals the label."""
        return exact_match(self.verdicts(head), self.labels)

    def probabilities(self, head: Head, *, calibrated: bool = True) -> np.ndarray:
        """Probabilities [Q, C] of a head, calibrated by its rule or not at all."""
        calibration = self.rules[head].calibration if calibrated else UNCALIBRATED
        return calibration.apply(self.scores[head], head, self.problem)


def score_set(
    name: str,
    place: str | Path,
    features: Features,
    head: MemeHead,
    bank: LabelledIndex | None,
    voting: Voting,
    kernel: KernelClassifier | None = None,
) -> ScoredSet:
    """Score a query set with every head: the LMH where the store has its scores, the RKC where there is a bank, the KRR
    where there is a kernel classifier. The KRR abstains where the RKC does.

    The rules are the official ones. Labels are passed on unused.

    Raises:
        UserError: LMH scores that are not finite.
    """
    problem, notes = head.config.problem, []
    embedding, logits = run_head(head, hidden_tensor(features))
    queries = Embeddings.with_features(features, embedding.cpu().numpy())
    scores: dict[Head, np.ndarray] = {}
    if features.lmh_score is None:
        notes.append("LMH is left out, the feature store has no LMH scores.")
    elif features.lmh_score.shape[1] != problem.outputs:
        width = features.lmh_score.shape[1]
        notes.append(
            f"LMH is left out, the feature store has {width} LMH scores per meme for {problem.outputs} outputs."
        )
    else:
        scores["lmh"] = features.lmh_score.astype(np.float64)
        if not np.isfinite(scores["lmh"]).all():
            raise UserError(f"{place} has LMH scores that are not finite; extract it again.")
    scores["lrc"] = problem.probabilities(logits.double()).cpu().numpy()
    if bank is None:
        none = np.empty((len(features), 0))
        neighbours = Neighbours(none.astype(np.int64), none.astype(np.float32))
        votes, in_bank = Votes(np.zeros((len(features), 0, problem.outputs)), np.zeros(len(features), dtype=bool)), 0
    else:
        found = knn_classify(queries, bank, voting, problem)
        neighbours, votes, scores["rkc"] = found.neighbours, found.votes, found.scores
        in_bank = len(set(features.ids).intersection(bank.ids))  # a set of the whole bank would be slow for each batch
    predicted = None
    if kernel is not None:
        predicted = kernel.predict(queries, voting.topk)
        scores["krr"] = predicted.scores
    rules = {which: DecisionRule.official(which, problem) for which in scores}
    return ScoredSet(name, problem, queries, neighbours, votes.contributions, votes.abstained, in_bank, scores, rules,
                     features.extras, notes, predicted)  # fmt: skip
