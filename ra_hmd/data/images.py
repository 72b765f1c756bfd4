"""Opening a meme's image."""

from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, UnidentifiedImageError

from ra_hmd.errors import UserError


def load_image(path: str | Path) -> Image.Image:
    """Decode an image in full.

    Raises:
        UserError: the file is missing, truncated, not an image, or so large that decoding it is not safe.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise UserError(f"image {path} does not exist; check `media_dir` and the paths in the data file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} cannot be decoded ({error}); replace it or remove its record") from error


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
