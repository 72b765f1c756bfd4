"""Metrics against scikit-learn; intervals against closed forms, naive loops, and how often they hold the truth."""

import json

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest, norm
from sklearn.metrics import f1_score, roc_auc_score

from ra_hmd.evaluation.metrics.classification import BINARY_METRICS, auroc, classification_metrics
from ra_hmd.evaluation.metrics.estimates import ThresholdedScores, metric_estimate
from ra_hmd.evaluation.metrics.intervals import (
    TOO_FEW,
    Area,
    Estimate,
    cells_interval,
    mean_estimate,
    paired_gain,
    proportion,
    rate,
)
from ra_hmd.evaluation.metrics.runs import estimate, paired_change
from ra_hmd.evaluation.report.sections import format_estimate

SHARES = ("accuracy", "precision", "recall", "f1")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def one(name, scores, labels, threshold=0.5, samples=1000, seed=0):
    return metric_estimate(
        name, [ThresholdedScores.binary(scores, threshold)], np.asarray(labels), samples=samples, seed=seed
    )


def drawn(rng, rows, shift=1.5):
    labels = rng.permutation(np.arange(rows) % 2)
    return rng.normal(size=rows) + shift * labels, labels


@pytest.mark.parametrize("name", BINARY_METRICS)
@pytest.mark.parametrize("ties", [False, True])
def test_values_are_scikit_learn_s(rng, name, ties):
    for _ in range(20):
        scores, labels = drawn(rng, 15)
        scores = scores.round() if ties else scores
        labels = labels * rng.integers(0, 2, 15)
        assert one(name, scores, labels, 0.3).value == pytest.approx(classification_metrics(scores, labels, 0.3)[name])


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0]])
@pytest.mark.parametrize("scores", [[0.9, 0.8, 0.7], [0.1, 0.2, 0.3], [0.1, 0.9, 0.4]])
def test_one_class(labels, scores):
    scores, labels = np.array(scores), np.array(labels)
    values = classification_metrics(scores, labels, 0.5)
    assert values["auroc"] is None
    assert values["macro_f1"] == f1_score(labels, scores >= 0.5, average="macro", zero_division=0)
    assert one("macro_f1", scores, labels).value == pytest.approx(values["macro_f1"])
    assert one("auroc", scores, labels) == Estimate(None)
    assert one("accuracy", scores, labels).low is not None


def test_the_threshold_itself_is_class_1():
    assert classification_metrics(np.array([0.5, 0.4]), np.array([1, 0]), 0.5)["accuracy"] == 1


def test_auroc_counts_half_for_ties(rng):
    scores, labels = rng.integers(0, 4, 200), rng.integers(0, 2, 200)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert Area.of(scores, labels == 1).value == pytest.approx(roc_auc_score(labels, scores))


def test_an_unknown_metric_lists_the_known():
    with pytest.raises(KeyError, match="accuracy, auroc"):
        one("speed", np.zeros(2), np.zeros(2, int))


@pytest.mark.parametrize(("hits", "cases"), [(3, 3), (19, 20), (0, 7), (48, 50), (1, 1)])
def test_shares_are_clopper_pearson(hits, cases):
    expected = binomtest(hits, cases).proportion_ci(method="exact")
    assert proportion(hits, cases) == pytest.approx((expected.low, expected.high))
    found = rate(np.arange(cases) < hits)
    assert (found["value"], found["low"]) == pytest.approx((hits / cases, expected.low))


def test_all_right_is_not_certain():
    scores, labels = np.array([0.9, 0.1, 0.2]), np.array([1, 0, 0])
    accuracy = one("accuracy", scores, labels)
    assert (accuracy.low, accuracy.high) == pytest.approx((0.025 ** (1 / 3), 1))
    assert one("recall", scores, labels).low == pytest.approx(0.025)
    assert one("f1", scores, labels).low == pytest.approx(2 * 0.025 / 1.025)
    scores, labels = drawn(np.random.default_rng(0), 40, shift=100)
    for name in BINARY_METRICS:
        found = one(name, scores, labels, 50)
        assert found.value == found.high == 1
        assert 0.5 < found.low < 0.97, name


