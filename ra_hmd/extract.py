"""Dump an LMM's features of memes: sharded, resumable, over as many processes as torchrun starts."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ra_hmd.data.images import image_size, load_image, perceptual_hash
from ra_hmd.data.record import Meme
from ra_hmd.errors import UserError, raise_all
from ra_hmd.features.store import Features, FeatureWriter
from ra_hmd.models.checkpoint import DType, MemeModel, Run
from ra_hmd.models.classifier import ClassifierOutput
from ra_hmd.problem import UNLABELLED
from ra_hmd.progress import track


def extract(
    run: Run,
    memes: list[Meme],
    output: str | Path,
    *,
    split: str = "",
    label_classes: int | None = None,
    batch_size: int = 16,
    shard_size: int = 512,
    num_workers: int = 2,
    dtype: DType = "auto",
    padding_side: Literal["left", "right"] = "left",
) -> Path:
    """Write a feature store of `memes`. Run again after a stop, it does only what is missing.

    Under torchrun each rank takes every WORLD_SIZE-th shard. What a row holds does not depend on batch size, number of
    ranks or padding side, up to rounding.

    Args:
        run: The model.
        memes: The data, in the order of the store.
        output: Folder of the store.
        split: Recorded in the manifest.
        label_classes: C, where a meme may have several labels; default is that of a multi-label run.
        batch_size: Memes per forward pass; memes of similar length share one.
        shard_size: Rows per file; a stop loses at most one unfinished shard per rank.
        num_workers: Processes that decode images beside each rank.
        dtype: Of the computation; `auto` is that of the model's weights.
        padding_side: Of the batches.

    Raises:
        UserError: unreadable images (all listed before the model is loaded), labels of another kind, or `output` holds
            other features.
    """
    state = PartialState()
    classes = _label_classes(run, memes, label_classes)
    sizes = [image_size(meme.image) for meme in memes]
    bad = [f"meme {m.id!r}: image {m.image} is missing or not an image" for m, size in zip(memes, sizes, strict=True)
           if size == (0, 0)]  # fmt: skip
    raise_all(bad, "Images that cannot be opened; mend their paths or remove the records")
    fingerprint = run.fingerprint() | {"dtype": dtype, "data": fingerprint_memes(memes)}
    writer = FeatureWriter(output, fingerprint, len(memes), shard_size, split=split, run=str(run.folder))
    writer.begin()
    shards = [shard for shard in writer.missing() if shard % state.num_processes == state.process_index]
    if shards:
        model = MemeModel(run, state.device, dtype, padding_side)
        plan = [batch for shard in shards for batch in _batches(writer, shard, memes, sizes, run, batch_size)]
        _write_shards(model, memes, classes, writer, shards, plan, num_workers, show=state.is_main_process)
    if not writer.missing():  # whichever rank is last finds nothing missing
        writer.finish()
    return Path(output)


def _label_classes(run: Run, memes: list[Meme], given: int | None) -> int | None:
    """C, where labels are sets of classes; None where they are single classes.

    Raises:
        UserError: sets in some place where single classes belong, or the other way round, or classes past C.
    """
    problem = run.settings.problem
    classes = given or (problem.outputs if problem.kind == "multi_label" else None)
    if problem.kind == "multi_label" and classes != problem.outputs:
        raise UserError(f"The data has {classes} classes, and the run in {run.folder} {problem.outputs}.")
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
    return classes


def fingerprint_memes(memes: list[Meme]) -> str:
    """Digest of ids, captions, labels and the images' names and sizes in bytes."""
    digest = hashlib.sha256()
    for meme in memes:
        size = meme.image.stat().st_size
        digest.update(repr((meme.id, meme.text, meme.label, meme.image.name, size)).encode())
    return digest.hexdigest()


