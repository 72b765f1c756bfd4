"""Sparse retrieval: BM25 over captions and, where there are any, object words.

Shapes: N rows, K neighbours.
"""

from collections.abc import Sequence

import bm25s
import numpy as np
from scipy.sparse import csr_array

from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.errors import UserError
from ra_hmd.features.store import Features
from ra_hmd.retrieval.knn import ABSENT

_WORD = r"(?u)\b\w+\b"
_SCORES = 1 << 21  # computed at once


def documents(features: Features, object_words: str | None, place: str) -> list[str]:
    """The words that stand for each meme: its caption, then the words in its field `object_words`.

    Raises:
        UserError: the store has no captions, or no meme has the field.
    """
    if features.texts is None:
        raise UserError(f"{place} has no captions, which `mining: sparse` needs; extract it again with this version.")
    if object_words is None:
        return list(features.texts)
    found = [(extras or {}).get(object_words) for extras in features.extras or [{}] * len(features)]
    if not any(found):
        known = sorted({key for extras in features.extras or [] for key in extras})
        raise UserError(
            f"`object_words` is {object_words!r}, but no meme of {place} has such a field; it has "
            f"{', '.join(known) or 'no further fields'}."
        )
    words = [" ".join(map(str, value)) if isinstance(value, list) else str(value or "") for value in found]
    return [f"{text} {more}" for text, more in zip(features.texts, words, strict=True)]


class SparseIndex:
    """BM25 (Lucene's variant) among N documents.

    Args:
        texts: N documents.

    Raises:
        UserError: no document has a word.

    Source: RGCL's sparse retrieval (arXiv 2311.08110, section 3), through `bm25s`.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        tokens = bm25s.tokenize(list(texts), stopwords=None, show_progress=False, token_pattern=_WORD)
        if not any(tokens.ids):
            raise UserError("`mining: sparse`: no caption has a word; use `mining: dense`.")
        index = bm25s.BM25()
        index.index(tokens, show_progress=False)
        scores, vocabulary = index.scores, len(index.scores["indptr"]) - 1
        each = np.concatenate([[0], np.cumsum([len(line) for line in tokens.ids])])
        words = np.fromiter((word for line in tokens.ids for word in line), np.int64, each[-1])
        # Words stay in their order, doubled ones too: scores are summed as bm25s sums them, to the bit.
        self._words = csr_array((np.ones(len(words), np.float32), words, each), shape=(len(tokens.ids), vocabulary))
        columns = (scores["data"], scores["indices"], scores["indptr"])
        self._weights = csr_array(columns, shape=(vocabulary, len(tokens.ids)))
        self._found: dict[str, np.ndarray] = {}

    def nearest(self, queries: np.ndarray, candidates: np.ndarray, k: int, ids: np.ndarray) -> np.ndarray:
        """Rows int64 [Q, K] of the candidates that share most with each query row, best first, `ABSENT` where no other
        candidate shares a word. Of equal ones the first row comes first. What was found is kept: captions
        do not change.

        Args:
            queries: Row numbers [Q].
            candidates: bool [N].
            k: K.
            ids: [N]; a candidate with the query's own id is left out.
        """
        key = sha256_bytes(*(array.tobytes() for array in (queries, candidates, ids)), str(k).encode())
        if key not in self._found:
            self._found[key] = self._search(queries, np.flatnonzero(candidates), k, ids)
        return self._found[key]

    def _search(self, queries: np.ndarray, candidates: np.ndarray, k: int, ids: np.ndarray) -> np.ndarray:
        """`nearest` with candidates by their numbers [C], rising."""
        rows = np.full((len(queries), k), ABSENT, dtype=np.int64)
        if not k or not len(candidates):
            return rows
        weights = self._weights[:, candidates]
        by_id = np.argsort(ids[candidates], kind="stable")
        first, last = (np.searchsorted(ids[candidates][by_id], ids[queries], side) for side in ("left", "right"))
        block = max(_SCORES // len(candidates), 1)
        for begin in range(0, len(queries), block):
            part = np.arange(begin, min(begin + block, len(queries)))
            scores = (self._words[queries[part]] @ weights).toarray()
            for line, query in enumerate(part):
                scores[line, by_id[first[query] : last[query]]] = 0
            for place in range(min(k, len(candidates))):
                best = scores.argmax(axis=1)  # of equal ones the first
                found = scores[np.arange(len(part)), best]
                rows[part, place] = np.where(found > 0, candidates[best], ABSENT)
                scores[np.arange(len(part)), best] = 0
        return rows
