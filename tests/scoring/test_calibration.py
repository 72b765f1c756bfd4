"""Calibration against naive loops, grid searches and torchmetrics; the abstention curve against a slow one."""

import json
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.evaluation.metrics.selective import COVERAGES, abstention_curve, aurc, confidence
from ra_hmd.scoring.calibration import (
    UNCALIBRATED,
    Calibration,
    Uncalibrated,
    brier_losses,
    fit_calibration,
    log_losses,
    reliability,
    stated_cases,
)

SINGLE, MULTI = Problem("single_label", 3), Problem("multi_label", 3)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def overconfident(rng, problem, rows=400, factor=3.0):
    """Scores whose logits are `factor` times what they should be, and labels."""
    if problem.kind == "single_label":
        logits = rng.normal(size=(rows, 3))
        labels = np.array([rng.choice(3, p=line) for line in softmax(logits, axis=1)])
        return softmax(factor * logits, axis=1), labels
    logits = rng.normal(size=(rows, problem.outputs))
    labels = (rng.random(logits.shape) < expit(logits)).astype(int)
    return expit(factor * logits), labels[:, 0] if problem.kind == "binary" else labels


def test_reliability_against_a_loop(rng):
    stated = np.r_[rng.random(300), 0.0, 1.0, 0.2, 0.6]
    true = rng.random(304) < stated
    found = reliability(stated, true, bins=5)
    total = 0.0
    for number in range(5):
        low, high = number / 5, (number + 1) / 5
        rows = [i for i, p in enumerate(stated) if low <= p < high or (number == 4 and p == 1)]
        assert found.count[number] == len(rows)
        assert found.stated[number] == pytest.approx(sum(stated[i] for i in rows) / len(rows))
        assert found.seen[number] == pytest.approx(sum(true[i] for i in rows) / len(rows))
        total += len(rows) / 304 * abs(found.stated[number] - found.seen[number])
    assert found.error == pytest.approx(total)


def test_empty_bins_do_not_count():
    found = reliability(np.array([0.1, 0.1]), np.array([True, False]), bins=10)
    assert found.count.tolist() == [0, 2] + [0] * 8
    assert found.error == pytest.approx(0.4)


def test_ece_is_torchmetrics(rng):
    scores, labels = overconfident(rng, BINARY)
    expected = binary_calibration_error(torch.tensor(scores[:, 0]), torch.tensor(labels), n_bins=15)
    assert reliability(*stated_cases(scores, labels, BINARY)).error == pytest.approx(float(expected), abs=1e-6)
    scores, labels = overconfident(rng, SINGLE)
    expected = multiclass_calibration_error(torch.tensor(scores), torch.tensor(labels), num_classes=3, n_bins=15)
    assert reliability(*stated_cases(scores, labels, SINGLE)).error == pytest.approx(float(expected), abs=1e-6)


def test_brier_and_log_loss_are_scikit_learn_s(rng):
    scores, labels = overconfident(rng, BINARY)
    assert brier_losses(scores, labels, BINARY).mean() == pytest.approx(brier_score_loss(labels, scores[:, 0]))
    assert log_losses(scores, labels, BINARY).mean() == pytest.approx(log_loss(labels, scores[:, 0]))
    scores, labels = overconfident(rng, SINGLE)
    assert log_losses(scores, labels, SINGLE).mean() == pytest.approx(log_loss(labels, scores))
    assert brier_losses(scores, labels, SINGLE).mean() == pytest.approx(
        np.mean([sum((p - (c == y)) ** 2 for c, p in enumerate(line)) for line, y in zip(scores, labels, strict=True)])
    )
    scores, labels = overconfident(rng, MULTI)
    assert brier_losses(scores, labels, MULTI).mean() == pytest.approx(((scores - labels) ** 2).mean())
    assert log_losses(scores, labels, MULTI).mean() == pytest.approx(
        np.mean([log_loss(labels[:, c], scores[:, c]) for c in range(3)])
    )
    assert np.isfinite(log_losses(np.array([[0.0], [1.0]]), np.array([1, 0]), BINARY)).all()


