"""Stage 1's torchmetrics agree with `ra-hmd evaluate`, and its losses with their definitions."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from llamafactory_ext.sft_classifier.metric import compute_metrics
from ra_hmd.evaluation.metrics import binary_metrics


def prediction(labels: list[int]) -> EvalPrediction:
    rng = np.random.default_rng(0)
    yes = rng.random(len(labels)).astype(np.float32)
    predictions = {
        "lrc_logit": rng.normal(size=(len(labels), 1)).astype(np.float32),
        "answer_probs": np.stack([1 - yes, yes], axis=1),
        "lm_loss_sum": rng.random(len(labels)).astype(np.float32),
        "lm_tokens": rng.integers(3, 6, len(labels)),
        "sample_index": np.arange(len(labels)),
    }
    return EvalPrediction(predictions=predictions, label_ids=np.array(labels))


def test_same_numbers_as_evaluate() -> None:
    given = prediction([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0])
    found = compute_metrics(given)
    scores = {
        "lrc": torch.from_numpy(given.predictions["lrc_logit"][:, 0]).sigmoid().numpy(),
        "lmh": given.predictions["answer_probs"][:, 1],
    }
    for head, score in scores.items():
        expected = binary_metrics(score, given.label_ids, 0.5)
        assert {name: found[f"{head}_{name}"] for name in expected} == pytest.approx(expected)


def test_losses_are_means_over_the_whole_set() -> None:
    given = prediction([0, 1, 1, 0])
    found = compute_metrics(given)
    tokens, sums = given.predictions["lm_tokens"], given.predictions["lm_loss_sum"]
    assert found["lmh_loss"] == pytest.approx(sums.sum() / tokens.sum())
    p = 1 / (1 + np.exp(-given.predictions["lrc_logit"][:, 0].astype(float)))
    expected = -np.mean([np.log(p[i]) if label else np.log(1 - p[i]) for i, label in enumerate([0, 1, 1, 0])])
    assert found["lrc_loss"] == pytest.approx(expected, rel=1e-5)


def test_auroc_is_left_out_when_one_class_is_missing() -> None:
    found = compute_metrics(prediction([1, 1, 1]))
    assert "lrc_auroc" not in found
    assert "lrc_accuracy" in found
