"""The chosen threshold against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score

from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.scoring.thresholds import CRITERIA, best_threshold, best_thresholds


def value(criterion, labels, predicted):
    if criterion == "accuracy":
        return accuracy_score(labels, predicted)
    if criterion == "youden":
        return recall_score(labels, predicted) + recall_score(labels, predicted, pos_label=0) - 1
    average = "binary" if criterion == "f1" else "macro"
    return f1_score(labels, predicted, average=average, labels=None if criterion == "f1" else [0, 1], zero_division=0)


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=20).filter(
        lambda rows: len({label for _, label in rows}) == 2
    ),
    criterion=st.sampled_from(CRITERIA),
    official=st.sampled_from([0.0, 0.5]),
)
def test_no_other_threshold_is_better_and_none_as_good_is_nearer(data, criterion, official):
    scores = np.array([score for score, _ in data]) / 6
    positive = np.array([label for _, label in data])
    chosen = best_threshold(scores, positive, criterion, official)
    tried = np.r_[np.unique(np.r_[scores, scores + 1e-9, (scores[:, None] + scores).ravel() / 2]), official]
    values = [value(criterion, positive, scores >= threshold) for threshold in tried]
    found = value(criterion, positive, scores >= chosen)
    assert found == pytest.approx(max(values))
    if value(criterion, positive, scores >= official) == pytest.approx(max(values)):
        assert chosen == official


def test_neighbouring_floats_are_told_apart():
    low = 0.3
    scores = np.array([low, np.nextafter(low, 1)])
    chosen = best_threshold(scores, np.array([False, True]), "accuracy", 0.5)
    assert (scores >= chosen).tolist() == [False, True]


def test_row_order_and_ties_do_not_matter():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 10, 100) / 10, rng.random(100) < 0.4
    order = rng.permutation(100)
    for criterion in CRITERIA:
        assert best_threshold(scores, positive, criterion, 0.5) == best_threshold(
            scores[order], positive[order], criterion, 0.5
        )


def test_per_class_and_where_there_is_nothing_to_choose():
    rng = np.random.default_rng(0)
    labels = np.c_[rng.integers(0, 2, 80), np.zeros(80, int), np.arange(80) < 20]
    scores = rng.random((80, 3)) + 0.4 * labels
    chosen = best_thresholds(scores, labels, "f1", np.full(3, 0.5), Problem("multi_label", 3))
    assert chosen[1] == 0.5
    for c in (0, 2):
        assert chosen[c] == best_threshold(scores[:, c], labels[:, c] == 1, "f1", 0.5) != 0.5
    one = best_thresholds(scores, np.arange(80) % 3, "f1", np.full(3, 0.5), Problem("single_label", 3))
    assert one.tolist() == [0.5] * 3
    assert best_thresholds(scores[:, :1], labels[:, 0], "f1", np.array([0.5]), BINARY)[0] == chosen[0]
