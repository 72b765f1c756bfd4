"""Attacks on how the caption stands in the picture. Its words stay as they are."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from ra_hmd.attacks.base import PICTURE_CHANNELS, Attack
from ra_hmd.attacks.drawing import Box, CaptionLayout
from ra_hmd.attacks.picture import salt

_GUTTER = 0.03  # of the width, between panels


def font(layout: CaptionLayout, generator: random.Random, *, name: str) -> Image.Image:
    """Draw the caption in another font."""
    return layout.with_look(font=name).draw()


def font_size(layout: CaptionLayout, generator: random.Random, *, factor: float) -> Image.Image:
    """Draw the caption smaller."""
    return layout.with_look(size=max(4, round(layout.look.size * factor))).draw()


def position(layout: CaptionLayout, generator: random.Random, *, place: str) -> Image.Image:
    """Draw the caption at the opposite edge, in the middle, or anywhere."""
    height = layout.base.height

    def moved(box: Box) -> Box:
        left, top, right, bottom = box
        tall = bottom - top
        opposite = height - bottom
        middle = (height - tall) // 2
        start = {"opposite": opposite, "middle": middle}.get(place)
        start = generator.randint(0, height - tall) if start is None else start
        return left, start, right, start + tall

    return replace(layout, boxes=tuple(moved(box) for box in layout.boxes)).draw()


def colour(layout: CaptionLayout, generator: random.Random, *, contrast: float) -> Image.Image:
    """Draw the caption in a colour near its background, without outline; `contrast` is the share that is left."""
    pixels = np.asarray(layout.base)[np.asarray(layout.region()) > 0]
    ground = np.median(pixels.astype(float), axis=0)
    mixed = np.rint(ground + contrast * (np.array(layout.look.fill) - ground)).astype(int)
    return layout.with_look(fill=tuple(mixed.tolist()), width=0).draw()


def curved(layout: CaptionLayout, generator: random.Random, *, bend: float) -> Image.Image:
    """Draw the caption along a wave whose height is a share of its box."""
    tall = max(bottom - top for _, top, _, bottom in layout.boxes)
    columns = np.arange(layout.base.width)
    phase = generator.random() * 2 * np.pi
    shifts = np.rint(bend * tall * np.sin(2 * np.pi * columns / layout.base.width + phase)).astype(int)
    rows = np.arange(layout.base.height)[:, None] - shifts[None]
    inside = (rows >= 0) & (rows < layout.base.height)

    def bent(mask: Image.Image) -> Image.Image:
        values = np.asarray(mask)[np.clip(rows, 0, layout.base.height - 1), columns[None]]
        return Image.fromarray(np.where(inside, values, 0).astype(np.uint8))

    fill, stroke = layout.masks(layout.caption)
    return layout.paint(bent(fill), bent(stroke))


def rotated(layout: CaptionLayout, generator: random.Random, *, degrees: float) -> Image.Image:
    """Draw the caption at an angle; the direction is drawn."""
    angle = generator.choice((-1, 1)) * degrees
    left, top, right, bottom = layout.boxes[0]
    around = ((left + right) / 2, (top + bottom) / 2)
    fill, stroke = (
        mask.rotate(angle, Image.Resampling.BILINEAR, center=around) for mask in layout.masks(layout.caption)
    )
    return layout.paint(fill, stroke)


def panels(layout: CaptionLayout, generator: random.Random, *, count: int) -> Image.Image:
    """Repeat the picture in panels, each of which has a part of the caption."""
    words, side = layout.caption.split(), 2 if count == 4 else count
    gutter = max(1, round(_GUTTER * layout.base.width))
    parts = [words[round(len(words) * n / count) : round(len(words) * (n + 1) / count)] for n in range(count)]
    width, height = layout.base.width + gutter, layout.base.height + gutter
    sheet = Image.new("RGB", (side * width - gutter, -(-count // side) * height - gutter), "white")
    for number, part in enumerate(parts):
        row, column = divmod(number, side)
        sheet.paste(layout.draw(" ".join(part)), (column * width, row * height))
    return sheet


def outline(layout: CaptionLayout, generator: random.Random, *, opacity: float) -> Image.Image:
    """Draw the caption without outline, and the letters partly transparent."""
    return layout.with_look(width=0, opacity=opacity).draw()


def lines(layout: CaptionLayout, generator: random.Random, *, count: int) -> Image.Image:
    """Draw thin lines across each box of the caption."""
    image = layout.draw()
    draw = ImageDraw.Draw(image)
    for left, top, right, bottom in layout.boxes:
        for _ in range(count):
            ends = (left, generator.uniform(top, bottom)), (right, generator.uniform(top, bottom))
            fill = layout.look.fill if generator.random() < 0.5 else layout.look.outline
            draw.line(ends, fill=fill, width=max(1, layout.look.size // 10))
    return image


def blur_text(layout: CaptionLayout, generator: random.Random, *, radius: float) -> Image.Image:
    """Blur the boxes of the caption; `radius` in font sizes."""
    image = layout.draw()
    return Image.composite(image.filter(ImageFilter.GaussianBlur(radius * layout.look.size)), image, layout.region())


def salt_text(layout: CaptionLayout, generator: random.Random, *, share: float) -> Image.Image:
    """Make a share of the pixels in the boxes of the caption black or white."""
    image = layout.draw()
    return Image.composite(salt(image, generator, share=share), image, layout.region())


def mirrored_text(layout: CaptionLayout, generator: random.Random, *, how: str) -> Image.Image:
    """Draw the caption mirrored, upside down, or both."""
    steps = {"mirror": (ImageOps.mirror,), "upside_down": (ImageOps.flip,)}.get(how, (ImageOps.mirror, ImageOps.flip))

    def turned(mask: Image.Image) -> Image.Image:
        mask = mask.copy()
        for box in layout.boxes:
            part = mask.crop(box)
            for step in steps:
                part = step(part)
            mask.paste(part, box)
        return mask

    fill, stroke = layout.masks(layout.caption)
    return layout.paint(turned(fill), turned(stroke))


def _attack(
    name: str, function: Callable[..., Any], key: str, levels: tuple[object, object, object], family: Any = "caption"
) -> Attack:
    first, second, third = ({key: level} for level in levels)
    return Attack(name, family, "drawing", function, (first, second, third), PICTURE_CHANNELS)


ATTACKS = (
    _attack("font", font, "name", ("DejaVuSerif-Bold.ttf", "STIXGeneralBolIta.ttf", "cmti10.ttf")),
    _attack("font_size", font_size, "factor", (0.8, 0.6, 0.4)),
    _attack("position", position, "place", ("opposite", "middle", "anywhere")),
    _attack("colour", colour, "contrast", (0.5, 0.25, 0.12)),
    _attack("curved", curved, "bend", (0.1, 0.2, 0.35)),
    _attack("rotated", rotated, "degrees", (5, 15, 30)),
    _attack("panels", panels, "count", (2, 3, 4)),
    _attack("outline", outline, "opacity", (1.0, 0.6, 0.35)),
    _attack("lines", lines, "count", (1, 3, 6)),
    _attack("blur_text", blur_text, "radius", (0.1, 0.2, 0.4)),
    _attack("salt_text", salt_text, "share", (0.1, 0.2, 0.4)),
    _attack("mirrored_text", mirrored_text, "how", ("mirror", "upside_down", "both"), "reposting"),
)
