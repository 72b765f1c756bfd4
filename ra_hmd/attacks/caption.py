"""Attacks on how the caption stands in the picture. Its words stay as they are."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from ra_hmd.attacks.base import PICTURE_CHANNELS, Attack
from ra_hmd.attacks.drawing import Box, CaptionLayout
from ra_hmd.attacks.picture import salt

_GUTTER = 0.03  # of the width, between panels


def font(layout: CaptionLayout, generator: random.Random, *, name: str) -> Image.Image:
    """Draw the caption in another font."""
    return layout.with_look(font=name).draw()


def font_size(layout: CaptionLayout, generator: random.Random, *, factor: float) -> Image.Image:
    """Draw the caption smaller."""
    return layout.with_look(size=max(5, round(layout.look.size * factor))).draw()


def position(layout: CaptionLayout, generator: random.Random, *, place: str) -> Image.Image:
    """Draw the caption at the opposite edge, in the middle, or anywhere; its parts keep their order."""
    height = layout.base.height
    if place == "opposite":
        boxes = [_shifted(box, height - box[1] - box[3]) for box in reversed(layout.boxes)]
    else:
        room = height - sum(bottom - top for _, top, _, bottom in layout.boxes)
        start, boxes = room // 2 if place == "middle" else generator.randint(0, max(room, 0)), []
        for box in layout.boxes:
            boxes.append(_shifted(box, start - box[1]))
            start = boxes[-1][3]
    return replace(layout, boxes=tuple(boxes)).draw()


def colour(layout: CaptionLayout, generator: random.Random, *, contrast: float) -> Image.Image:
    """Draw the caption in a colour near its background, without outline; `contrast` is the difference over 255."""
    pixels = np.asarray(layout.base)[np.asarray(layout.region()) > 0]
    ground = np.median(pixels.astype(float), axis=0)
    step = contrast * 255 * (-1 if ground.mean() > 127 else 1)
    near = np.clip(np.rint(ground + step), 0, 255).astype(int)
    return layout.with_look(fill=tuple(near.tolist()), width=0).draw()


def curved(layout: CaptionLayout, generator: random.Random, *, bend: float) -> Image.Image:
    """Draw the caption along a wave whose height is a share of its box."""
    height, width = layout.base.height, layout.base.width
    swing = bend * max(bottom - top for _, top, _, bottom in layout.boxes)
    phase = generator.random() * 2 * np.pi
    shifts = np.rint(swing * np.sin(2 * np.pi * np.arange(width) / width + phase)).astype(int)
    rows = np.arange(height)[:, None] - shifts[None]
    inside = (rows >= 0) & (rows < height)

    def bent(mask: Image.Image) -> Image.Image:
        values = np.asarray(mask)[np.clip(rows, 0, height - 1), np.arange(width)[None]]
        return Image.fromarray(np.where(inside, values, 0).astype(np.uint8))

    fill, stroke = _inwards(layout, math.ceil(swing)).masks(layout.caption)
    return layout.paint(bent(fill), bent(stroke))


def rotated(layout: CaptionLayout, generator: random.Random, *, degrees: float) -> Image.Image:
    """Draw each box of the caption at an angle; the direction is drawn."""
    angle, sine = generator.choice((-1, 1)) * degrees, math.sin(math.radians(degrees))

    def turned(alone: CaptionLayout) -> list[Image.Image]:
        left, _, right, _ = alone.boxes[0]
        alone = _inwards(alone, math.ceil((right - left) * sine / 2))
        left, top, right, bottom = alone.boxes[0]
        around = ((left + right) / 2, (top + bottom) / 2)
        return [mask.rotate(angle, Image.Resampling.BILINEAR, center=around) for mask in alone.masks(alone.caption)]

    return _box_by_box(layout, turned)


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

    def turned(alone: CaptionLayout) -> list[Image.Image]:
        masks = list(alone.masks(alone.caption))
        letters = masks[1].getbbox()
        for mask in masks if letters else ():
            part = mask.crop(letters)
            for step in steps:
                part = step(part)
            mask.paste(part, letters)
        return masks

    return _box_by_box(layout, turned)


def _box_by_box(layout: CaptionLayout, change: Callable[[CaptionLayout], Sequence[Image.Image]]) -> Image.Image:
    """The picture with the masks that `change` makes of each box by itself."""
    masks = [Image.new("L", layout.base.size) for _ in range(2)]
    for number in range(len(layout.boxes)):
        masks = [ImageChops.lighter(*pair) for pair in zip(masks, change(layout.only(number)), strict=True)]
    return layout.paint(masks[0], masks[1])


def _inwards(layout: CaptionLayout, by: int) -> CaptionLayout:
    """The caption, moved towards the middle of the picture, so that letters that rise or sink stay inside."""
    height = layout.base.height

    def moved(box: Box) -> Box:
        _, top, _, bottom = box
        room = (height - top - bottom) / 2  # to the middle; negative upwards
        return _shifted(box, round(max(-by, min(by, room))))

    return replace(layout, boxes=tuple(map(moved, layout.boxes)))


def _shifted(box: Box, by: int) -> Box:
    left, top, right, bottom = box
    return left, top + by, right, bottom + by


def _attack(
    name: str, function: Callable[..., Any], key: str, levels: tuple[object, object, object], family: Any = "caption"
) -> Attack:
    first, second, third = ({key: level} for level in levels)
    return Attack(name, family, "drawing", function, (first, second, third), PICTURE_CHANNELS)


ATTACKS = (
    _attack("font", font, "name", ("DejaVuSerif-Bold.ttf", "STIXGeneralBolIta.ttf", "cmti10.ttf")),
    _attack("font_size", font_size, "factor", (0.85, 0.7, 0.55)),
    _attack("position", position, "place", ("opposite", "middle", "anywhere")),
    _attack("colour", colour, "contrast", (0.4, 0.25, 0.15)),
    _attack("curved", curved, "bend", (0.1, 0.2, 0.35)),
    _attack("rotated", rotated, "degrees", (5, 15, 30)),
    _attack("panels", panels, "count", (2, 3, 4)),
    _attack("outline", outline, "opacity", (1.0, 0.7, 0.45)),
    _attack("lines", lines, "count", (1, 3, 6)),
    _attack("blur_text", blur_text, "radius", (0.06, 0.12, 0.2)),
    _attack("salt_text", salt_text, "share", (0.1, 0.2, 0.4)),
    _attack("mirrored_text", mirrored_text, "how", ("mirror", "upside_down", "both"), "reposting"),
)
