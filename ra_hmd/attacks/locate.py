"""Where the caption of a meme stands in its picture: known of drawn memes, read by OCR of others."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ra_hmd.attacks.drawing import DARK, WHITE, Box, CaptionLayout, Look
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.synthetic.pictograms import SIDE, STRIP
from ra_hmd.data.synthetic.redraw import drawn_scene

_CAPITALS = 0.75  # font size over the height of OCR's line
_PAPER = 215  # median grey of boxes above which letters are taken to be dark


def locate_caption(meme: Meme, image: Image.Image) -> CaptionLayout | None:
    """Return the layout of a meme's caption; None where the picture shows no words, or the meme has no caption.

    Raises:
        UserError: OCR is needed, and the extra `ocr` is not installed.
    """
    if not (meme.text or "").strip():
        return None
    scene = drawn_scene(meme.path, image, meme.caption) if isinstance(meme.image, Path) else None
    if scene is not None:
        base, place = scene
        top = 0 if place == "top" else SIDE - STRIP
        return CaptionLayout(base, ((0, top, SIDE, top + STRIP),), (1.0,), Look(), meme.caption)
    return _read_layout(image, meme.caption)


def read_caption(image: Image.Image) -> dict[str, Any]:
    """Caption of a picture by OCR, with its lowest score and the name of the engine.

    Raises:
        UserError: The extra `ocr` is not installed.
    """
    from ra_hmd.data.ocr import read_text

    engine, name = _engine()
    try:
        return {**read_text(engine, image), "source": name}
    except UserError:  # a picture on which the engine fails has no words for it
        return {"text": "", "score": 0.0, "source": name}


@cache
def _engine() -> tuple[Any, str]:
    from ra_hmd.data.ocr import open_ocr_engine

    return open_ocr_engine()


def _read_layout(image: Image.Image, caption: str) -> CaptionLayout | None:
    from ra_hmd.data.ocr import find_lines

    engine, _ = _engine()
    try:
        lines = find_lines(engine, image)
    except UserError:  # see above
        lines = []
    if not lines:
        return None
    blocks: list[list[tuple[Box, int]]] = []
    for box, text in sorted(lines, key=lambda line: (line[0][1], line[0][0])):
        height = box[3] - box[1]
        last = blocks[-1][-1][0] if blocks else None
        if last is not None and box[1] - last[3] < 0.8 * height and box[0] < last[2] and last[0] < box[2]:
            blocks[-1].append((box, len(text.split())))
        else:
            blocks.append([(box, len(text.split()))])
    boxes = tuple(_union([box for box, _ in block], image.size) for block in blocks)
    words = np.array([max(1, sum(count for _, count in block)) for block in blocks], dtype=float)
    tall = float(np.median([box[3] - box[1] for box, _ in lines]))
    region = [image.crop(box).convert("L") for box in boxes]
    bright = float(np.median(np.concatenate([np.asarray(part).reshape(-1) for part in region]))) > _PAPER
    look = Look(
        size=max(6, round(tall * _CAPITALS)),
        fill=DARK if bright else WHITE,
        outline=WHITE if bright else DARK,
        width=max(1, round(tall / 16)),
    )
    return CaptionLayout(_without(image, boxes), boxes, tuple((words / words.sum()).tolist()), look, caption)


def _union(boxes: list[Box], size: tuple[int, int]) -> Box:
    edge = 2
    return (
        max(min(box[0] for box in boxes) - edge, 0),
        max(min(box[1] for box in boxes) - edge, 0),
        min(max(box[2] for box in boxes) + edge, size[0]),
        min(max(box[3] for box in boxes) + edge, size[1]),
    )


def _without(image: Image.Image, boxes: tuple[Box, ...]) -> Image.Image:
    """The picture with the boxes filled from their surroundings."""
    import cv2  # comes with the extra `ocr`

    mask = np.zeros((image.height, image.width), dtype=np.uint8)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 255
    return Image.fromarray(cv2.inpaint(np.asarray(image), mask, 3, cv2.INPAINT_TELEA))
