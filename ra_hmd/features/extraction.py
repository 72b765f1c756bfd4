"""Extraction of features with any model: sharded, resumable, on as many processes as torchrun starts."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset

from ra_hmd.core.artifacts import plain, sha256_bytes
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.core.progress import track
from ra_hmd.data.image_hashes import has_pdq, pdq_hash
from ra_hmd.data.images import content_hash, file_digest, image_size, perceptual_hash
from ra_hmd.data.meme import Meme
from ra_hmd.features.model_protocol import FeatureModel
from ra_hmd.features.store import MODALITIES, VIEW, Features, FeatureWriter, digest_of
from ra_hmd.features.views import View, ViewedModel

_PREPARED_ROWS = 65536
"""Most memes that a model is prepared for at a time; fewer than a model remembers."""


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
        shard_size: Rows per file; a stop loses at most one unfinished shard per rank.
        num_workers: Processes that decode images beside each rank.
        description: Text of the progress bar.
        content: Further fields of the manifest.

    Returns:
        `output`.

    Raises:
        UserError: unreadable images (all listed before the model is opened), labels of another kind, or `output` holds
            other features.
    """
    state = PartialState()
    check_labels(memes, label_classes)
    lengths = [length(meme, size) for meme, size in zip(memes, _image_sizes(memes), strict=True)]
    rows = [_digest(meme) for meme in memes]
    if views:
        content["views"] = {view.name: view.describe() for view in views}
    with state.main_process_first():  # it removes outdated shards before another rank looks
        writer = FeatureWriter(
            output, fingerprint, len(memes), shard_size, ids=[meme.id for meme in memes], digests=rows, **content
        )
        writer.begin()
    shards = [shard for shard in writer.missing() if shard % state.num_processes == state.process_index]
    if shards:
        encoded = _EncodedMemes(ViewedModel.of(open_model(state.device), views, state.device), memes)
        plan = [batch for shard in shards for batch in _batches(writer.bounds(shard), lengths, batch_size)]
        batches = _load(encoded, plan, num_workers)
        shown = track(batches, description, sum(map(len, plan)), "memes", show=state.is_main_process)
        _write_shards(encoded, shown, label_classes, writer, shards)
    if not writer.missing():  # whichever rank is last finds nothing missing
        writer.finish()
    return Path(output)


def _image_sizes(memes: list[Meme]) -> list[tuple[int, int]]:
    """Width and height of each image. Raises `UserError` for images that cannot be opened."""
    sizes = [image_size(meme.path) for meme in memes]
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
    return digest_of(map(_digest, memes))


def _digest(meme: Meme) -> str:
    extras = json.dumps(plain(meme.extras), sort_keys=True)
    return sha256_bytes(repr((meme.id, meme.text, meme.label, extras, file_digest(meme.path))).encode())


def _batches(bounds: tuple[int, int], lengths: list[float], batch_size: int) -> Iterator[list[int]]:
    """The rows of a shard in batches of similar length."""
    rows = sorted(range(*bounds), key=lengths.__getitem__)
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


class _EncodedMemes(Dataset):
    """Decodes, encodes and collates in the loader's worker processes.

    Problems of a meme are returned, not raised: an exception would reach the user as the worker's traceback.
    """

    def __init__(self, model: FeatureModel, memes: list[Meme]) -> None:
        self.model, self.memes = model, memes

    def __len__(self) -> int:
        return len(self.memes)

    def __getitem__(self, row: int) -> tuple[Any, int, str, str] | UserError:
        meme = self.memes[row]
        try:
            image = meme.load_image()
            return (
                self.model.encode(meme.caption, image),
                perceptual_hash(image) or 0,
                pdq_hash(image),
                content_hash(image, meme.caption),
            )
        except ValueError as error:  # a UserError, or an error of the model's own code
            return UserError(f"meme {meme.id!r}: {error}")

    def collate(self, rows: list[Any]) -> tuple[Any, dict[str, np.ndarray]] | UserError:
        """A batch and the hashes of its images and memes, or the first problem among its rows."""
        problem = next((row for row in rows if isinstance(row, UserError)), None)
        if problem is not None:
            return problem
        encoded, hashes, pdqs, contents = zip(*rows, strict=True)
        known = {"image_hashes": np.array(hashes, dtype=np.uint64), "contents": np.array(contents)}
        if has_pdq():
            known["pdqs"] = np.array(pdqs)
        return self.model.collate(list(encoded)), known