@pytest.mark.parametrize("problem", [BINARY, SINGLE, MULTI], ids=lambda problem: problem.kind)
def test_temperature_against_a_grid(rng, problem):
    scores, labels = overconfident(rng, problem)
    fit = fit_calibration("temperature", scores, labels, "lrc", problem)
    assert fit.parameters["temperature"] == pytest.approx(3, rel=0.2)
    grid = np.geomspace(0.1, 30, 4000)
    losses = [
        log_losses(Calibration("temperature", {"temperature": t}).apply(scores, "lrc", problem), labels, problem).mean()
        for t in grid
    ]
    assert fit.parameters["temperature"] == pytest.approx(grid[np.argmin(losses)], rel=3e-3)
    mended, before = fit.apply(scores, "lrc", problem), UNCALIBRATED.apply(scores, "lrc", problem)
    assert before == pytest.approx(scores)
    assert (
        reliability(*stated_cases(mended, labels, problem)).error
        < 0.5 * reliability(*stated_cases(before, labels, problem)).error
    )


def test_platt_on_the_vote_against_a_grid(rng):
    scores = rng.uniform(-1, 1, (500, 1))
    labels = (rng.random(500) < expit(4 * scores[:, 0] - 1)).astype(int)
    fit = fit_calibration("temperature", scores, labels, "rkc", BINARY)
    assert fit.kind == "platt"
    slope, intercept = fit.parameters["slope"][0], fit.parameters["intercept"][0]
    n1, n0 = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))

    def loss(a, b):
        p = expit(a * scores[:, 0] + b)
        return -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean()

    best = loss(slope, intercept)
    for a in (-0.05, 0, 0.05):
        for b in (-0.05, 0, 0.05):
            assert loss(slope + a, intercept + b) >= best - 1e-9
    assert fit.apply(scores, "rkc", BINARY)[:, 0] == pytest.approx(expit(slope * scores[:, 0] + intercept))


FALLING = np.array([-0.3, -0.1, 0.1, 0.3])[:, None]


@pytest.mark.parametrize(
    ("kind", "head", "scores", "words"),
    [
        ("temperature", "rkc", FALLING, "slope is -2.06"),
        ("temperature", "lrc", FALLING + 0.5, "wrong side more than on the right one"),
        ("isotonic", "rkc", FALLING, r"AUROC minus 0.5 is -0.25"),
        ("isotonic", "lrc", FALLING + 0.5, r"AUROC minus 0.5 is -0.25"),
        ("temperature", "rkc", np.full((4, 1), 0.7), "slope is 0.00"),
        ("isotonic", "rkc", np.full((4, 1), 0.7), "is 0.00"),
    ],
)
def test_a_map_that_would_fall_is_refused(kind, head, scores, words):
    found = fit_calibration(kind, scores, np.array([1, 0, 1, 0]), head, BINARY)
    assert isinstance(found, Uncalibrated)
    assert words in found.reason


def test_one_falling_class_of_several_refuses_and_a_constant_one_is_flat(rng):
    scores, labels = overconfident(rng, MULTI)
    labels[:, 1] = 1
    fit = fit_calibration("temperature", 2 * scores - 1, labels, "rkc", MULTI)
    assert fit.parameters["slope"][1] == 0
    assert expit(fit.parameters["intercept"][1]) == pytest.approx(401 / 402)
    labels[:, 2] = 1 - labels[:, 2]
    refused = fit_calibration("temperature", 2 * scores - 1, labels, "rkc", MULTI)
    assert "(class 2)" in refused.reason
    assert "class 0" not in refused.reason
    single, classes = overconfident(rng, SINGLE)
    assert isinstance(fit_calibration("temperature", single, (classes + 1) % 3, "lrc", SINGLE), Uncalibrated)


def test_separable_dev_stays_finite():
    scores, labels = np.linspace(-1, 1, 20)[:, None], np.arange(20) // 10
    for head, values in (("rkc", scores), ("lrc", expit(scores))):
        for kind in ("temperature", "isotonic"):
            probabilities = fit_calibration(kind, values, labels, head, BINARY).apply(values, head, BINARY)
            assert np.isfinite(probabilities).all()
            assert ((probabilities >= 0) & (probabilities <= 1)).all()


