"""Benign transforms of a picture: what happens to any meme that is passed on, and changes nothing for its readers.

A mean over a few of them is a defence: small changes that were fitted to one exact picture seldom survive them.
"""

import io
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageFilter

from ra_hmd.data.images import to_rgb

MOST_COPIES = 5


def benign_copies(image: Image.Image, count: int) -> list[Image.Image]:
    """Return a picture after each of the first `count` transforms: recompressed, rescaled, cropped by 3 % on each side,
    slightly blurred, brighter. Nothing is random.

    Raises:
        ValueError: there are not so many.
    """
    if not 0 <= count <= MOST_COPIES:
        raise ValueError(f"{count} copies of a picture were asked for; give 0 to {MOST_COPIES}")
    return [transform(to_rgb(image)) for transform in _TRANSFORMS[:count]]


def _recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    with Image.open(io.BytesIO(file.getvalue())) as read:
        return read.convert("RGB")


def _rescaled(image: Image.Image) -> Image.Image:
    small = [max(round(0.75 * side), 1) for side in image.size]
    return image.resize((small[0], small[1]), Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def _cropped(image: Image.Image) -> Image.Image:
    left, top = (round(0.03 * side) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(0.6))


def _brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.1)


_TRANSFORMS: tuple[Callable[[Image.Image], Image.Image], ...] = (
    _recompressed,
    _rescaled,
    _cropped,
    _blurred,
    _brighter,
)
