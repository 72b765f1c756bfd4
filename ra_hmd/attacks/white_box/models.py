"""What heads read of a meme, as a differentiable function of the pixels of its picture.

Shapes: B memes, H input of the head, W answers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from PIL.Image import Image
from torch import Tensor

from ra_hmd.attacks.white_box.pixels import PixelPath
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.features.model_protocol import FeatureModel
from ra_hmd.features.views import ViewedModel
from ra_hmd.models.clip_encoder import Encoder
from ra_hmd.models.meme_model import MemeModel

_PIXELS = "pixel_values"


class ReadMemes(NamedTuple):
    """What heads read of B memes.

    Attributes:
        hidden: [B, H], what the trained head reads.
        answers: [B, W], probabilities of the LMM's answers; None without an LMM.
    """

    hidden: Tensor
    answers: Tensor | None = None


class OpenedMemes(Protocol):
    """A batch of memes whose captions are fixed and whose pictures are given as pixels."""

    def __call__(self, pictures: Sequence[Tensor]) -> ReadMemes:
        """What heads read of the memes with these pictures, B tensors [3, H, W] from 0 to 255 of the clean sizes."""


def open_memes(model: FeatureModel, memes: Sequence[Meme]) -> OpenedMemes:
    """Open a batch of memes for a model.

    Raises:
        UserError: The model is of a kind that has no differentiable path from the picture, or a meme does not fit.
    """
    main = model.main if isinstance(model, ViewedModel) else model
    main.prepare(memes)
    if isinstance(main, MemeModel):
        return _LmmMemes(main, memes)
    if isinstance(main, Encoder):
        return _EncoderMemes(main, memes)
    raise UserError(
        f"White-box attacks have gradients through LMMs and encoders of two towers, not through {type(main).__name__}; "
        "give `--white-box square`, which needs none."
    )


class _LmmMemes:
    """Memes for the LMM of a run. Their tokens depend on the sizes of the pictures alone."""

    def __init__(self, model: MemeModel, memes: Sequence[Meme]) -> None:
        batch = model.collate([model.encode(meme.caption, meme.load_image()) for meme in memes])
        self._model = model.model.requires_grad_(False)
        self._batch = {name: value.to(model.device) for name, value in batch.items()}
        processor: Any = model.encoder.processor
        self._plugin = cast(Any, model.encoder.template.mm_plugin)
        self._limits = {name: getattr(processor, name) for name in ("image_max_pixels", "image_min_pixels")}
        self._path = PixelPath(processor.image_processor, self._limited)

    def _limited(self, image: Image) -> Image:
        return self._plugin._regularize_images([image], **self._limits)["images"][0]

    def __call__(self, pictures: Sequence[Tensor]) -> ReadMemes:
        values = torch.cat([self._path(pixels)[_PIXELS] for pixels in pictures])
        if values.shape != self._batch.get(_PIXELS, values[:0]).shape:
            raise UserError(
                f"The model takes pictures as {sorted(self._batch)}, which white-box attacks do not know; give "
                "`--white-box square`, which needs no gradient."
            )
        output = self._model(**self._batch | {_PIXELS: values})
        return ReadMemes(output.hidden.float(), output.answer_probs)


class _EncoderMemes:
    """Memes for an encoder with a tower for images and one for captions."""

    def __init__(self, encoder: Encoder, memes: Sequence[Meme]) -> None:
        batch = encoder.collate([encoder.encode(meme.caption, meme.load_image()) for meme in memes])
        self._encoder = encoder
        self._text = encoder.columns(batch)["text_features"].clone()
        self._path = PixelPath(encoder.image_processor)

    def __call__(self, pictures: Sequence[Tensor]) -> ReadMemes:
        inputs = [self._path(pixels) for pixels in pictures]
        batch = {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
        return ReadMemes(torch.cat([self._encoder.image_features(batch), self._text], dim=1))
