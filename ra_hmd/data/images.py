"""Image decoding. Every step that needs the image of a meme decodes it here, so that all of them have the same pixels.

A decoded image is RGB with 8 bits per channel: the first frame, rotated as its EXIF data demand, transparent parts
white, deeper values scaled. `docs/data.md` has the table of modes and formats.
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
from typing import Any, cast

import imagehash
import numpy as np
from PIL import Image, UnidentifiedImageError

from ra_hmd.core.errors import UserError
from ra_hmd.core.storage import RemotePath
from ra_hmd.data.image_files import PICTURE_FORMATS
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
UNKNOWN_FORMAT = "no image format that is decoded"
ImageSource = str | Path | bytes | Mapping[str, Any] | Image.Image
_WHOLE, _SAMPLES, _SAMPLE = 1 << 16, 16, 1 << 12  # bytes of a file that `file_digest` reads


@dataclass(frozen=True)
class ImageTraits:
    """Properties of an image file that its decoded pixels do not show.

    Attributes:
        transparent: Whether some pixels are transparent, and became white.
        depth: Pillow mode with more than 8 bits per value, such as `I;16`; "" for other images.
        turned: Whether the EXIF data demand another orientation than that of the stored pixels.
        frames: Whether there is more than one frame.
    """

    transparent: bool = False
    depth: str = ""
    turned: bool = False
    frames: bool = False


def load_image(source: ImageSource, formats: tuple[str, ...] | list[str] | None = None) -> Image.Image:
    """Decode an image in full into RGB, as the module describes.

    Args:
        source: Path of a file, the content of a file, an opened image, or a mapping with `bytes` and `path`, as Parquet
            files of Hugging Face have it (the path counts where there are no bytes).
        formats: Pillow's names of the formats to try; by default all but PostScript, which is a program.

    Raises:
        UserError: The file is missing, truncated, not an image, or too large to be decoded safely.
    """
    if isinstance(source, Mapping):
        embedded: str | Path | bytes = source["bytes"] if source.get("bytes") is not None else source["path"]
        source = embedded
    place = f"image {source}" if isinstance(source, str | Path) else "it"
    try:
        source = source.read_bytes() if isinstance(source, RemotePath) else source
        with nullcontext(source) if isinstance(source, Image.Image) else open_image(source, formats) as image:
            return to_rgb(image)
    except FileNotFoundError as error:
        raise UserError(f"{place} does not exist; check `media_dir` and the paths in the data file") from error
    except UserError:  # of an object store
        raise
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise UserError(
            f"{place} cannot be decoded ({describe_fault(error)}); replace it or remove its record"
        ) from error


def open_image(source: str | Path | bytes, formats: tuple[str, ...] | list[str] | None = None) -> Image.Image:
    """Open an image by its content, whatever its suffix, and read only its header. `to_rgb` decodes it.

    Raises:
        UnidentifiedImageError: The format is not decoded; the message names it where it is known.
    """
    source = source.read_bytes() if isinstance(source, RemotePath) else source
    if not isinstance(source, bytes) and not os.path.isfile(source) and os.path.exists(source):  # noqa: PTH110, PTH113
        raise UnidentifiedImageError("a folder, or no regular file")  # opening a pipe would wait for its writer
    try:
        known = known_formats()
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats or known)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(_unknown(source)) from error


def describe_fault(error: Exception) -> str:
    """Return the message of a decoder's exception, or the name of its class."""
    return str(error) or type(error).__name__


def _unknown(source: str | Path | bytes) -> str:
    if isinstance(source, bytes):
        start = source[:256]
    else:
        with open(source, "rb") as file:  # noqa: PTH123 - survives odd names
            start = file.read(256)
    if not start:
        return "the file is empty"
    known = next((name for mark, name in _NOT_DECODED.items() if start.lstrip().startswith(mark)), None)
    if known is None and b"<svg" in start:
        known = "SVG"
    return f"{known} is not decoded; save it as PNG" if known else UNKNOWN_FORMAT


@cache
def known_formats() -> tuple[str, ...]:
    """Return Pillow's names of all formats that are decoded, with HEIF but without PostScript, which is a program."""
    from pillow_heif import register_heif_opener

    Image.init()
    register_heif_opener()
    return tuple(name for name in Image.ID if name != "EPS")


