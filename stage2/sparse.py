"""Sparse retrieval: BM25 over captions and, where there are any, object words.

Shapes: N rows, K neighbours.
"""

from collections.abc import Sequence

import bm25s
import numpy as np

from ra_hmd.errors import UserError
from ra_hmd.features.store import Features
from ra_hmd.retrieval.knn import ABSENT

_WORD = r"(?u)\b\w+\b"


def documents(features: Features, object_words: str | None, place: str) -> list[str]:
    """The words that stand for each meme: its caption, then the words in its field `object_words`.

    Raises:
        UserError: the store has no captions, or no meme has the field.
    """
    if features.texts is None:
        raise UserError(f"{place} has no captions, which `mining: sparse` needs; extract it again with this version.")
    if object_words is None:
        return list(features.texts)
    found = [(extras or {}).get(object_words) for extras in features.extras or [None] * len(features)]
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
        self._tokens = bm25s.tokenize(list(texts), stopwords=None, show_progress=False, token_pattern=_WORD)
        if not any(self._tokens.ids):
            raise UserError("`mining: sparse`: no caption has a word; use `mining: dense`.")
        self._index = bm25s.BM25()
        self._index.index(self._tokens, show_progress=False)

    def nearest(self, queries: np.ndarray, candidates: np.ndarray, k: int, ids: np.ndarray) -> np.ndarray:
        """Rows int64 [Q, K] of the candidates that share most with each query row, best first, `ABSENT` where no other
        candidate shares a word.

        Args:
            queries: Row numbers [Q].
            candidates: bool [N].
            k: K.
            ids: [N]; a candidate with the query's own id is left out.
        """
        rows = np.full((len(queries), k), ABSENT, dtype=np.int64)
        if not k or not len(queries) or not candidates.any():
            return rows
        _, counts = np.unique(ids[candidates], return_counts=True)
        depth = min(k + int(counts.max()), len(ids))
        tokens = [self._tokens.ids[row] for row in queries]
        asked = np.flatnonzero([len(line) > 0 for line in tokens])
        if not len(asked):
            return rows
        words = bm25s.tokenization.Tokenized(ids=[tokens[line] for line in asked], vocab=self._tokens.vocab)
        found, scores = self._index.retrieve(
            words, k=depth, weight_mask=candidates.astype(np.float32), show_progress=False, backend_selection="numpy"
        )
        keep = (scores > 0) & (ids[found] != ids[queries[asked]][:, None])
        order = np.lexsort((found, -scores, ~keep), axis=1)[:, :k]
        found, keep = np.take_along_axis(found, order, axis=1), np.take_along_axis(keep, order, axis=1)
        rows[asked, : found.shape[1]] = np.where(keep, found, ABSENT)
        return rows
