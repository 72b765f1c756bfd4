"""JPEG and rescaling as differentiable functions of pixels.

Pictures are float tensors [3, H, W] with values from 0 to 255.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Annex K of ITU-T T.81: the tables that libjpeg scales by the quality.
_LUMINANCE = """
16 11 10 16 24 40 51 61     12 12 14 19 26 58 60 55     14 13 16 24 40 57 69 56     14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92   49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""
_CHROMINANCE = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99
"""
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def rounded(values: Tensor) -> Tensor:
    """Rounded values, whose gradient is that of the values."""
    return values.detach().round() + (values - values.detach())


def quantised(pixels: Tensor) -> Tensor:
    """Pixels as 8 bits hold them, from 0 to 255; the gradient passes where they lie in that range."""
    return rounded(pixels.clamp(0, 255))


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Pixels [3, height, width], resized as Pillow's bicubic filter does, but for its rounding."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    return F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]


def rescaled(pixels: Tensor, factor: float) -> Tensor:
    """A picture made smaller by a factor and large again."""
    height, width = pixels.shape[-2:]
    small = quantised(resized(pixels, max(round(height * factor), 1), max(round(width * factor), 1)))
    return quantised(resized(small, height, width))


def jpeg(pixels: Tensor, quality: int) -> Tensor:
    """A picture after JPEG compression with colours at half the resolution, as Pillow saves it.

    Rounding of coefficients passes the gradient on unchanged.

    Args:
        pixels: [3, H, W].
        quality: 1 to 100, with the meaning that libjpeg gives it.
    """
    height, width = pixels.shape[-2:]
    padded = F.pad(pixels[None], (0, -width % 16, 0, -height % 16), mode="replicate")[0]
    to_ycc = torch.tensor(_TO_YCC, dtype=pixels.dtype, device=pixels.device)
    luma, *chroma = torch.einsum("dc,chw->dhw", to_ycc, padded).unbind()  # colours are around 0 here
    planes = [_coded(luma - 128, _table(_LUMINANCE, quality)) + 128]
    for plane in chroma:
        small = _coded(F.avg_pool2d(plane[None], 2)[0], _table(_CHROMINANCE, quality))
        planes.append(F.interpolate(small[None, None], scale_factor=2, mode="bilinear")[0, 0])
    rgb = torch.einsum("cd,dhw->chw", torch.linalg.inv(to_ycc), torch.stack(planes))
    return quantised(rgb[:, :height, :width])


def _coded(plane: Tensor, table: Tensor) -> Tensor:
    """A plane [H, W], H and W multiples of 8, with the cosine coefficients of its blocks rounded by a table [8, 8]."""
    basis, table = _cosines().to(plane), table.to(plane)
    blocks = plane.unfold(0, 8, 8).unfold(1, 8, 8)  # [H/8, W/8, 8, 8]
    coefficients = rounded(basis @ blocks @ basis.T / table) * table
    return (basis.T @ coefficients @ basis).permute(0, 2, 1, 3).reshape(plane.shape)


def _table(text: str, quality: int) -> Tensor:
    """A table of steps [8, 8] scaled by a quality, as libjpeg does."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = torch.tensor([int(word) for word in text.split()]).view(8, 8)
    return ((steps * scale + 50) // 100).clamp(1, 255)


@cache
def _cosines() -> Tensor:
    """Orthonormal basis [8, 8] of the cosine transform, one frequency per row."""
    place = torch.arange(8, dtype=torch.float64)
    basis = torch.cos((2 * place + 1) * place[:, None] * torch.pi / 16) / 2
    basis[0] /= 2**0.5
    return basis
