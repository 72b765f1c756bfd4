"""Pseudo-gold positives and hard negatives for every anchor of the training set.

Shapes: N bank rows, D embedding, P pseudo-gold positives, M hard negatives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ra_hmd.retrieval.index import IndexKind, IndexMetric
from ra_hmd.retrieval.knn import ABSENT, Neighbours, unit_rows
from stage2.losses.similarity import OFFICIAL, Similarity
from stage2.row_search import RowSearch
from stage2.sparse import SparseIndex

_HASH_BLOCK = 1024
_QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Mined:
    """Mined rows of each of N anchors, which are the bank's own rows.

    Attributes:
        positives: [N, P], the nearest other rows of the anchor's class (pseudo-gold).
        hard_negatives: [N, M], the nearest rows of other classes.
        hard_positives: [N, R], of the retrieved rows of the anchor's class the least similar ones, worst first.
        searches: How each search among embeddings was done (`RowSearch.choices`).

    Similarities are on the loss's scale.
    """

    positives: Neighbours
    hard_negatives: Neighbours
    hard_positives: Neighbours
    searches: Sequence[dict[str, Any]] = ()

    def all_positives(self) -> np.ndarray:
        """Bank rows [N, P + R] of the positives that the loss sees."""
        return np.concatenate([self.positives.rows, self.hard_positives.rows], axis=1)

    def statistics(self) -> dict[str, Any]:
        """For each kind: requested per anchor, found in all, anchors short of it, similarity quantiles (None if empty).

        `inverted` is the share of anchors whose nearest hard negative is nearer than their nearest positive.
        """
        statistics: dict[str, Any] = {"anchors": len(self.positives.rows), "indexes": list(self.searches)}
        for name in ("positives", "hard_negatives", "hard_positives"):
            found: Neighbours = getattr(self, name)
            per_anchor = found.present.sum(axis=1)
            requested = found.rows.shape[1]
            values = found.similarity[found.present]
            quantiles = np.quantile(values, list(_QUANTILES.values())).tolist() if len(values) else None
            statistics[name] = {
                "asked": requested,
                "found": int(per_anchor.sum()),
                "anchors_short": int((per_anchor < requested).sum()),
                "anchors_without": int((per_anchor == 0).sum()) if requested else 0,
                "similarity": dict(zip(_QUANTILES, quantiles, strict=True)) if quantiles else None,
            }
        statistics["inverted"] = None
        if self.hard_negatives.rows.shape[1] and self.positives.rows.shape[1]:
            both = self.positives.present[:, 0] & self.hard_negatives.present[:, 0]
            nearer = self.hard_negatives.similarity[both, 0] > self.positives.similarity[both, 0]
            statistics["inverted"] = float(nearer.mean()) if both.any() else None
        return statistics


def mine(
    embeddings: np.ndarray,
    labels: np.ndarray,
    ids: Sequence[str],
    *,
    positives: int,
    hard_negatives: int,
    hard_positives: int = 0,
    positive_depth: int = 12,
    similarity: Similarity = OFFICIAL,
    index: IndexKind = "auto",
    sparse: SparseIndex | None = None,
) -> Mined:
    """Search the bank once per class and side, so that the requested number is found whenever it exists.

    Positives come from the anchor's own class and hard negatives from all other classes, each by a search among
    those rows alone; rows with the anchor's id are excluded from both (RGCL: g⁺ = argmax over G \\ {g_i}). Where a meme
    may have several classes, positives have one in common with the anchor and hard negatives none; memes without any
    class are positives of each other. The official code searches 12 candidates for both together, the anchor among
    them: it retrieves the anchor itself as its positive, and finds no hard negative once the classes have separated.

    Args:
        embeddings: [N, D], of the whole bank, made in evaluation mode without gradient.
        labels: [N], class indices, any number of classes; or [N, C] of 0 and 1.
        ids: N ids; one id may occur several times, and names that near-duplicates share exclude these.
        positives: P.
        hard_negatives: M; 0 for none.
        hard_positives: R; 0 for none.
        positive_depth: Rows of the anchor's class that are retrieved to choose hard positives from.
        similarity: The loss's.
        index: How FAISS searches: exactly up to a size, then approximately.
        sparse: Retrieve by words instead; what is similar in words only may then be far away in the embedding.
    """
    if similarity.metric == "cos" or (similarity.metric == "l2" and similarity.normalise):
        embeddings = unit_rows(embeddings)
    depth = max(positives + hard_positives, positive_depth) if hard_positives else positives
    find = _Finder(embeddings, labels, ids, similarity, index, sparse, max(depth, hard_negatives))
    same, other = find(depth, same=True), find(hard_negatives, same=False)
    mined = Mined(
        positives=Neighbours(same.rows[:, :positives], same.similarity[:, :positives]),
        hard_negatives=other,
        hard_positives=_least_similar(same, hard_positives, skip=positives),
        searches=find.choices,
    )
    check_mined(mined, labels, ids)
    return mined


def alike(labels: np.ndarray, label: np.ndarray) -> np.ndarray:
    """bool [N]: which rows of labels [N] or [N, C] are positives of a row labelled `label` ([] or [C])."""
    if labels.ndim == 1:
        return labels == label
    return np.asarray(labels @ label > 0 if label.any() else ~labels.any(axis=1))


class _Finder:
    """The K nearest rows of each anchor's own class, or of the other classes."""

    def __init__(
        self,
        embeddings: np.ndarray,
        labels: np.ndarray,
        ids: Sequence[str],
        similarity: Similarity,
        index: IndexKind,
        sparse: SparseIndex | None,
        deepest: int,
    ) -> None:
        self.embeddings, self.labels, self.similarity, self.sparse = embeddings, labels, similarity, sparse
        self.codes = np.unique(np.asarray(ids, dtype=object).astype(str), return_inverse=True)[1].reshape(-1)
        metric: IndexMetric = "l2" if similarity.metric == "l2" else "ip"
        self.search = RowSearch(embeddings, self.codes, metric, index, deepest)
        self.kinds, self.kind_of = np.unique(labels, axis=0, return_inverse=True)

    def __call__(self, k: int, *, same: bool) -> Neighbours:
        rows = np.full((len(self.labels), k), ABSENT, dtype=np.int64)
        found = np.zeros((len(self.labels), k), dtype=np.float32)
        for number, kind in enumerate(self.kinds) if k else ():
            anchors = np.flatnonzero(self.kind_of.reshape(-1) == number)
            candidates = alike(self.labels, kind) == same
            if self.sparse is not None:
                rows[anchors] = self.sparse.nearest(anchors, candidates, k, self.codes)
                found[anchors] = self._similarity(anchors, rows[anchors])
                continue
            near = self.search(anchors, np.flatnonzero(candidates), k)
            rows[anchors], found[anchors] = near.rows, self._scaled(near.similarity)
        return Neighbours(rows, found)

    @property
    def choices(self) -> list[dict[str, Any]]:
        """Records of the searches among embeddings."""
        return self.search.choices

    def _similarity(self, anchors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Similarities [A, K] of anchors [A] to the rows [A, K] that words have found; 0 where there is none."""
        here, there = self.embeddings[anchors][:, None], self.embeddings[rows]
        raw = -np.square(here - there) if self.similarity.metric == "l2" else here * there
        raw = raw.sum(axis=2)
        return np.where(rows == ABSENT, 0, self._scaled(raw)).astype(np.float32)

    def _scaled(self, raw: np.ndarray) -> np.ndarray:
        """Products, or squared distances with a minus sign, on the loss's scale."""
        if self.similarity.metric == "cos":
            return raw.clip(-1, 1)
        if self.similarity.metric == "l2" and not self.similarity.squared:
            raw = -np.sqrt(np.maximum(-raw, 0))
        return raw / self.embeddings.shape[1]


def _least_similar(found: Neighbours, count: int, *, skip: int) -> Neighbours:
    """The last `count` of each line's neighbours, worst first, without the first `skip`."""
    places = found.present.sum(axis=1, keepdims=True) - 1 - np.arange(count)[None, :]
    there = places >= skip
    places = np.where(there, places, 0)
    if not found.rows.shape[1]:
        return Neighbours(np.full((len(found.rows), count), ABSENT), np.zeros((len(found.rows), count), np.float32))
    rows, similarity = (np.take_along_axis(array, places, axis=1) for array in (found.rows, found.similarity))
    return Neighbours(np.where(there, rows, ABSENT), np.where(there, similarity, np.float32(0)))


def check_mined(mined: Mined, labels: np.ndarray, ids: Sequence[str]) -> None:
    """Raise `RuntimeError` unless every mined row exists, is of the right class and is not the anchor.

    Nothing a user gives can cause it: it guards training against a fault in the search.
    """
    names = np.asarray(ids, dtype=object)
    kinds = (
        ("positive", mined.positives, True),
        ("hard positive", mined.hard_positives, True),
        ("hard negative", mined.hard_negatives, False),
    )
    for kind, near, same in kinds:
        anchors, columns = np.nonzero(near.present)
        rows = near.rows[anchors, columns]
        if ((rows < 0) | (rows >= len(labels))).any():
            raise RuntimeError(f"mining returned a {kind} outside the bank of {len(labels)} rows")
        if (_paired(labels[anchors], labels[rows]) != same).any():
            raise RuntimeError(f"mining returned a {kind} of the wrong class")
        if (names[anchors] == names[rows]).any():
            raise RuntimeError(f"mining returned the anchor itself as its {kind}")


def _paired(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool [L]: whether each row of labels is a positive of the row at the same place of `others`."""
    if labels.ndim == 1:
        return labels == others
    return ((labels * others).sum(axis=1) > 0) | ~(labels.any(axis=1) | others.any(axis=1))


def near_duplicates(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Group number int64 [N] of each image: images whose hashes differ in at most `bits` bits share one, also through
    others between them. An image of one colour (hash 0) is alone.

    Args:
        hashes: uint64 [N] perceptual hashes.
        bits: 0 to 32.
    """
    unique, place = np.unique(hashes, return_inverse=True)
    codes = unique.view(np.uint8).reshape(-1, 8)
    bands = max(bits, 1) + 1  # two hashes that close agree on one of so many equal pieces
    index = faiss.IndexBinaryMultiHash(64, bands, 64 // bands)
    index.add(codes)
    groups = np.arange(len(unique))
    for first in range(0, len(unique), _HASH_BLOCK):
        limits, _, near = index.range_search(codes[first : first + _HASH_BLOCK], bits + 1)  # below the radius
        limits = limits.astype(np.int64)
        one = first + np.repeat(np.arange(len(limits) - 1), limits[1:] - limits[:-1])
        pairs = coo_array((np.ones(len(near), bool), (groups[one], groups[near])), shape=(len(unique), len(unique)))
        groups = connected_components(pairs, directed=False)[1][groups]
    groups = groups[place.reshape(-1)].astype(np.int64)
    plain_colour = np.flatnonzero(hashes == 0)
    groups[plain_colour] = groups.max(initial=0) + 1 + np.arange(len(plain_colour))
    return groups
