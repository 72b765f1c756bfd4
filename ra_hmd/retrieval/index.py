"""Which FAISS index searches: exhaustive up to a size, then approximate with a recall that was measured.

Shapes: N rows, Q queries, D embedding.
"""

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
IndexMetric = Literal["ip", "l2"]

EXACT_ROWS = 200_000
"""Up to so many rows `auto` searches exhaustively."""
RECALL_DEPTH = 20
RECALL_SAMPLE = 256
_RESERVE = 0.5  # share of the allowed misses that is kept back, because other queries will come than the sample
_STEP = 0.7
_GPU_MOST = 2048  # neighbours, and lists, that FAISS's GPU kernels take; beyond, the CPU index is searched
TRAIN_PER_LIST = 40
"""Rows that k-means sees for each list of `ivf`; one more than the number below which FAISS warns."""
_NOTHING = 1e38  # FAISS's similarity of no row is beyond
_HNSW_LINKS, _HNSW_BUILD = 32, 200
_HNSW_MAX_SEARCH = 4096
_GPU_LOCK = RLock()  # the threads of a service share the GPU's resources, which FAISS lets one use at a time


class SearchIndex:
    """Rows that can be searched, numbered in the order in which they were added.

    Attributes:
        kind: `flat`, `ivf` or `hnsw`.
        metric: `ip` or `l2`.
        recall: recall@20 as `tune` measured it; 1 for `flat`.
    """

    def __init__(self, index: faiss.Index, kind: str, metric: IndexMetric, recall: float = 1.0) -> None:
        self._on_gpu: Any = None
        self.kind, self.metric, self.recall = kind, metric, recall
        self._index = index

    def __len__(self) -> int:
        return self._index.ntotal

    def add(self, rows: np.ndarray) -> None:
        """Append rows [M, D]; what was learnt of the earlier ones (the lists of `ivf`) stays."""
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
            allowed: bool [N], rows that may be found; default: all.

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
        found = self._search_gpu(queries, reach) if fits_gpu else None
        similarity[:, :reach], rows[:, :reach] = found or self._search_cpu(queries, reach, allowed, self._width)
        # Lists or paths that were looked through may hold fewer than there are: then look everywhere.
        there = reach if allowed is None else min(reach, int(allowed.sum()))
        short = np.flatnonzero((rows[:, :there] < 0).any(axis=1))
        if self.kind != "flat" and len(short):
            near, found = self._search_cpu(queries[short], reach, allowed, self._widest)
            similarity[short, :reach], rows[short, :reach] = near, found
        similarity = -similarity if self.metric == "l2" else similarity
        return rows, np.where(rows < 0, np.float32(0), similarity)

    def search_many(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """`search` of more queries than there are lists: `ivf` multiplies each list with all queries that look at it,
        a quarter of the time of a list at a time.
        """
        if self.kind != "ivf" or faiss.get_num_gpus() > 0 or depth > len(self):
            return self.search(queries, depth)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        with redirect_stdout(StringIO()):  # it prints its progress whatever it is told
            near, rows = big_batch_search(self._index, queries, depth)
        rows[np.abs(near) >= _NOTHING] = -1  # it numbers the places that a short list leaves empty
        near[rows < 0] = 0
        short = np.flatnonzero((rows < 0).any(axis=1))
        similarity = -near if self.metric == "l2" else near
        if len(short):
            rows[short], similarity[short] = self.search(queries[short], depth)
        return rows, similarity

    def _search_cpu(
        self, queries: np.ndarray, depth: int, allowed: np.ndarray | None, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """FAISS's distances and rows, among the allowed ones, looking as widely as `width` says."""
        selector = None
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(bits))
        if self.kind == "ivf":
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=width)
        elif self.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(width, depth))
        else:
            parameters = None if selector is None else faiss.SearchParameters(sel=selector)
        return self._index.search(queries, depth, params=parameters)

    @property
    def _width(self) -> int:
        """Lists that are looked through (`ivf`), or length of the list of candidates (`hnsw`)."""
        if self.kind == "ivf":
            return self._index.nprobe
        return self._index.hnsw.efSearch if self.kind == "hnsw" else 0

    @property
    def _widest(self) -> int:
        return self._index.nlist if self.kind == "ivf" else len(self)

    def _search_gpu(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray] | None:
        """What a copy on the first GPU finds, or None: without one, and for HNSW, which FAISS searches on CPUs only."""
        if self.kind == "hnsw" or faiss.get_num_gpus() == 0:
            return None
        with _GPU_LOCK:
            if self._on_gpu is None:
                self._on_gpu = faiss.index_cpu_to_gpu(_gpu_resources(), 0, self._index)
            return self._on_gpu.search(queries, depth)

    def _leave_gpu(self) -> None:
        """Drop the copy on the GPU, alone, because its memory goes back to the shared resources."""
        if self._on_gpu is not None:
            with _GPU_LOCK:
                self._on_gpu = None

    def __del__(self) -> None:
        self._leave_gpu()

    @property
    def share(self) -> float:
        """The share of the lists that `ivf` looks through; 1 of an index without lists."""
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
        """Search as widely as recall@20 of `queries` against exhaustive search asks for.

        A part of the misses that the target allows is kept in reserve, because other queries will come. A row that is
        as similar as the 20th exact neighbour counts as found, whichever of several equals it is.

        Args:
            target: Least recall.
            queries: [Q, D].
            own: bool [Q], queries that are themselves rows that may be found, which does not count; default: none.
                A graph finds its own rows more easily than other memes: `hnsw` is asked for points beside them.
            allowed: bool [N], rows that may be found; default: all.
            most: Of `ivf`, most lists to look through; default: all.

        Returns:
            Whether the recall is reached; False with `most` alone.

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
            found, near = self.search(queries, depth + 1, allowed=allowed)
            hits = ((found >= 0) & (near >= worst - tolerance)).sum(axis=1) - own
            self.recall = float((hits.clip(0, depth) / depth).mean())
            return self.recall

        asked = target + _RESERVE * (1 - target)
        widest = self._widest if self.kind == "ivf" else _HNSW_MAX_SEARCH
        if most is not None and self.kind == "ivf" and most < widest:
            if recall(most) < asked:
                return False
            widest = most
        width = 1 if self.kind == "ivf" else 2 * depth
        narrow = width - 1
        while recall(width) < asked and width < widest:
            narrow, width = width, min(2 * width, widest)
        while self.recall >= asked and width - narrow > max(width // 8, 1):  # between the last two
            middle = (narrow + width) // 2
            narrow, width = (narrow, middle) if recall(middle) >= asked else (middle, width)
            recall(width)
        if self.recall < target:
            raise UserError(
                f"An {self.kind} index of {len(self)} rows reaches recall@{depth} {self.recall:.4f} at its widest, "
                f"{target} is asked for; choose index `ivf` or `flat`."
            )
        return True

    def _beside(self, queries: np.ndarray, depth: int, allowed: np.ndarray | None) -> np.ndarray:
        """Points [Q, D] that lie among rows without being one: a step along the difference of two neighbours."""
        near, _ = self.search(queries, depth + 1, allowed=allowed)
        return queries + np.float32(_STEP) * (self.vectors(near[:, depth // 2]) - self.vectors(near[:, depth]))

    def _exhaustive(self, queries: np.ndarray, depth: int, allowed: np.ndarray | None) -> np.ndarray:
        """The similarities [Q, depth] that a search of every allowed row gives."""
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
        """Write FAISS's file; `kind`, `metric` and `recall` are the caller's to keep."""
        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: str | Path, kind: str, metric: IndexMetric, recall: float) -> "SearchIndex":
        """Read what `save` wrote."""
        return cls(faiss.read_index(str(path)), kind, metric, recall)


def resolve_kind(kind: IndexKind, rows: int) -> str:
    """`flat`, `ivf` or `hnsw`: what `kind` means for so many rows.

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

    `flat` is exhaustive. `ivf` sorts rows into 2·√N lists by k-means and looks through the nearest lists of a query.
    `hnsw` walks a graph of near rows. The last two look as widely as the recall asks for. A GPU, where FAISS sees one,
    searches `flat` and `ivf`. With one seed and one number of threads, `flat` and `ivf` are repeatable; the graph of
    `hnsw` depends on which thread was faster.

    Args:
        rows: float32 [N, D]; N may be 0.
        metric: `ip`, or `l2`, the squared distance.
        kind: `auto` is `flat` up to `EXACT_ROWS` rows, then `ivf`.
        seed: Of the rows that k-means and the recall are computed from.
        recall_target: Least recall@20 in (0, 1]; None: `SearchIndex.tune` is called later.
        queries: float32 [Q, D], some of those that will come, to measure recall with; default: some of the rows.

    Raises:
        UserError: unknown kind or metric, a target outside (0, 1], a target that `hnsw` cannot reach.
    """
    kind = resolve_kind(kind, len(rows))
    right = recall_target is None or 0 < recall_target <= 1
    problems = [] if right else [f"Recall {recall_target} is asked for, it must be in (0, 1]."]
    if metric not in get_args(IndexMetric):
        problems.append(f"Metric {metric!r} is unknown to an index; choose one of {', '.join(get_args(IndexMetric))}.")
    raise_all(problems, "The index cannot be built")
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    rng = np.random.default_rng(seed)
    index = SearchIndex(_empty(rows, kind, metric, rng, seed), kind, metric)
    index.add(rows)
    sample = rows if queries is None else np.ascontiguousarray(queries, dtype=np.float32)
    if kind != "flat" and recall_target is not None:
        sample = sample[sample_rows(rng, len(sample), RECALL_SAMPLE)]
        index.tune(recall_target, sample, own=np.full(len(sample), queries is None))
    return index


def _empty(rows: np.ndarray, kind: str, metric: IndexMetric, rng: np.random.Generator, seed: int) -> faiss.Index:
    """An index of the kind, without rows; `ivf` has learnt its lists from `rows`."""
    width = rows.shape[1]
    code = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        return faiss.IndexFlat(width, code)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, _HNSW_LINKS, code)
        index.hnsw.efConstruction = _HNSW_BUILD
        return index
    if not len(rows):
        raise UserError("An `ivf` index learns its lists from rows, and there are none; use `auto` or `flat`.")
    lists = list_count(len(rows))
    index = faiss.IndexIVFFlat(faiss.IndexFlat(width, code), width, lists, code)
    index.cp.seed = seed
    index.train(rows[sample_rows(rng, len(rows), lists * TRAIN_PER_LIST)])
    index.set_direct_map_type(faiss.DirectMap.Array)  # to give vectors back by row
    return index


def list_count(rows: int) -> int:
    """Into how many lists `ivf` sorts so many rows."""
    return max(1, min(round(2 * rows**0.5), rows // TRAIN_PER_LIST))


def sample_rows(rng: np.random.Generator, total: int, count: int) -> np.ndarray:
    """`count` of `total` numbers in rising order, or all."""
    return np.sort(rng.choice(total, count, replace=False)) if total > count else np.arange(total)


@cache
def _gpu_resources() -> Any:
    return faiss.StandardGpuResources()