def _load(
    encoded: _EncodedMemes, plan: Sequence[list[int]], num_workers: int
) -> Iterator[tuple[int, tuple[list[int], Any]]]:
    """Batches of a plan: number of rows, and the rows with what `_EncodedMemes.collate` makes of them.

    The model is prepared for a part of the plan at a time, before the worker processes of that part start, because they
    have no device and see what the model knows then.
    """
    size = max(_PREPARED_ROWS // max(map(len, plan)), 1)
    for start in range(0, len(plan), size):
        part = plan[start : start + size]
        encoded.model.prepare([encoded.memes[row] for rows in part for row in rows])
        loader = DataLoader(encoded, batch_sampler=part, num_workers=num_workers, collate_fn=encoded.collate)
        for rows, batch in zip(part, loader, strict=True):
            yield len(rows), (rows, batch)


def _write_shards(
    encoded: _EncodedMemes,
    batches: Iterator[tuple[list[int], tuple[Any, dict[str, np.ndarray]] | UserError]],
    classes: int | None,
    writer: FeatureWriter,
    shards: list[int],
) -> None:
    pending: dict[int, dict[str, np.ndarray]] = {}
    todo = iter(shards)
    shard = next(todo)
    for rows, batch in batches:
        if isinstance(batch, UserError):
            raise batch
        inputs, hashes = batch
        arrays = batch_columns(encoded.model, inputs) | hashes
        pending |= {row: {name: array[i] for name, array in arrays.items()} for i, row in enumerate(rows)}
        first, last = writer.bounds(shard)
        if len(pending) == last - first:
            part = [pending[row] for row in range(first, last)]
            columns = {name: np.stack([row[name] for row in part]) for name in part[0]}
            columns |= {name: columns[name].tolist() for name in ("pdqs", "contents") if name in columns}
            seconds = encoded.model.take_seconds() if isinstance(encoded.model, ViewedModel) else {}
            writer.write(shard, features_of_memes(encoded.memes[first:last], columns, classes), seconds)
            pending = {}
            shard = next(todo, shard)


def batch_columns(model: FeatureModel, batch: Any) -> dict[str, np.ndarray]:
    """`FeatureModel.columns` as float32 arrays."""
    return {name: tensor.float().cpu().numpy() for name, tensor in model.columns(batch).items()}


def features_of_memes(memes: Sequence[Meme], columns: Mapping[str, Any], classes: int | None = None) -> Features:
    """Features of N memes, in the order of the rows, from columns [N, …] (see `features_from_columns`).

    Args:
        memes: The memes.
        columns: Fields of `Features`, the two of `MODALITIES`, and `view_NAME` of further views.
        classes: C, where labels are sets of classes.
    """
    texts, extras = [meme.caption for meme in memes], [meme.extras for meme in memes]
    return features_from_columns([meme.id for meme in memes], texts, label_array(memes, classes), columns, extras)


def features_from_columns(
    ids: list[str],
    texts: list[str],
    labels: np.ndarray,
    columns: Mapping[str, Any],
    extras: list[dict[str, Any]] | None = None,
) -> Features:
    """Features of N memes from their ids, captions and labels, and columns [N, …] as `batch_columns` names them.

    Args:
        ids: Ids of the memes.
        texts: Their captions.
        labels: See `label_array`.
        columns: Fields of `Features`, the two of `MODALITIES`, and `view_NAME` of further views.
        extras: Further fields of each meme.
    """
    columns = dict(columns)
    parts = [columns.pop(name) for name in MODALITIES if name in columns]
    modalities = None
    if parts:
        columns["hidden"] = np.concatenate(parts, axis=1)
        modalities = tuple(part.shape[1] for part in parts)
    views = {name: columns.pop(name) for name in list(columns) if name.startswith(VIEW)}
    views = {name.removeprefix(VIEW): view for name, view in views.items()}
    return Features(ids, labels, texts=texts, extras=extras, modalities=modalities, views=views, **columns)


def label_array(memes: Sequence[Meme], classes: int | None = None) -> np.ndarray:
    """Labels int64 [N], or of sets of C classes [N, C] of 0 and 1; `UNLABELLED` where a meme has none."""
    if classes is None:
        return np.array([UNLABELLED if meme.label is None else meme.label for meme in memes], dtype=np.int64)
    labels = np.zeros((len(memes), classes), dtype=np.int64)
    for row, meme in enumerate(memes):
        if isinstance(meme.label, tuple):
            labels[row, list(meme.label)] = 1
        else:
            labels[row] = UNLABELLED
    return labels
