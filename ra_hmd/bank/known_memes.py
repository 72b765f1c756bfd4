"""Known memes: labelled rows whose image is an exact or near copy of a meme's image, found by perceptual hashes.

The same image with another caption is another meme, often of another class. So a row decides only where its caption is
the meme's, up to blanks, case and Unicode forms; else it is evidence. Nor does any row decide where the rows that could
have different labels; labels that people gave (`BankRows.decided`) go before those of examples.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import faiss
import numpy as np
from PIL import Image

from ra_hmd.bank.versions import BankRows, BankState
from ra_hmd.data.image_hashes import (
    PDQ_BITS,
    PHASH_BITS,
    TRANSFORMS,
    caption_digest,
    has_pdq,
    pdq_hashes,
    phashes,
)


@dataclass(frozen=True)
class MemeHashes:
    """Hashes of a meme: of its image and, where asked for, of the turned image (`TRANSFORMS`); of its caption; of both.

    A list is empty where the image has no structure, or where no row has such a hash.
    """

    pdqs: list[bytes]
    phashes: list[bytes]
    caption_digest: str
    content: str


@dataclass(frozen=True)
class KnownMeme:
    """The row that a meme is a copy of.

    Attributes:
        id, label, source, note, time: Of the row.
        hash: `pdq`, or `phash` for a row without it.
        distance: Hamming distance of the two hashes.
        transform: What makes the meme's image the row's: one of `TRANSFORMS`.
        same_caption: Whether the captions are the same; None where the row's is unknown or empty.
        decides: Whether the verdict is the row's label.
        contradicted_by: Id of another row that would decide, with another label; then none decides.
    """

    id: str
    label: int | list[int]
    hash: str
    distance: int
    transform: str
    same_caption: bool | None
    decides: bool
    contradicted_by: str | None
    source: str
    note: str
    time: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class _Copy:
    """A row whose image is near a meme's; `share` is the distance as a share of the bits."""

    share: float
    distance: int
    transform: str
    hash: str
    number: int
    rows: BankRows
    same_caption: bool | None

    @property
    def label(self) -> Any:
        return self.rows.labels[self.number].tolist()

    @property
    def name(self) -> str:
        return self.rows.ids[self.number]


