"""Mining against brute force, and the two published defects that it must not have."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ra_hmd.retrieval.knn import Neighbours, search
from stage2.losses.similarity import Similarity
from stage2.mining import Mined, check_mined, mine


def brute_force(embeddings, labels, ids, anchor, k, metric, same):
    """Similarities of the k nearest allowed rows, nearest first, on the loss's scale."""
    found = []
    for row in range(len(labels)):
        if ids[row] == ids[anchor] or (labels[row] == labels[anchor]) != same:
            continue
        a, b = embeddings[anchor].astype(np.float64), embeddings[row].astype(np.float64)
        scale = len(a) if metric == "ip" else np.linalg.norm(a) * np.linalg.norm(b)
        found.append(float(a @ b) / scale)
    return sorted(found, reverse=True)[:k]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 40),
    classes=st.integers(1, 3),
    names=st.integers(1, 60),
    positives=st.integers(1, 4),
    hard_negatives=st.integers(0, 4),
    metric=st.sampled_from(["cos", "ip"]),
)
def test_mining_equals_brute_force(seed, rows, classes, names, positives, hard_negatives, metric):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(rows, 4)).astype(np.float32)
    labels = rng.integers(0, classes, rows)
    ids = [str(i) for i in rng.integers(0, names, rows)]
    mined = mine(
        embeddings, labels, ids, positives=positives, hard_negatives=hard_negatives, similarity=Similarity(metric)
    )
    for near, k, same in ((mined.positives, positives, True), (mined.hard_negatives, hard_negatives, False)):
        assert near.rows.shape == (rows, k)
        for anchor in range(rows):
            expected = brute_force(embeddings, labels, ids, anchor, k, metric, same)
            assert near.present[anchor].sum() == len(expected)
            assert near.similarity[anchor][: len(expected)] == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def separated():
    """Two classes so far apart that the 100 nearest rows of every anchor are of its own class."""
    rng = np.random.default_rng(1)
    labels = np.arange(400) % 2
    embeddings = np.where(labels[:, None] == 1, 1.0, -1.0) + 0.01 * rng.normal(size=(400, 8))
    return embeddings.astype(np.float32), labels, [f"m{row}" for row in range(400)]


@pytest.mark.parametrize("metric", ["cos", "ip"])
def test_hard_negatives_are_found_where_a_search_of_12_finds_none(separated, metric):
    embeddings, labels, ids = separated
    shallow = search(embeddings, embeddings, 12, metric=metric)
    assert (labels[shallow.rows] == labels[:, None]).all(), "the data must defeat a 12-deep search"
    mined = mine(embeddings, labels, ids, positives=2, hard_negatives=3, similarity=Similarity(metric))
    assert mined.hard_negatives.present.all()
    assert mined.positives.present.all()


@pytest.mark.parametrize("metric", ["cos", "ip"])
def test_the_anchor_is_never_its_own_positive(separated, metric):
    embeddings, labels, ids = separated
    mined = mine(embeddings, labels, ids, positives=1, hard_negatives=1, similarity=Similarity(metric))
    assert (mined.positives.rows[:, 0] != np.arange(400)).all()


def test_every_copy_of_an_id_is_excluded(separated):
    embeddings, labels, _ = separated
    ids = [f"m{row // 8}" for row in range(400)]  # eight copies of each id, four in each class
    mined = mine(embeddings, labels, ids, positives=5, hard_negatives=5, similarity=Similarity("cos"))
    for near in (mined.positives, mined.hard_negatives):
        assert near.present.all()
        assert all(ids[row] != ids[anchor] for anchor in range(400) for row in near.rows[anchor])


def test_statistics_count_what_is_missing():
    embeddings = np.eye(4, dtype=np.float32)
    labels = np.array([0, 0, 0, 1])
    mined = mine(embeddings, labels, list("abcd"), positives=2, hard_negatives=2, similarity=Similarity("cos"))
    statistics = mined.statistics()
    assert statistics["anchors"] == 4
    positives, negatives = statistics["positives"], statistics["hard_negatives"]
    assert (positives["asked"], positives["found"]) == (2, 6)
    assert (positives["anchors_short"], positives["anchors_without"]) == (1, 1)
    assert (negatives["found"], negatives["anchors_short"], negatives["anchors_without"]) == (5, 3, 0)
    assert positives["similarity"]["median"] == 0
    assert statistics["inverted"] == 0


