"""Classification metrics: the one definition of each, for binary, single-label and multi-label problems.

Stage 1 logs these metrics and Stage 2 selects epochs by them. `ra-hmd evaluate` reports the same metrics with
intervals, by the vectorised resampler in `estimates`, which the tests hold to be equal to this module.

Shapes: N rows, C outputs of the problem (1 if binary).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from ra_hmd.core.heads import decide
from ra_hmd.core.problem import BINARY, Problem

if TYPE_CHECKING:
    from torchmetrics import Metric

BINARY_METRICS = ("accuracy", "auroc", "macro_f1", "precision", "recall", "f1")

_AVERAGES: tuple[Literal["macro", "micro"], ...] = ("macro", "micro")
AVERAGED = {f"{average}_{name}": (average, name) for name in ("f1", "precision", "recall") for average in _AVERAGES}
"""Metric → how it is averaged over classes, and what is averaged."""

CLASS_METRICS = ("accuracy", "pair_accuracy", "auroc", "micro_auroc", *AVERAGED)
"""Metrics of several classes. `auroc` is the mean one-vs-rest AUROC; `pair_accuracy` is the share of (row, class) pairs
that are right, which is high where most rows lack most classes.
"""


def metric_names(problem: Problem) -> tuple[str, ...]:
    """Names of the metrics that are reported for a problem, in order."""
    return BINARY_METRICS if problem.kind == "binary" else CLASS_METRICS


def classification_metrics(
    scores: np.ndarray,
    labels: np.ndarray,
    thresholds: np.ndarray | float,
    problem: Problem = BINARY,
    names: Sequence[str] | None = None,
) -> dict[str, float | None]:
    """Compute metrics with torchmetrics, in the precision of the scores (float32 or float64).

    Precision, recall and F1 are those of class 1, and 0 where their denominator is 0. Binary macro-F1 averages over the
    classes that occur among labels or predictions, and so do the macro averages of `single_label`; `multi_label`
    averages over all classes. Micro averages count every (row, class) pair. The accuracy of `multi_label` is subset
    accuracy.

    Args:
        scores: [N, C], or [N] for a binary problem.
        labels: int64 [N], or [N, C] of 0 and 1 for `multi_label`.
        thresholds: [C]; see `ra_hmd.core.heads.decide`.
        problem: What labels and scores mean.
        names: Metrics to compute, of `metric_names`; all by default.

    Returns:
        Metric → value. An AUROC is None where it is undefined: no class has both rows inside and rows outside.
    """
    from torch import tensor  # imported here, as verdicts without metrics need none of it

    names = metric_names(problem) if names is None else names
    scores, labels = np.reshape(scores, (len(labels), -1)), np.asarray(labels)
    verdicts = decide(scores, np.asarray(thresholds), problem)
    found: dict[str, float | None] = {}
    member = problem.membership(labels)
    for name, metric in _verdict_metrics(problem, names, scores.dtype).items():
        pair = (verdicts, labels)
        if name == "pair_accuracy":
            pair = (problem.membership(verdicts).astype(np.int64), member.astype(np.int64))
        found[name] = float(metric(*map(tensor, pair)))
    if "auroc" in names:
        found["auroc"] = auroc(scores, member)
    if "micro_auroc" in names:
        found["micro_auroc"] = auroc(scores.ravel(), member.ravel())
    return {name: found[name] for name in names}


def _verdict_metrics(problem: Problem, names: Sequence[str], dtype: np.dtype) -> dict[str, "Metric"]:
    """The torchmetrics modules of the named metrics of verdicts (all but the AUROCs)."""
    import torch
    from torchmetrics import classification as tm

    classes, several = problem.outputs, problem.kind == "multi_label"
    known: dict[str, Callable[[], Metric]]
    if problem.kind == "binary":
        known = {
            "accuracy": tm.BinaryAccuracy,
            "macro_f1": partial(tm.MulticlassF1Score, 2, average="macro"),
            "precision": tm.BinaryPrecision,
            "recall": tm.BinaryRecall,
            "f1": tm.BinaryF1Score,
        }
    else:
        share = partial(tm.MultilabelExactMatch, classes) if several else partial(tm.MulticlassAccuracy, classes,
                                                                                  average="micro")  # fmt: skip
        known = {"accuracy": share, "pair_accuracy": partial(tm.MultilabelAccuracy, classes, average="micro")}
        kinds: dict[str, Callable[..., Metric]] = {
            "f1": tm.MultilabelF1Score if several else tm.MulticlassF1Score,
            "precision": tm.MultilabelPrecision if several else tm.MulticlassPrecision,
            "recall": tm.MultilabelRecall if several else tm.MulticlassRecall,
        }
        known |= {
            name: partial(kinds[averaged], classes, average=average) for name, (average, averaged) in AVERAGED.items()
        }
    precision = torch.float32 if dtype == np.float32 else torch.float64
    return {name: known[name]().set_dtype(precision) for name in names if name in known}


def auroc(scores: np.ndarray, member: np.ndarray) -> float | None:
    """Mean AUROC of scores [N, C] over the classes that some rows have and some lack; None where there is none.

    Float32 scores go through torchmetrics. It divides counts in single precision whatever it is given, so float64
    scores go through scikit-learn.

    Args:
        scores: [N, C], or [N] for one class.
        member: bool (or 0 and 1) in the same shape, which classes each row is in.
    """
    scores = np.reshape(scores, (len(scores), -1))
    member = np.reshape(member, (len(scores), -1)).astype(bool)
    known = member.any(axis=0) & ~member.all(axis=0)
    if not known.any():
        return None
    scores, member = scores[:, known], member[:, known]
    if scores.dtype == np.float32:
        import torch
        from torchmetrics.functional.classification import binary_auroc

        pairs = zip(torch.tensor(scores.T), torch.tensor(member.T.astype(np.int64)), strict=True)
        return float(torch.stack([binary_auroc(*pair) for pair in pairs]).mean())
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(member, scores, average="macro"))