def test_too_few_says_so_and_has_no_interval():
    scores, labels = np.array([0.9, 0.1, 0.2]), np.array([1, 0, 0])
    assert one("auroc", scores, labels) == Estimate(1.0, why=TOO_FEW)
    assert one("precision", np.zeros(3), labels) == Estimate(0.0, why=TOO_FEW), "no alarm"
    assert one("recall", scores, np.zeros(3, int)).why == TOO_FEW
    assert one("f1", np.zeros(3), np.zeros(3, int)).why == TOO_FEW
    assert one("macro_f1", np.zeros(3), np.zeros(3, int)) == Estimate(1.0, why=TOO_FEW)
    assert format_estimate(Estimate(1.0, why=TOO_FEW).as_dict()) == "1.000 (too few)"
    assert json.loads(json.dumps(Estimate(1.0, why=TOO_FEW).as_dict()))["why"] == TOO_FEW
    assert one("auroc", scores, labels, samples=0) == Estimate(1.0), "none was asked for"


@pytest.mark.parametrize("rows", [3, 20, 50])
@pytest.mark.parametrize("share", [0.69, 0.95, 0.97])
@pytest.mark.parametrize("name", SHARES)
def test_shares_cover_95_times_of_100_whatever_they_are(rows, share, name):
    """Every outcome of `rows` memes of class 1, weighted by its probability."""
    covered = 0.0
    truth = 2 * share / (1 + share) if name == "f1" else share
    for hits in range(rows + 1):
        scores = (np.arange(rows) < hits).astype(float)
        labels = np.ones(rows, int)
        if name == "precision":
            scores, labels = labels.astype(float), scores.astype(int)
        found = one(name, scores, labels)
        covered += binom.pmf(hits, rows, share) * (found.low - 1e-12 <= truth <= found.high + 1e-12)
    assert covered >= 0.95


def test_cells_give_clopper_pearson_for_a_share():
    counts, worst, best = np.array([19.0, 1.0]), np.array([0, 1]), np.array([1, 0])
    found = cells_interval(lambda w: w[:, 0] / w.sum(axis=1), counts, worst, best, samples=200_000, seed=0)
    assert found == pytest.approx(proportion(19, 20), abs=2e-3)


def test_delong_s_variance_is_that_of_two_loops(rng):
    scores, labels = drawn(rng, 31)
    scores = scores.round(1)
    above = [[(a > b) + 0.5 * (a == b) for b in scores[labels == 0]] for a in scores[labels == 1]]
    table = np.array(above, dtype=float)
    expected = table.mean(axis=1).var(ddof=1) / len(table) + table.mean(axis=0).var(ddof=1) / table.shape[1]
    area = Area.of(scores, labels == 1)
    assert (area.value, area.variance) == pytest.approx((table.mean(), expected))


def test_the_ends_of_an_auroc_are_one_point_96_errors_away(rng):
    scores, labels = drawn(rng, 60)
    area = Area.of(scores, labels == 1)
    low, high = area.interval()
    table = scores[labels == 1][:, None] > scores[labels == 0]
    misplaced = min((~table.all(axis=1)).sum(), (~table.all(axis=0)).sum())
    ratio = area.variance / area.expected_variance(area.value)
    excess = ratio if ratio > 1 else (misplaced * ratio + 10) / (misplaced + 10)
    for end in (low, high):
        error = np.sqrt(excess * area.expected_variance(end))
        assert abs(end - area.value) == pytest.approx(norm.ppf(0.975) * error, rel=1e-6)
    many, truth = drawn(rng, 20_000)
    low, high = (area := Area.of(many, truth == 1)).interval()
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(area.variance), rel=0.01), "DeLong's, with many memes"


@pytest.mark.parametrize(("rows", "shift"), [(20, 1.5), (20, 3.5), (60, 2.5)])
def test_auroc_and_macro_f1_cover_near_the_edge(rows, shift):
    rng = np.random.default_rng(1)
    area = norm.cdf(shift / np.sqrt(2))
    right = norm.cdf(shift / 2)  # of both classes, at the threshold in the middle: so is F1 of both
    covered = {"auroc": 0, "macro_f1": 0}
    for _ in range(400):
        scores, labels = drawn(rng, rows, shift)
        for name, truth in (("auroc", area), ("macro_f1", right)):
            found = one(name, scores, labels, shift / 2, samples=200)
            covered[name] += found.low <= truth <= found.high
    assert min(covered.values()) / 400 >= 0.925, covered


