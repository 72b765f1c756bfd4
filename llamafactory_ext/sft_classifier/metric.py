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
    MulticlassF1Score,
)
from transformers import EvalPrediction

from ra_hmd.models.objective import Objective


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


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`lrc_…` and `lmh_…` metrics from what `ClassifierTrainer.prediction_step` gathers over all ranks.

    Losses are means over the whole set: of binary cross-entropy (lrc), of the answers' token cross-entropy (lmh).
    """
    gathered = {name: torch.from_numpy(np.asarray(value)) for name, value in _arrays(prediction).items()}
    labels = torch.from_numpy(np.asarray(prediction.label_ids)).long()
    logits = gathered["lrc_logit"].float()
    result = {"lrc_loss": float(Objective()(logits, labels))}
    result["lmh_loss"] = float(gathered["lm_loss_sum"].double().sum() / gathered["lm_tokens"].sum())
    scores = {"lrc": torch.sigmoid(logits[:, 0]), "lmh": gathered["answer_probs"].float()[:, 1]}
    for head, score in scores.items():
        result |= {f"{head}_{name}": value for name, value in binary_metrics(score, labels).items()}
    return result


def _arrays(prediction: EvalPrediction) -> dict[str, Any]:
    if not isinstance(prediction.predictions, dict):
        raise TypeError(f"expected named predictions, got {type(prediction.predictions).__name__}")
    return prediction.predictions