@pytest.mark.parametrize("problem", [BINARY, SINGLE, MULTI], ids=lambda problem: problem.kind)
@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
@pytest.mark.parametrize("head", ["lrc", "rkc"])
def test_maps_are_probabilities_that_rise_and_survive_json(rng, problem, kind, head):
    scores, labels = overconfident(rng, problem)
    scores = 2 * scores - 1 if head == "rkc" and problem.kind != "single_label" else scores
    fit = fit_calibration(kind, scores, labels, head, problem)
    probabilities = fit.apply(scores, head, problem)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    again = Calibration(fit.kind, json.loads(json.dumps(fit.parameters)))
    assert np.array_equal(again.apply(scores, head, problem), probabilities)
    if problem.kind == "single_label":
        assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(scores)))
    else:
        for c in range(problem.outputs):
            assert (np.diff(probabilities[np.argsort(scores[:, c]), c]) >= -1e-12).all()


def test_isotonic_steps_are_the_means_of_their_blocks():
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5])[:, None]
    fit = fit_calibration("isotonic", scores, np.array([0, 1, 0, 1, 1]), "lrc", BINARY)
    assert fit.apply(scores, "lrc", BINARY)[:, 0] == pytest.approx([0, 0.5, 0.5, 1, 1])
    assert fit.apply(np.array([[0.0], [0.9]]), "lrc", BINARY)[:, 0] == pytest.approx([0, 1]), "flat outside dev"


def test_confidence():
    binary = confidence(np.array([[0.9], [0.2], [0.4]]), np.array([1, 0, 1]), BINARY)
    assert binary == pytest.approx([0.9, 0.8, 0.4])
    assert confidence(np.array([[0.2, 0.5, 0.3]]), np.array([2]), SINGLE) == pytest.approx([0.3])
    assert confidence(np.array([[0.2, 0.5, 0.9]]), np.array([[0, 0, 1]]), MULTI) == pytest.approx([0.8 * 0.5 * 0.9])
    assert confidence(np.array([[0.9], [0.2]]), np.array([1, 0]), BINARY, np.array([True, False])).tolist() == [-1, 0.8]


def test_aurc_is_the_mean_over_all_orders_of_ties():
    certain = np.array([3, 3, 3, 1, 2, 1])
    right = np.array([True, False, True, False, True, True])
    areas = []
    for order in permutations(range(6)):
        if all(certain[a] >= certain[b] for a, b in pairwise(order)):
            wrong = np.cumsum([not right[i] for i in order])
            areas.append(np.mean(wrong / np.arange(1, 7)))
    assert aurc(certain, right) == pytest.approx(np.mean(areas))
    assert aurc(certain, np.ones(6, bool)) == 0


def test_the_curve_keeps_the_most_certain(rng):
    certain, right = rng.random(50), rng.random(50) < 0.7
    curve = abstention_curve(certain, right, lambda rows: float(len(rows)))
    assert [point["coverage"] for point in curve] == pytest.approx([np.ceil(c * 50 - 1e-9) / 50 for c in COVERAGES])
    for point in curve:
        kept = np.argsort(-certain)[: round(point["coverage"] * 50)]
        assert point["accuracy"] == pytest.approx(accuracy_score(np.ones(len(kept)), right[kept]))
        assert point["macro_f1"] == len(kept)
        assert point["confidence"] == certain[kept].min()
    assert curve[-1]["accuracy"] == right.mean()


def test_ties_are_kept_together():
    curve = abstention_curve(np.array([1, 1, 1, 0]), np.array([1, 0, 1, 1], bool), lambda rows: 0.0)
    assert [point["coverage"] for point in curve] == [0.75, 1.0]


def test_logits_of_certain_probabilities_are_finite():
    scores = np.array([[0.0], [1.0], [0.5]])
    assert UNCALIBRATED.apply(scores, "lmh", BINARY) == pytest.approx(scores, abs=1e-9)
