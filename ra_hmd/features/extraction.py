"""Extraction of features with any model: sharded, resumable, on as many processes as torchrun
starts, or on the workers of a Ray cluster."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ra_hmd.core.artifacts import plain, sha256_bytes
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.storage import as_path, over_places
from ra_hmd.core.workers import WorkerSettings, run_units
from ra_hmd.core.writer_lock import only_writer_of
from ra_hmd.data.images import file_digest, image_size
from ra_hmd.data.meme import Meme
from ra_hmd.features.model_protocol import FeatureModel
from ra_hmd.features.shards import Shard, ShardRecipe
from ra_hmd.features.store import FeatureWriter, digest_of
from ra_hmd.features.views import View


def make_features(
    memes: list[Meme],
    output: str | Path,
    open_model: Callable[[torch.device], FeatureModel],
    fingerprint: dict[str, Any],
    length: Callable[[Meme, tuple[int, int]], float],
    *,
    views: Sequence[View] = (),
    label_classes: int | None = None,
    batch_size: int = 16,
    shard_size: int = 512,
    num_workers: int = 2,
    description: str = "Extracting",
    engine: WorkerSettings | None = None,
    working: Callable[[], AbstractContextManager[None]] = nullcontext,
    **content: Any,
) -> Path:
    """Write a feature store of `memes`; called again after a stop, it makes only what is missing. In a finished store,
    shards whose images or records have changed since are made again.

    Under torchrun each rank takes every WORLD_SIZE-th shard.

    Args:
        memes: The data, in the order of the store.
        output: Folder of the store.
        open_model: Opens the model on a device; called only when there is something to do.
        fingerprint: What a feature depends on, apart from the memes; their digest is added as `data`.
        length: Length of the input, from the meme and its image's width and height; memes of similar length share a
            batch.
        views: Further vectors of each meme.
        label_classes: C, where a meme may have several labels; None where it has one.
        batch_size: Memes per call of the model.
        shard_size: Rows per file; a stop loses at most one unfinished shard per rank or worker.
        num_workers: Processes that decode images beside each rank or worker.
        description: Text of the progress bar.
        engine: Where shards are made; default is this process.
        working: What surrounds the work of each process that makes shards.
        content: Further fields of the manifest.

    Returns:
        `output`.

    Raises:
        UserError: unreadable images (all listed before the model is opened), labels of another kind, or `output` holds
            other features.
    """
    engine = engine or WorkerSettings()
    state = PartialState() if engine.engine == "local" else None  # the driver of a cluster has no device
    rank, ranks = (state.process_index, state.num_processes) if state is not None else (0, 1)
    check_labels(memes, label_classes)
    lengths = [length(meme, size) for meme, size in zip(memes, _image_sizes(memes), strict=True)]
    rows = _digests(memes)
    if views:
        content["views"] = {view.name: view.describe() for view in views}
    with only_writer_of(output) if rank == 0 else nullcontext():
        with state.main_process_first() if state is not None else nullcontext():  # it removes outdated shards
            writer = FeatureWriter(
                output, fingerprint, len(memes), shard_size, ids=[meme.id for meme in memes], digests=rows, **content
            )
            writer.begin()
        bounds = {shard: writer.bounds(shard) for shard in writer.missing() if shard % ranks == rank}
        if bounds:
            recipe = ShardRecipe(open_model, views, writer, label_classes, batch_size, num_workers, working)
            units = (Shard(shard, memes[first:end], lengths[first:end]) for shard, (first, end) in bounds.items())
            total = sum(end - first for first, end in bounds.values())
            done = run_units(recipe, units, engine, description=description, total=total, noun="memes", show=rank == 0)
            for _ in done:
                pass
        if not writer.missing():  # whichever rank is last finds nothing missing
            writer.finish()
    return as_path(output)


def _image_sizes(memes: list[Meme]) -> list[tuple[int, int]]:
    """Width and height of each image. Raises `UserError` for images that cannot be opened."""
    sizes = list(over_places(image_size, [meme.path for meme in memes]))
    bad = [f"meme {m.id!r}: image {m.path} is missing or not an image" for m, size in zip(memes, sizes, strict=True)
           if size == (0, 0)]  # fmt: skip
    raise_all(bad, "Images that cannot be opened; mend their paths or remove the records")
    return sizes


def check_labels(memes: list[Meme], classes: int | None) -> None:
    """Raise `UserError` unless labels are sets of C classes, or with `classes` None single classes."""
    wanted = int if classes is None else tuple
    other = next((meme for meme in memes if meme.label is not None and not isinstance(meme.label, wanted)), None)
    if other is not None:
        expected = "one class index" if classes is None else f"a list of some of {classes} class indices"
        raise UserError(
            f"Meme {other.id!r} has the label {other.label}, {expected} is expected; of an imported folder choose the "
            "labels with --task."
        )
    if classes is not None:
        past = [f"meme {meme.id!r}: {meme.label}" for meme in memes
                if isinstance(meme.label, tuple) and max(meme.label, default=0) >= classes]  # fmt: skip
        raise_all(past, f"Labels that are not among {classes} classes")


def fingerprint_memes(memes: list[Meme]) -> str:
    """Digest of the records and of the images' files."""
    return digest_of(_digests(memes))


def _digests(memes: list[Meme]) -> list[str]:
    files = over_places(file_digest, [meme.path for meme in memes])
    return [_digest(meme, file) for meme, file in zip(memes, files, strict=True)]


def _digest(meme: Meme, file: str) -> str:
    extras = json.dumps(plain(meme.extras), sort_keys=True)
    return sha256_bytes(repr((meme.id, meme.text, meme.label, extras, file)).encode())
