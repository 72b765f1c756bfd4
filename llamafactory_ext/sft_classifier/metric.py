"""Evaluation of Stage 1: the same numbers for the LM head (LMH) and the logistic head (LRC)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelExactMatch,
    MultilabelF1Score,
)
from transformers import EvalPrediction

from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.models.losses import Objective


def binary_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, AUROC, precision, recall, F1 and macro-F1 of p(class 1) [N] at threshold 0.5, labels [N].

    Scores of the two heads are probabilities. AUROC is left out when only one class is present.
    """
    collection = MetricCollection(
        {
            "accuracy": BinaryAccuracy(),
            "precision": BinaryPrecision(),
            "recall": BinaryRecall(),
            "f1": BinaryF1Score(),
        }
    )
    values = dict(collection(scores, labels))
    values["macro_f1"] = MulticlassF1Score(num_classes=2, average="macro")((scores >= 0.5).long(), labels)
    if len(labels.unique()) == 2:
        values["auroc"] = BinaryAUROC()(scores, labels)
    return {name: float(value) for name, value in values.items()}


def class_metrics(scores: Tensor, labels: Tensor, problem: Problem) -> dict[str, float]:
    """Metrics of probabilities [N, C] against labels [N], or [N, C] of 0 and 1 (`multi_label`, at threshold 0.5).

    Accuracy (of `multi_label` the subset accuracy: every class of a meme right), macro-F1, micro-F1, and the mean over
    classes of the one-vs-rest AUROC, which leaves out a class that all or no memes have.
    """
    classes = problem.outputs
    if problem.kind == "multi_label":
        member, kind, options = labels, MultilabelF1Score, {"num_labels": classes}
        values = {"accuracy": MultilabelExactMatch(num_labels=classes)(scores, labels)}
    else:
        member, kind, options = (
            torch.nn.functional.one_hot(labels, classes),
            MulticlassF1Score,
            {"num_classes": classes},
        )
        values = {"accuracy": MulticlassAccuracy(num_classes=classes, average="micro")(scores, labels)}
    values |= {f"{average}_f1": kind(average=average, **options)(scores, labels) for average in ("macro", "micro")}
    areas = [BinaryAUROC()(scores[:, c], member[:, c]) for c in range(classes) if len(member[:, c].unique()) == 2]
    if areas:
        values["auroc"] = torch.stack(areas).mean()
    return {name: float(value) for name, value in values.items()}


def compute_metrics(prediction: EvalPrediction, objective: Objective | None = None) -> dict[str, float]:
    """`lrc_…` and `lmh_…` metrics from what `ClassifierTrainer.prediction_step` gathers over all ranks.

    Losses are means over the whole set: of the head's loss without class weights (lrc), of the answers' token
    cross-entropy (lmh). Where no one token of an answer tells its classes, `lmh_loss` is all of LMH.
    """
    objective = objective or Objective()
    problem = objective.problem
    gathered = {name: torch.from_numpy(np.asarray(value)) for name, value in _arrays(prediction).items()}
    labels = torch.from_numpy(np.asarray(prediction.label_ids)).long()
    logits = gathered["lrc_logit"].float()
    result = {"lrc_loss": float(objective(logits, labels))}
    result["lmh_loss"] = float(gathered["lm_loss_sum"].double().sum() / gathered["lm_tokens"].sum())
    scores = {"lrc": problem.probabilities(logits)}
    if "answer_probs" in gathered:
        answers = gathered["answer_probs"].float()
        scores["lmh"] = answers[:, 1:] if problem == BINARY else answers
    for head, score in scores.items():
        found = binary_metrics(score[:, 0], labels) if problem == BINARY else class_metrics(score, labels, problem)
        result |= {f"{head}_{name}": value for name, value in found.items()}
    return result


def metric_names(labels: np.ndarray, objective: Objective, *, answers: bool) -> list[str]:
    """The names that `compute_metrics` will give a set with these labels [N] or [N, C], before there is a model.

    Args:
        labels: Of the set.
        objective: Of the head.
        answers: Whether the LM head has scores (it has none of label sets).
    """
    rows, problem = len(labels), objective.problem
    predictions = {
        "lrc_logit": np.zeros((rows, problem.outputs), dtype=np.float32),
        "lm_loss_sum": np.zeros(rows, dtype=np.float32),
        "lm_tokens": np.ones(rows, dtype=np.int64),
    }
    if answers:
        predictions["answer_probs"] = np.full((rows, problem.classes), 1 / problem.classes, dtype=np.float32)
    return list(compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels), objective))


def _arrays(prediction: EvalPrediction) -> dict[str, Any]:
    if not isinstance(prediction.predictions, dict):
        raise TypeError(f"expected named predictions, got {type(prediction.predictions).__name__}")
    return prediction.predictions
