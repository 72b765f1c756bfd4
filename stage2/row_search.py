"""The nearest rows of a bank for rows of the same bank: exhaustively block by block, or through lists of near rows.

Shapes: N bank rows, A anchors, C candidates, D embedding, K neighbours.
"""

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from xxhash import xxh3_64_intdigest

from ra_hmd.retrieval.index import (
    RECALL_SAMPLE,
    TRAIN_PER_LIST,
    IndexKind,
    IndexMetric,
    SearchIndex,
    build_index,
    list_count,
    resolve_kind,
    sample_rows,
)
from ra_hmd.retrieval.knn import ABSENT, Neighbours, as_matrix

EXACT_CANDIDATES = 20_000
"""Up to so many candidates `auto` searches exhaustively."""
RECALL = 0.99
_SCAN_COST = 2  # looking at a row in a list takes so many times as long as in a product of matrices (growth.py)
_WORTH = 0.5  # lists are searched where that takes at most this share of exhaustive search, their making included
_KMEANS_PASSES = 10  # FAISS's own number
# Multiples of what FAISS multiplies at once (1,024 rows, 4,096 queries), so that the blocks change no bit of a product.
_BANK_BLOCK, _QUERY_BLOCK = 16_384, 16_384
_SHALLOW, _DEEP = 16, 128


