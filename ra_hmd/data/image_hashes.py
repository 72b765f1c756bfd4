"""Perceptual hashes that find copies of an image: PDQ where the extra `hash` is installed, else imagehash's pHash.

PDQ (Meta's ThreatExchange, 2019) has 256 bits, written as 64 hexadecimal digits as hash lists are exchanged. Two images
are copies of each other up to a Hamming distance, by convention 31 of PDQ's bits; pHash has 64 bits.
"""

import hashlib
import unicodedata
from functools import cache
from importlib.util import find_spec

import numpy as np
from PIL import Image

from ra_hmd.data.images import perceptual_hash, to_rgb
from ra_hmd.data.text import well_formed

PDQ_BITS, PHASH_BITS = 256, 64
_LARGEST_SIDE = 512
MIN_QUALITY = 50
"""PDQ's quality, from 0 to 100, below which an image has too little structure for a hash (ThreatExchange's limit)."""
_DIHEDRAL = (
    None,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
)
TRANSFORMS = ("none", *(turn.name.lower() for turn in _DIHEDRAL if turn is not None))
"""The 8 rotations and mirrors, in the order of `pdq_hashes` and `phashes`."""


@cache
def has_pdq() -> bool:
    """Whether the extra `hash` is installed."""
    return find_spec("pdqhash") is not None


def pdq_hash(image: Image.Image) -> str:
    """Return PDQ's hash in hexadecimal; "" for an image without structure, or without the extra `hash`."""
    return (pdq_hashes(image) or [""])[0]


def pdq_hashes(image: Image.Image, *, turned: bool = False) -> list[str]:
    """Return PDQ's hash of an image, and with `turned` those of its `TRANSFORMS`; empty where there is none.

    Hashes are computed as ThreatExchange's `threatexchange` package does, so that exchanged lists match; turned ones
    from at most 512 pixels a side. PDQ's own hashes of rotations are not those of an image that was rotated before.
    """
    if not has_pdq():
        return []
    import pdqhash

    image = to_rgb(image)
    bits, quality = pdqhash.compute(np.asarray(image))
    if quality < MIN_QUALITY:
        return []
    hashes = [bits]
    if turned:
        image = image.copy()
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.BOX)
        hashes += [pdqhash.compute(np.asarray(image.transpose(turn)))[0] for turn in _DIHEDRAL if turn is not None]
    return [np.packbits(row).tobytes().hex() for row in hashes]


def phashes(image: Image.Image, *, turned: bool = False) -> list[int]:
    """Return the 64-bit hash of an image, and with `turned` those of its `TRANSFORMS`; empty for a single colour."""
    image = to_rgb(image)
    kept = _DIHEDRAL if turned else _DIHEDRAL[:1]
    hashes = [perceptual_hash(image if turn is None else image.transpose(turn)) for turn in kept]
    return [value for value in hashes if value is not None]


def caption_digest(text: str) -> str:
    """Return a digest of a caption, the same for captions that differ in blanks, case or Unicode forms only (NFKC).

    It has 32 hexadecimal digits. That of an empty caption is "", which equals no other: it says nothing of a meme.
    """
    words = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", well_formed(text)).casefold()).split()
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:32] if words else ""
