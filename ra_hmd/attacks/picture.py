"""Attacks on the pixels of a whole picture."""

import random
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from ra_hmd.attacks.base import PICTURE_CHANNELS, Attack
from ra_hmd.data.images import load_image

_DITHER = 8  # side of the ordered dither's matrix


def jpeg(image: Image.Image, generator: random.Random, *, quality: int) -> Image.Image:
    """Compress as JPEG."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return load_image(buffer.getvalue())


def rescale(image: Image.Image, generator: random.Random, *, factor: float) -> Image.Image:
    """Make smaller, and as large as before again."""
    small = tuple(max(1, round(side * factor)) for side in image.size)
    return image.resize(small, Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR)  # type: ignore[arg-type]


def crop(image: Image.Image, generator: random.Random, *, share: float) -> Image.Image:
    """Cut off a share of width and height; where from is drawn."""
    width, height = (max(1, round(side * (1 - share))) for side in image.size)
    left, top = generator.randint(0, image.width - width), generator.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def blur(image: Image.Image, generator: random.Random, *, radius: float) -> Image.Image:
    """Blur by a Gaussian; `radius` is a share of the longer side."""
    return image.filter(ImageFilter.GaussianBlur(radius * max(image.size)))


def noise(image: Image.Image, generator: random.Random, *, deviation: float) -> Image.Image:
    """Add Gaussian noise; `deviation` in steps of 255."""
    added = numbers(generator).normal(0, deviation, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + added, 0, 255).astype(np.uint8))


def salt(image: Image.Image, generator: random.Random, *, share: float) -> Image.Image:
    """Make a share of the pixels black or white."""
    draws = numbers(generator).random_sample((image.height, image.width, 1))
    spoilt = np.where(draws < share / 2, 0, 255).astype(np.uint8)
    return Image.fromarray(np.where(draws < share, spoilt, np.asarray(image)))


def newsprint(image: Image.Image, generator: random.Random, *, levels: int) -> Image.Image:
    """Print each colour in a few levels by ordered dithering."""
    matrix = np.zeros((1, 1))
    while len(matrix) < _DITHER:
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    repeats = -(-image.height // _DITHER), -(-image.width // _DITHER)
    threshold = np.tile((matrix + 0.5) / matrix.size, repeats)[: image.height, : image.width, None]
    steps = np.asarray(image) / 255 * (levels - 1)
    return Image.fromarray(np.rint(np.floor(steps + threshold) * 255 / (levels - 1)).astype(np.uint8))


def spread(image: Image.Image, generator: random.Random, *, radius: int) -> Image.Image:
    """Exchange each pixel for one at most `radius` away in both directions."""
    drawn, (height, width) = numbers(generator), (image.height, image.width)
    rows = np.arange(height)[:, None] + drawn.randint(-radius, radius + 1, (height, width))
    columns = np.arange(width)[None] + drawn.randint(-radius, radius + 1, (height, width))
    return Image.fromarray(np.asarray(image)[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)])


def brightness(image: Image.Image, generator: random.Random, *, change: float) -> Image.Image:
    """Make darker or brighter, which of the two is drawn."""
    return ImageEnhance.Brightness(image).enhance(1 + generator.choice((-1, 1)) * change)


def grey(image: Image.Image, generator: random.Random, *, colour: float) -> Image.Image:
    """Keep a share of the colour."""
    return ImageEnhance.Color(image).enhance(colour)


def flip(image: Image.Image, generator: random.Random, *, how: str) -> Image.Image:
    """Mirror the picture, turn it upside down, or by a quarter."""
    turns = {"mirror": Image.Transpose.FLIP_LEFT_RIGHT, "half_turn": Image.Transpose.ROTATE_180}
    return image.transpose(turns.get(how, Image.Transpose.ROTATE_90))


def unchanged(image: Image.Image, generator: random.Random) -> Image.Image:
    """Leave the picture as it is: what a caption that is read by OCR changes by itself."""
    return image


def numbers(generator: random.Random) -> np.random.RandomState:
    """NumPy's generator whose stream is frozen, seeded from `generator`."""
    return np.random.RandomState(generator.getrandbits(32))


def _attack(name: str, function: Callable[..., Any], key: str, levels: tuple[object, object, object]) -> Attack:
    first, second, third = ({key: level} for level in levels)
    return Attack(name, "picture", "image", function, (first, second, third), PICTURE_CHANNELS)


ATTACKS = (
    Attack("unchanged", "picture", "image", unchanged, ({}, {}, {}), ("reread",)),
    _attack("jpeg", jpeg, "quality", (70, 40, 15)),
    _attack("rescale", rescale, "factor", (0.75, 0.5, 0.25)),
    _attack("crop", crop, "share", (0.05, 0.1, 0.2)),
    _attack("blur", blur, "radius", (0.005, 0.01, 0.02)),
    _attack("noise", noise, "deviation", (10, 25, 50)),
    _attack("salt", salt, "share", (0.05, 0.1, 0.2)),
    _attack("newsprint", newsprint, "levels", (6, 4, 2)),
    _attack("spread", spread, "radius", (1, 3, 5)),
    _attack("brightness", brightness, "change", (0.2, 0.4, 0.6)),
    _attack("grey", grey, "colour", (0.5, 0.2, 0.0)),
    _attack("flip", flip, "how", ("mirror", "half_turn", "quarter_turn")),
)