class _HashIndex:
    """Row numbers by their hashes of one kind, searched exhaustively: 10^5 hashes of PDQ are 3 MB."""

    def __init__(self, kind: str, bits: int) -> None:
        self.kind, self.bits = kind, bits
        self._index = faiss.IndexBinaryFlat(bits)
        self._numbers = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def extend(self, hashes: dict[int, bytes]) -> None:
        """Add hashes, by row number."""
        if hashes:
            self._index.add(_matrix(list(hashes.values())))
            self._numbers = np.concatenate([self._numbers, np.array(list(hashes), np.int64)])

    def near(self, hashes: list[bytes], limit: int) -> dict[int, tuple[int, str]]:
        """Numbers of the rows within `limit` bits of 256: distance and transform of the nearest of the hashes."""
        if not hashes or not len(self):
            return {}
        bounds, distances, places = self._index.range_search(_matrix(hashes), limit * self.bits // PDQ_BITS + 1)
        best: dict[int, tuple[int, str]] = {}
        for query, transform in enumerate(TRANSFORMS[: len(hashes)]):
            part = slice(bounds[query], bounds[query + 1])
            for distance, number in zip(distances[part], self._numbers[places[part]].tolist(), strict=True):
                if number not in best or distance < best[number][0]:
                    best[number] = int(distance), transform
        return best


class LabelledRows:
    """Labelled rows of one place, with an index of their hashes that follows the place's versions.

    Args:
        state: Returns the present state; a later one has the same rows with others behind them.
    """

    def __init__(self, state: Callable[[], BankState]) -> None:
        self._current = state
        self._indexed = 0
        self._indices = (_HashIndex("pdq", PDQ_BITS), _HashIndex("phash", PHASH_BITS))

    @classmethod
    def fixed(cls, rows: BankRows) -> "LabelledRows":
        """Rows that do not change."""
        state = BankState(1, rows, np.ones(len(rows), bool))
        return cls(lambda: state)

    def follow(self) -> BankState:
        """The present state; its new rows are indexed."""
        state = self._current()
        rows, new = state.rows, range(self._indexed, len(state.rows))
        pdqs = {row: bytes.fromhex(rows.pdqs[row]) for row in new if rows.pdqs[row] and has_pdq()}
        hashes = rows.image_hashes
        others = {row: int(hashes[row]).to_bytes(8, "little") for row in new if hashes[row] and row not in pdqs}
        for index, found in zip(self._indices, (pdqs, others), strict=True):
            index.extend(found)
        self._indexed = len(rows)
        return state

    @property
    def kinds(self) -> set[str]:
        """Kinds of the hashes that rows have."""
        return {index.kind for index in self._indices if len(index)}

    def copies(self, meme: MemeHashes, limit: int) -> Iterator[_Copy]:
        """Rows whose image is within `limit` bits of 256 of the meme's."""
        state = self.follow()
        rows = state.rows
        for index, hashes in zip(self._indices, (meme.pdqs, meme.phashes), strict=True):
            for number, (distance, transform) in index.near(hashes, limit).items():
                if state.alive[number]:
                    same = _same_caption(rows, number, meme)
                    yield _Copy(distance / index.bits, distance, transform, index.kind, number, rows, same)


@dataclass
class KnownMemes:
    """Finds the labelled rows that memes are copies of. Threads may share it.

    Attributes:
        places: The rows; of equally near ones those of the first place are cited.
        limit: Largest distance of two copies, of 256 bits; of a 64-bit hash a quarter of it.
        turned: Whether rotated and mirrored images are copies too.
        lists: Digests of the hash lists among the places.
    """

    places: Sequence[LabelledRows]
    limit: int
    turned: bool = False
    lists: Sequence[str] = ()
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def describe(self) -> dict[str, Any]:
        """What the answers depend on besides the bank, for manifests."""
        kind = "pdq" if has_pdq() else "phash"
        return {"limit": self.limit, "turned": self.turned, "hash": kind, "hash_lists": list(self.lists)}

    def hashes(self, image: Image.Image, text: str, content: str) -> MemeHashes:
        """Hashes of a meme, of the kinds that rows have.

        Args:
            image: The decoded image.
            text: The caption.
            content: Hash of both (`ra_hmd.data.images.content_hash`).
        """
        with self._lock:
            for place in self.places:
                place.follow()
            kinds = {kind for place in self.places for kind in place.kinds}
        pdqs = pdq_hashes(image, turned=self.turned) if "pdq" in kinds else []
        others = phashes(image, turned=self.turned) if "phash" in kinds else []
        return MemeHashes(
            [bytes.fromhex(value) for value in pdqs],
            [value.to_bytes(8, "little") for value in others],
            caption_digest(text),
            content,
        )

    def find(self, meme: MemeHashes) -> KnownMeme | None:
        """The row that decides on a meme, else the nearest copy; None without any."""
        with self._lock:
            copies = [copy for place in self.places for copy in place.copies(meme, self.limit)]
        copies.sort(key=lambda copy: copy.share)
        same = [copy for copy in copies if copy.same_caption]
        by_person = [copy for copy in same if copy.rows.decided[copy.number]]
        able = by_person or same
        if not copies:
            return None
        cited = (able or copies)[0]
        other = next((copy.name for copy in able if copy.label != cited.label), None)
        rows, number = cited.rows, cited.number
        return KnownMeme(
            id=cited.name,
            label=cited.label,
            hash=cited.hash,
            distance=cited.distance,
            transform=cited.transform,
            same_caption=cited.same_caption,
            decides=bool(able) and other is None,
            contradicted_by=other,
            source=rows.sources[number],
            note=rows.notes[number],
            time=rows.times[number],
        )


def _same_caption(rows: BankRows, number: int, meme: MemeHashes) -> bool | None:
    if meme.content and rows.contents[number] == meme.content:
        return True
    known = rows.caption_digests[number]
    return known == meme.caption_digest if known else None


def _matrix(hashes: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1)
