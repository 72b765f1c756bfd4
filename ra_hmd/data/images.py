"""What a picture is. Every step that looks at a meme opens its image here, so all see the same pixels.

A picture is RGB with 8 bits per channel: the first frame, upright as its EXIF data ask for, transparent parts white,
deeper values scaled. `docs/data.md` has the table of modes and formats.
"""

import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image, UnidentifiedImageError

from ra_hmd.core.errors import UserError
from ra_hmd.data.text import well_formed

_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_GREY_STEPS = {"1": 255, "1;I": 255, "L;2": 85, "L;4": 17}  # of a PNG with fewer bits: from its values to Pillow's
_ORIENTATION, _BITS_PER_SAMPLE = 0x0112, 258
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NOT_DECODED = {
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL \r\n\x87\n": "JPEG XL",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"<svg": "SVG",
}
UNKNOWN_FORMAT = "no format of pictures that is decoded"
Picture = str | Path | bytes | Mapping[str, Any] | Image.Image
_WHOLE, _SAMPLES, _SAMPLE = 1 << 16, 16, 1 << 12  # bytes of a file that `file_digest` reads


@dataclass(frozen=True)
class ImageTraits:
    """What of a picture's file does not show in the pixels that models see.

    Attributes:
        transparent: Some of it is, and was put on white.
        depth: Its mode where that has more than 8 bits per value, such as `I;16`, else "".
        turned: Its EXIF data ask for another orientation than that of the stored pixels.
        frames: It has more than one frame.
    """

    transparent: bool = False
    depth: str = ""
    turned: bool = False
    frames: bool = False


def load_image(source: Picture, formats: Sequence[str] | None = None) -> Image.Image:
    """Decode an image in full, as everyone sees it: see the module.

    Args:
        source: A file, the content of one, both as `bytes` and `path` of a mapping (so Parquet files of Hugging Face
            have them; the path counts where there are no bytes), or an image that somebody else has opened.
        formats: Pillow's names of the formats that may be tried; None: all but PostScript, which is a program.

    Raises:
        UserError: the file is missing, truncated, not an image, or so large that decoding it is not safe.
    """
    if isinstance(source, Mapping):
        source = source["bytes"] if source.get("bytes") is not None else source["path"]
    place = f"image {source}" if isinstance(source, str | Path) else "it"
    try:
        with nullcontext(source) if isinstance(source, Image.Image) else open_image(source, formats) as image:
            return to_rgb(image)
    except FileNotFoundError as error:
        raise UserError(f"{place} does not exist; check `media_dir` and the paths in the data file") from error
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise UserError(
            f"{place} cannot be decoded ({describe_fault(error)}); replace it or remove its record"
        ) from error


def open_image(source: str | Path | bytes, formats: Sequence[str] | None = None) -> Image.Image:
    """Open an image by its content, whatever its suffix, and read its header alone. `to_rgb` decodes it.

    Raises:
        UnidentifiedImageError: no format that is decoded, which is named where it is known.
    """
    if not isinstance(source, bytes) and not os.path.isfile(source) and os.path.exists(source):  # noqa: PTH110, PTH113
        raise UnidentifiedImageError("a folder, or no regular file")  # opening a pipe would wait for its writer
    try:
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats or known_formats())
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(_unknown(source)) from error


def describe_fault(error: Exception) -> str:
    """What a decoder says, for people."""
    return str(error) or type(error).__name__


def _unknown(source: str | Path | bytes) -> str:
    if isinstance(source, bytes):
        start = source[:256]
    else:
        with open(source, "rb") as file:  # noqa: PTH123 - of odd names too
            start = file.read(256)
    if not start:
        return "the file is empty"
    known = next((name for mark, name in _NOT_DECODED.items() if start.lstrip().startswith(mark)), None)
    if known is None and b"<svg" in start:
        known = "SVG"
    return f"{known} is not decoded; save it as PNG" if known else UNKNOWN_FORMAT


@cache
def known_formats() -> tuple[str, ...]:
    """Pillow's names of all formats that are decoded, HEIF among them: not PostScript, which Ghostscript would run."""
    from pillow_heif import register_heif_opener

    Image.init()
    register_heif_opener()
    return tuple(name for name in Image.ID if name != "EPS")


def to_rgb(image: Image.Image) -> Image.Image:
    """The pixels of an opened image as everyone sees them, without what its file says besides. See the module."""
    return to_rgb_with_traits(image)[0]


def to_rgb_with_traits(image: Image.Image) -> tuple[Image.Image, ImageTraits]:
    """`to_rgb`, with what does not show in it."""
    if image.mode == "RGB" and not image.info and type(image) is Image.Image:
        return image, ImageTraits()
    key = _transparent_colour(image)  # first: asking a PNG for EXIF data decodes it
    frames = bool(getattr(image, "is_animated", False)) and image.format != "MPO"  # of an MPO the second is a preview
    orientation = image.info.get("original_orientation") or _orientation(image)  # HEIF files are turned by the decoder
    image.load()
    if image.mode in _DEEP:
        flat, transparent = _scaled(image, key)
    else:
        flat, transparent = _on_white(image, key)
    flat.info = {}  # else it would be turned again by who reads the EXIF data in it
    turn = _UPRIGHT.get(_orientation(image))
    upright = flat if turn is None else flat.transpose(turn)
    depth = image.mode if image.mode in _DEEP else ""
    return upright, ImageTraits(transparent, depth, orientation in _UPRIGHT, frames)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF data are written by anyone; a picture without good ones is as it is stored
        return 1