@cache
def picture_formats() -> tuple[str, ...]:
    """Return Pillow's names of those `PICTURE_FORMATS` that the installed Pillow knows."""
    return tuple(name for name in PICTURE_FORMATS if name in known_formats())


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image into RGB, as the module describes, without the metadata of its file."""
    return to_rgb_with_traits(image)[0]


def to_rgb_with_traits(image: Image.Image) -> tuple[Image.Image, ImageTraits]:
    """Convert like `to_rgb`, and return the properties of the file that the pixels do not show."""
    if image.mode == "RGB" and not image.info and type(image) is Image.Image:
        return image, ImageTraits()
    key = _transparent_colour(image)  # first, because reading the EXIF data of a PNG decodes it
    frames = (
        bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    )  # the second image of an MPO is a preview
    orientation = image.info.get("original_orientation") or _orientation(image)  # HEIF files are turned by the decoder
    image.load()
    if image.mode in _DEEP:
        flat, transparent = _scaled(image, key)
    else:
        flat, transparent = _on_white(image, key)
    flat.info = {}  # otherwise a reader of its EXIF data would rotate it again
    turn = _UPRIGHT.get(_orientation(image))
    upright = flat if turn is None else flat.transpose(turn)
    depth = image.mode if image.mode in _DEEP else ""
    return upright, ImageTraits(transparent, depth, orientation in _UPRIGHT, frames)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF data may hold anything; an image without valid ones keeps its orientation
        return 1


def _transparent_colour(image: Image.Image) -> int | tuple[int, ...] | bytes | None:
    """Return the colour that a file declares transparent, in the range of Pillow's pixels; None if there is none.

    Pillow returns the value of a PNG unchanged, which may have fewer bits than the pixels (grey) or more (RGB).
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
    """Scale grey values of more than 8 bits. Of 16 bits the upper 8 count, as in Pillow for RGB of 16 bits."""
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
    """Scale values of a format without a defined white; white is the first bound in `tops`, else their maximum."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    top = next((top for top in tops if low >= 0 and high <= top), None)
    low, high = (low, high) if top is None else (0.0, float(top))
    return np.rint(255 * (np.nan_to_num(np.clip(values, low, high), nan=low) - low) / (high - low))


def image_size(path: str | Path) -> tuple[int, int]:
    """Return width and height from the header of a file, without decoding; (0, 0) if it cannot be read.

    Raises:
        UserError: An object store that does not give the file.
    """
    try:
        if isinstance(path, RemotePath):
            return _size_of_object(path)
        with open_image(path) as image:
            return image.size
    except UserError:  # of an object store
        raise
    except Exception:  # a parser may raise anything on hostile bytes
        return 0, 0


def _size_of_object(path: RemotePath) -> tuple[int, int]:
    start = path.read_bytes(0, _WHOLE)
    try:
        with open_image(start) as image:
            return image.size
    except Exception:  # some headers are longer, and some decoders want the whole file
        with open_image(path) as image:
            return image.size


def perceptual_hash(image: Image.Image) -> int | None:
    """Return the 64-bit perceptual hash (imagehash's pHash); None for a single colour, as these all hash alike."""
    image = to_rgb(image)
    if all(low == high for low, high in cast("tuple[tuple[int, int], ...]", image.getextrema())):
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
    """Return a cheap digest of a file: of its size, and of its content up to 64 KiB or 16 blocks of 4 KiB.

    The blocks include the first and the last, where formats keep headers and EXIF data. Images are usually compressed,
    so two different ones differ in nearly every block. The digest of a path that is no file is "".
    Of an object it is that of the size and checksum that its store states, which takes one request and no content.

    Raises:
        UserError: An object store that does not answer.
    """
    if isinstance(path, RemotePath):
        try:
            return hashlib.blake2b(path.version().encode(), digest_size=16).hexdigest()
        except FileNotFoundError:
            return ""
    digest = hashlib.blake2b(digest_size=16)
    try:
        if not os.path.isfile(path):  # noqa: PTH113 - opening a pipe would block
            return ""
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - survives odd names
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
