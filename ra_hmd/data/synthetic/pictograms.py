"""Drawing for the synthetic memes: pictograms made of simple shapes, patterned backgrounds, captions."""

from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

SIDE = 112  # pixels: 4 x 4 = 16 tokens for a Qwen-VL (patches of 14 or 16 pixels, merged 2 x 2)
STRIP = 28  # pixels at the top or at the bottom that belong to the caption
PATTERNS = ("plain", "stripes", "columns", "dots", "checks")
_FONT_SIZE = 10

# Pictograms on a 100 x 100 grid: `kind role numbers`, drawn in order. Kinds: e ellipse, o ring, r rectangle, p polygon,
# l line, h upper half disc. Roles: b body colour, d dark, w white.
PICTOGRAMS: dict[str, str] = {
    "cat": (
        "e b 18 26 82 92; p b 20 50 22 4 50 32; p b 80 50 78 4 50 32; e d 33 48 43 60; e d 57 48 67 60; "
        "p d 45 68 55 68 50 75; l d 2 64 30 70; l d 98 64 70 70; l d 4 80 30 78; l d 96 80 70 78"
    ),
    "dog": (
        "e b 24 14 76 84; e d 6 16 32 72; e d 68 16 94 72; e w 34 50 66 86; e d 43 52 57 64; "
        "e d 35 34 43 44; e d 57 34 65 44"
    ),
    "fish": "e b 4 28 76 72; p b 66 50 98 20 98 80; e w 16 38 30 52; e d 20 42 27 49; p d 34 28 58 28 46 12",
    "bird": (
        "e b 14 38 72 82; e b 50 12 86 48; p d 84 24 99 32 84 38; e d 66 22 74 30; p b 18 56 0 38 30 44; "
        "l d 38 80 38 98; l d 52 80 52 98"
    ),
    "snail": (
        "p b 2 92 98 92 90 78 14 78; e b 30 18 90 82; o w 42 30 78 68; o w 52 42 68 58; l b 10 84 4 52; l b 18 84 22 52"
    ),
    "rabbit": (
        "e b 24 46 76 98; e b 28 0 44 58; e b 56 0 72 58; e w 33 8 39 48; e w 61 8 67 48; "
        "e d 34 62 43 72; e d 57 62 66 72; p d 46 78 54 78 50 84"
    ),
    "house": "r b 20 46 80 96; p d 8 48 50 6 92 48; r d 44 66 58 96; r w 26 56 38 70; r w 64 56 76 70",
    "car": (
        "r b 2 48 98 76; p b 20 50 34 24 70 24 84 50; p w 32 46 40 30 50 30 50 46; "
        "p w 56 46 56 30 66 30 74 46; e d 12 64 36 90; e d 64 64 88 90"
    ),
    "tree": "r d 42 58 58 98; e b 12 30 56 72; e b 44 30 88 72; e b 26 2 74 52",
    "cup": ("o b 56 40 94 76; r b 16 28 72 90; r w 22 34 66 42; l d 30 22 34 6; l d 46 22 50 6; l d 62 22 66 6"),
    "boat": "p b 2 68 98 68 80 94 20 94; l d 48 4 48 68; p w 52 8 52 62 90 62; p b 44 16 44 62 14 62",
    "umbrella": ("h b 4 8 96 100; l d 50 2 50 92; l d 50 92 66 92; l d 66 92 66 82; l w 50 10 28 52; l w 50 10 72 52"),
}
_DARK, _WHITE = (38, 34, 40), (250, 250, 245)


def draw_pictogram(canvas: Image.Image, subject: str, body: Colour, corner: tuple[int, int], scale: int) -> None:
    """Draw `subject` onto `canvas`, in a square of `scale` pixels whose upper left corner is `corner` (x, y)."""
    draw = ImageDraw.Draw(canvas)
    colours = {"b": body, "d": _DARK, "w": _WHITE}
    width = max(scale // 16, 2)
    for shape in PICTOGRAMS[subject].split(";"):
        kind, role, *numbers = shape.split()
        at = [round(int(number) * scale / 100) + corner[i % 2] for i, number in enumerate(numbers)]
        fill = colours[role]
        if kind == "e":
            draw.ellipse(at, fill=fill)
        elif kind == "o":
            draw.ellipse(at, outline=fill, width=width)
        elif kind == "r":
            draw.rectangle(at, fill=fill)
        elif kind == "p":
            draw.polygon(at, fill=fill)
        elif kind == "l":
            draw.line(at, fill=fill, width=width)
        else:
            draw.pieslice(at, 180, 360, fill=fill)


@cache
def background(ground: Colour, mark: Colour, pattern: str) -> Image.Image:
    """A square of colour `ground` with `pattern` (one of `PATTERNS`) in colour `mark`; copy it before drawing on it."""
    canvas = Image.new("RGB", (SIDE, SIDE), ground)
    draw = ImageDraw.Draw(canvas)
    steps = range(0, SIDE, 16)
    if pattern == "stripes":
        for y in steps:
            draw.rectangle((0, y, SIDE, y + 7), fill=mark)
    elif pattern == "columns":
        for x in steps:
            draw.rectangle((x, 0, x + 7, SIDE), fill=mark)
    elif pattern == "dots":
        for x in steps:
            for y in steps:
                draw.ellipse((x + 4, y + 4, x + 11, y + 11), fill=mark)
    elif pattern == "checks":
        for x in steps:
            for y in steps:
                if (x + y) // 16 % 2:
                    draw.rectangle((x, y, x + 15, y + 15), fill=mark)
    return canvas


def write_caption(canvas: Image.Image, caption: str, place: str) -> Image.Image:
    """A copy of `canvas` with `caption` written on its strip at `place` (top or bottom)."""
    canvas = canvas.copy()
    fill, stroke = _caption_masks(caption)
    top = 0 if place == "top" else SIDE - STRIP
    canvas.paste(_DARK, (0, top), stroke)
    canvas.paste(_WHITE, (0, top), fill)
    return canvas


@cache
def _caption_masks(caption: str) -> tuple[Image.Image, Image.Image]:
    """Masks of the letters and of their outline, [STRIP, SIDE] pixels, at most two lines."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    font = ImageFont.truetype(str(path), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    words, lines = caption.split(), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > SIDE - 4 and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    masks = []
    for outline in (0, 1):
        mask = Image.new("L", (SIDE, STRIP))
        draw = ImageDraw.Draw(mask)
        for number, line in enumerate(lines):
            at = (SIDE / 2, STRIP * (number + 0.5) / len(lines))
            draw.text(at, line, fill=255, font=font, anchor="mm", stroke_width=outline)
        masks.append(mask)
    return masks[0], masks[1]
