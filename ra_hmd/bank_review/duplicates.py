"""Rows of a bank that are the same meme and have different labels.

Shapes: N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ra_hmd.bank.versions import BankRows, differing
from ra_hmd.data.image_hashes import PDQ_BITS, PHASH_BITS


@dataclass(frozen=True)
class Duplicates:
    """Rows that are one meme with different labels.

    Attributes:
        kind: `same`: equal image and caption; `near`: the same caption and nearly the same image.
        rows: Their positions, in rising order.
        distance: Of near copies the largest distance of two rows with different labels, of 256 bits; else 0.
    """

    kind: str
    rows: list[int]
    distance: int = 0


def opposed_duplicates(table: BankRows, limit: int) -> list[Duplicates]:
    """Find rows that are copies of each other and have different labels.

    Exact copies have the same hash of image and caption. Near copies have the same caption, up to blanks, case and
    Unicode forms, and images whose PDQ hashes (of rows without: 64-bit hashes) are near. Rows without hashes, as banks
    of earlier releases have them, are in no group.

    Args:
        table: The N rows.
        limit: Largest distance of near copies, of 256 bits; of a 64-bit hash a quarter of it.
    """
    exact = [
        Duplicates("same", rows)
        for rows in _grouped(table.contents)
        if differing(table.labels[rows], table.labels[rows[0]]).any()
    ]
    near = [
        found
        for rows in _grouped(table.caption_digests)
        if differing(table.labels[rows], table.labels[rows[0]]).any()
        for found in _near(table, np.array(rows), limit)
    ]
    return exact + near


def _grouped(values: Sequence[str]) -> list[list[int]]:
    """Positions of equal values that are not empty, two or more of each."""
    groups: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if value:
            groups.setdefault(value, []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def _near(table: BankRows, rows: np.ndarray, limit: int) -> list[Duplicates]:
    """Near copies with different labels among rows with the same caption; exact copies are no pairs."""
    pdqs = {place: bytes.fromhex(table.pdqs[row]) for place, row in enumerate(rows) if table.pdqs[row]}
    short = {
        place: int(table.image_hashes[row]).to_bytes(8, "little")
        for place, row in enumerate(rows)
        if table.image_hashes[row]
    }
    by_pdq, by_short = _pairs(pdqs, limit, PDQ_BITS), _pairs(short, limit, PHASH_BITS)
    has_pdq = np.isin(np.arange(len(rows)), list(pdqs))
    by_short = by_short[:, ~(has_pdq[by_short[0]] & has_pdq[by_short[1]])]  # of two rows with PDQ it alone decides
    left, right, distance = np.concatenate([by_pdq, by_short], axis=1)
    contents, labels = np.array([table.contents[row] for row in rows], dtype=object), table.labels[rows]
    same = (contents[left] == contents[right]) & (contents[left] != "")
    keep = differing(labels[left], labels[right]) & ~same
    left, right, distance = left[keep], right[keep], distance[keep]
    graph = coo_matrix((np.ones(len(left)), (left, right)), shape=(len(rows), len(rows)))
    _, group = connected_components(graph, directed=False)
    return [
        Duplicates("near", rows[group == number].tolist(), int(distance[group[left] == number].max()))
        for number in np.unique(group[left])
    ]


def _pairs(hashes: dict[int, bytes], limit: int, bits: int) -> np.ndarray:
    """int64 [3, pairs]: two places whose hashes are within the limit, the smaller first, and their distance of 256."""
    if len(hashes) < 2:
        return np.zeros((3, 0), np.int64)
    places = np.array(list(hashes))
    matrix = np.frombuffer(b"".join(hashes.values()), np.uint8).reshape(len(places), -1)
    index = faiss.IndexBinaryFlat(bits)
    index.add(matrix)
    bounds, distances, found = index.range_search(matrix, limit * bits // PDQ_BITS + 1)
    counts = np.diff(bounds).astype(np.int64)
    left, right = places[np.repeat(np.arange(len(places)), counts)], places[found]
    pairs = np.stack([left, right, distances.astype(np.int64) * (PDQ_BITS // bits)])
    return pairs[:, left < right]