class RowSearch:
    """Searches N rows for each other's nearest; a row whose code is the anchor's is never found.

    `auto` searches up to `EXACT_CANDIDATES` candidates exhaustively. More are sorted into lists; how many of these must
    be looked through for a recall@20 of `RECALL` is measured with some of the anchors, and they are searched if that
    takes at most half of exhaustive search. The cost is counted in rows that are looked at, not in seconds: a run can
    be repeated to the bit.

    Args:
        embeddings: [N, D].
        codes: int64 [N], from 0; rows of one code exclude each other.
        metric: `ip`, or `l2`, the squared distance with a minus sign.
        kind: How to search.
        deepest: The greatest K that will be requested.

    Attributes:
        choices: For each search: `candidates`, `index` (how they were searched), `recall_at_20`, and `looked_through`,
            the share of the lists; where lists were tried and not worth it, `tried_recall_at_20`.

    Raises:
        UserError: values that are not finite, an unknown index.
    """

    def __init__(
        self, embeddings: np.ndarray, codes: np.ndarray, metric: IndexMetric, kind: IndexKind, deepest: int
    ) -> None:
        resolve_kind(kind, len(codes))
        self.choices: list[dict[str, Any]] = []
        self._embeddings = np.ascontiguousarray(as_matrix(embeddings, "bank"))
        self._codes, self._metric, self._kind, self._deepest = codes, metric, kind, deepest
        self._indexes: dict[bytes, tuple[SearchIndex, np.ndarray]] = {}

    def __call__(self, anchors: np.ndarray, candidates: np.ndarray, k: int) -> Neighbours:
        """The K nearest candidates of each anchor, nearest first, equally near ones by row.

        Args:
            anchors: Row numbers [A].
            candidates: Row numbers [C], rising.
            k: K, at least 1.
        """
        rows = np.full((len(anchors), k), ABSENT, dtype=np.int64)
        similarity = np.zeros((len(anchors), k), dtype=np.float32)
        if not len(anchors) or not len(candidates):
            return Neighbours(rows, similarity)
        index, held, most = self._index(anchors, candidates)
        for part, further, code in self._parts(anchors, candidates):
            queries, allowed = anchors[part], None if code is None else self._codes[held] != code
            if index is not None and (allowed is None or self._reaches(index, queries, held, allowed, most)):
                places, near = self._through_lists(index, queries, k + further, allowed)
                found = np.where(places < 0, ABSENT, held[places])
            else:
                others = candidates if code is None else candidates[self._codes[candidates] != code]
                found, near = self._exhaustive(queries, others, k + further)
            keep = (found != ABSENT) & (self._codes[found] != self._codes[queries][:, None])
            rows[part], similarity[part] = _first(found, near, keep, k)
        return Neighbours(rows, similarity)

    def _parts(self, anchors: np.ndarray, candidates: np.ndarray) -> Iterator[tuple[np.ndarray, int, int | None]]:
        """Places of anchors that are searched together; how much deeper; and the code that is left out beforehand.

        Where few candidates have the anchor's own code, the search goes deeper by their number; where many have, they
        are left out.
        """
        codes = self._codes[anchors]
        own = np.bincount(self._codes[candidates], minlength=self._codes.max() + 1)[codes]
        for places in (np.flatnonzero(own <= _SHALLOW), np.flatnonzero((own > _SHALLOW) & (own <= _DEEP))):
            if len(places):
                yield places, int(own[places].max()), None
        many = np.flatnonzero(own > _DEEP)
        for code in np.unique(codes[many]):
            yield many[codes[many] == code], 0, code

    def _through_lists(
        self, index: SearchIndex, anchors: np.ndarray, depth: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places in the index and similarities [A, depth], as `SearchIndex.search` gives them."""
        found = []
        for start, end in _query_blocks(len(anchors)):
            queries = self._embeddings[anchors[start:end]]
            if allowed is None:
                found.append(index.search_many(queries, depth))
            else:
                found.append(index.search(queries, depth, allowed=allowed))
        places, near = zip(*found, strict=True)
        return np.concatenate(places), np.concatenate(near)

    def _exhaustive(self, anchors: np.ndarray, rows: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and similarities [A, depth] by looking at all of `rows` [C], block by block."""
        found = np.full((len(anchors), depth), ABSENT, dtype=np.int64)
        near = np.zeros((len(anchors), depth), dtype=np.float32)
        for first in range(0, len(rows), _BANK_BLOCK):
            block = rows[first : first + _BANK_BLOCK]
            index = build_index(self._embeddings[block], metric=self._metric, kind="flat")
            for start, end in _query_blocks(len(anchors)):
                places, value = index.search(self._embeddings[anchors[start:end]], min(depth, len(block)))
                both = np.concatenate([found[start:end], block[places]], axis=1)
                value = np.concatenate([near[start:end], value], axis=1)
                found[start:end], near[start:end] = _first(both, value, both != ABSENT, depth)
        return found, near

    def _index(self, anchors: np.ndarray, candidates: np.ndarray) -> tuple[SearchIndex | None, np.ndarray, int | None]:
        """An index, the rows that it holds and the most lists to look through; None to search exhaustively."""
        choice: dict[str, Any] = {"candidates": len(candidates), "index": "flat", "recall_at_20": 1.0}
        self.choices.append(choice)
        kind, most = self._kind, None
        if kind == "auto":
            most = _worthwhile_lists(len(anchors), len(candidates))
            enough = len(candidates) > EXACT_CANDIDATES and most > 0 and faiss.get_num_gpus() == 0
            kind = "ivf" if enough else "flat"  # a GPU has searched exhaustively before lists are made
        if kind == "flat":
            return None, candidates, most
        index, held = self._made(kind, candidates)
        if not self._reaches(index, anchors, held, None, most):
            choice["tried_recall_at_20"] = index.recall
            return None, candidates, most
        choice |= {"index": kind, "recall_at_20": index.recall, "looked_through": index.share}
        return index, held, most

    def _reaches(
        self, index: SearchIndex, anchors: np.ndarray, held: np.ndarray, allowed: np.ndarray | None, most: int | None
    ) -> bool:
        """Whether the index, tuned for these anchors and the allowed rows, reaches the recall with so many lists.

        Few anchors that a mask concerns are searched exhaustively: to measure would cost as much.
        """
        if allowed is not None and len(anchors) < 4 * RECALL_SAMPLE:
            return False
        sample = anchors[sample_rows(np.random.default_rng(0), len(anchors), RECALL_SAMPLE)]
        own = np.isin(sample, held if allowed is None else held[allowed])
        return index.tune(RECALL, self._embeddings[sample], own=own, allowed=allowed, most=most)

    def _made(self, kind: IndexKind, candidates: np.ndarray) -> tuple[SearchIndex, np.ndarray]:
        """The index of the candidates, kept for the other side; those that are kept hold no more than N rows."""
        key = candidates.tobytes()
        if key not in self._indexes:
            while self._indexes and len(candidates) + sum(len(rows) for _, rows in self._indexes.values()) > len(
                self._codes
            ):
                self._indexes.pop(next(iter(self._indexes)))
            held = candidates[self._thinned(candidates)]
            index = build_index(self._embeddings[held], metric=self._metric, kind=kind, recall_target=None)
            self._indexes[key] = index, held
        return self._indexes[key]

    def _thinned(self, candidates: np.ndarray) -> np.ndarray:
        """Places of candidates without those that can be nobody's K nearest, as enough equal ones come before them.

        Of equal embeddings K rows of one code are enough, and 2 K rows altogether: at most K of them have the code of
        the anchor. So no list grows long with copies of one meme.
        """
        hashes = np.fromiter((xxh3_64_intdigest(self._embeddings[row]) for row in candidates), np.uint64)
        codes = self._codes[candidates]
        kept = np.arange(len(candidates))
        kept = kept[_turn(hashes, codes) < self._deepest]
        return kept[_turn(hashes[kept]) < 2 * self._deepest]


def _turn(*columns: np.ndarray) -> np.ndarray:
    """int64 [N], how many earlier rows are equal in all columns [N]."""
    order = np.lexsort(columns)
    changed = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    begins = np.flatnonzero(np.concatenate([[True], changed]))
    turn = np.empty(len(order), np.int64)
    turn[order] = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    return turn


def _worthwhile_lists(anchors: int, candidates: int) -> int:
    """The most lists that may be looked through, so that lists take `_WORTH` of exhaustive search at most."""
    lists = list_count(candidates)
    making = lists * (candidates + anchors + _KMEANS_PASSES * TRAIN_PER_LIST * lists)
    return int((_WORTH * anchors * candidates - making) * lists / (_SCAN_COST * anchors * candidates))


def _query_blocks(count: int) -> Iterator[tuple[int, int]]:
    """Beginnings and ends; no short block, as FAISS computes few queries in another way."""
    ends = [*range(_QUERY_BLOCK, count - _QUERY_BLOCK // 2, _QUERY_BLOCK), count]
    yield from zip([0, *ends[:-1]], ends, strict=True)


def _first(rows: np.ndarray, similarity: np.ndarray, keep: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first K of the kept rows [A, L], nearest first, then lowest row; `ABSENT` and 0 where there are fewer."""
    order = np.lexsort((rows, -similarity, ~keep), axis=1)[:, :k]
    rows, similarity, keep = (np.take_along_axis(array, order, axis=1) for array in (rows, similarity, keep))
    missing = ((0, 0), (0, k - rows.shape[1]))
    rows, similarity = np.where(keep, rows, ABSENT), np.where(keep, similarity, np.float32(0))
    return np.pad(rows, missing, constant_values=ABSENT), np.pad(similarity, missing)
