"""Scores on the development split, by which an epoch, a seed or a setting is chosen.

Shapes: Q dev rows, C outputs.
"""

import numpy as np
from torch import Tensor

from ra_hmd.core.heads import Head, official_thresholds
from ra_hmd.core.problem import Problem
from ra_hmd.evaluation.metrics.classification import classification_metrics
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.knn_classifier import knn_classify

METRICS = ("auroc", "accuracy", "macro_f1")


def dev_scores(
    bank: Embeddings, queries: Embeddings, logits: Tensor, voting: Voting, problem: Problem
) -> dict[str, float | None]:
    """`dev_<head>_<metric>` of the KNN vote (rkc) and the logistic head (lrc), and `dev_rkc_margin`.

    AUROC and F1 of several classes are means over the classes; the accuracy of label sets asks for the whole set. The
    margin is how far the mean vote is on the right side: it tells apart epochs whose other scores are equal.

    Args:
        bank: The training split as embedded now.
        queries: The dev split.
        logits: Its logits [Q, C].
        voting: The vote.
        problem: What labels mean.
    """
    rkc = knn_classify(queries, bank, voting, problem).scores
    lrc = problem.probabilities(logits.double()).cpu().numpy()
    scores: dict[str, float | None] = {}
    values: dict[Head, np.ndarray] = {"rkc": rkc, "lrc": lrc}
    for head, head_scores in values.items():
        thresholds = official_thresholds(head, problem)
        found = classification_metrics(head_scores, queries.labels, thresholds, problem, METRICS)
        scores |= {f"dev_{head}_{name}": value for name, value in found.items()}
    signs = 2 * problem.membership(queries.labels) - 1.0
    scores["dev_rkc_margin"] = float((signs * rkc).mean())
    return scores
