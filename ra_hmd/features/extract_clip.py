"""Extraction of a frozen encoder's features: sharded, resumable, on as many processes as torchrun
starts, or on the workers of a Ray cluster."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState

from ra_hmd.core.manifests import CaptionLengths, EncoderReference
from ra_hmd.core.memory import keep_freed_memory
from ra_hmd.core.workers import WorkerSettings
from ra_hmd.data.meme import Meme
from ra_hmd.features.extraction import make_features
from ra_hmd.features.model_protocol import FeatureModel
from ra_hmd.features.views import requested_views
from ra_hmd.models.clip_encoder import Encoder
from ra_hmd.models.lmm_embedder import LmmEmbedder

_ROWS_OF_A_PART = 8  # fewer make poor use of a core


def encode(
    encoder: Encoder | LmmEmbedder,
    memes: list[Meme],
    output: str | Path,
    *,
    split: str = "",
    source: Mapping[str, str | None] | None = None,
    views: Sequence[str] = (),
    label_classes: int | None = None,
    batch_size: int = 32,
    shard_size: int = 512,
    num_workers: int = 2,
    open_model: Callable[[torch.device], FeatureModel] | None = None,
    engine: WorkerSettings | None = None,
) -> Path:
    """Write a feature store of image and text features, of an LMM embedder of one vector; called again after a stop, it
    makes only what is missing.

    What a row holds does not depend on batch size, shards or number of ranks, up to rounding. The manifest has the
    settings as `encoder`, and as `captions` how many tokens a caption may have, how many the longest has, and how many
    captions have more (they were cut, or averaged over pieces).

    Args:
        encoder: The model; its weights are loaded when there is something to do.
        memes: The data, in the order of the store.
        output: Folder of the store.
        split: Recorded in the manifest.
        source: Origin of the memes (`describe_source`); recorded in the manifest.
        views: Further vectors of each meme, by other encoders (`requested_views`).
        label_classes: C, where a meme may have several labels.
        batch_size: Memes per call of each tower; memes with captions of similar length share one.
        shard_size: Rows per file; a stop loses at most one unfinished shard per rank.
        num_workers: Processes that decode and resize images beside each rank.
        open_model: Loads the encoder's weights, so that several calls can share them.
        engine: Where the features are made; default is this process.

    Raises:
        UserError: unreadable images (all listed before the weights are loaded), labels of another kind, or `output`
            holds other features; see `requested_views`.
    """
    further = requested_views(views, None, fold_captions=encoder.settings.fold_captions)
    tokens = encoder.count_tokens([meme.caption for meme in memes])
    length = dict(zip((meme.id for meme in memes), tokens, strict=True))
    captions = {
        "limit": encoder.limit,
        "longest": max(tokens, default=0),
        "over_limit": sum(count > encoder.limit for count in tokens),
    }
    encoders = [encoder, *(view.encoder for view in further)]
    return make_features(
        memes,
        output,
        open_model or encoder.load,
        encoder.fingerprint(),
        lambda meme, size: encoder.expected_length(length[meme.id], size),
        views=further,
        label_classes=label_classes,
        batch_size=batch_size,
        shard_size=shard_size,
        num_workers=num_workers,
        description="Encoding",
        engine=engine,
        working=partial(_side_by_side, [one for one in encoders if isinstance(one, Encoder)], batch_size),
        split=split,
        source=source,
        encoder=encoder.settings.to_dict(),
        captions=captions,
    )


@contextmanager
def _side_by_side(encoders: Sequence[Encoder], batch_size: int) -> Iterator[None]:
    """On a CPU, let parts of a batch run beside each other instead of each operation on all cores.

    The threads of one operation wait for each other at its end, again and again, and the workers that decode images
    take turns on the same cores; parts of a batch wait once.
    """
    threads = torch.get_num_threads()
    parts = 1
    if encoders and PartialState().device.type == "cpu":
        parts = max(min(threads, batch_size // _ROWS_OF_A_PART), 1)
        keep_freed_memory()
    for encoder in encoders:
        encoder.parts = parts
    torch.set_num_threads(threads // parts)
    try:
        yield
    finally:
        for encoder in encoders:
            encoder.parts = 1
        torch.set_num_threads(threads)


def describe_captions(captions: CaptionLengths, encoder: EncoderReference) -> str:
    """One sentence on captions that are too long for the encoder; empty when none is."""
    if not captions.over_limit:
        return ""
    done = "averaged over pieces" if encoder.long_text == "average" else "cut off"
    if done == "cut off" and encoder.embedder is None:
        done += " (--long-text average keeps all of them)"
    return (
        f"{captions.over_limit} captions have more than {captions.limit} tokens, the longest {captions.longest}; they "
        f"were {done}."
    )
