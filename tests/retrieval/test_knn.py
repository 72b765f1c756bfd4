"""Exact search and the KNN vote, against naive NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ra_hmd.core.errors import UserError
from ra_hmd.retrieval.distinct_vectors import DistinctVectors, VectorRows
from ra_hmd.retrieval.knn import ABSENT, Neighbours, search, unit_rows
from ra_hmd.retrieval.nearest import CandidateIndex, nearest_rows
from ra_hmd.retrieval.voting import Voting


def rkc_votes(neighbours, labels, weights="arithmetic"):
    return Voting(weights=weights).vote(neighbours, labels).contributions[..., 0]


def rkc_scores(neighbours, labels, weights="arithmetic"):
    return rkc_votes(neighbours, labels, weights).sum(axis=1)


def naive_neighbours(queries, bank, k, metric="cos", query_ids=None, bank_ids=None):
    """Lists of (row, similarity), nearest first, by a Python loop over every pair."""
    found = []
    for q, query in enumerate(queries.astype(np.float64)):
        pairs = []
        for n, row in enumerate(bank.astype(np.float64)):
            if query_ids is not None and query_ids[q] == bank_ids[n]:
                continue
            dot = float(query @ row)
            if metric == "cos":
                dot /= (np.linalg.norm(query) or 1) * (np.linalg.norm(row) or 1)
            pairs.append((n, dot))
        found.append(sorted(pairs, key=lambda pair: -pair[1])[:k])
    return found


def naive_rkc(queries, bank, labels, k, weights, **ids):
    scores = []
    for pairs in naive_neighbours(queries, bank, k, **ids):
        total = weight_sum = 0.0
        for rank, (row, similarity) in enumerate(pairs):
            weight = k - rank if weights == "arithmetic" else 1
            total += weight * (2 * labels[row] - 1) * similarity
            weight_sum += weight
        scores.append(total / weight_sum)
    return np.array(scores)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("weights", ["arithmetic", "mean"])
@pytest.mark.parametrize("rows", [200, 20, 7])
def test_scores_equal_a_naive_loop_at_k_20(rng, weights, rows):
    queries, bank = rng.normal(size=(50, 16)), rng.normal(size=(rows, 16))
    labels = rng.integers(0, 2, rows)
    scores = rkc_scores(search(queries, bank, 20), labels, weights)
    assert np.allclose(scores, naive_rkc(queries, bank, labels, 20, weights), atol=1e-6)
    assert (np.abs(scores) <= 1).all()


@pytest.mark.parametrize("metric", ["cos", "ip"])
@pytest.mark.parametrize("count", [3, 64])  # FAISS has one kernel for few queries and one for many
def test_search_finds_the_nearest_in_order(rng, metric, count):
    queries, bank = rng.normal(size=(count, 8)) * 3, rng.normal(size=(100, 8)) * 5
    found = search(queries, bank, 6, metric=metric)
    for q, pairs in enumerate(naive_neighbours(queries, bank, 6, metric)):
        assert found.rows[q].tolist() == [row for row, _ in pairs]
        assert np.allclose(found.similarity[q], [similarity for _, similarity in pairs], rtol=1e-4, atol=1e-5)


def test_a_bank_that_is_smaller_than_k_is_padded(rng):
    found = search(rng.normal(size=(4, 8)), rng.normal(size=(3, 8)), 5)
    assert found.rows.shape == (4, 5)
    assert (found.rows[:, 3:] == ABSENT).all()
    assert (found.similarity[:, 3:] == 0).all()
    assert (np.sort(found.rows[:, :3], axis=1) == [0, 1, 2]).all()


def test_inputs_are_not_modified(rng):
    queries, bank = (rng.normal(size=(5, 8)).astype(np.float32) for _ in range(2))
    copies = queries.copy(), bank.copy()
    search(queries, bank, 3)
    assert np.array_equal(queries, copies[0])
    assert np.array_equal(bank, copies[1])


def test_rows_of_the_query_s_own_id_are_excluded_however_many_there_are(rng):
    bank = rng.normal(size=(60, 8))
    ids = [f"meme {row % 20}" for row in range(60)]  # each id three times
    bank[20:40] = bank[:20]  # of which two are the same point
    found = search(bank, bank, 5, query_ids=ids, bank_ids=ids)
    assert found.present.all()
    assert all(ids[query] != ids[row] for query, line in enumerate(found.rows) for row in line)
    expected = naive_neighbours(bank, bank, 5, query_ids=ids, bank_ids=ids)
    assert np.allclose(found.similarity, [[s for _, s in pairs] for pairs in expected], atol=1e-5)


def test_exclusion_costs_no_neighbour_when_the_own_row_is_far_away(rng):
    """The id is excluded by id, not by dropping the first hit: here the own row is the farthest."""
    bank = rng.normal(size=(10, 4))
    queries = -bank
    ids = [str(row) for row in range(10)]
    found = search(queries, bank, 3, query_ids=ids, bank_ids=ids)
    expected = naive_neighbours(queries, bank, 3, query_ids=ids, bank_ids=ids)
    assert found.rows.tolist() == [[row for row, _ in pairs] for pairs in expected]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 30),
    count=st.integers(1, 30),
    k=st.integers(1, 12),
    names=st.integers(1, 40),
)
def test_search_equals_brute_force_whatever_the_ids(seed, rows, count, k, names):
    rng = np.random.default_rng(seed)
    queries, bank = rng.normal(size=(count, 4)), rng.normal(size=(rows, 4))
    query_ids, bank_ids = ([str(i) for i in rng.integers(0, names, n)] for n in (count, rows))
    found = search(queries, bank, k, query_ids=query_ids, bank_ids=bank_ids)
    for q, pairs in enumerate(naive_neighbours(queries, bank, k, query_ids=query_ids, bank_ids=bank_ids)):
        line = found.rows[q][found.present[q]]
        assert len(line) == len(pairs)
        assert len(set(line.tolist())) == len(line)
        assert np.allclose(found.similarity[q][: len(pairs)], [s for _, s in pairs], atol=1e-5)


def test_row_order_of_the_bank_does_not_matter(rng):
    queries, bank, labels = rng.normal(size=(30, 8)), rng.normal(size=(80, 8)), rng.integers(0, 2, 80)
    order = rng.permutation(80)
    straight = rkc_scores(search(queries, bank, 20), labels)
    shuffled = rkc_scores(search(queries, bank[order], 20), labels[order])
    assert np.allclose(straight, shuffled, atol=1e-6)


def test_the_decision_at_zero_is_class_1_and_votes_add_up():
    neighbours = Neighbours(np.array([[0, 1], [1, ABSENT]]), np.array([[0.5, 0.5], [1.0, 0.0]], np.float32))
    labels = np.array([1, 0])
    assert rkc_scores(neighbours, labels, "mean").tolist() == [0.0, -1.0]
    votes = rkc_votes(neighbours, labels, "arithmetic")
    assert votes == pytest.approx(np.array([[2 / 3 * 0.5, -1 / 3 * 0.5], [-1.0, 0.0]]))


def test_an_absent_neighbour_leaves_the_denominator(rng):
    """With three rows the score is a mean over three, not over K: identical rows of class 1 give exactly 1."""
    point = rng.normal(size=(1, 8))
    assert rkc_scores(search(point, np.repeat(point, 3, 0), 20), np.ones(3, int)) == pytest.approx([1.0], abs=1e-6)


@pytest.mark.parametrize("metric", ["cos", "ip", "l2"])
def test_a_query_alone_has_the_neighbours_that_it_has_in_any_batch(rng, metric):
    """Copies lie across the K-th place: which of them are neighbours is told by their row, not by FAISS's kernels."""
    bank = rng.normal(size=(300, 96)).astype(np.float32)
    bank[40:300:4] = bank[40]  # 65 copies
    bank[41:300:6] = bank[41]
    queries = np.concatenate([bank[[40, 41]] + 0.1 * rng.normal(size=(2, 96)), rng.normal(size=(62, 96))])
    whole = search(queries, bank, 20, metric=metric)
    assert whole.rows[0].tolist() == list(range(40, 120, 4))
    for size in (1, 2, 19, 20, 33):  # FAISS takes another kernel from 20 on
        for first in range(0, len(queries), size):
            part = search(queries[first : first + size], bank, 20, metric=metric)
            assert np.array_equal(part.rows, whole.rows[first : first + size])
            assert np.array_equal(part.similarity, whole.similarity[first : first + size])
    backwards = search(queries[::-1], bank, 20, metric=metric)
    assert np.array_equal(backwards.rows, whole.rows[::-1])
    assert np.array_equal(backwards.similarity, whole.similarity[::-1])


