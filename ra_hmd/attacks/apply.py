"""Applying a variant to one meme."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from PIL import Image

from ra_hmd.attacks.base import Variant
from ra_hmd.attacks.drawing import CaptionLayout
from ra_hmd.attacks.locate import locate_caption, read_caption
from ra_hmd.attacks.pairing import attacked_id
from ra_hmd.data.meme import Meme
from ra_hmd.data.ocr import READ_FROM, SOURCE

CHANGED = "attack_changed"
"""Field of an attacked meme's extras: whether its picture or caption differs from the clean one."""
NO_WORDS = "its picture shows no caption"
OTHER_CLASS = "of a class that the attack is not applied to"
NO_EFFECT = "the attack changes nothing"


@dataclass(frozen=True)
class Taught:
    """What a teacher made of a caption.

    Attributes:
        text: The other caption; None where there is none that counts.
        reason: Why there is none.
    """

    text: str | None
    reason: str = ""


class CleanMeme:
    """A meme that is attacked by several variants: its picture is decoded, and its caption located, once.

    Args:
        meme: The meme.
    """

    def __init__(self, meme: Meme) -> None:
        self.meme = meme

    @cached_property
    def image(self) -> Image.Image:
        """The decoded picture."""
        return self.meme.load_image()

    @cached_property
    def layout(self) -> CaptionLayout | None:
        """Where the caption stands; None where the picture shows none."""
        return locate_caption(self.meme, self.image)


@dataclass(frozen=True)
class Outcome:
    """What a variant made of a meme.

    Attributes:
        meme: The attacked meme. Its `image` is a decoded picture where it differs from the clean one.
        reason: Why the meme is as it was; "" where it was changed.
    """

    meme: Meme
    reason: str = ""


def attacked(clean: CleanMeme, variant: Variant, seed: int = 0, taught: Mapping[str, Taught] | None = None) -> Outcome:
    """Apply a variant to a meme. The outcome depends on meme, variant and seed alone.

    Args:
        clean: The meme.
        variant: The variant.
        seed: Seed of the random choices.
        taught: Caption to what a teacher made of it, for attacks that need one.

    Raises:
        UserError: The picture cannot be decoded, or OCR is needed and not installed.
    """
    meme, attack = clean.meme, variant.attack
    if not attack.concerns(meme):
        return _outcome(clean, variant, reason=OTHER_CLASS)
    generator = attack.generator(variant.severity, seed, meme.id)
    if attack.target == "text" and attack.needs:
        given = (taught or {}).get(meme.caption, Taught(None, NO_EFFECT))
        return _attacked_text(clean, variant, given.text, given.reason)
    if attack.target == "text":
        return _attacked_text(clean, variant, attack.change(meme.caption, variant.severity, generator))
    if attack.target == "drawing":
        if clean.layout is None:
            return _outcome(clean, variant, reason=NO_WORDS)
        return _outcome(clean, variant, image=attack.change(clean.layout, variant.severity, generator))
    return _outcome(clean, variant, image=attack.change(clean.image, variant.severity, generator))


def _attacked_text(clean: CleanMeme, variant: Variant, text: str | None, reason: str = "") -> Outcome:
    if text is None or text == clean.meme.caption:
        return _outcome(clean, variant, reason=reason)
    if variant.channel == "field":
        return _outcome(clean, variant, text=text)
    typed = text if variant.channel == "both" else None
    if clean.layout is None:
        return _outcome(clean, variant, text=typed, reason=NO_WORDS)
    return _outcome(clean, variant, text=typed, image=clean.layout.draw(text))


def _outcome(
    clean: CleanMeme,
    variant: Variant,
    *,
    text: str | None = None,
    image: Image.Image | None = None,
    reason: str = "",
) -> Outcome:
    """The attacked meme; None stands for what is not changed."""
    meme, extras = clean.meme, dict(clean.meme.extras)
    if image is not None and (image.size, image.tobytes()) == (clean.image.size, clean.image.tobytes()):
        image = None if variant.channel != "reread" else image
    if variant.channel == "reread" and image is not None:
        read = read_caption(image)
        text = read["text"]
        extras |= {SOURCE: read["source"], "text_score": read["score"]}
        image = None if image.tobytes() == clean.image.tobytes() else image
    changed = image is not None or (text is not None and text != meme.text)
    if image is not None:
        extras.pop(READ_FROM, None)  # the digest of another picture, which would have the caption read again
    made = replace(
        meme,
        id=attacked_id(meme.id, variant.name),
        image=meme.image if image is None else image,
        text=meme.text if text is None else text,
        raw_text=meme.raw_text if text is None else None,
        extras={**extras, CHANGED: changed},
    )
    return Outcome(made, "" if changed else reason or NO_EFFECT)
