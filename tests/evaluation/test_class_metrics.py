"""Metrics of several classes against scikit-learn, and their resamples against the plain metric of each resample."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, hamming_loss, precision_recall_fscore_support, roc_auc_score

from ra_hmd.core.heads import decide, official_thresholds
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.evaluation.metrics.classification import CLASS_METRICS, classification_metrics
from ra_hmd.evaluation.metrics.estimates import ThresholdedScores, estimates, metric_estimate, per_class

AVERAGED = ("precision", "recall", "f1")
SINGLE, MULTI = Problem("single_label", 4), Problem("multi_label", 4)


def case(problem, rows=90, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    if problem.kind == "single_label":
        labels = rng.integers(0, 4, rows)
        scores = rng.random((rows, 4)) + 0.5 * np.eye(4)[labels]
    else:
        labels = (rng.random((rows, 4)) < [0.5, 0.3, 0.2, 0.1]).astype(int)
        scores = np.clip(rng.random((rows, 4)) + 0.3 * labels - 0.1, 0, 1)
    return (scores.round(1) if ties else scores), labels


def averaged(labels, predicted):
    """Macro and micro averages by scikit-learn's report of all three at once."""
    found = {}
    for average in ("macro", "micro"):
        values = precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)[:3]
        found |= {f"{average}_{name}": pytest.approx(values[place]) for place, name in enumerate(AVERAGED)}
    return found


def test_single_label_values_are_scikit_learn_s():
    scores, labels = case(SINGLE)
    values = classification_metrics(scores, labels, official_thresholds("lrc", SINGLE), SINGLE)
    predicted, member = scores.argmax(axis=1), np.eye(4, dtype=int)[labels]
    assert values == {
        "accuracy": pytest.approx(accuracy_score(labels, predicted)),
        "pair_accuracy": pytest.approx(1 - hamming_loss(member, np.eye(4, dtype=int)[predicted])),
        "auroc": pytest.approx(np.mean([roc_auc_score(member[:, c], scores[:, c]) for c in range(4)])),
        "micro_auroc": pytest.approx(roc_auc_score(member, scores, average="micro")),
        **averaged(labels, predicted),
    }
    assert values["micro_f1"] == pytest.approx(values["accuracy"])


def test_multi_label_values_are_scikit_learn_s():
    scores, labels = case(MULTI)
    thresholds = np.array([0.5, 0.6, 0.4, 0.7])
    predicted = (scores >= thresholds).astype(int)
    assert classification_metrics(scores, labels, thresholds, MULTI) == {
        "accuracy": pytest.approx(accuracy_score(labels, predicted)),
        "pair_accuracy": pytest.approx(1 - hamming_loss(labels, predicted)),
        "auroc": pytest.approx(roc_auc_score(labels, scores, average="macro")),
        "micro_auroc": pytest.approx(roc_auc_score(labels, scores, average="micro")),
        **averaged(labels, predicted),
    }


@pytest.mark.parametrize("problem", [SINGLE, MULTI], ids=lambda problem: problem.kind)
@pytest.mark.parametrize("ties", [False, True])
def test_estimates_are_the_plain_metrics(problem, ties):
    scores, labels = case(problem, rows=30, ties=ties)
    thresholds = np.full(4, 0.5)
    rows = np.random.default_rng(1).integers(0, 30, (40, 30))
    plain = [classification_metrics(scores[line], labels[line], thresholds, problem) for line in rows]
    assert set(plain[0]) == set(CLASS_METRICS)
    for name in CLASS_METRICS:
        for line, values in zip(rows, plain, strict=True):
            judged = [ThresholdedScores(scores[line], thresholds)]
            found = metric_estimate(name, judged, labels[line], problem, samples=0, seed=0)
            assert found.value == pytest.approx(values[name], abs=1e-12), name
    with pytest.raises(KeyError, match="metric 'accurate' is none of accuracy"):
        metric_estimate("accurate", [ThresholdedScores(scores, thresholds)], labels, problem, samples=0, seed=0)


