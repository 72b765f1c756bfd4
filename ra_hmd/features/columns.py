"""Features of memes from the columns that a model makes of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ra_hmd.core.problem import UNLABELLED
from ra_hmd.data.meme import Meme
from ra_hmd.features.model_protocol import FeatureModel
from ra_hmd.features.shard_files import MODALITIES, VIEW
from ra_hmd.features.store import Features


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
