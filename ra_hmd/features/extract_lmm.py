"""Extraction of an LMM's features: sharded, resumable, on as many processes as torchrun starts, or
on the workers of a Ray cluster."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from ra_hmd.core.choices import DType
from ra_hmd.core.errors import UserError
from ra_hmd.core.workers import WorkerSettings
from ra_hmd.data.meme import Meme
from ra_hmd.features.extraction import make_features
from ra_hmd.features.model_protocol import FeatureModel
from ra_hmd.features.views import requested_views
from ra_hmd.models.checkpoint import Run
from ra_hmd.models.meme_model import MemeModel
from ra_hmd.models.pooling.settings import TRANSFORMERS, BackendSettings


def extract_hidden_states(
    run: Run,
    memes: list[Meme],
    output: str | Path,
    *,
    split: str = "",
    source: Mapping[str, str | None] | None = None,
    views: Sequence[str] = (),
    label_classes: int | None = None,
    batch_size: int = 16,
    shard_size: int = 512,
    num_workers: int = 2,
    dtype: DType = "auto",
    padding_side: Literal["left", "right"] = "left",
    backend: BackendSettings = TRANSFORMERS,
    open_model: Callable[[torch.device], FeatureModel] | None = None,
    engine: WorkerSettings | None = None,
) -> Path:
    """Write a feature store of `memes`; called again after a stop, it makes only what is missing.

    Under torchrun each rank takes every WORLD_SIZE-th shard. Up to rounding, rows do not depend on batch size, number
    of ranks or padding side.

    Args:
        run: The model.
        memes: The data, in the order of the store.
        output: Folder of the store.
        split: Recorded in the manifest.
        source: Origin of the memes (`describe_source`); recorded in the manifest.
        views: Further vectors of each meme (`requested_views`).
        label_classes: C, where a meme may have several labels; default is that of a multi-label run.
        batch_size: Memes per forward pass; memes of similar length share one.
        shard_size: Rows per file; a stop loses at most one unfinished shard per rank.
        num_workers: Processes that decode images beside each rank.
        dtype: Precision of the computation; `auto` is that of the model's weights.
        padding_side: Padding side of the batches.
        backend: What runs the forward pass.
        open_model: Opens the run's model of this `dtype` and `padding_side`, so that several calls can share it.
        engine: Where the features are made; default is this process.

    Raises:
        UserError: unreadable images (all listed before the model is loaded), labels of another kind, or `output` holds
            other features; see `requested_views` and `PooledRun`.
    """
    problem = run.settings.problem
    classes = label_classes or (problem.outputs if problem.kind == "multi_label" else None)
    if problem.kind == "multi_label" and classes != problem.outputs:
        raise UserError(f"The data has {classes} classes, and the run in {run.folder} {problem.outputs}.")

    def length(meme: Meme, size: tuple[int, int]) -> float:
        """About the tokens of its prompt: image tokens go with pixels, a word is about a token."""
        return min(size[0] * size[1], run.settings.image_max_pixels) / 784 + len(meme.caption) / 4

    how: dict[str, Any] = {"dtype": dtype}
    if backend.backend == "vllm":
        from ra_hmd.models.pooling.model import PooledRun

        pooled = PooledRun(run, backend, dtype)
        how, open_model = how | pooled.engine, open_model or pooled.load
    return make_features(
        memes,
        output,
        open_model or partial(MemeModel, run, dtype=dtype, padding_side=padding_side),
        run.fingerprint() | how,
        length,
        views=requested_views(views, run, fold_captions=run.settings.fold_captions, **how),
        label_classes=classes,
        batch_size=batch_size,
        shard_size=shard_size,
        num_workers=num_workers,
        engine=engine,
        split=split,
        source=source,
        run=str(run.folder),
    )
