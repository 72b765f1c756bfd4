"""Opening a meme's image."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, UnidentifiedImageError

from ra_hmd.errors import UserError


def load_image(source: str | Path | bytes, formats: Sequence[str] | None = None) -> Image.Image:
    """Decode an image in full; of an animated one the first frame. An orientation that its EXIF data ask for is not
    applied, as LLaMA-Factory does not apply it in training.

    Args:
        source: A file, or the content of one.
        formats: Pillow's names of the formats that may be tried; None: all but PostScript, which is a program.

    Raises:
        UserError: the file is missing, truncated, not an image, or so large that decoding it is not safe.
    """
    place = "it" if isinstance(source, bytes) else f"image {source}"
    try:
        with Image.open(
            BytesIO(source) if isinstance(source, bytes) else source, formats=formats or known_formats()
        ) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise UserError(f"{place} does not exist; check `media_dir` and the paths in the data file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{place} cannot be decoded ({error}); replace it or remove its record") from error


def known_formats() -> list[str]:
    """Pillow's names of all formats that are decoded: not PostScript, which Ghostscript would run."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height from the file's header, without decoding; (0, 0) if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0, 0


def perceptual_hash(image: Image.Image) -> int | None:
    """64-bit perceptual hash (imagehash's pHash) of a decoded image; None for one of one colour: all hash alike."""
    bits = imagehash.phash(image.convert("RGBA").convert("L") if image.mode == "P" else image).hash
    extrema = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else [extrema]
    if all(low == high for low, high in bands):
        return None
    return int.from_bytes(np.packbits(bits.reshape(-1)).tobytes(), "little")