def test_a_class_that_never_occurs_has_no_auroc_and_counts_as_defined():
    scores, labels = case(SINGLE)
    labels = np.where(labels == 3, 0, labels)
    scores[:, 3] = 0  # never said either
    values = classification_metrics(scores, labels, np.zeros(4), SINGLE)
    three = Problem("single_label", 3)
    narrow = classification_metrics(scores[:, :3], labels, np.zeros(3), three)
    assert {name: values[name] for name in ("accuracy", "auroc", "macro_f1")} == pytest.approx(
        {name: narrow[name] for name in ("accuracy", "auroc", "macro_f1")}
    )
    rows = per_class(scores, labels, np.zeros(4), SINGLE, samples=20, seed=0)
    assert rows[3]["auroc"] == {"value": None, "low": None, "high": None}
    nothing = classification_metrics(scores, np.zeros(90, int), np.zeros(4), SINGLE)
    assert nothing["auroc"] is None


def test_decisions():
    scores = np.array([[0.2, 0.5], [0.9, 0.4], [0.3, 0.3]])
    assert decide(scores, np.array([0.3, 0.5]), Problem("multi_label", 2)).tolist() == [[0, 1], [1, 0], [1, 0]]
    assert decide(scores, np.array([9.0, 9.0]), Problem("single_label", 2)).tolist() == [1, 0, 0]
    assert decide(scores[:, :1], np.array([0.3]), BINARY).tolist() == [0, 1, 1]


@pytest.mark.parametrize("problem", [SINGLE, MULTI], ids=lambda problem: problem.kind)
def test_intervals_hold_the_value_and_row_order_does_not_matter(problem, monkeypatch):
    scores, labels = case(problem, rows=200)
    thresholds = np.full(4, 0.5)
    found = estimates(scores, labels, thresholds, problem, samples=200, seed=3)
    assert list(found) == list(CLASS_METRICS)
    for estimate in found.values():
        assert estimate.low < estimate.value < estimate.high
    order = np.random.default_rng(0).permutation(200)
    moved = estimates(scores[order], labels[order], thresholds, problem, samples=0, seed=3)
    assert {name: item.value for name, item in moved.items()} == pytest.approx(
        {name: item.value for name, item in found.items()}
    )
    monkeypatch.setattr("ra_hmd.evaluation.metrics.intervals._BATCH", 7 * 300)
    again = estimates(scores, labels, thresholds, problem, samples=200, seed=3)
    assert {name: item.low for name, item in again.items()} == pytest.approx(
        {name: item.low for name, item in found.items()}
    )


@pytest.mark.parametrize("problem", [SINGLE, MULTI], ids=lambda problem: problem.kind)
def test_all_right_has_width_with_several_classes_too(problem):
    _, labels = case(problem, rows=80)
    scores = problem.membership(labels).astype(float)
    found = estimates(scores, labels, np.full(4, 0.5), problem, samples=500, seed=0)
    for name, item in found.items():
        assert item.value == item.high == 1, name
        assert 0.5 < item.low < 0.999, name
    change = metric_estimate("macro_f1", [ThresholdedScores(scores, np.full(4, 0.5))], labels, problem,
                             base=[ThresholdedScores(2 * scores, np.full(4, 0.5))], samples=500, seed=0)  # fmt: skip
    assert change.low < change.value == 0 < change.high


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_binary_metrics_are_scikit_learn_s_and_the_estimates(dtype):
    rng = np.random.default_rng(0)
    scores, labels = rng.random((50, 1)).astype(dtype), rng.integers(0, 2, 50)
    predicted = (scores[:, 0] >= 0.4).astype(int)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="binary")
    values = classification_metrics(scores, labels, 0.4)
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "auroc": roc_auc_score(labels, scores),
        "macro_f1": precision_recall_fscore_support(labels, predicted, average="macro")[2],
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }
    assert values == (expected if dtype == np.float64 else pytest.approx(expected, rel=1e-6))
    found = estimates(scores, labels, np.array([0.4]), BINARY, samples=0, seed=0)
    assert {name: item.value for name, item in found.items()} == pytest.approx(values, rel=1e-6)
    assert classification_metrics(scores[:, 0], labels, 0.4, names=("f1",)) == {"f1": values["f1"]}
