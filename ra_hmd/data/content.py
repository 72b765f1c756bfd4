"""When two memes are the same: the same picture, pixel for pixel, and the same caption."""

import hashlib
import unicodedata

from PIL.Image import Image

from ra_hmd.data.text import well_formed


def content_hash(image: Image, text: str) -> str:
    """Of a meme: 32 hexadecimal digits.

    Equal for pictures with the same pixels, whatever file they came from, and captions that differ in blanks and in
    how their characters are composed (Unicode NFC) at most. A picture that was scaled, cut or compressed anew is
    another one; what looks alike is told by the perceptual hash.

    Args:
        image: As `load_image` opens it.
        text: The caption.
    """
    digest = hashlib.sha256(f"{image.width} {image.height} ".encode())
    digest.update(image.convert("RGB").tobytes())
    digest.update(" ".join(unicodedata.normalize("NFC", well_formed(text)).split()).encode())
    return digest.hexdigest()[:32]
