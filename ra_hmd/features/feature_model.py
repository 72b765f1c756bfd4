"""The model that makes a head's features: the LMM of a Stage 1 run, or a frozen encoder."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ra_hmd.core.artifacts import MANIFEST_NAME
from ra_hmd.core.choices import DType
from ra_hmd.core.config import load_settings
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import HeadRunManifest, read_folder_manifest
from ra_hmd.features.model_protocol import FeatureModel


@dataclass(frozen=True)
class Backbone:
    """A model that makes features of memes, before it is loaded.

    Attributes:
        place: Its place, for messages.
        fingerprint: What its features depend on.
        load: Function that loads it onto a device.
    """

    place: str
    fingerprint: dict[str, Any]
    load: Callable[[torch.device], FeatureModel]


def open_feature_model(
    run: str | Path,
    *,
    backbone: str | Path | None = None,
    base_model: str | None = None,
    dtype: DType | None = None,
) -> Backbone:
    """Open the model whose features the head in `run` takes.

    Args:
        run: Stage 1 run, Stage 2 output, or a head on an encoder's features.
        backbone: Stage 1 run or encoder, if it is no longer at the place that the run states.
        base_model: Present place of an LMM's base model.
        dtype: Precision of the computation; None: that of the encoder's features, `auto` for an LMM.

    Raises:
        UserError: it cannot be found or opened.
    """
    run = Path(run)
    manifest = read_folder_manifest(run)
    if isinstance(manifest, HeadRunManifest) and manifest.encoder:
        return _encoder(manifest.encoder.to_json(), run, backbone, dtype)
    from ra_hmd.models.checkpoint import open_run
    from ra_hmd.models.meme_model import MemeModel

    place = run
    if isinstance(manifest, HeadRunManifest) and manifest.kind == "stage2":
        origin = manifest.init_head.path if backbone is None and manifest.init_head else backbone
        if not origin:
            raise UserError(f"{run} does not state the Stage 1 run that its features came from; give it as `backbone`.")
        place = Path(origin)
    # Without its own head: that of `run` is used.
    opened = replace(open_run(place, base_model), head=None)
    return Backbone(str(place), opened.fingerprint(), lambda device: MemeModel(opened, device, dtype or "auto"))


def _encoder(stated: dict[str, Any], run: Path, backbone: str | Path | None, dtype: DType | None) -> Backbone:
    from ra_hmd.models.encoder_files import EncoderSettings
    from ra_hmd.models.encoders import open_encoder

    settings = load_settings(EncoderSettings, stated, run / MANIFEST_NAME)
    if backbone is not None:
        settings = settings.replace(path=str(backbone), revision=None)
    if dtype is not None:
        settings = settings.replace(dtype=dtype)
    encoder = open_encoder(settings)
    return Backbone(settings.path, encoder.fingerprint(), encoder.load)
