"""Pictures as a page shows them: small, inside the page itself, never a file of their own."""

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from ra_hmd.core.errors import UserError
from ra_hmd.data.images import load_image
from ra_hmd.serve.limits import FORMATS

_SIDE, _SMALL_SIDE = 720, 240


def as_data_url(source: Path | bytes | Image.Image, *, small: bool = False) -> str | None:
    """A picture as a `data:` address of a JPEG of at most 720 (small: 240) pixels a side; None if it cannot be read."""
    try:
        # Uploads come from anyone; files are those that the operator named.
        image = load_image(source, FORMATS if isinstance(source, bytes) else None).copy()
    except UserError:
        return None
    side = _SMALL_SIDE if small else _SIDE
    image.thumbnail((side, side))
    content = BytesIO()
    image.save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
