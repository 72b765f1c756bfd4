"""Pictures for the browser: always encoded again, so that nothing of an upload but its pixels is sent on."""

from io import BytesIO
from pathlib import Path

from PIL import Image

from ra_hmd.core.errors import UserError
from ra_hmd.data.images import load_image

SIDES = {"small": 360, "large": 1080, "thumbnail": 200}
"""Name of a size to the longest side in pixels."""


def jpeg(source: Path | str | bytes | Image.Image, size: str) -> bytes | None:
    """The picture as a JPEG of at most that size; None where it cannot be read.

    Args:
        source: The picture.
        size: Key of `SIDES`.
    """
    try:
        image = load_image(source).copy()
    except UserError:
        return None
    side = SIDES[size]
    image.thumbnail((side, side))
    content = BytesIO()
    image.convert("RGB").save(content, "JPEG", quality=85)
    return content.getvalue()
