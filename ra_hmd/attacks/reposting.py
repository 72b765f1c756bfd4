"""Attacks by what happens to a picture when it is posted again."""

import math
import random
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from ra_hmd.attacks.base import PICTURE_CHANNELS, Attack
from ra_hmd.attacks.drawing import font_of

_PAPER, _INK, _BAR = (255, 255, 255), (30, 30, 34), (236, 238, 242)
_YELLOW, _RED, _BLUE, _GREEN = (250, 208, 60), (214, 60, 56), (120, 178, 232), (104, 160, 92)
_FONT = "DejaVuSans-Bold.ttf"


def border(image: Image.Image, generator: random.Random, *, share: float) -> Image.Image:
    """Put a frame of one colour around the picture."""
    colour = generator.choice((_PAPER, _INK, _BLUE, _RED))
    return ImageOps.expand(image, max(1, round(share * max(image.size))), colour)


def watermark(image: Image.Image, generator: random.Random, *, opacity: float) -> Image.Image:
    """Write the name of a page over the picture, again and again, at an angle."""
    size = max(8, max(image.size) // 12)
    side = 2 * max(image.size)
    mask = Image.new("L", (side, side))
    draw, font, word = ImageDraw.Draw(mask), font_of(_FONT, size), "memes.example"
    step = round(font.getlength(word) * 1.3)
    start = generator.randrange(step)
    for row, top in enumerate(range(0, side, 4 * size)):
        for left in range(-start - (row % 2) * step // 2, side, step):
            draw.text((left, top), word, fill=round(255 * opacity), font=font)
    mask = mask.rotate(30, Image.Resampling.BILINEAR)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    return _pasted(image, _PAPER, (0, 0), mask.crop((left, top, left + image.width, top + image.height)))


def sticker(image: Image.Image, generator: random.Random, *, share: float) -> Image.Image:
    """Put a round sticker with a star at the left or right edge, at half height."""
    side = min(max(8, round(share * min(image.size))), *image.size)
    stamp, mask = Image.new("RGB", (side, side), _RED), Image.new("L", (side, side))
    ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), fill=255)
    points = [
        (side / 2 * (1 + reach * math.sin(turn)), side / 2 * (1 - reach * math.cos(turn)))
        for turn, reach in ((number * math.pi / 5, 0.8 if number % 2 == 0 else 0.34) for number in range(10))
    ]
    ImageDraw.Draw(stamp).polygon(points, fill=_YELLOW)
    left = generator.choice((0, image.width - side))
    return _pasted(image, stamp, (left, _middle_row(image, side, generator)), mask)


def emoji_overlay(image: Image.Image, generator: random.Random, *, count: int) -> Image.Image:
    """Put smiling faces on the middle of the picture."""
    side = min(max(8, min(image.size) // 6), *image.size)
    face, mask = Image.new("RGB", (side, side), _YELLOW), Image.new("L", (side, side))
    ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), fill=255)
    draw, eye = ImageDraw.Draw(face), max(1, side // 8)
    for left in (side * 0.3, side * 0.7):
        draw.ellipse((left - eye, side * 0.35 - eye, left + eye, side * 0.35 + eye), fill=_INK)
    draw.arc((side * 0.2, side * 0.25, side * 0.8, side * 0.82), 20, 160, fill=_INK, width=max(1, side // 10))
    for _ in range(count):
        place = generator.randint(0, image.width - side), _middle_row(image, side, generator)
        image = _pasted(image, face, place, mask)
    return image


def screenshot(image: Image.Image, generator: random.Random, *, share: float) -> Image.Image:
    """Show the picture in the window of an app, with bars above and below of a share of its height."""
    bar, edge = max(8, round(share * image.height)), max(1, image.width // 40)
    shot = Image.new("RGB", (image.width + 2 * edge, image.height + 2 * bar), _BAR)
    shot.paste(image, (edge, bar))
    draw, size = ImageDraw.Draw(shot), max(6, bar // 3)
    disc = bar // 2
    draw.ellipse((edge, bar // 4, edge + disc, bar // 4 + disc), fill=generator.choice((_BLUE, _GREEN, _RED)))
    at = (2 * edge + disc, bar / 2)
    draw.text(at, "Meme page", fill=_INK, font=font_of(_FONT, size), anchor="lm")
    bottom = shot.height - bar / 2
    counts = f"{generator.randint(2, 999)} likes"
    draw.text((edge, bottom), counts, fill=_INK, font=font_of(_FONT, size), anchor="lm")
    draw.line((0, bar - 1, shot.width, bar - 1), fill=_INK)
    return shot


def two_in_one(image: Image.Image, generator: random.Random, *, share: float) -> Image.Image:
    """Put a harmless postcard above or below the picture; `share` is its height over that of the picture."""
    card = _postcard((image.width, max(16, round(share * image.height))), generator)
    whole, above = Image.new("RGB", (image.width, image.height + card.height)), generator.random() < 0.5
    whole.paste(card, (0, 0 if above else image.height))
    whole.paste(image, (0, card.height if above else 0))
    return whole


def gif_frame(image: Image.Image, generator: random.Random, *, colours: int) -> Image.Image:
    """Keep a few colours with dithering, as a frame of a GIF."""
    palette = image.quantize(colours, Image.Quantize.MEDIANCUT)
    return image.quantize(colours, palette=palette, dither=Image.Dither.FLOYDSTEINBERG).convert("RGB")


def _postcard(size: tuple[int, int], generator: random.Random) -> Image.Image:
    """A landscape with sun, hill and greeting."""
    card = Image.new("RGB", size, _BLUE)
    draw, (width, height) = ImageDraw.Draw(card), size
    sun, at = min(size) // 5, generator.uniform(0.15, 0.85) * width
    draw.ellipse((at - sun, height * 0.2 - sun, at + sun, height * 0.2 + sun), fill=_YELLOW)
    draw.ellipse((-width * 0.3, height * 0.6, width * 1.3, height * 1.8), fill=_GREEN)
    font = font_of(_FONT, max(6, width // 12))
    draw.text((width / 2, height * 0.82), "Good morning", fill=_PAPER, font=font, anchor="mm")
    return card


def _middle_row(image: Image.Image, side: int, generator: random.Random) -> int:
    """Top of a square that lies between the first and the last quarter, where captions rarely are."""
    low, high = image.height // 4, image.height * 3 // 4 - side
    return generator.randint(low, high) if low < high else (image.height - side) // 2


def _pasted(image: Image.Image, what: Any, place: tuple[int, int], mask: Image.Image) -> Image.Image:
    image = image.copy()
    box = place if isinstance(what, Image.Image) else (*place, place[0] + mask.width, place[1] + mask.height)
    image.paste(what, box, mask)
    return image


def _attack(name: str, function: Callable[..., Any], key: str, levels: tuple[float, float, float]) -> Attack:
    first, second, third = ({key: level} for level in levels)
    return Attack(name, "reposting", "image", function, (first, second, third), PICTURE_CHANNELS)


ATTACKS = (
    _attack("border", border, "share", (0.04, 0.08, 0.16)),
    _attack("watermark", watermark, "opacity", (0.2, 0.4, 0.6)),
    _attack("sticker", sticker, "share", (0.15, 0.25, 0.35)),
    _attack("emoji_overlay", emoji_overlay, "count", (1, 3, 6)),
    _attack("screenshot", screenshot, "share", (0.1, 0.2, 0.3)),
    _attack("two_in_one", two_in_one, "share", (0.5, 1.0, 2.0)),
    _attack("gif_frame", gif_frame, "colours", (64, 16, 6)),
)