def test_intervals_repeat_with_the_seed_and_row_order_does_not_matter(rng):
    scores, labels = drawn(rng, 100, 0.5)
    first, again, other = (one("macro_f1", scores, labels, 0, samples=200, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.low != other.low
    order = rng.permutation(100)
    for name in BINARY_METRICS:
        ours, moved = (one(name, *pair, 0.2) for pair in ((scores, labels), (scores[order], labels[order])))
        assert (ours.value, ours.low, ours.high) == pytest.approx((moved.value, moved.low, moved.high))
        assert ours.low < ours.value < ours.high


def test_the_mean_over_seeds_is_no_wider_than_one_of_them(rng):
    scores, labels = drawn(rng, 300)
    runs = [scores + 0.3 * rng.normal(size=300) for _ in range(5)]
    cell = estimate(runs, labels, 0.75, samples=1000, seed=0, names=BINARY_METRICS)
    for name in BINARY_METRICS:
        values = [classification_metrics(run, labels, 0.75)[name] for run in runs]
        assert cell[name]["value"] == pytest.approx(np.mean(values))
        assert cell[name]["std"] == pytest.approx(np.std(values, ddof=1))
        alone = [one(name, run, labels, 0.75) for run in runs]
        width = max(item.high - item.low for item in alone)
        assert 0.3 * width < cell[name]["high"] - cell[name]["low"] < 1.1 * width, name
        assert cell[name]["low"] < cell[name]["value"] < cell[name]["high"]


@pytest.mark.parametrize("name", ["accuracy", "auroc", "macro_f1"])
def test_paired_differences(rng, name):
    scores, labels = drawn(rng, 300)
    better = scores + 0.4 * (2 * labels - 1)
    noise = scores + 0.02 * rng.normal(size=300)
    up = paired_change([better], [scores], labels, 0.75, samples=1000, seed=0, name=name)
    assert 0 < up["low"] < up["value"] < up["high"]
    down = paired_change([scores], [better], labels, 0.75, samples=1000, seed=0, name=name)
    assert [down["low"], down["high"]] == pytest.approx([-up["high"], -up["low"]], abs=6e-3)
    near = paired_change([noise], [scores], labels, 0.75, samples=1000, seed=0, name=name)
    alone = one(name, scores, labels, 0.75)
    assert near["low"] <= 0 <= near["high"]
    assert near["high"] - near["low"] < 0.6 * (alone.high - alone.low), "pairing narrows it"
    perfect = 100.0 * labels
    both = paired_change([perfect], [2 * perfect], labels, 50, samples=1000, seed=0, name=name)
    assert both["value"] == 0
    assert both["low"] < 0 < both["high"], "two that are right throughout may differ on other memes"


def test_paired_differences_cover(rng):
    covered = {"accuracy": 0, "auroc": 0}
    truth = {"accuracy": norm.cdf(1.3) - norm.cdf(1.0), "auroc": norm.cdf(2.6 / np.sqrt(2)) - norm.cdf(np.sqrt(2))}
    for _ in range(400):
        labels = rng.permutation(np.arange(60) % 2)
        shared, own = rng.normal(size=60), rng.normal(size=(2, 60))
        first, second = (shift * (2 * labels - 1) + 0.8 * shared + 0.6 * noise
                         for shift, noise in zip((1.0, 1.3), own, strict=True))  # fmt: skip
        for name in covered:
            found = paired_change([second], [first], labels, 0.0, samples=300, seed=0, name=name)
            covered[name] += found["low"] <= truth[name] <= found["high"]
    assert min(covered.values()) / 400 >= 0.925, covered


def test_means(rng):
    values = rng.normal(size=4000)
    found = mean_estimate(values, (-5.0, 5.0), samples=4000, seed=1)
    error = values.std() / np.sqrt(4000)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.35 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.35 * error)
    same = mean_estimate(np.full(10, 10.0), (0.0, 10.0), samples=20_000, seed=0)
    assert same.high == 10
    assert same.low == pytest.approx(10 * beta.ppf(0.025, 10, 1), abs=0.1), "ten best grades do not show that all are"
    assert mean_estimate(np.zeros(0), samples=10, seed=0) == Estimate(None)


def test_paired_gain(rng):
    before = rng.random(300) < 0.6
    after = before | (rng.random(300) < 0.3)
    gain = paired_gain(before, after, samples=500)
    assert gain.value == pytest.approx(after.mean() - before.mean())
    assert 0 < gain.low < gain.value < gain.high
    apart = before.var() / 300 + after.var() / 300
    assert gain.high - gain.low < 2 * 1.96 * np.sqrt(apart), "pairing must narrow the interval"
    same = paired_gain(before, before, samples=20_000)
    assert same.value == 0
    assert (same.low, same.high) == pytest.approx((-beta.ppf(0.975, 1, 300), beta.ppf(0.975, 1, 300)), abs=1e-3)
    with pytest.raises(ValueError, match="paired"):
        paired_gain(before, after[:-1])
