"""FAISS indexes: exhaustive up to a number of rows, then approximate with a measured recall.

Shapes: N rows, Q queries, D embedding.
"""

from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from threading import RLock
from typing import Any, Literal, get_args

import faiss
import numpy as np
from faiss.contrib.big_batch_search import big_batch_search

from ra_hmd.core.errors import UserError, raise_all

IndexKind = Literal["auto", "flat", "ivf", "hnsw"]
ResolvedKind = Literal["flat", "ivf", "hnsw"]
IndexMetric = Literal["ip", "l2"]

EXACT_ROWS = 200_000
"""Number of rows up to which `auto` searches exhaustively."""
RECALL_DEPTH = 20
RECALL_SAMPLE = 256
_RESERVE = 0.5  # share of the allowed misses that is held in reserve, as later queries differ from the sample
_STEP = 0.7
_GPU_MOST = 2048  # neighbours, and lists, that FAISS's GPU kernels support; beyond, the CPU index is searched
TRAIN_PER_LIST = 40
"""Rows for k-means per list of `ivf`; one more than the number below which FAISS warns."""
_NO_ROW = 1e38  # FAISS's similarity of an absent row is beyond
_HNSW_LINKS, _HNSW_BUILD = 32, 200
_HNSW_MAX_SEARCH = 4096
_GPU_LOCK = RLock()  # threads share the GPU's resources, which FAISS allows one to use at a time


