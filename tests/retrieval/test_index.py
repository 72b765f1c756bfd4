"""Choice and recall of FAISS indexes, against exhaustive search."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from ra_hmd.core.errors import UserError
from ra_hmd.retrieval import index as index_module
from ra_hmd.retrieval.index import SearchIndex, build_index, resolve_kind
from ra_hmd.retrieval.knn import search, unit_rows

KINDS = ("flat", "ivf", "hnsw")


def clustered(rows: int, dim: int = 16, seed: int = 0, clusters: int = 30) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(clusters, dim))
    return unit_rows(centres[rng.integers(0, clusters, rows)] + 0.6 * rng.normal(size=(rows, dim)))


def similarities(queries: np.ndarray, rows: np.ndarray, metric: str) -> np.ndarray:
    """float64 [Q, N]."""
    queries, rows = queries.astype(np.float64), rows.astype(np.float64)
    if metric == "ip":
        return queries @ rows.T
    return -np.square(queries[:, None] - rows[None]).sum(axis=2)


def recall(found: np.ndarray, exact: np.ndarray, depth: int) -> float:
    best = np.argsort(-exact, axis=1)[:, :depth]
    return float(np.mean([len(set(a) & set(b)) / depth for a, b in zip(found[:, :depth], best, strict=True)]))


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_recall_is_reached_on_queries_that_were_not_measured(kind, metric):
    rows, queries = clustered(4000), clustered(200, seed=1)
    index = build_index(rows, metric=metric, kind=kind, queries=clustered(200, seed=2))
    found, near = index.search(queries, 20)
    exact = similarities(queries, rows, metric)
    assert index.recall >= 0.99
    assert recall(found, exact, 20) >= (1 if kind == "flat" else 0.97)
    assert np.allclose(near, np.take_along_axis(exact, found, axis=1), atol=1e-5)
    assert (np.diff(near, axis=1) <= 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_hides_rows_and_nothing_else(kind):
    rows, queries = clustered(3000), clustered(50, seed=1)
    allowed = np.random.default_rng(3).random(3000) < 0.3
    found, _ = build_index(rows, kind=kind).search(queries, 10, allowed=allowed)
    assert allowed[found].all()
    assert (found >= 0).all()
    exact = np.where(allowed, similarities(queries, rows, "ip"), -np.inf)
    assert recall(found, exact, 10) >= (1 if kind == "flat" else 0.9)


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_is_missing_that_could_be_found(kind):
    """Deeper than the lists that are usually looked through; with a mask that leaves five rows; deeper than N."""
    rows, queries = clustered(2000), clustered(5, seed=1)
    index = build_index(rows, kind=kind, recall_target=0.3)
    assert (index.search(queries, 600)[0] >= 0).all()
    few = np.isin(np.arange(2000), [3, 50, 700, 1500, 1999])
    found, near = index.search(queries, 8, allowed=few)
    assert (np.sort(found[:, :5], axis=1) == [3, 50, 700, 1500, 1999]).all()
    assert (found[:, 5:] == -1).all()
    assert (near[:, 5:] == 0).all()
    found, _ = build_index(rows[:7], kind=kind).search(queries, 9)
    assert (np.sort(found[:, :7], axis=1) == np.arange(7)).all()
    assert (found[:, 7:] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_added_later_are_found_and_given_back(kind, tmp_path):
    rows = clustered(2500)
    index = build_index(rows[:2000], kind=kind)
    index.add(rows[2000:])
    assert len(index) == 2500
    assert (index.search(rows[2000:], 1)[0][:, 0] == np.arange(2000, 2500)).mean() > 0.95
    assert np.array_equal(index.vectors(np.array([2400, 7, 0])), rows[[2400, 7, 0]])
    index.save(tmp_path / "index")
    again = SearchIndex.load(tmp_path / "index", index.kind, index.metric, index.recall)
    queries = clustered(40, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(index.search(queries, 20), again.search(queries, 20), strict=True))


def test_a_higher_target_looks_more_widely():
    rows = np.random.default_rng(0).normal(size=(3000, 32)).astype(np.float32)
    low, high = (build_index(rows, kind="ivf", recall_target=target) for target in (0.5, 1.0))
    assert low._width < high._width
    assert high.recall == 1
    assert 0.5 <= low.recall < 1


def test_the_seed_decides_the_lists():
    rows, queries = clustered(3000), clustered(30, seed=1)
    same, again = (build_index(rows, kind="ivf", seed=4, recall_target=0.6).search(queries, 20) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(same, again, strict=True))


def test_auto_is_exact_up_to_a_size(monkeypatch):
    assert resolve_kind("auto", 200_000) == "flat"
    assert resolve_kind("auto", 200_001) == "ivf"
    monkeypatch.setattr(index_module, "EXACT_ROWS", 1999)
    assert build_index(clustered(1999)).kind == "flat"
    assert build_index(clustered(2000)).kind == "ivf"


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_knn_search_goes_through_it(kind):
    bank = np.random.default_rng(0).normal(size=(3000, 12))
    ids = [f"m{row % 1500}" for row in range(3000)]
    exact = search(bank[:200], bank, 20, query_ids=ids[:200], bank_ids=ids)
    near = search(bank[:200], bank, 20, query_ids=ids[:200], bank_ids=ids, index=kind)
    assert all(ids[row] != ids[query] for query, line in enumerate(near.rows) for row in line)
    shared = [len(set(a) & set(b)) / 20 for a, b in zip(exact.rows, near.rows, strict=True)]
    assert np.mean(shared) >= 0.97


def test_ivf_of_few_rows_and_of_equal_rows():
    few = clustered(3)
    assert (np.sort(build_index(few, kind="ivf").search(few, 3)[0], axis=1) == [0, 1, 2]).all()
    equal = np.repeat(few[:1], 500, axis=0)
    for kind in KINDS:
        found, near = build_index(equal, kind=kind).search(few[:1], 20)
        assert len(set(found[0].tolist())) == 20
        assert np.allclose(near, 1, atol=1e-5)


def test_errors_say_what_to_do():
    rows = clustered(100)
    with pytest.raises(UserError, match="auto, flat, ivf, hnsw"):
        build_index(rows, kind="lsh")
    with pytest.raises(UserError, match=r"must be in \(0, 1\]"):
        build_index(rows, recall_target=1.5)
    with pytest.raises(UserError, match="choose one of ip, l2"):
        build_index(rows, metric="cos")
    with pytest.raises(UserError, match="use `auto` or `flat`"):
        build_index(rows[:0], kind="ivf")
    with pytest.raises(UserError, match="auto, flat, ivf, hnsw"):
        search(rows, rows, 2, index="lsh")
    assert build_index(rows[:0]).search(rows, 2)[0].tolist() == [[-1, -1]] * 100


def test_a_target_that_hnsw_cannot_reach_is_refused(monkeypatch):
    monkeypatch.setattr(index_module, "_HNSW_MAX_SEARCH", 20)
    monkeypatch.setattr(index_module, "_HNSW_LINKS", 2)
    rows = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)
    with pytest.raises(UserError, match="choose index `ivf` or `flat`"):
        build_index(rows, kind="hnsw", recall_target=1.0)


class StandInGpu:
    """FAISS's functions for a GPU, on a CPU. Like it, it bears one thread at a time, also when a copy is freed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.searches, self.met, self._busy = 0, 0, threading.Lock()
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
        monkeypatch.setattr(faiss, "index_cpu_to_gpu", self.copy)
        monkeypatch.setattr(index_module, "_gpu_resources", lambda: "resources")

    def copy(self, provider: object, device: int, index: faiss.Index) -> "CopyOnGpu":
        """As `faiss.index_cpu_to_gpu(GpuResourcesProvider, int, Index, options=None)`."""
        assert (provider, device) == ("resources", 0)
        return CopyOnGpu(self, faiss.clone_index(index))

    def use(self, seconds: float) -> None:
        """Use the resources for a while; count the times that another thread did."""
        free = self._busy.acquire(blocking=False)
        self.met += not free
        time.sleep(seconds)
        if free:
            self._busy.release()


