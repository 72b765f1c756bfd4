"""The path of a picture into a model, as a differentiable function of its pixels.

The values are those of the model's own processor, to the bit: it is given the picture with 8 bits per channel. The
gradient is that of the same processor on the pixels as real numbers, where nothing is rounded (`straight through`).
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ra_hmd.attacks.white_box.transforms import resized
from ra_hmd.core.errors import UserError

_LARGEST_DIFFERENCE = 0.1
"""Of values of unit variance, between the processor with and without rounding: some steps of 1/255."""

Processor = Callable[[Any], dict[str, Tensor]]
"""Makes a model's inputs of one picture, a PIL image or a float tensor [3, H, W] from 0 to 255."""


def to_pixels(image: Image.Image) -> Tensor:
    """Pixels float32 [3, H, W] of an RGB image."""
    from torchvision.transforms.functional import pil_to_tensor

    return pil_to_tensor(image).float()


def to_image(pixels: Tensor) -> Image.Image:
    """The RGB image of pixels [3, H, W]; they are rounded to 8 bits."""
    values = pixels.detach().clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(values.cpu().numpy())


class PixelPath:
    """The inputs that a processor makes of pictures, differentiable by their pixels.

    Args:
        processor: Image processor of transformers.
        limited: What happens to an image before: the pixel limits of LLaMA-Factory.
    """

    def __init__(self, processor: Any, limited: Callable[[Image.Image], Image.Image] = lambda image: image) -> None:
        self._processor, self._limited = processor, limited

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """Inputs of one picture [3, H, W], each with a first dimension of its own (images, or patches).

        Raises:
            UserError: The processor does other things to pixels that are real numbers.
        """
        limited = self._limited(to_image(pixels))
        exact = dict(self._processor(images=limited, return_tensors="pt"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pixels above 1 that are real numbers are what is meant here
            smooth = self._smooth(resized(pixels, limited.height, limited.width))
        return {name: _through(name, value.to(pixels.device), smooth.get(name)) for name, value in exact.items()}

    def _smooth(self, pixels: Tensor) -> dict[str, Tensor]:
        try:
            return dict(self._processor(images=pixels, return_tensors="pt"))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{type(self._processor).__name__} takes no pictures that are tensors ({error}) and has no gradient; "
                "give `--white-box square`, which needs none."
            ) from error


def _through(name: str, exact: Tensor, smooth: Tensor | None) -> Tensor:
    """The exact values with the gradient of the smooth ones. Inputs without gradient (sizes, masks) are as they are."""
    if smooth is None or not smooth.requires_grad:
        return exact
    if exact.shape != smooth.shape or (exact - smooth).abs().mean() > _LARGEST_DIFFERENCE:
        raise UserError(
            f"The model's {name} of a picture with real numbers differ from those of the picture with 8 bits; give "
            "`--white-box square`, which needs no gradient."
        )
    return exact + (smooth - smooth.detach())
