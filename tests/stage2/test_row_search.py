"""The search that mining uses, against brute force: blocks, large groups, equal rows, lists where they are worth it."""

import numpy as np
import pytest

from ra_hmd.retrieval.knn import ABSENT, unit_rows
from stage2 import row_search
from stage2.row_search import RowSearch
from stage2.sparse import SparseIndex


def brute_force(rows: np.ndarray, codes: np.ndarray, anchors: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    near = rows[anchors].astype(np.float64) @ rows[candidates].astype(np.float64).T
    near = np.where(codes[anchors][:, None] == codes[candidates], -np.inf, near)
    order = np.argsort(-near, axis=1, kind="stable")[:, :k]
    return np.where(np.isinf(np.take_along_axis(near, order, axis=1)), ABSENT, candidates[order])


def clustered(rows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit_rows(rng.normal(size=(60, 24))[rng.integers(0, 60, rows)] + 0.3 * rng.normal(size=(rows, 24)))


def test_blocks_and_groups_of_every_size_change_nothing(monkeypatch):
    """A group of a third of the rows, one of 60, one of 10, and the rest alone."""
    monkeypatch.setattr(row_search, "_BANK_BLOCK", 128)
    monkeypatch.setattr(row_search, "_QUERY_BLOCK", 256)
    rows, codes = clustered(1500), np.arange(1500)
    codes[::3], codes[1:180:3], codes[2:32:3] = 0, 1, 2
    anchors, candidates = np.arange(0, 1500, 2), np.flatnonzero(np.arange(1500) % 5 > 0)
    found = RowSearch(rows, codes, "ip", "auto", 4)(anchors, candidates, 4)
    assert np.array_equal(found.rows, brute_force(rows, codes, anchors, candidates, 4))
    expected = np.take_along_axis(rows[anchors] @ rows.T, found.rows, axis=1)
    assert found.similarity == pytest.approx(expected, abs=1e-6)


def test_the_depth_of_a_search_does_not_grow_with_a_large_group(monkeypatch):
    depths = []
    exhaustive = RowSearch._exhaustive

    def spy(self, anchors, rows, depth):
        depths.append(depth)
        return exhaustive(self, anchors, rows, depth)

    monkeypatch.setattr(RowSearch, "_exhaustive", spy)
    codes = np.arange(2000)
    codes[:900] = 0
    found = RowSearch(clustered(2000), codes, "ip", "auto", 1)(np.arange(2000), np.arange(2000), 1)
    assert (codes[found.rows[:, 0]] != codes).all()
    assert sorted(depths) == [1, 2]


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_lists_are_searched_where_they_find_what_there_is(monkeypatch, metric):
    monkeypatch.setattr(row_search, "EXACT_CANDIDATES", 1000)
    rows, every = clustered(6000), np.arange(6000)
    search = RowSearch(rows, every, metric, "auto", 2)
    found, exact = search(every, every, 2), RowSearch(rows, every, metric, "flat", 2)(every, every, 2)
    (choice,) = search.choices
    assert choice["index"] == "ivf"
    assert choice["recall_at_20"] >= 0.99
    assert choice["looked_through"] < 0.25
    assert (found.rows == exact.rows).mean() > 0.98
    assert not (found.rows == every[:, None]).any()


def test_without_structure_every_row_is_looked_at_and_that_is_told(monkeypatch):
    monkeypatch.setattr(row_search, "EXACT_CANDIDATES", 1000)
    rows, every = unit_rows(np.random.default_rng(0).normal(size=(4000, 64))), np.arange(4000)
    search = RowSearch(rows, every, "ip", "auto", 1)
    assert np.array_equal(search(every, every, 1).rows, brute_force(rows, every, every, every, 1))
    (choice,) = search.choices
    assert (choice["index"], choice["recall_at_20"]) == ("flat", 1.0)
    assert choice["tried_recall_at_20"] < 0.99


def test_of_many_equal_rows_the_first_are_found_and_few_are_kept(monkeypatch):
    """Lists hold 2 K of 1,500 equal rows; an anchor finds the first ones that are not of its own group."""
    monkeypatch.setattr(row_search, "EXACT_CANDIDATES", 1000)
    rows, codes = clustered(6000), np.arange(6000)
    rows[:1500], codes[:10] = rows[0], 0
    every = np.arange(6000)
    search = RowSearch(rows, codes, "ip", "auto", 2)
    found = search(every, every, 2).rows
    assert search.choices[0]["index"] == "ivf"
    assert found[5].tolist() == [10, 11]
    assert found[10].tolist() == [0, 1]
    assert found[1499].tolist() == [0, 1]
    assert len(search._made("ivf", every)[1]) == 4500 + 4


def test_words_are_searched_once_in_a_run(monkeypatch):
    index, ids, everyone = SparseIndex(["red cat", "blue cat", "red dog"] * 5), np.arange(15), np.ones(15, bool)
    first = index.nearest(ids, everyone, 2, ids)
    monkeypatch.setattr(SparseIndex, "_search", lambda *arguments: pytest.fail("searched again"))
    assert np.array_equal(index.nearest(ids.copy(), everyone.copy(), 2, ids.copy()), first)
    assert first[0].tolist() == [3, 6]
