"""Results of evaluations as the `model-index` of a model card's metadata, in which the hub looks for them."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ra_hmd.core.heads import HEAD_NAMES, Head
from ra_hmd.evaluation.report.sections import METRIC_NAMES

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TASK_TYPE, TASK_NAME = "image-classification", "Hateful meme detection from image and caption"
"""The hub has no task for memes; the nearest one that its leaderboards know, and what was done."""

_HUB_METRICS: dict[str, tuple[str, dict[str, str]]] = {
    "auroc": ("roc_auc", {}),
    **{
        f"{average}_{metric}": (metric, {"average": average})
        for average in ("macro", "micro")
        for metric in ("f1", "precision", "recall")
    },
    "micro_auroc": ("roc_auc", {"average": "micro"}),
}
"""Identifier on the hub and arguments of metrics that have another name there."""


def eval_results(reports: Sequence[Mapping[str, Any]]) -> "list[EvalResult]":
    """One result per report, head and metric that has a value.

    Args:
        reports: Entries of `read_report`.
    """
    return [result for report in reports for result in _results(report)]


def _results(report: Mapping[str, Any]) -> "Iterator[EvalResult]":
    from huggingface_hub import EvalResult

    for head, values in report["scores"].items():
        for key, estimate in values.items():
            value = estimate["value"]
            if value is None or not math.isfinite(value):
                continue
            metric, arguments = _HUB_METRICS.get(key, (key, {}))
            yield EvalResult(
                task_type=TASK_TYPE,
                task_name=TASK_NAME,
                dataset_type=re.sub(r"[^\w./-]+", "-", report["dataset"]).strip("-./") or "unnamed",
                dataset_name=report["title"],
                dataset_config=report["task"],
                dataset_split=report["split"],
                metric_type=metric,
                metric_name=f"{METRIC_NAMES.get(key, key)} of {HEAD_NAMES[cast(Head, head)]}{_interval(estimate)}",
                metric_value=float(value),
                metric_args=arguments or None,
            )


def _interval(estimate: Mapping[str, Any]) -> str:
    """The interval in words, after the name of the metric: the format of the hub has no place of its own for it."""
    low, high = estimate.get("low"), estimate.get("high")
    return "" if low is None or high is None else f" (95 % interval {low:.3f} to {high:.3f})"