def test_equal_rows_do_not_deepen_the_search(rng):
    """5,000 copies of three vectors are three points, and the nearest copies are the first ones by row."""
    vectors = unit_rows(rng.normal(size=(3, 8)))
    point = rng.integers(0, 3, 5000)
    asked = []

    def candidates(queries, depth):
        asked.append(depth)
        order = np.argsort(-(queries @ vectors.T), axis=1)[:, :depth]
        return np.pad(order, ((0, 0), (0, depth - order.shape[1])), constant_values=ABSENT)

    searched = CandidateIndex(candidates, vectors.__getitem__, VectorRows.of(point, 3))
    rows, similarity = nearest_rows(searched, vectors, 20)
    assert asked == [29]
    assert [line.tolist() for line in rows] == [np.flatnonzero(point == line)[:20].tolist() for line in range(3)]
    assert similarity == pytest.approx(1)


def test_points_are_the_distinct_rows_in_the_order_in_which_they_came(rng):
    matrix = rng.integers(0, 2, (40, 4)).astype(np.float32)
    points, told = DistinctVectors(), []
    for part in np.array_split(matrix, 5):
        point, new = points.number(part)
        told += point.tolist()
        assert np.array_equal(new, [i for i, number in enumerate(point) if number not in told[: len(told) - len(part)]
                                    and number not in point[:i]])  # fmt: skip
    lines = matrix.tolist()
    assert told == [list(dict.fromkeys(map(tuple, lines))).index(tuple(line)) for line in lines]
    again = DistinctVectors(points.hashes)
    assert again.number(matrix)[0].tolist() == told
    assert len(again) == len(points) == len(set(told))