class CopyOnGpu:
    def __init__(self, gpu: StandInGpu, index: faiss.Index) -> None:
        self._gpu, self._index = gpu, index

    def search(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `GpuIndex.search(x, k)`: neither selector nor more than 2,048 neighbours."""
        assert k <= 2048
        self._gpu.searches += 1
        self._gpu.use(0.01)
        return self._index.search(x, k)

    def __del__(self) -> None:
        self._gpu.use(0)


def test_faiss_names_what_the_gpu_search_uses() -> None:
    assert {"get_num_gpus", "index_cpu_to_gpu", "StandardGpuResources"} <= set(dir(faiss))


@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_searches_what_it_can_for_one_thread_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = clustered(4000), clustered(8, seed=1)
    index = build_index(rows, kind=kind, queries=clustered(50, seed=2))
    wanted = index.search(queries, 20)
    gpu = StandInGpu(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: index.search(queries, 20), range(8)))
    assert (gpu.searches, gpu.met) == (0 if kind == "hnsw" else 8, 0)
    for result in found:
        assert all(np.array_equal(a, b) for a, b in zip(result, wanted, strict=True))
    before = gpu.searches
    index.search(queries, 20, allowed=np.arange(4000) % 2 == 0)  # no selector there
    index.search(queries, 2049)
    assert gpu.searches == before
    index.add(rows[:1] * 2)  # the copy is renewed
    assert (index.search(rows[:1], 1)[0] == 4000).all()


def test_a_copy_on_the_gpu_is_freed_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, queries = StandInGpu(monkeypatch), clustered(4, seed=1)

    def once(seed: int) -> None:
        build_index(clustered(50, seed=seed)).search(queries, 3)  # the index is gone afterwards

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(once, range(16)))
    assert (gpu.searches, gpu.met) == (16, 0)