def test_statistics_without_hard_negatives(separated):
    embeddings, labels, ids = separated
    statistics = mine(embeddings, labels, ids, positives=1, hard_negatives=0).statistics()
    assert statistics["hard_negatives"]["similarity"] is None
    assert statistics["hard_negatives"]["anchors_without"] == 0
    assert statistics["inverted"] is None


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [("positives", 0, "anchor itself"), ("positives", 1, "wrong class"), ("hard_negatives", 9, "outside the bank")],
)
def test_a_faulty_search_is_caught(kind, row, message):
    labels, ids = np.array([0, 1, 0, 1]), list("abcd")
    mined = mine(np.eye(4, dtype=np.float32), labels, ids, positives=1, hard_negatives=1)
    rows = getattr(mined, kind).rows.copy()
    rows[0, 0] = row
    faulty: Mined = dataclasses.replace(mined, **{kind: Neighbours(rows, getattr(mined, kind).similarity)})
    with pytest.raises(RuntimeError, match=message):
        check_mined(faulty, labels, ids)


@pytest.mark.parametrize(
    "similarity",
    [Similarity("l2"), Similarity("l2", normalise=True), Similarity("l2", squared=False)],
    ids=str,
)
def test_l2_mining_equals_brute_force(similarity):
    rng = np.random.default_rng(3)
    embeddings = rng.normal(size=(60, 4)).astype(np.float32)
    labels = rng.integers(0, 3, 60)
    mined = mine(embeddings, labels, [str(i) for i in range(60)], positives=2, hard_negatives=3, similarity=similarity)
    vectors = embeddings.astype(np.float64)
    if similarity.normalise:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    distance = np.square(vectors[:, None] - vectors[None]).sum(axis=2)
    values = -(distance if similarity.squared else np.sqrt(distance)) / 4
    np.fill_diagonal(values, -np.inf)
    for near, k, allowed in (
        (mined.positives, 2, labels[:, None] == labels[None]),
        (mined.hard_negatives, 3, labels[:, None] != labels[None]),
    ):
        expected = -np.sort(-np.where(allowed, values, -np.inf), axis=1)[:, :k]
        np.testing.assert_allclose(near.similarity, expected, atol=1e-4)


def test_hard_positives_are_the_least_similar_of_the_retrieved():
    rng = np.random.default_rng(4)
    embeddings = rng.normal(size=(80, 4)).astype(np.float32)
    labels, ids = np.arange(80) % 2, [str(i) for i in range(80)]
    cos = Similarity("cos")
    mined = mine(
        embeddings, labels, ids, positives=2, hard_negatives=1, hard_positives=3, positive_depth=9, similarity=cos
    )
    deep = mine(embeddings, labels, ids, positives=9, hard_negatives=0, similarity=cos).positives
    assert (mined.positives.rows == deep.rows[:, :2]).all()
    assert (mined.hard_positives.rows == deep.rows[:, [8, 7, 6]]).all()
    assert (mined.all_positives() == np.concatenate([deep.rows[:, :2], deep.rows[:, [8, 7, 6]]], axis=1)).all()
    assert mined.statistics()["hard_positives"]["anchors_short"] == 0


def test_hard_positives_of_a_small_class_are_no_pseudo_gold_ones():
    embeddings = np.eye(6, dtype=np.float32) + 0.1
    labels, ids = np.array([0, 0, 0, 0, 1, 1]), list("abcdef")
    mined = mine(embeddings, labels, ids, positives=2, hard_negatives=0, hard_positives=2)
    assert (mined.hard_positives.present.sum(axis=1) == [1, 1, 1, 1, 0, 0]).all()
    for near, hard in zip(mined.positives.rows, mined.hard_positives.rows, strict=True):
        assert not set(near[near >= 0]) & set(hard[hard >= 0])
    alone = mine(embeddings, labels, ids, positives=0, hard_negatives=1, hard_positives=1)
    assert alone.positives.rows.shape == (6, 0)
    assert alone.hard_positives.present.all()
