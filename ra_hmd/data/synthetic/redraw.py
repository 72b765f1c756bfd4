"""Scenes of drawn memes without their captions, from the attributes that lie beside the pictures."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from ra_hmd.core.errors import UserError
from ra_hmd.data.rows import jsonl_rows
from ra_hmd.data.synthetic.confounders import DOMAINS
from ra_hmd.data.synthetic.pictograms import background, draw_pictogram, write_caption


def drawn_scene(path: Path, image: Image.Image, caption: str) -> tuple[Image.Image, str] | None:
    """Return the picture of a drawn meme without its caption, and where the caption stood (`top` or `bottom`).

    Args:
        path: File of the picture, in the `img` folder of a domain that `make_confounders` wrote.
        image: The decoded picture.
        caption: The caption.

    Returns:
        None where the picture is no drawn meme, or where the scene with this caption is not the picture.
    """
    attributes = _scenes(path.parent.parent / "attributes.jsonl").get(path.stem)
    if attributes is None:
        return None
    domain = next((domain for domain in DOMAINS if attributes["subject"] in domain.nouns), None)
    if domain is None:
        return None
    canvas = background(*domain.backgrounds[attributes["background"]], attributes["pattern"]).copy()
    corner = attributes["x"], attributes["y"]
    draw_pictogram(canvas, attributes["subject"], domain.bodies[attributes["body"]], corner, attributes["scale"])
    place = attributes["caption_place"]
    same = write_caption(canvas, caption, place)
    return (canvas, place) if same.size == image.size and same.tobytes() == image.tobytes() else None


@lru_cache(maxsize=8)
def _scenes(path: Path) -> dict[str, dict[str, Any]]:
    """Id to the attributes of its picture; {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        return {row.values["id"]: row.values["image"] for row in jsonl_rows(path) if not row.problem}
    except (KeyError, TypeError, UserError):
        return {}
