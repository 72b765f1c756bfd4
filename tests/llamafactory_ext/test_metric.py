"""Stage 1's torchmetrics agree with `ra-hmd evaluate`, and its losses with their definitions."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from llamafactory_ext.sft_classifier.metric import compute_metrics
from ra_hmd.core.heads import official_thresholds
from ra_hmd.core.problem import Problem
from ra_hmd.evaluation.metrics.classification import classification_metrics
from ra_hmd.models.losses import Objective


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
        expected = classification_metrics(score.astype(np.float64), given.label_ids, 0.5)
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


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_several_classes_have_the_numbers_of_evaluate(kind: str) -> None:
    # Class 3 has no rows, class 2 of the label sets has all of them: neither has an AUROC.
    problem, rng = Problem(kind, 4), np.random.default_rng(1)
    labels = rng.integers(0, 3, 40) if kind == "single_label" else rng.integers(0, 2, (40, 4))
    if kind == "multi_label":
        labels[:, 2], labels[:, 3] = 1, 0
    given = prediction([0] * 40)
    given.label_ids, given.predictions["lrc_logit"] = labels, rng.normal(size=(40, 4)).astype(np.float32)
    given.predictions["answer_probs"] = rng.dirichlet(np.ones(4), 40).astype(np.float32)
    if kind == "multi_label":
        del given.predictions["answer_probs"]
    found = compute_metrics(given, Objective(problem))
    scores = {"lrc": problem.probabilities(torch.from_numpy(given.predictions["lrc_logit"])).numpy()}
    if kind == "single_label":
        scores["lmh"] = given.predictions["answer_probs"]
    for head, score in scores.items():
        expected = classification_metrics(score.astype(np.float64), labels, official_thresholds(head, problem), problem)
        names = ("accuracy", "auroc", "macro_f1", "micro_f1")
        assert [found[f"{head}_{name}"] for name in names] == pytest.approx([expected[name] for name in names])
    assert ("lmh_auroc" in found) == (kind == "single_label")


def test_auroc_of_classes_is_left_out_where_no_class_has_one() -> None:
    given = prediction([2, 2, 2])
    given.predictions["lrc_logit"] = np.zeros((3, 3), dtype=np.float32)
    given.predictions["answer_probs"] = np.full((3, 3), 1 / 3, dtype=np.float32)
    found = compute_metrics(given, Objective(Problem("single_label", 3)))
    assert "lrc_auroc" not in found
    assert found["lrc_loss"] == pytest.approx(np.log(3))
