"""Pictures with enough structure for perceptual hashes, copies of them, and rows of a bank from memes."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from ra_hmd.bank.versions import BankRows
from ra_hmd.data.image_hashes import caption_digest, pdq_hash
from ra_hmd.data.images import content_hash, load_image, perceptual_hash


def picture(seed: int = 0) -> Image.Image:
    """A drawn picture of 256 x 192 pixels, another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((256, 192), Image.Resampling.NEAREST)


def jpeg(image: Image.Image, quality: int = 60) -> Image.Image:
    """An image that was compressed."""
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return load_image(file.getvalue())


def rows_of_memes(memes: Sequence[tuple[str, Image.Image, str, int]], *, decided: bool = False) -> BankRows:
    """Rows with the hashes that banks keep, of memes: id, picture, caption and label."""
    ids, images, texts, labels = zip(*memes, strict=True)
    return BankRows(
        list(ids),
        np.array(labels),
        image_hashes=np.array([perceptual_hash(image) or 0 for image in images], np.uint64),
        contents=[content_hash(image, text) for image, text in zip(images, texts, strict=True)],
        decided=np.full(len(ids), decided),
        pdqs=[pdq_hash(image) for image in images],
        caption_digests=[caption_digest(text) for text in texts],
    )