class SearchIndex:
    """Rows that can be searched, numbered in the order in which they were added.

    Attributes:
        kind: `flat`, `ivf` or `hnsw`.
        metric: `ip` or `l2`.
        recall: recall@20 as `tune` measured it; 1 for `flat`.
    """

    def __init__(self, index: Any, kind: ResolvedKind, metric: IndexMetric, recall: float = 1.0) -> None:
        """`index` is a FAISS index of the kind; FAISS's stubs lack the attributes of the kinds."""
        self._on_gpu: Any = None
        self.kind, self.metric, self.recall = kind, metric, recall
        self._index = index

    def __len__(self) -> int:
        return self._index.ntotal

    def add(self, rows: np.ndarray) -> None:
        """Append rows [M, D]; the lists of `ivf` stay as they were trained."""
        self._index.add(np.ascontiguousarray(rows, dtype=np.float32))
        self._leave_gpu()

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The float32 vectors [M, D] of row numbers [M], as they were added."""
        return self._index.reconstruct_batch(np.ascontiguousarray(rows, dtype=np.int64))

    def search(
        self, queries: np.ndarray, depth: int, *, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `depth` most similar rows of each query [Q, D].

        Args:
            queries: [Q, D].
            depth: At least 1; may exceed N.
            allowed: bool [N], rows that may be returned; default: all.

        Returns:
            Rows int64 and similarities float32 (inner product, or squared distance with a minus sign), both
            [Q, depth], most similar first, -1 and 0 where absent.
        """
        rows = np.full((len(queries), depth), -1, dtype=np.int64)
        similarity = np.zeros((len(queries), depth), dtype=np.float32)
        reach = min(depth, len(self))
        if reach == 0 or len(queries) == 0:
            return rows, similarity
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if allowed is not None and allowed.all():
            allowed = None
        fits_gpu = allowed is None and max(reach, self._width) <= _GPU_MOST
        result = self._search_gpu(queries, reach) if fits_gpu else None
        similarity[:, :reach], rows[:, :reach] = result or self._search_cpu(queries, reach, allowed, self._width)
        # The lists or paths that were searched may hold too few rows: then search all.
        available = reach if allowed is None else min(reach, int(allowed.sum()))
        short = np.flatnonzero((rows[:, :available] < 0).any(axis=1))
        if self.kind != "flat" and len(short):
            wide = self._search_cpu(queries[short], reach, allowed, self._widest)
            similarity[short, :reach], rows[short, :reach] = wide
        similarity = -similarity if self.metric == "l2" else similarity
        return rows, np.where(rows < 0, np.float32(0), similarity)

    def search_many(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """`search` for more queries than lists: `ivf` multiplies each list with all queries that search it, which takes
        a quarter of the time.
        """
        if self.kind != "ivf" or faiss.get_num_gpus() > 0 or depth > len(self):
            return self.search(queries, depth)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        with redirect_stdout(StringIO()):  # it prints its progress whatever its arguments
            near, rows = big_batch_search(self._index, queries, depth)
        rows[np.abs(near) >= _NO_ROW] = -1  # it returns arbitrary rows where a list is too short
        near[rows < 0] = 0
        short = np.flatnonzero((rows < 0).any(axis=1))
        similarity = -near if self.metric == "l2" else near
        if len(short):
            rows[short], similarity[short] = self.search(queries[short], depth)
        return rows, similarity

    def _search_cpu(
        self, queries: np.ndarray, depth: int, allowed: np.ndarray | None, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """FAISS's distances and rows, among the allowed ones, at a width of search."""
        selector = parameters = None
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(bits))
        library: Any = faiss  # its stubs lack these keywords
        if self.kind == "ivf":
            parameters = library.SearchParametersIVF(sel=selector, nprobe=width)
        elif self.kind == "hnsw":
            parameters = library.SearchParametersHNSW(sel=selector, efSearch=max(width, depth))
        elif selector is not None:
            parameters = library.SearchParameters(sel=selector)
        return self._index.search(queries, depth, params=parameters)

    @property
    def _width(self) -> int:
        """The width of search: number of lists (`ivf`), or length of the list of candidates (`hnsw`)."""
        if self.kind == "ivf":
            return self._index.nprobe
        return self._index.hnsw.efSearch if self.kind == "hnsw" else 0

    @property
    def _widest(self) -> int:
        return self._index.nlist if self.kind == "ivf" else len(self)

    def _search_gpu(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Results of a copy on the first GPU; None without one, and for HNSW, which FAISS has for CPUs only."""
        if self.kind == "hnsw" or faiss.get_num_gpus() == 0:
            return None
        with _GPU_LOCK:
            if self._on_gpu is None:
                self._on_gpu = faiss.index_cpu_to_gpu(_gpu_resources(), 0, self._index)
            return self._on_gpu.search(queries, depth)

    def _leave_gpu(self) -> None:
        """Delete the copy on the GPU, under the lock: its memory is returned to the shared resources."""
        if self._on_gpu is not None:
            with _GPU_LOCK:
                self._on_gpu = None

    def __del__(self) -> None:
        self._leave_gpu()

    @property
    def share(self) -> float:
        """Share of the lists that `ivf` searches; 1 for other kinds."""
        return self._width / self._widest if self.kind == "ivf" else 1.0

    def tune(
        self,
        target: float,
        queries: np.ndarray,
        *,
        own: np.ndarray | None = None,
        allowed: np.ndarray | None = None,
        most: int | None = None,
    ) -> bool:
        """Widen the search until recall@20 of `queries` against exhaustive search reaches a target.

        A part of the misses that the target allows is held in reserve, because later queries differ from these. A row
        as similar as the 20th exact neighbour counts as found, whichever of several equal ones it is.

        Args:
            target: Lowest recall.
            queries: [Q, D].
            own: bool [Q], queries that are themselves rows, which are not counted; default: none. A graph finds its own
                rows more easily than other memes, so `hnsw` is measured on points beside them.
            allowed: bool [N], rows that may be returned; default: all.
            most: Most lists that `ivf` may search; default: all.

        Returns:
            Whether the recall is reached; can be False only with `most`.

        Raises:
            UserError: `hnsw` does not reach the target at its widest.
        """
        own = np.zeros(len(queries), bool) if own is None else own
        depth = min(RECALL_DEPTH, (len(self) if allowed is None else int(allowed.sum())) - 1)
        if self.kind == "flat" or not len(queries) or depth < 1:
            return True
        if self.kind == "hnsw" and own.any():
            queries, own = self._beside(queries, depth, allowed), np.zeros(len(queries), bool)
        exact = self._exhaustive(queries, depth + 1, allowed)
        worst = np.take_along_axis(exact, depth - 1 + own.astype(int)[:, None], axis=1)
        tolerance = 1e-5 * np.maximum(np.abs(worst), 1)  # two kernels round differently

        def recall(width: int) -> float:
            self._set_width(width)
            rows, near = self.search(queries, depth + 1, allowed=allowed)
            hits = ((rows >= 0) & (near >= worst - tolerance)).sum(axis=1) - own
            self.recall = float((hits.clip(0, depth) / depth).mean())
            return self.recall

        if not self._widen(recall, target + _RESERVE * (1 - target), 2 * depth, most):
            return False
        if self.recall < target:
            raise UserError(
                f"An {self.kind} index of {len(self)} rows reaches recall@{depth} {self.recall:.4f} at its widest, "
                f"{target} is asked for; choose index `ivf` or `flat`."
            )
        return True

    def _widen(self, recall: Callable[[int], float], target: float, width: int, most: int | None) -> bool:
        """Set the smallest width, up to an eighth, at which `recall` reaches the target, or the widest.

        `hnsw` starts at `width`, `ivf` at one list. Returns False where `most` lists do not reach the target.
        """
        widest = self._widest if self.kind == "ivf" else _HNSW_MAX_SEARCH
        if most is not None and self.kind == "ivf" and most < widest:
            if recall(most) < target:
                return False
            widest = most
        width = 1 if self.kind == "ivf" else width
        narrow = width - 1
        while recall(width) < target and width < widest:
            narrow, width = width, min(2 * width, widest)
        while self.recall >= target and width - narrow > max(width // 8, 1):  # bisect between the last two
            middle = (narrow + width) // 2
            narrow, width = (narrow, middle) if recall(middle) >= target else (middle, width)
            recall(width)
        return True

    def _beside(self, queries: np.ndarray, depth: int, allowed: np.ndarray | None) -> np.ndarray:
        """Points [Q, D] among the rows without being one: a step along the difference of two neighbours."""
        near, _ = self.search(queries, depth + 1, allowed=allowed)
        return queries + np.float32(_STEP) * (self.vectors(near[:, depth // 2]) - self.vectors(near[:, depth]))

    def _exhaustive(self, queries: np.ndarray, depth: int, allowed: np.ndarray | None) -> np.ndarray:
        """Similarities [Q, depth] of an exhaustive search of the allowed rows."""
        if self.kind == "hnsw":
            flat = SearchIndex(faiss.downcast_index(self._index.storage), "flat", self.metric)
            return flat.search(queries, depth, allowed=allowed)[1]
        near, _ = self._search_cpu(queries, depth, allowed, self._widest)
        return -near if self.metric == "l2" else near

    def _set_width(self, width: int) -> None:
        if self.kind == "ivf":
            self._index.nprobe = width
        else:
            self._index.hnsw.efSearch = width
        self._leave_gpu()

    def save(self, path: str | Path) -> None:
        """Write FAISS's file; the caller stores `kind`, `metric` and `recall`."""
        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: str | Path, kind: ResolvedKind, metric: IndexMetric, recall: float) -> "SearchIndex":
        """Read a file of `save`."""
        return cls(faiss.read_index(str(path)), kind, metric, recall)


def resolve_kind(kind: IndexKind, rows: int) -> ResolvedKind:
    """The kind of index for a number of rows: `auto` is `flat` up to `EXACT_ROWS` rows, then `ivf`.

    Raises:
        UserError: an unknown kind.
    """
    if kind not in get_args(IndexKind):
        raise UserError(f"Index {kind!r} is unknown; choose one of {', '.join(get_args(IndexKind))}.")
    if kind == "auto":
        return "flat" if rows <= EXACT_ROWS else "ivf"
    return kind


def build_index(
    rows: np.ndarray,
    *,
    metric: IndexMetric = "ip",
    kind: IndexKind = "auto",
    seed: int = 0,
    recall_target: float | None = 0.99,
    queries: np.ndarray | None = None,
) -> SearchIndex:
    """Index rows for search. For cosine, give unit rows and metric `ip`.

    `flat` is exhaustive. `ivf` sorts rows into 2·√N lists by k-means and searches the lists nearest to a query. `hnsw`
    walks a graph of near rows. The last two are widened until they reach the recall. A GPU, where FAISS sees one,
    searches `flat` and `ivf`. With one seed and one number of threads, `flat` and `ivf` are repeatable; the graph of
    `hnsw` depends on the timing of threads.

    Args:
        rows: float32 [N, D]; N may be 0.
        metric: `ip`, or `l2`, the squared distance.
        kind: Kind of the index, see `resolve_kind`.
        seed: Seed of the samples for k-means and recall.
        recall_target: Lowest recall@20 in (0, 1]; None: `SearchIndex.tune` is called later.
        queries: float32 [Q, D], a sample of the queries, to measure recall with; default: a sample of the rows.

    Raises:
        UserError: unknown kind or metric, a target outside (0, 1], a target that `hnsw` cannot reach.
    """
    resolved = resolve_kind(kind, len(rows))
    right = recall_target is None or 0 < recall_target <= 1
    problems = [] if right else [f"Recall {recall_target} is asked for, it must be in (0, 1]."]
    if metric not in get_args(IndexMetric):
        problems.append(f"Metric {metric!r} is unknown to an index; choose one of {', '.join(get_args(IndexMetric))}.")
    raise_all(problems, "The index cannot be built")
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    rng = np.random.default_rng(seed)
    index = SearchIndex(_empty_index(rows, resolved, metric, rng, seed), resolved, metric)
    index.add(rows)
    sample = rows if queries is None else np.ascontiguousarray(queries, dtype=np.float32)
    if resolved != "flat" and recall_target is not None:
        sample = sample[sample_rows(rng, len(sample), RECALL_SAMPLE)]
        index.tune(recall_target, sample, own=np.full(len(sample), queries is None))
    return index


def _empty_index(rows: np.ndarray, kind: ResolvedKind, metric: IndexMetric, rng: np.random.Generator, seed: int) -> Any:
    """An index of the kind, without rows; the lists of `ivf` are trained on `rows`."""
    library: Any = faiss  # its stubs lack some attributes
    width = rows.shape[1]
    code = library.METRIC_L2 if metric == "l2" else library.METRIC_INNER_PRODUCT
    if kind == "flat":
        return library.IndexFlat(width, code)
    if kind == "hnsw":
        index = library.IndexHNSWFlat(width, _HNSW_LINKS, code)
        index.hnsw.efConstruction = _HNSW_BUILD
        return index
    if not len(rows):
        raise UserError("An `ivf` index learns its lists from rows, and there are none; use `auto` or `flat`.")
    lists = list_count(len(rows))
    index = library.IndexIVFFlat(library.IndexFlat(width, code), width, lists, code)
    index.cp.seed = seed
    index.train(rows[sample_rows(rng, len(rows), lists * TRAIN_PER_LIST)])
    index.set_direct_map_type(library.DirectMap.Array)  # to reconstruct vectors by row
    return index


def list_count(rows: int) -> int:
    """Number of lists of an `ivf` index."""
    return max(1, min(round(2 * rows**0.5), rows // TRAIN_PER_LIST))


def sample_rows(rng: np.random.Generator, total: int, count: int) -> np.ndarray:
    """`count` of `total` numbers in rising order, or all."""
    return np.sort(rng.choice(total, count, replace=False)) if total > count else np.arange(total)


@cache
def _gpu_resources() -> Any:
    return faiss.StandardGpuResources()
