"""Scores on the development split, by which an epoch, a seed or a setting is chosen.

Shapes: Q dev rows, C outputs.
"""

from torch import Tensor

from ra_hmd.core.heads import THRESHOLDS, official_thresholds
from ra_hmd.core.problem import Problem
from ra_hmd.evaluation.metrics.binary import binary_metrics
from ra_hmd.evaluation.metrics.multiclass import class_values
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
    for head, values in (("rkc", rkc), ("lrc", lrc)):
        if problem.kind == "binary":
            found = binary_metrics(values[:, 0], queries.labels, THRESHOLDS[head], METRICS)
        else:
            found = class_values(values, queries.labels, official_thresholds(head, problem), problem)
        scores |= {f"dev_{head}_{name}": found[name] for name in METRICS}
    signs = 2 * problem.membership(queries.labels) - 1.0
    scores["dev_rkc_margin"] = float((signs * rkc).mean())
    return scores
