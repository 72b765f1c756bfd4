"""Pseudo-gold positives and hard negatives for every anchor of the training set.

Shapes: N bank rows, D embedding, P pseudo-gold positives, M hard negatives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ra_hmd.retrieval.knn import ABSENT, Neighbours, search, unit_rows
from stage2.losses.similarity import OFFICIAL, Similarity

_QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Mined:
    """What was mined for each of N anchors, which are the bank's own rows.

    Attributes:
        positives: [N, P], the nearest other rows of the anchor's class (pseudo-gold).
        hard_negatives: [N, M], the nearest rows of other classes.
        hard_positives: [N, R], of the retrieved rows of the anchor's class the least similar ones, worst first.

    Similarities are on the loss's scale.
    """

    positives: Neighbours
    hard_negatives: Neighbours
    hard_positives: Neighbours

    def all_positives(self) -> np.ndarray:
        """Bank rows [N, P + R] of the positives that the loss sees."""
        return np.concatenate([self.positives.rows, self.hard_positives.rows], axis=1)

    def statistics(self) -> dict[str, Any]:
        """For each kind: asked per anchor, found in all, anchors short of it, similarity quantiles (None if empty).

        `inverted` is the share of anchors whose nearest hard negative is nearer than their nearest positive.
        """
        statistics: dict[str, Any] = {"anchors": len(self.positives.rows)}
        for name in ("positives", "hard_negatives", "hard_positives"):
            found: Neighbours = getattr(self, name)
            per_anchor = found.present.sum(axis=1)
            asked = found.rows.shape[1]
            values = found.similarity[found.present]
            quantiles = np.quantile(values, list(_QUANTILES.values())).tolist() if len(values) else None
            statistics[name] = {
                "asked": asked,
                "found": int(per_anchor.sum()),
                "anchors_short": int((per_anchor < asked).sum()),
                "anchors_without": int((per_anchor == 0).sum()) if asked else 0,
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
) -> Mined:
    """Search the bank once per class and side, so that the asked number is found whenever it exists.

    Positives come from the anchor's own class and hard negatives from all other classes, each by a search among
    those rows alone; rows with the anchor's id are excluded from both (RGCL: g⁺ = argmax over G \\ {g_i}). The
    official code searches 12 candidates for both together, the anchor among them: it retrieves the anchor itself
    as its positive, and finds no hard negative once the classes have separated.

    Args:
        embeddings: [N, D], of the whole bank, made in evaluation mode without gradient.
        labels: [N], class indices; any number of classes.
        ids: N ids; one id may occur several times.
        positives: P.
        hard_negatives: M; 0 for none.
        hard_positives: R; 0 for none.
        positive_depth: Rows of the anchor's class that are retrieved to choose hard positives from.
        similarity: The loss's.
    """
    if similarity.metric == "l2" and similarity.normalise:
        embeddings = unit_rows(embeddings)
    depth = max(positives + hard_positives, positive_depth) if hard_positives else positives
    same = _search_classes(embeddings, labels, ids, depth, similarity, same=True)
    other = _search_classes(embeddings, labels, ids, hard_negatives, similarity, same=False)
    mined = Mined(
        positives=Neighbours(same.rows[:, :positives], same.similarity[:, :positives]),
        hard_negatives=other,
        hard_positives=_least_similar(same, hard_positives, skip=positives),
    )
    check_mined(mined, labels, ids)
    return mined


def _search_classes(
    embeddings: np.ndarray, labels: np.ndarray, ids: Sequence[str], k: int, similarity: Similarity, *, same: bool
) -> Neighbours:
    """The k nearest rows of each anchor's own class, or of all other classes."""
    rows = np.full((len(labels), k), ABSENT, dtype=np.int64)
    found = np.zeros((len(labels), k), dtype=np.float32)
    for label in np.unique(labels) if k else ():
        anchors = np.flatnonzero(labels == label)
        candidates = anchors if same else np.flatnonzero(labels != label)
        near = search(
            embeddings[anchors],
            embeddings[candidates],
            k,
            metric=similarity.metric,
            query_ids=[ids[row] for row in anchors],
            bank_ids=[ids[row] for row in candidates],
        )
        if len(candidates):
            rows[anchors] = np.where(near.present, candidates[near.rows], ABSENT)
        found[anchors] = near.similarity
    if similarity.metric == "l2" and not similarity.squared:
        found = -np.sqrt(np.maximum(-found, 0))
    return Neighbours(rows, found if similarity.metric == "cos" else found / embeddings.shape[1])


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
        if ((labels[anchors] == labels[rows]) != same).any():
            raise RuntimeError(f"mining returned a {kind} of the wrong class")
        if (names[anchors] == names[rows]).any():
            raise RuntimeError(f"mining returned the anchor itself as its {kind}")
