"""Drawing of captions: where the caption of a picture stands, and the picture with another caption, or another look."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""

DARK, WHITE = (38, 34, 40), (250, 250, 245)
_FONT = "DejaVuSans-Bold.ttf"
_SMALLEST = 6  # pixels
_LINE = 1.2  # height of a line, in font sizes


@dataclass(frozen=True)
class Look:
    """How a caption is drawn.

    Attributes:
        font: File name of a font that ships with matplotlib.
        size: Font size in pixels; a caption that does not fit its box is drawn smaller.
        fill: Colour of the letters.
        outline: Colour of their outline.
        width: Width of the outline in pixels.
        opacity: Opacity of letters and outline, 0 to 1.
    """

    font: str = _FONT
    size: int = 10
    fill: Colour = WHITE
    outline: Colour = DARK
    width: int = 1
    opacity: float = 1.0


@dataclass(frozen=True)
class CaptionLayout:
    """The caption of a picture.

    Attributes:
        base: The picture without its caption.
        boxes: Where the caption stands, from top to bottom.
        shares: Share of the caption's words in each box; their sum is 1.
        look: How it is drawn.
        caption: The caption.
    """

    base: Image.Image
    boxes: tuple[Box, ...]
    shares: tuple[float, ...]
    look: Look
    caption: str

    def draw(self, caption: str | None = None) -> Image.Image:
        """The picture with `caption`; default: with its own."""
        return self.paint(*self.masks(self.caption if caption is None else caption))

    def masks(self, caption: str) -> tuple[Image.Image, Image.Image]:
        """Masks of the letters and of the letters with their outline, of the picture's size."""
        masks = []
        parts = list(zip(self.boxes, self._split(caption), strict=True))
        for width in (0, self.look.width):
            mask = Image.new("L", self.base.size)
            for box, words in parts:
                _write(mask, words, box, self.look, width)
            masks.append(mask)
        return masks[0], masks[1]

    def paint(self, fill: Image.Image, stroke: Image.Image) -> Image.Image:
        """The picture with letters and outline of these masks."""
        painted = self.base.copy()
        if self.look.width:
            painted.paste(self.look.outline, (0, 0), stroke)
        painted.paste(self.look.fill, (0, 0), fill)
        return painted if self.look.opacity == 1 else Image.blend(self.base, painted, self.look.opacity)

    def with_look(self, **changes: object) -> "CaptionLayout":
        """The same caption with another look."""
        return replace(self, look=replace(self.look, **changes))  # type: ignore[arg-type]

    def only(self, number: int) -> "CaptionLayout":
        """One box with its part of the caption."""
        part = " ".join(self._split(self.caption)[number])
        return replace(self, boxes=(self.boxes[number],), shares=(1.0,), caption=part)

    def region(self) -> Image.Image:
        """Mask of the boxes."""
        mask = Image.new("L", self.base.size)
        for box in self.boxes:
            mask.paste(255, box)
        return mask

    def _split(self, caption: str) -> list[list[str]]:
        """Words of each box."""
        words = re.split(r"\s", caption.strip())  # two blanks between words stay two
        ends = np.round(np.cumsum([0.0, *self.shares]) * len(words)).astype(int)
        return [words[start:end] for start, end in pairwise(ends.tolist())]


@cache
def font_of(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that ships with matplotlib, in a size in pixels."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def wrapped(words: Sequence[str], font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The words in lines no wider than `width`, unless a single word is."""
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return [line.strip() for line in lines]


def _write(mask: Image.Image, words: Sequence[str], box: Box, look: Look, outline: int) -> None:
    """Write words into a box of a mask, in the largest size up to the look's that fits."""
    if not words:
        return
    box, size, lines = _fitted(words, box, look, mask.size)
    left, top, right, bottom = box
    draw, font, height = ImageDraw.Draw(mask), font_of(look.font, size), bottom - top
    for number, line in enumerate(lines):
        at = ((left + right) / 2, top + height * (number + 0.5) / len(lines))
        draw.text(at, line, fill=255, font=font, anchor="mm", stroke_width=outline)


def _fitted(words: Sequence[str], box: Box, look: Look, whole: tuple[int, int]) -> tuple[Box, int, list[str]]:
    """The box, font size and lines of a text: first the box gets wider, then the size shrinks to 60 %, then the box
    gets taller.
    """
    least = min(look.size, max(_SMALLEST, look.size // 3))
    for taller in (0, 1, 1.5, 2, 3):
        grown = _taller(_wide(box, whole[0]), taller, whole[1]) if taller else box
        floor = look.size if taller == 0 else least if taller == 3 else max(least, round(look.size * 0.6))
        for size in range(look.size, floor - 1, -1):
            font = font_of(look.font, size)
            width = grown[2] - grown[0] - 4
            lines = wrapped(words, font, width)
            if len(lines) * size * _LINE <= grown[3] - grown[1] and max(map(font.getlength, lines)) <= width:
                return grown, size, lines
    return grown, size, lines


def _wide(box: Box, width: int) -> Box:
    """The box, as wide as it can be around its middle."""
    left, top, right, bottom = box
    more = min(left, width - right)
    return left - more, top, right + more, bottom


def _taller(box: Box, factor: float, height: int) -> Box:
    """The box, taller towards the middle of the picture."""
    left, top, right, bottom = box
    more = round((bottom - top) * (factor - 1))
    if top + bottom < height:
        return left, top, right, min(bottom + more, height)
    return left, max(top - more, 0), right, bottom