def _batches(
    writer: FeatureWriter, shard: int, memes: list[Meme], sizes: list[tuple[int, int]], run: Run, batch_size: int
) -> Iterator[list[int]]:
    """Rows of a shard in batches of similar length (image tokens go with pixels, a word is about a token)."""

    def length(row: int) -> float:
        width, height = sizes[row]
        return min(width * height, run.settings.image_max_pixels) / 784 + len(memes[row].text) / 4

    rows = sorted(range(*writer.bounds(shard)), key=length)
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


class _EncodedMemes(Dataset):
    """Decodes, tokenises and collates in the loader's worker processes.

    What is wrong with a meme travels as a value: an exception would reach the user as the worker's traceback.
    """

    def __init__(self, model: MemeModel, memes: list[Meme]) -> None:
        self._model, self._memes = model, memes

    def __len__(self) -> int:
        return len(self._memes)

    def __getitem__(self, row: int) -> tuple[dict[str, Any], int] | UserError:
        meme = self._memes[row]
        try:
            image = load_image(meme.image)
            return self._model.encode(meme.text, image), perceptual_hash(image) or 0
        except ValueError as error:  # a UserError, or what the host's plugin says of the image
            return UserError(f"meme {meme.id!r}: {error}")

    def collate(self, rows: list[Any]) -> tuple[dict[str, Tensor], list[int]] | UserError:
        """A batch and the hashes of its images, or the first problem among its rows."""
        problem = next((row for row in rows if isinstance(row, UserError)), None)
        if problem is not None:
            return problem
        encoded, hashes = zip(*rows, strict=True)
        return self._model.collate(list(encoded)), list(hashes)


def _write_shards(
    model: MemeModel,
    memes: list[Meme],
    classes: int | None,
    writer: FeatureWriter,
    shards: list[int],
    plan: list[list[int]],
    num_workers: int,
    *,
    show: bool,
) -> None:
    encoded = _EncodedMemes(model, memes)
    loader = DataLoader(encoded, batch_sampler=plan, num_workers=num_workers, collate_fn=encoded.collate)
    pending: dict[int, dict[str, np.ndarray]] = {}
    todo = iter(shards)
    shard = next(todo)
    batches = ((len(rows), (rows, batch)) for rows, batch in zip(plan, loader, strict=True))
    for rows, batch in track(batches, "Extracting", sum(map(len, plan)), "memes", show=show):
        if isinstance(batch, UserError):
            raise batch
        inputs, hashes = batch
        pending |= _rows(rows, model.score(inputs), hashes, binary=model.run.settings.problem.kind == "binary")
        first, last = writer.bounds(shard)
        if len(pending) == last - first:
            writer.write(shard, _features(memes, classes, first, last, pending))
            pending = {}
            shard = next(todo, shard)


def _rows(
    rows: list[int], output: ClassifierOutput, hashes: list[int], *, binary: bool
) -> dict[int, dict[str, np.ndarray]]:
    columns = {"hidden": output.hidden}
    if output.answer_probs is not None:
        columns["lmh_score"] = output.answer_probs[:, 1:] if binary else output.answer_probs
    if output.logits is not None:
        columns |= {"embedding": output.embedding, "lrc_logit": output.logits}
    arrays = {name: tensor.float().cpu().numpy() for name, tensor in columns.items()}
    arrays["image_hashes"] = np.array(hashes, dtype=np.uint64)
    return {row: {name: array[i] for name, array in arrays.items()} for i, row in enumerate(rows)}


def _label_array(memes: list[Meme], classes: int | None) -> np.ndarray:
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


def _features(
    memes: list[Meme], classes: int | None, first: int, last: int, rows: dict[int, dict[str, np.ndarray]]
) -> Features:
    names = rows[first].keys()
    part = memes[first:last]
    matrices = {name: np.stack([rows[row][name] for row in range(first, last)]) for name in names}
    texts, extras = [meme.text for meme in part], [meme.extras for meme in part]
    return Features([meme.id for meme in part], _label_array(part, classes), texts=texts, extras=extras, **matrices)
