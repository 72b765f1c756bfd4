"""The model that makes a head's features: the LMM of a Stage 1 run, or a frozen encoder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ra_hmd.core.artifacts import MANIFEST_NAME
from ra_hmd.core.choices import DType
from ra_hmd.core.config import load_settings
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import HeadRunManifest, ViewDescription, read_folder_manifest
from ra_hmd.features.compatibility import check_same_views, folds_captions
from ra_hmd.features.model_protocol import FeatureModel
from ra_hmd.features.views import View, ViewedModel, stated_views
from ra_hmd.models.checkpoint import Run
from ra_hmd.models.pooling.settings import TRANSFORMERS, BackendSettings


@dataclass(frozen=True)
class Backbone:
    """A model that makes features of memes, before it is loaded.

    Attributes:
        place: Its place, for messages.
        fingerprint: What its features depend on.
        load_main: Function that loads it onto a device.
        views: Further views that it makes too.
        run: The run of an LMM.
    """

    place: str
    fingerprint: dict[str, Any]
    load_main: Callable[[torch.device], FeatureModel]
    views: Sequence[View] = ()
    run: Run | None = None

    def load(self, device: torch.device) -> FeatureModel:
        """Load the model, and those of further views, onto a device."""
        return ViewedModel.of(self.load_main(device), self.views, device)


class LazyModel:
    """A feature model that is loaded when it is first used, which a process that leaves memes to others never does.

    Args:
        backbone: The model.
        device: Where it is loaded.
    """

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        self.run, self._load = backbone.run, partial(backbone.load, device)

    def __getattr__(self, name: str) -> Any:
        if name == "loaded":
            self.loaded = self._load()
            return self.loaded
        return getattr(self.loaded, name)


def open_feature_model(
    run: str | Path,
    *,
    backbone: str | Path | None = None,
    base_model: str | None = None,
    dtype: DType | None = None,
    views: Mapping[str, ViewDescription] | None = None,
    views_place: str | Path = "the bank",
    fold_captions: bool = False,
    backend: BackendSettings = TRANSFORMERS,
) -> Backbone:
    """Open the model whose features the head in `run` takes.

    Args:
        run: Stage 1 run, Stage 2 output, or a head on an encoder's features.
        backbone: Stage 1 run or encoder, if it is no longer at the place that the run states.
        base_model: Present place of an LMM's base model.
        dtype: Precision of the computation; None: that of the encoder's features, `auto` for an LMM.
        views: Further views to make of each meme, as a bank or a feature store states them.
        views_place: That bank or store, for messages.
        fold_captions: Fold captions, also for a head that was trained on captions as they are; one that was trained on
            folded captions has them folded in any case.
        backend: What runs an LMM's forward pass.

    Raises:
        UserError: it cannot be found or opened, or a view would be made otherwise than stated; vLLM for an encoder.
    """
    views = views or {}
    run = Path(run)
    manifest = read_folder_manifest(run)
    if isinstance(manifest, HeadRunManifest):
        fold_captions = fold_captions or folds_captions(manifest.train_store.fingerprint)
        if manifest.encoder:
            if backend != TRANSFORMERS:
                raise UserError(f"The head in {run} is of an encoder, which vLLM does not run; leave out --backend.")
            further = _further(views, None, views_place, fold_captions)
            stated = manifest.encoder.to_json()
            return replace(_encoder(stated, run, backbone, dtype, fold_captions), views=further)
    from ra_hmd.models.checkpoint import open_run
    from ra_hmd.models.meme_model import MemeModel

    place = run
    if isinstance(manifest, HeadRunManifest) and manifest.kind == "stage2":
        origin = manifest.init_head.path if backbone is None and manifest.init_head else backbone
        if not origin:
            raise UserError(f"{run} does not state the Stage 1 run that its features came from; give it as `backbone`.")
        place = Path(origin)
    # Without its own head: that of `run` is used.
    opened = replace(open_run(place, base_model), head=None).folding(fold_captions)
    further = _further(views, opened, views_place, fold_captions)
    if backend.backend == "vllm":
        from ra_hmd.models.pooling.model import PooledRun

        pooled = PooledRun(opened, backend, dtype or "auto")
        return Backbone(str(place), opened.fingerprint() | pooled.engine, pooled.load, further, opened)

    def load(device: torch.device) -> FeatureModel:
        return MemeModel(opened, device, dtype or "auto")

    return Backbone(str(place), opened.fingerprint(), load, further, opened)


def _further(
    stated: Mapping[str, ViewDescription], run: Run | None, place: str | Path, fold_captions: bool
) -> list[View]:
    """Open the models of further views. Raises `UserError` where a view would not be what is stated."""
    opened = stated_views(stated, run, place, fold_captions=fold_captions)
    here = {view.name: ViewDescription(fingerprint=view.fingerprint) for view in opened}
    check_same_views({str(place): stated, "the models that are loaded": here})
    return opened


def _encoder(
    stated: dict[str, Any], run: Path, backbone: str | Path | None, dtype: DType | None, fold_captions: bool
) -> Backbone:
    from ra_hmd.models.encoder_files import EncoderSettings
    from ra_hmd.models.encoders import open_encoder

    settings = load_settings(EncoderSettings, stated, run / MANIFEST_NAME)
    if backbone is not None:
        settings = settings.replace(path=str(backbone), revision=None)
    if dtype is not None:
        settings = settings.replace(dtype=dtype)
    if fold_captions:
        settings = settings.replace(fold_captions=True)
    encoder = open_encoder(settings)
    return Backbone(settings.path, encoder.fingerprint(), encoder.load)
