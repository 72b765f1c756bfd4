"""Evaluation of Stage 1: the same numbers for the LM head (LMH) and the logistic head (LRC)."""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from ra_hmd.core.heads import Head, official_thresholds
from ra_hmd.core.problem import BINARY
from ra_hmd.evaluation.metrics.classification import classification_metrics
from ra_hmd.models.losses import Objective

_LOGGED = ("accuracy", "f1", "precision", "recall", "macro_f1", "auroc")
_LOGGED_OF_CLASSES = ("accuracy", "macro_f1", "micro_f1", "auroc")


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
    scores: dict[Head, Tensor] = {"lrc": problem.probabilities(logits)}
    if "answer_probs" in gathered:
        answers = gathered["answer_probs"].float()
        scores["lmh"] = answers[:, 1:] if problem == BINARY else answers
    names = _LOGGED if problem == BINARY else _LOGGED_OF_CLASSES
    for head, score in scores.items():
        found = classification_metrics(
            score.numpy(), labels.numpy(), official_thresholds(head, problem), problem, names
        )
        result |= {f"{head}_{name}": value for name, value in found.items() if value is not None}
    return result


def logged_metrics(labels: np.ndarray, objective: Objective, *, answers: bool) -> list[str]:
    """The names that `compute_metrics` will give a set with these labels [N] or [N, C], before there is a model.

    Args:
        labels: Labels of the evaluation set.
        objective: Of the head.
        answers: Whether the LM head has scores (it has none of label sets).
    """
    rows, problem = len(labels), objective.problem
    predictions: dict[str, np.ndarray] = {
        "lrc_logit": np.zeros((rows, problem.outputs), dtype=np.float32),
        "lm_loss_sum": np.zeros(rows, dtype=np.float32),
        "lm_tokens": np.ones(rows, dtype=np.int64),
    }
    if answers:
        predictions["answer_probs"] = np.full((rows, problem.classes), 1 / problem.classes, dtype=np.float32)
    # Annotated as arrays, but the trainer hands over whatever `prediction_step` returns: here a dictionary.
    return list(compute_metrics(EvalPrediction(predictions=cast(Any, predictions), label_ids=labels), objective))


def _arrays(prediction: EvalPrediction) -> dict[str, Any]:
    if not isinstance(prediction.predictions, dict):
        raise TypeError(f"expected named predictions, got {type(prediction.predictions).__name__}")
    return prediction.predictions
