"""The worker that makes shards of a feature store: it holds the model, on any engine (`ra_hmd.core.workers`)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset

from ra_hmd.core.errors import UserError
from ra_hmd.data.image_hashes import has_pdq, pdq_hash
from ra_hmd.data.images import content_hash, perceptual_hash
from ra_hmd.data.meme import Meme
from ra_hmd.features.columns import batch_columns, features_of_memes
from ra_hmd.features.model_protocol import FeatureModel
from ra_hmd.features.store import FeatureWriter
from ra_hmd.features.views import View, ViewedModel

_PREPARED_ROWS = 65536
"""Most memes that a model is prepared for at a time; fewer than a model remembers."""


@dataclass(frozen=True)
class Shard:
    """A unit of work: a file of the store.

    Attributes:
        index: Its index.
        memes: Its rows.
        lengths: Length of the input of each row; rows of similar length share a batch.
    """

    index: int
    memes: Sequence[Meme]
    lengths: Sequence[float]

    def __str__(self) -> str:
        return f"shard {self.index} (memes {self.memes[0].id!r} to {self.memes[-1].id!r})"


@dataclass(frozen=True)
class ShardRecipe:
    """Opens a `ShardWorker`, here or in another process.

    Attributes:
        open_model: Opens the model on a device.
        views: Further vectors of each meme.
        writer: Writes the store.
        label_classes: C, where a meme may have several labels.
        batch_size: Memes per call of the model.
        num_workers: Processes that decode images beside the worker.
        working: What surrounds the work of the process.
    """

    open_model: Callable[[torch.device], FeatureModel]
    views: Sequence[View]
    writer: FeatureWriter
    label_classes: int | None
    batch_size: int
    num_workers: int
    working: Callable[[], AbstractContextManager[None]]

    def __call__(self) -> "ShardWorker":
        device = PartialState().device
        return ShardWorker(self, ViewedModel.of(self.open_model(device), self.views, device))


class ShardWorker:
    """Makes shards with a model; images are decoded ahead across the shards that it is given together."""

    def __init__(self, recipe: ShardRecipe, model: FeatureModel) -> None:
        self._recipe, self._model = recipe, model

    def __call__(self, units: Iterator[Shard]) -> Iterator[tuple[int, int | None]]:
        """Make and write shards; results are their indices. See `Worker`."""
        shards = list(units)
        encoded = _EncodedMemes(self._model, [meme for shard in shards for meme in shard.memes])
        plan: list[list[int]] = []
        first = 0
        for shard in shards:
            plan += _batches(first, shard.lengths, self._recipe.batch_size)
            first += len(shard.memes)
        if plan:
            with self._recipe.working():
                yield from self._write(encoded, _load(encoded, plan, self._recipe.num_workers), shards)

    def _write(
        self,
        encoded: "_EncodedMemes",
        batches: Iterator[tuple[list[int], tuple[Any, dict[str, np.ndarray]] | UserError]],
        shards: Sequence[Shard],
    ) -> Iterator[tuple[int, int | None]]:
        pending: dict[int, dict[str, np.ndarray]] = {}
        todo = iter(shards)
        shard, first = next(todo), 0
        for rows, batch in batches:
            if isinstance(batch, UserError):
                raise batch
            inputs, hashes = batch
            arrays = batch_columns(self._model, inputs) | hashes
            pending |= {row: {name: array[i] for name, array in arrays.items()} for i, row in enumerate(rows)}
            if len(pending) < len(shard.memes):
                yield len(rows), None
                continue
            part = [pending[row] for row in range(first, first + len(pending))]
            columns = {name: np.stack([row[name] for row in part]) for name in part[0]}
            columns |= {name: columns[name].tolist() for name in ("pdqs", "contents") if name in columns}
            seconds = self._model.take_seconds() if isinstance(self._model, ViewedModel) else {}
            features = features_of_memes(shard.memes, columns, self._recipe.label_classes)
            self._recipe.writer.write(shard.index, features, seconds)
            yield len(rows), shard.index
            first, pending = first + len(part), {}
            shard = next(todo, shard)


def _batches(first: int, lengths: Sequence[float], batch_size: int) -> Iterator[list[int]]:
    """The rows of a shard, numbered from `first` on, in batches of similar length."""
    rows = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(rows), batch_size):
        yield [first + row for row in rows[start : start + batch_size]]


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
) -> Iterator[tuple[list[int], tuple[Any, dict[str, np.ndarray]] | UserError]]:
    """Batches of a plan: the rows, with what `_EncodedMemes.collate` makes of them.

    The model is prepared for a part of the plan at a time, before the worker processes of that part start, because they
    have no device and see what the model knows then.
    """
    size = max(_PREPARED_ROWS // max(map(len, plan)), 1)
    for start in range(0, len(plan), size):
        part = plan[start : start + size]
        encoded.model.prepare([encoded.memes[row] for rows in part for row in rows])
        loader = DataLoader(encoded, batch_sampler=part, num_workers=num_workers, collate_fn=encoded.collate)
        yield from zip(part, loader, strict=True)
