"""Image and text features made one vector: Hate-CLIPper's projections and fusions.

Shapes: B batch, I image features, T text features, n projected width (`map_dim`), W fused width, O outputs of the layer
that takes the fused vector.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ra_hmd.core.config import Rate, Settings

_COPIED = 1 << 24  # values of `cross_nd`'s weight that are copied at a time: 64 MB

FusionKind = Literal["align", "concat", "cross", "cross_nd", "align_concat", "image", "text"]


class Float32Linear(nn.Linear):
    """A linear layer that multiplies in float32 also where DeepSpeed holds its weights in another dtype.

    Inside an enabled autocast it multiplies in autocast's dtype.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply to [..., in]; gives [..., out]."""
        return nn.functional.linear(x.float(), self.weight.float(), self.bias.float())


class FusionConfig(Settings):
    """Settings of a fusion of two modalities into one vector."""

    TITLE: ClassVar[str] = "fusion"

    image_dim: PositiveInt = Field(description="I, image features.")
    text_dim: PositiveInt = Field(description="T, text features.")
    kind: FusionKind = Field(
        default="align",
        description="`align` element-wise product; `concat`; `cross` outer product, row by row; `cross_nd` outer "
        "product without its diagonal (which is `align`); `align_concat` product, image, text; `image`, `text` one "
        "modality alone.",
    )
    map_dim: PositiveInt = Field(default=1024, description="n, width of each projection.")
    mapping_layers: int = Field(
        default=1, ge=0, description="Linear layers of each projection; 0: none, the features as they are."
    )
    map_dropout: Rate = Field(default=0.0, description="Dropout after each layer of the projections.")

    def _problems(self) -> Iterator[str]:
        products = ("align", "cross_nd", "align_concat")
        if self.kind in products and not self.mapping_layers and self.image_dim != self.text_dim:
            yield (
                f"`kind: {self.kind}` multiplies features of {self.image_dim} and {self.text_dim} dimensions "
                "element by element; `mapping_layers: 1` makes them equally long."
            )
        if self.kind == "cross_nd" and self.width_of("image") == 1:
            yield "`kind: cross_nd` leaves nothing of 1 × 1 products; use more dimensions."

    @property
    def input_dim(self) -> int:
        """I + T: width of a meme's features, image features first."""
        return self.image_dim + self.text_dim

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that the fusion reads."""
        return (self.kind,) if self.kind in ("image", "text") else ("image", "text")

    @property
    def is_product(self) -> bool:
        """Whether the fused vector is an outer product, about n² wide."""
        return self.kind in ("cross", "cross_nd")

    def width_of(self, modality: str) -> int:
        """Width of a modality after its projection."""
        return self.map_dim if self.mapping_layers else {"image": self.image_dim, "text": self.text_dim}[modality]

    @property
    def output_dim(self) -> int:
        """W, width of the fused vector."""
        image, text = self.width_of("image"), self.width_of("text")
        widths = {"align": image, "concat": image + text, "cross": image * text, "cross_nd": image * (image - 1)}
        widths |= {"align_concat": 3 * image, "image": image, "text": text}
        return widths[self.kind]


class Fusion(nn.Module):
    """Projects each modality, normalises it to length 1, and fuses (Hate-CLIPper, arXiv 2210.05916, section 3)."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        widths = {"image": config.image_dim, "text": config.text_dim}
        self.maps = nn.ModuleDict({name: _projection(config, widths[name]) for name in config.modalities})

    def project(self, features: Tensor) -> dict[str, Tensor]:
        """Project features [B, I + T]; returns modality → [B, n], of length 1."""
        parts = dict(zip(("image", "text"), features.split([self.config.image_dim, self.config.text_dim], 1),
                         strict=True))  # fmt: skip
        return {name: F.normalize(layers(parts[name]).float(), dim=1) for name, layers in self.maps.items()}

    def fuse(self, projected: dict[str, Tensor]) -> Tensor:
        """Fuse the projections of `project` into [B, W]."""
        kind = self.config.kind
        if kind in ("image", "text"):
            return projected[kind]
        image, text = projected["image"], projected["text"]
        if kind == "align":
            return image * text
        if kind == "concat":
            return torch.cat([image, text], dim=1)
        if kind == "align_concat":
            return torch.cat([image * text, image, text], dim=1)
        product = image[:, :, None] * text[:, None, :]
        return product.flatten(1) if kind == "cross" else _without_diagonal(product)

    def linear(self, projected: dict[str, Tensor], layer: nn.Linear) -> Tensor:
        """`layer` on the fused vector, [B, O]; without gradients the outer product of `cross`, `cross_nd` is not made.

        4,096 rows of n = 1024 would be 17 GB of it. In `scripts/bench/cross_fusion.py` the bilinear forms instead took
        0.8 to 1.1 times as long on one CPU thread, and a fraction of the memory. With gradients they took up to 22
        times as long: there the product is made, whose B·n² values are few beside the O·n² of the weight's gradient.
        """
        if torch.is_grad_enabled() or not self.config.is_product:
            return layer(self.fuse(projected))
        image, text, diagonal = projected["image"], projected["text"], self.config.kind == "cross"
        return cross_linear(image, text, layer.weight.float(), layer.bias.float(), diagonal=diagonal)


def _projection(config: FusionConfig, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(config.mapping_layers):
        layers += [nn.ReLU()] * bool(number)
        layers += [Float32Linear(width, config.map_dim), nn.Dropout(config.map_dropout)]
        width = config.map_dim
    return nn.Sequential(*layers)


def cross_linear(image: Tensor, text: Tensor, weight: Tensor, bias: Tensor, *, diagonal: bool = True) -> Tensor:
    """A linear layer on the outer product of image and text, without the product: a bilinear form per output.

    Row o of the weight is a matrix A_o, and its output is image · A_o · text + b_o.

    Args:
        image: [B, n].
        text: [B, m].
        weight: [O, n·m]; without the diagonal [O, n·(n - 1)].
        bias: [O].
        diagonal: Whether the weight has the products of equal places (`cross`) or not (`cross_nd`).

    Returns:
        [B, O]. It can be differentiated, but slowly: see `Fusion.linear`.
    """
    if diagonal:
        return F.bilinear(image, text, weight.view(-1, image.shape[1], text.shape[1]), bias)
    rows = max(1, _COPIED // image.shape[1] ** 2)
    parts = [F.bilinear(image, text, _with_diagonal(part, image.shape[1])) for part in weight.split(rows)]
    return torch.cat(parts, dim=1) + bias


def _without_diagonal(matrices: Tensor) -> Tensor:
    """[B, n, n] → [B, n·(n - 1)]: of the n·n values but the first, every (n + 1)-th is on the diagonal."""
    width = matrices.shape[1]
    return matrices.flatten(1)[:, 1:].reshape(-1, width - 1, width + 1)[:, :, :-1].flatten(1)


def _with_diagonal(rows: Tensor, width: int) -> Tensor:
    """[B, n·(n - 1)] → [B, n, n] with zeros on the diagonal."""
    filled = F.pad(rows.view(-1, width - 1, width), (0, 1)).flatten(1)
    return F.pad(filled, (1, 0)).view(-1, width, width)
