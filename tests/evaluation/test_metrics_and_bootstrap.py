"""Vectorised metrics against scikit-learn, and the bootstrap's behaviour at the edges."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from ra_hmd.evaluation.bootstrap import Estimate, interval, metric_estimates, paired_gain
from ra_hmd.evaluation.metrics import METRICS, auroc, binary_metrics, resampled_metric


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("ties", [False, True])
def test_resamples_equal_the_plain_metric_of_each_resample(rng, name, ties):
    scores = rng.normal(size=60)
    scores = scores.round() if ties else scores
    labels = (scores + rng.normal(size=60) > 0.5).astype(int)
    rows = rng.integers(0, 60, (40, 60))
    found = resampled_metric(name, scores, labels, 0.3)(rows)
    expected = [binary_metrics(scores[line], labels[line], 0.3)[name] for line in rows]
    assert found == pytest.approx(np.array(expected, dtype=float), abs=1e-12)


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0]])
@pytest.mark.parametrize("scores", [[0.9, 0.8, 0.7], [0.1, 0.2, 0.3], [0.1, 0.9, 0.4]])
def test_one_class(labels, scores):
    scores, labels = np.array(scores), np.array(labels)
    values = binary_metrics(scores, labels, 0.5)
    assert values["auroc"] is None
    assert values["macro_f1"] == f1_score(labels, scores >= 0.5, average="macro", zero_division=0)
    rows = np.arange(3)[None]
    assert resampled_metric("macro_f1", scores, labels, 0.5)(rows)[0] == pytest.approx(values["macro_f1"])
    assert np.isnan(resampled_metric("auroc", scores, labels, 0.5)(rows)[0])
    estimates = metric_estimates(scores, labels, 0.5, samples=50)
    assert estimates["auroc"] == Estimate(None)
    assert estimates["accuracy"].low is not None


def test_the_threshold_itself_is_class_1():
    assert binary_metrics(np.array([0.5, 0.4]), np.array([1, 0]), 0.5)["accuracy"] == 1


def test_auroc_counts_half_for_ties(rng):
    scores, labels = rng.integers(0, 4, 200), rng.integers(0, 2, 200)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_an_unknown_metric_lists_the_known(rng):
    with pytest.raises(KeyError, match="accuracy, auroc"):
        resampled_metric("speed", np.zeros(2), np.zeros(2), 0)(np.zeros((1, 2), int))


def test_single_class_resamples_do_not_break_the_interval():
    """With one positive among 20, a third of the resamples have none."""
    scores, labels = np.linspace(0, 1, 20), np.zeros(20, int)
    labels[15] = 1
    estimate = metric_estimates(scores, labels, 0.5, samples=500)["auroc"]
    assert estimate.low <= estimate.value <= estimate.high
    assert 0 <= estimate.low < estimate.high <= 1


def test_the_interval_is_the_percentile_interval_of_a_mean(rng):
    """For a mean of many rows it is close to ± 1.96 standard errors."""
    values = rng.normal(size=2000)
    low, high = interval(lambda rows: values[rows].mean(axis=-1), 2000, samples=4000, seed=1)
    error = values.std() / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_intervals_repeat_with_the_seed_and_move_with_it(rng):
    scores, labels = rng.normal(size=100), rng.integers(0, 2, 100)
    first, again, other = (metric_estimates(scores, labels, 0, samples=200, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first["auroc"].low != other["auroc"].low
    assert first["auroc"].value == other["auroc"].value


def test_no_interval_without_resamples_or_rows():
    assert metric_estimates(np.array([0.7]), np.array([1]), 0.5)["accuracy"] == Estimate(1.0)
    assert metric_estimates(np.array([0.7, 0.1]), np.array([1, 0]), 0.5, samples=0)["auroc"] == Estimate(1.0)


def test_batches_do_not_change_the_resamples(rng, monkeypatch):
    values = rng.normal(size=50)
    whole = interval(lambda rows: values[rows].mean(axis=-1), 50, samples=100, seed=0)
    monkeypatch.setattr("ra_hmd.evaluation.bootstrap._BATCH_ROWS", 50 * 7)
    assert interval(lambda rows: values[rows].mean(axis=-1), 50, samples=100, seed=0) == pytest.approx(whole)


def test_paired_gain(rng):
    before = rng.random(300) < 0.6
    after = before | (rng.random(300) < 0.3)
    gain = paired_gain(before, after, samples=500)
    assert gain.value == pytest.approx(after.mean() - before.mean())
    assert 0 < gain.low < gain.value < gain.high
    apart = before.var() / 300 + after.var() / 300
    assert gain.high - gain.low < 2 * 1.96 * np.sqrt(apart), "pairing must narrow the interval"
    assert paired_gain(before, before) == Estimate(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="paired"):
        paired_gain(before, after[:-1])