def _transparent_colour(image: Image.Image) -> int | tuple[int, ...] | bytes | None:
    """The colour that a file declares transparent, as Pillow's pixels have it; None where there is none.

    Pillow hands on a PNG's own value, whose bits may be fewer than those of the pixels (grey) or more (RGB).
    """
    key = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    raw = tiles[0][3] if tiles else None
    if image.format == "PNG" and isinstance(raw, str):
        if isinstance(key, int):
            return key * _GREY_STEPS.get(raw, 1)
        if isinstance(key, tuple) and raw.startswith("RGB;16"):
            return tuple(value >> 8 for value in key)
    return key


def _on_white(image: Image.Image, key: int | tuple[int, ...] | bytes | None) -> tuple[Image.Image, bool]:
    if key is None and image.mode not in _WITH_ALPHA:
        return image.convert("RGB"), False
    if key is not None:
        image = image.copy()
        image.info["transparency"] = key
    layered = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if layered.getchannel("A").getextrema()[0] == 255:
        return layered.convert("RGB"), False
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layered).convert("RGB"), True


def _scaled(image: Image.Image, key: int | tuple[int, ...] | bytes | None) -> tuple[Image.Image, bool]:
    """Grey of more than 8 bits. Of 16 bits the upper half counts, as Pillow has it for 16 bits of RGB."""
    values = np.asarray(image)
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        grey = _fitted(values.astype(np.float64), tops=(1, 255, 65535) if image.mode == "F" else (255, 65535))
    else:
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
        grey = np.clip(values >> (bits - 8 if 8 < bits < 16 else 8), 0, 255)
    clear = values == key if isinstance(key, int) else np.zeros_like(values, dtype=bool)
    grey = np.where(clear, 255, grey).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB"), bool(clear.any())


def _fitted(values: np.ndarray, tops: Sequence[int]) -> np.ndarray:
    """Values of a format that does not say what white is: the first of `tops` that none exceeds, else the greatest."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    top = next((top for top in tops if low >= 0 and high <= top), None)
    low, high = (low, high) if top is None else (0.0, float(top))
    return np.rint(255 * (np.nan_to_num(np.clip(values, low, high), nan=low) - low) / (high - low))


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height from the file's header, without decoding; (0, 0) if it cannot be read."""
    try:
        with open_image(path) as image:
            return image.size
    except Exception:  # a parser may raise anything on hostile bytes
        return 0, 0


def perceptual_hash(image: Image.Image) -> int | None:
    """64-bit perceptual hash (imagehash's pHash) of a decoded image; None for one of one colour: all hash alike."""
    image = to_rgb(image)
    if all(low == high for low, high in image.getextrema()):
        return None
    bits = imagehash.phash(image).hash
    return int.from_bytes(np.packbits(bits.reshape(-1)).tobytes(), "little")


def content_hash(image: Image.Image, text: str) -> str:
    """Return the identity of a meme as 32 hexadecimal digits.

    Two memes are identical when their images have the same pixels, whatever file they came from, and their captions
    differ at most in blanks and in how characters are composed (Unicode NFC). An image that was scaled, cropped or
    compressed again is another one; `perceptual_hash` finds those that look alike.

    Args:
        image: As `load_image` opens it.
        text: The caption.
    """
    digest = hashlib.sha256(f"{image.width} {image.height} ".encode())
    digest.update(image.convert("RGB").tobytes())
    digest.update(" ".join(unicodedata.normalize("NFC", well_formed(text)).split()).encode())
    return digest.hexdigest()[:32]


def file_digest(path: str | Path) -> str:
    """Digest of a file's content, cheap for many: of its size and all of it up to 64 KiB, else 16 places of 4 KiB.

    The first and the last place are among them, where formats keep their headers and EXIF data. Pictures are compressed
    as a rule, so any other picture differs at nearly every place. What is no file that is there has the digest "".
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        if not os.path.isfile(path):  # noqa: PTH113 - a pipe would wait for its writer
            return ""
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - of odd names too
            size = os.fstat(file.fileno()).st_size
            digest.update(size.to_bytes(8, "little"))
            if size <= _WHOLE:
                digest.update(file.read(_WHOLE))
            else:
                for place in range(_SAMPLES):
                    digest.update(os.pread(file.fileno(), _SAMPLE, place * (size - _SAMPLE) // (_SAMPLES - 1)))
    except (OSError, ValueError):  # gone, or a name that cannot be one
        return ""
    return digest.hexdigest()
