"""The MLP and logistic-regression head: trained in Stage 1, refined in Stage 2, asked at inference."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ra_hmd.config import coerce_fields, load_dataclass
from ra_hmd.errors import UserError, raise_all
from ra_hmd.manifest import atomic_path, read_json, write_json
from ra_hmd.problem import Problem, ProblemType

HEAD_WEIGHTS = "head.safetensors"
HEAD_CONFIG = "head.json"

INITIAL_HEAD = "initial_head"
"""Folder in a Stage 2 output that holds the head it started from."""


@dataclass(frozen=True)
class HeadConfig:
    """Shape of a head.

    Attributes:
        input_dim: H, the LMM's hidden size.
        num_layers: Linear layers in all; `num_layers - 1` of them are blocks of Linear, ReLU, Dropout.
        proj_dim: D, width of the blocks and of the retrieval embedding.
        output_dim: C logits; 1 is the binary case.
        input_dropout: Dropout on the input.
        dropout: Dropout after each block; empty means none. One value more than there are blocks is accepted and
            not used, as the official files have it.
        problem_type: What the logits mean.
    """

    input_dim: int
    num_layers: int = 2
    proj_dim: int = 1024
    output_dim: int = 1
    input_dropout: float = 0.0
    dropout: tuple[float, ...] = ()
    problem_type: ProblemType = "binary"

    def __post_init__(self) -> None:
        names = ("input_dim", "num_layers", "proj_dim", "output_dim", "input_dropout", "dropout", "problem_type")
        problems = coerce_fields(self, names, "head")
        if not problems:
            problems = [f"`{name}` is {getattr(self, name)}, it must be at least 1." for name in names[:4]
                        if getattr(self, name) < 1]  # fmt: skip
            if self.dropout and len(self.dropout) not in (self.blocks, self.num_layers):
                problems.append(
                    f"`dropout` has {len(self.dropout)} values; with num_layers {self.num_layers} give "
                    f"{self.blocks} (one per hidden block), or leave it out."
                )
            rates = (self.input_dropout, *self.dropout)
            problems += [f"dropout rate {rate} is not in [0, 1)." for rate in rates if not 0 <= rate < 1]
            try:
                Problem(self.problem_type, self.output_dim)
            except UserError as error:
                problems.append(str(error))
        raise_all(problems, "The head's configuration does not fit")

    @property
    def problem(self) -> Problem:
        """What the head decides."""
        return Problem(self.problem_type, self.output_dim)

    @property
    def blocks(self) -> int:
        """Number of hidden blocks."""
        return self.num_layers - 1

    @property
    def embedding_dim(self) -> int:
        """D, width of the retrieval embedding (H when there is no hidden block)."""
        return self.proj_dim if self.blocks else self.input_dim


class HeadOutput(NamedTuple):
    """What a head gives for B hidden states."""

    logits: Tensor
    """[B, C], before the sigmoid."""
    embedding: Tensor
    """[B, D], output of the last block, after ReLU and dropout."""


class Float32Linear(nn.Linear):
    """A linear layer that multiplies in float32 also where DeepSpeed holds its weights in another dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply to [B, in]; gives float32 [B, out]."""
        return nn.functional.linear(x.float(), self.weight.float(), self.bias.float())


class MemeHead(nn.Module):
    """MLP blocks, then logistic regression (RA-HMD, official `Classifier`; embedding after ReLU).

    Always computes in float32, whatever the dtype of its input, of its weights (DeepSpeed may cast them) or of an
    enclosing autocast.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.input_dim, *[config.proj_dim] * config.blocks]
        self.layers = nn.ModuleList(Float32Linear(a, b) for a, b in pairwise(widths))
        rates = config.dropout or (0.0,) * config.blocks
        self.dropouts = nn.ModuleList(nn.Dropout(rate) for rate in rates[: config.blocks])
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.output = Float32Linear(config.embedding_dim, config.output_dim)

    def forward(self, hidden: Tensor) -> HeadOutput:
        """Score hidden states [B, H]."""
        with torch.autocast(hidden.device.type, enabled=False):
            x = self.input_dropout(hidden.float())
            for layer, dropout in zip(self.layers, self.dropouts, strict=True):
                x = dropout(torch.relu(layer(x)))
            return HeadOutput(logits=self.output(x), embedding=x)

    def embed(self, hidden: Tensor) -> Tensor:
        """Retrieval embeddings [B, D] of hidden states [B, H]."""
        return self(hidden).embedding


def save_head(folder: str | Path, config: HeadConfig, state: dict[str, Tensor]) -> None:
    """Write `head.safetensors` (float32) and `head.json` into `folder`, each atomically."""
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}
    with atomic_path(Path(folder) / HEAD_WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_json(Path(folder) / HEAD_CONFIG, {"format": 1, **asdict(config)})


def has_head(folder: str | Path) -> bool:
    """Whether `folder` holds a saved head."""
    return (Path(folder) / HEAD_WEIGHTS).is_file() and (Path(folder) / HEAD_CONFIG).is_file()


def read_head_config(folder: str | Path) -> HeadConfig:
    """The shape of the head saved in `folder`."""
    path = Path(folder) / HEAD_CONFIG
    if not has_head(folder):
        raise UserError(f"{folder} has no trained head: {HEAD_WEIGHTS} and {HEAD_CONFIG} are needed.")
    values = {key: value for key, value in read_json(path).items() if key != "format"}
    return load_dataclass(HeadConfig, values, str(path))


def load_head(folder: str | Path) -> MemeHead:
    """The head saved in `folder`, in evaluation mode, on the CPU.

    Raises:
        UserError: no head there, or its tensors do not have the shapes that its JSON promises.
    """
    head = MemeHead(read_head_config(folder))
    load_head_weights(head, folder)
    return head.eval()


def load_head_weights(head: MemeHead, folder: str | Path) -> None:
    """Copy the weights saved in `folder` into `head` (same shape)."""
    saved = read_head_config(folder)
    shape = ("input_dim", "num_layers", "proj_dim", "output_dim", "problem_type")
    differing = [
        f"`{name}` is {getattr(saved, name)} in {folder} and {getattr(head.config, name)} here"
        for name in shape
        if getattr(saved, name) != getattr(head.config, name)
    ]
    raise_all(differing, "The saved head has another shape")
    try:
        head.load_state_dict(load_file(Path(folder) / HEAD_WEIGHTS))
    except RuntimeError as error:
        raise UserError(f"{Path(folder) / HEAD_WEIGHTS} does not fit {HEAD_CONFIG}: {error}") from error
