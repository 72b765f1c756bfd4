"""A linear head on an encoder's features, each of length 1: zero-shot and linear probe end in one.

Shapes: C outputs, I image features, T text features, W features of the modalities that are used.
"""

from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from ra_hmd.core.artifacts import MANIFEST_NAME, sha256_file
from ra_hmd.core.config import choose
from ra_hmd.core.manifests import LinearProbeManifest, ZeroShotManifest, write_manifest
from ra_hmd.core.problem import Problem
from ra_hmd.models.fusion import FusionConfig, FusionKind
from ra_hmd.models.head import HEAD_WEIGHTS, HeadConfig, MemeHead, save_head

M = TypeVar("M", LinearProbeManifest, ZeroShotManifest)
Modality = Literal["image", "text", "both"]

_KINDS: dict[Modality, FusionKind] = {"image": "image", "text": "text", "both": "concat"}


def check_modality(modality: str) -> None:
    """Raise `UserError` unless it is one of `Modality`."""
    choose("--modality", modality, get_args(Modality))


def linear_head(
    modality: Modality,
    widths: tuple[int, ...],
    problem: Problem,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> MemeHead:
    """The head, in evaluation mode.

    Args:
        modality: Which features it looks at; `both`: those of the image, then those of the text, or one vector of both.
        widths: I and T of the stores that it is for, or the width of their one vector.
        problem: What its outputs mean.
        weight: [C, W]; None: zeros.
        bias: [C]; None: zeros.
    """
    fusion = None
    if len(widths) == 2:
        fusion = FusionConfig(image_dim=widths[0], text_dim=widths[1], kind=_KINDS[modality], mapping_layers=0)
    config = HeadConfig(
        input_dim=sum(widths), num_layers=1, output_dim=problem.outputs, problem_type=problem.kind, fusion=fusion
    )
    head = MemeHead(config)
    with torch.no_grad():
        for parameter, value in ((head.output.weight, weight), (head.output.bias, bias)):
            parameter.zero_() if value is None else parameter.copy_(value)
    return head.eval()


def save_linear_head(output: Path, model: type[M], head: MemeHead, **content: Any) -> M:
    """Write the head and, last, a manifest of type `model` with `content`; returns the manifest."""
    save_head(output, head.config, head.state_dict())
    manifest = model.new(head_sha256=sha256_file(output / HEAD_WEIGHTS), **content)
    write_manifest(output / MANIFEST_NAME, manifest)
    return manifest
