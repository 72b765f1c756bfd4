"""The MLP and logistic-regression head: trained in Stage 1, refined in Stage 2, used at inference.

In front of it may stand a fusion of image and text features (CLIP-family encoders).
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import Field, PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ra_hmd.core.artifacts import atomic_path, read_json, write_json
from ra_hmd.core.config import Rate, Settings, load_settings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import Problem, ProblemType
from ra_hmd.models.fusion import Float32Linear, Fusion, FusionConfig

HEAD_WEIGHTS = "head.safetensors"
HEAD_CONFIG = "head.json"

_WIDEST_EMBEDDING = 1 << 16  # 4,096 rows of it are 1 GB; the product of a `cross` head without a block is far wider

INITIAL_HEAD = "initial_head"
"""Folder in a Stage 2 output that holds the head it started from."""


class HeadConfig(Settings):
    """Shape of a head."""

    TITLE: ClassVar[str] = "head"

    input_dim: PositiveInt = Field(
        description="H, hidden size of the LMM; with a fusion, the width of image and text features together."
    )
    num_layers: PositiveInt = Field(
        default=2, description="Linear layers in all; `num_layers - 1` of them are blocks of Linear, ReLU, Dropout."
    )
    proj_dim: PositiveInt = Field(default=1024, description="D, width of the blocks and of the retrieval embedding.")
    output_dim: PositiveInt = Field(default=1, description="C logits; 1 is the binary case.")
    input_dropout: Rate = Field(default=0.0, description="Dropout on the input, or on the fused vector.")
    dropout: tuple[Rate, ...] = Field(
        default=(),
        description="Dropout after each block; empty means none. One value more than there are blocks is accepted and "
        "not used, as the official files have it.",
    )
    problem_type: ProblemType = Field(default="binary", description="Meaning of the logits.")
    embedding: Literal["relu", "linear"] = Field(
        default="relu",
        description="The retrieval embedding is the output of the last block after its ReLU and dropout (`relu`, "
        "RA-HMD), or that of its linear layer (`linear`, RGCL).",
    )
    fusion: FusionConfig | None = Field(
        default=None,
        description="Fusion of image and text features into the input of the MLP; None where that is one vector.",
    )

    def _problems(self) -> Iterator[str]:
        if self.dropout and len(self.dropout) not in (self.blocks, self.num_layers):
            yield (
                f"`dropout` has {len(self.dropout)} values; with num_layers {self.num_layers} give "
                f"{self.blocks} (one per hidden block), or leave it out."
            )
        fits = self.fusion is None or self.fusion.input_dim == self.input_dim
        if self.fusion is not None and not fits:
            yield (
                f"`input_dim` is {self.input_dim}, its fusion takes {self.fusion.image_dim} image and "
                f"{self.fusion.text_dim} text features, {self.fusion.input_dim} in all."
            )
        if fits and self.embedding_dim > _WIDEST_EMBEDDING:
            yield (
                f"`num_layers: {self.num_layers}` and `proj_dim: {self.proj_dim}` make retrieval embeddings of "
                f"{self.embedding_dim} values; at most {_WIDEST_EMBEDDING} are searched. `num_layers: 2` takes "
                "them from a block behind the fusion."
            )
        try:
            _ = self.problem
        except UserError as error:
            yield str(error)

    @property
    def problem(self) -> Problem:
        """Classification problem of the head."""
        return Problem(self.problem_type, self.output_dim)

    @property
    def blocks(self) -> int:
        """Number of hidden blocks."""
        return self.num_layers - 1

    @property
    def mlp_dim(self) -> int:
        """Width of what the first linear layer takes: H, or the fused vector's."""
        return self.input_dim if self.fusion is None else self.fusion.output_dim

    @property
    def embedding_dim(self) -> int:
        """D, width of the retrieval embedding (that of the MLP's input when there is no hidden block)."""
        return self.proj_dim if self.blocks else self.mlp_dim


class HeadOutput(NamedTuple):
    """Output of a head for B hidden states."""

    logits: Tensor
    """[B, C], before the sigmoid."""
    embedding: Tensor
    """[B, D], of the last block."""
    projected: dict[str, Tensor] | None = None
    """With a fusion: modality → its projection [B, n], of length 1."""


