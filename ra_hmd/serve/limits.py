"""The limits of the API: what a request may ask for."""

from dataclasses import dataclass, fields

from ra_hmd.core.errors import raise_all

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Pillow's names of the formats that are decoded. All else, SVG and TIFF too, is refused."""


@dataclass(frozen=True)
class RequestLimits:
    """Limits of the API.

    Attributes:
        max_bytes: Of the body of a request.
        max_images: Memes of a request.
        max_pixels: Of a picture, by its header: it is not decoded if it has more.
        max_text: Characters of a caption.
        time_limit: Seconds for a request, its sending included; past it, its memes are not judged.
        max_asking: Requests about the bank, and for rationales, that may be at work or waiting, each kind by itself.
        held: How many bodies, and pictures, of the greatest size may be in memory at a time; past it the answer is 429.

    Raises:
        UserError: limits below 1, all listed.
    """

    max_bytes: int = 32 * 1024 * 1024
    max_images: int = 32
    max_pixels: int = 4096 * 4096
    max_text: int = 4096
    time_limit: float = 30.0
    max_concurrent: int = 8
    memory_factor: int = 16

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        low = [f"{name} is {value}, it must be positive" for name, value in values.items() if value <= 0]
        raise_all(low, "Limits of the API")
