"""Metrics of any problem: binary scores, one of C classes, or any number of them.

Shapes: Q memes, C outputs of the problem (1 if binary).
"""

import numpy as np

from ra_hmd.core.heads import decide
from ra_hmd.core.problem import Problem
from ra_hmd.evaluation.metrics.binary import METRICS, auroc

AVERAGED = {
    f"{average}_{name}": (average, name) for name in ("f1", "precision", "recall") for average in ("macro", "micro")
}
"""Metric → how it is averaged over classes, and what is averaged."""

CLASS_METRICS = ("accuracy", "pair_accuracy", "auroc", "micro_auroc", *AVERAGED)
"""Of several classes. `auroc` is the mean over classes of one class against the rest; `pair_accuracy` is the share of
pairs of meme and class that are right, which is high where most memes lack most classes.
"""


def metric_names(problem: Problem) -> tuple[str, ...]:
    """The metrics that are reported for a problem."""
    return METRICS if problem.kind == "binary" else CLASS_METRICS


def _telling(member: np.ndarray) -> np.ndarray:
    """bool [C]: classes that some memes have and some do not: only these have an AUROC."""
    return member.any(axis=0) & ~member.all(axis=0)


def class_values(
    scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, problem: Problem
) -> dict[str, float | None]:
    """The `CLASS_METRICS` of scores [Q, C] of several classes.

    Accuracy is of the whole verdict (`multi_label`: subset accuracy). Macro averages of F1, precision and recall are
    over the classes, of `single_label` over those that occur among labels or verdicts; micro averages take every pair
    of meme and class as one case; without any such case they are 0. AUROC leaves out classes that all or no memes have;
    the micro AUROC takes every pair of meme and class as one case. None where undefined.
    """
    from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

    functions = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    member, verdicts = problem.membership(labels), decide(scores, thresholds, problem)
    known = _telling(member)
    return {
        "accuracy": float(accuracy_score(labels, verdicts)),
        "pair_accuracy": float((member == problem.membership(verdicts)).mean()),
        "auroc": float(roc_auc_score(member[:, known], scores[:, known], average="macro")) if known.any() else None,
        "micro_auroc": auroc(scores.ravel(), member.ravel().astype(np.int64)),
        **{
            name: float(functions[averaged](labels, verdicts, average=average, zero_division=0))
            for name, (average, averaged) in AVERAGED.items()
        },
    }