class MemeHead(nn.Module):
    """Fusion, if any, then MLP blocks, then logistic regression.

    Without a fusion it is RA-HMD's (official `Classifier`), with one Hate-CLIPper's and RGCL's.

    Computes in float32, whatever the dtype of its input, of its weights (DeepSpeed may cast them) or of an enclosing
    autocast, unless `autocast_dtype` is set.

    Attributes:
        autocast_dtype: Dtype of its matrix products; None is float32. What it gives is float32 all the same.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.autocast_dtype: torch.dtype | None = None
        self.fusion = None if config.fusion is None else Fusion(config.fusion)
        widths = [config.mlp_dim, *[config.proj_dim] * config.blocks]
        self.layers = nn.ModuleList(Float32Linear(a, b) for a, b in pairwise(widths))
        rates = config.dropout or (0.0,) * config.blocks
        self.dropouts = nn.ModuleList(nn.Dropout(rate) for rate in rates[: config.blocks])
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.output = Float32Linear(config.embedding_dim, config.output_dim)

    def forward(self, hidden: Tensor) -> HeadOutput:
        """Score hidden states (features) [B, H]."""
        enabled = self.autocast_dtype is not None
        with torch.autocast(hidden.device.type, dtype=self.autocast_dtype, enabled=enabled):
            projected = None if self.fusion is None else self.fusion.project(hidden.float())
            x = self._input(hidden, projected)
            embedding = x
            for layer, dropout in zip(self.layers, self.dropouts, strict=True):
                if x is None:
                    assert self.fusion is not None
                    assert projected is not None
                    linear = self.fusion.linear(projected, cast(nn.Linear, layer))
                else:
                    linear = layer(x)
                x = dropout(torch.relu(linear))
                embedding = x if self.config.embedding == "relu" else linear
            assert x is not None
            assert embedding is not None
            return HeadOutput(self.output(x).float(), embedding.float(), projected)

    def _input(self, hidden: Tensor, projected: dict[str, Tensor] | None) -> Tensor | None:
        """The MLP's input [B, W]; None where the fusion applies the first layer itself, without dropout before it."""
        if self.fusion is None or projected is None:
            return self.input_dropout(hidden.float())
        drops = self.training and self.config.input_dropout > 0  # every element of a product is dropped by itself
        if self.config.blocks and not drops:
            return None
        return self.input_dropout(self.fusion.fuse(projected))

    def embed(self, hidden: Tensor) -> Tensor:
        """Retrieval embeddings [B, D] of hidden states [B, H]."""
        return self(hidden).embedding


def save_head(folder: str | Path, config: HeadConfig, state: dict[str, Tensor]) -> None:
    """Write `head.safetensors` (float32) and `head.json` into `folder`, each atomically.

    Raises:
        UserError: weights that are not finite; nothing is written.
    """
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    raise_all(bad, f"{folder}: a head is not saved, as weights are not finite; train it with a lower learning rate")
    with atomic_path(Path(folder) / HEAD_WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_json(Path(folder) / HEAD_CONFIG, {"format": 1, **config.model_dump()})


def has_head(folder: str | Path) -> bool:
    """Whether `folder` holds a saved head."""
    return (Path(folder) / HEAD_WEIGHTS).is_file() and (Path(folder) / HEAD_CONFIG).is_file()


def read_head_config(folder: str | Path) -> HeadConfig:
    """The shape of the head saved in `folder`."""
    path = Path(folder) / HEAD_CONFIG
    if not has_head(folder):
        official = (Path(folder) / "classifier.bin").is_file()
        remedy = " It is an official RA-HMD checkpoint: convert it with `ra-hmd import-official`." if official else ""
        raise UserError(f"{folder} has no trained head: {HEAD_WEIGHTS} and {HEAD_CONFIG} are needed.{remedy}")
    values = {key: value for key, value in read_json(path).items() if key != "format"}
    return load_settings(HeadConfig, values, path)


def load_head(folder: str | Path) -> MemeHead:
    """The head saved in `folder`, in evaluation mode, on the CPU.

    Raises:
        UserError: no head there, or its tensors do not have the shapes that its JSON promises.
    """
    with torch.device("meta"):  # a cross head has 4 GB of weights: they are not drawn before they are read
        head = MemeHead(read_head_config(folder))
    _load(head, folder, assign=True)
    return head.eval()


def load_head_weights(head: MemeHead, folder: str | Path) -> None:
    """Copy the weights saved in `folder` into `head` (same shape)."""
    saved = read_head_config(folder)
    shape = ("input_dim", "num_layers", "proj_dim", "output_dim", "problem_type", "embedding", "fusion")
    differing = [
        f"`{name}` is {getattr(saved, name)!r} in {folder} and {getattr(head.config, name)!r} here"
        for name in shape
        if getattr(saved, name) != getattr(head.config, name)
    ]
    raise_all(differing, "The saved head has another shape")
    _load(head, folder)


def _load(head: MemeHead, folder: str | Path, *, assign: bool = False) -> None:
    tensors = {name: tensor.float() for name, tensor in load_file(Path(folder) / HEAD_WEIGHTS).items()}
    try:
        head.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:
        raise UserError(f"{Path(folder) / HEAD_WEIGHTS} does not fit {HEAD_CONFIG}: {error}") from error