def test_zero_huge_and_tiny_rows_normalise(rng):
    matrix = np.stack([np.zeros(4), np.full(4, 1e30), np.full(4, 1e-30)])
    assert np.allclose(unit_rows(matrix), [[0] * 4, [0.5] * 4, [0.5] * 4])


def test_errors_say_what_to_do(rng):
    bank = rng.normal(size=(5, 4))
    with pytest.raises(UserError, match="at least one neighbour"):
        search(bank, bank, 0)
    with pytest.raises(UserError, match="4 dimensions and the bank 3"):
        search(bank, bank[:, :3], 1)
    with pytest.raises(ValueError, match="of neither"):
        search(bank, bank, 1, query_ids=list("abcde"))
    with pytest.raises(UserError, match=r"not finite \(first: row 2"):
        search(np.where(np.arange(5)[:, None] == 2, np.nan, bank), bank, 1)
    with pytest.raises(UserError, match=r"labels \[2\]"):
        rkc_scores(search(bank, bank, 1), np.array([0, 1, 2, 0, 1]))
    with pytest.raises(UserError, match="arithmetic, mean"):
        rkc_scores(search(bank, bank, 1), np.array([0, 1, 1, 0, 1]), "harmonic")
    with pytest.raises(UserError, match="5 queries have no neighbour"):
        rkc_scores(search(bank, bank[:0], 1), np.array([], int))
    with pytest.raises(UserError, match="1 queries have no neighbour"):
        rkc_scores(search(bank[:1], bank[:1], 3, query_ids=["a"], bank_ids=["a"]), np.array([1]))
