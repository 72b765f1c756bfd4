"""Rows whose label the rest of a bank contradicts."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.scoring.kernel_classifier import fit_kernel_classifier
from ra_hmd.scoring.label_audit import Contradictions, find_contradictions


def audited(labels: np.ndarray, problem: Problem = BINARY) -> Contradictions:
    vectors = load_digits().data[: len(labels)].astype(np.float32)
    rows = Embeddings([f"d{row}" for row in range(len(labels))], labels, vectors)
    head = fit_kernel_classifier(rows, problem, KernelSettings())
    return find_contradictions(head.leave_one_out(), labels, problem)


@pytest.mark.parametrize("kind", ["binary", "single_label", "multi_label"])
def test_planted_noise_is_found(kind: str) -> None:
    target = load_digits().target[:800].astype(np.int64)
    flipped = np.random.default_rng(100).permutation(800)[:40]
    if kind == "binary":
        problem, true = BINARY, target % 2
        labels = true.copy()
        labels[flipped] ^= 1
    elif kind == "single_label":
        problem, true = Problem("single_label", 10), target
        labels = true.copy()
        labels[flipped] = (labels[flipped] + 3) % 10
    else:
        problem, true = Problem("multi_label", 2), np.stack([target % 2, target >= 5], axis=1).astype(np.int64)
        labels = true.copy()
        labels[flipped, 0] ^= 1
    found = audited(labels, problem)
    hits = np.isin(found.worst, flipped).sum()
    assert hits >= 0.8 * len(found.worst)
    assert hits >= 0.8 * len(flipped)
    right = (found.suggested[found.worst] == true[found.worst]).reshape(len(found.worst), -1).all(axis=1)
    assert right.sum() >= 0.75 * len(found.worst)
    assert (np.diff(found.probability[found.worst]) >= 0).all()


@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_a_bank_of_one_class_has_no_contradiction(count: int) -> None:
    found = find_contradictions(np.zeros((count, 1)), np.ones(count, np.int64), BINARY)
    assert not found.contradicted.any()
    assert found.suggested.tolist() == [1] * count


def test_scores_that_say_nothing_accuse_nobody() -> None:
    labels = np.arange(20) % 2
    found = find_contradictions(1.0 - 2.0 * labels[:, None], labels, BINARY)
    assert not found.contradicted.any()
    assert "do not predict" in found.note
    assert not find_contradictions(np.zeros((20, 1)), labels, BINARY).contradicted.any()
