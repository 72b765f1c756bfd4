"""Conversion between official feature files (`.pt` dictionaries of ids, feats and labels) and feature stores."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ra_hmd.core.artifacts import atomic_path, sha256_file
from ra_hmd.core.errors import UserError, first_line
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.features.store import Features, check_unique, read_features, write_features

_KEYS = ("ids", "feats", "labels")


def import_pt(path: str | Path, output: str | Path) -> Features:
    """Convert an official `.pt` file into a feature store.

    Args:
        path: A dictionary with `ids` (N numbers or strings), `feats` (N × H, the hidden states before the head) and
            `labels` (N class indices, -1 for none). Each may be a tensor, a list, or a list of batches.
        output: Folder of the feature store.

    Returns:
        The features that were written.

    Raises:
        UserError: no such file, not such a dictionary, lengths that differ, doubled ids, values that are not finite.
    """
    path = Path(path)
    content = _load(path)
    ids = [_id(value, path) for value in _flat(content["ids"])]
    hidden = _matrix(content["feats"], path)
    labels = _labels(content["labels"], path)
    if not len(ids) == len(hidden) == len(labels):
        raise UserError(
            f"{path} has {len(ids)} ids, {len(hidden)} rows of feats and {len(labels)} labels; they must agree."
        )
    if not ids:
        raise UserError(f"{path} has no rows.")
    check_unique(ids, path)
    bad = np.flatnonzero(~np.isfinite(hidden).all(axis=1))
    if len(bad):
        raise UserError(f"{path}: {len(bad)} rows of feats are not finite, the first is {ids[bad[0]]!r}.")
    features = Features(ids, labels, hidden)
    write_features(output, features, {"data": {"official_pt_sha256": sha256_file(path)}}, imported_from=str(path))
    return features


def export_pt(store: str | Path, path: str | Path) -> None:
    """Write a store's ids, hidden states and labels as an official `.pt` dictionary.

    The ids become a list of strings, the hidden states a float32 tensor [N, H], the labels an int64 tensor [N]
    (-1 for none).
    """
    features = read_features(store)
    content = {
        "ids": list(features.ids),
        "feats": torch.tensor(features.hidden, dtype=torch.float32),
        "labels": torch.tensor(features.labels, dtype=torch.int64),
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; give an official .pt feature file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read safely: it must be a torch file of tensors, lists, numbers and strings only "
            f"({first_line(error)})."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; a dictionary with {', '.join(_KEYS)} is needed.")
    missing = [key for key in _KEYS if key not in content]
    if missing:
        known = ", ".join(map(str, content)) or "nothing"
        raise UserError(f"{path} lacks {', '.join(missing)}; it has {known}.")
    return content


def _flat(value: Any) -> list[Any]:
    """The scalars inside nested lists and tensors, in order."""
    if isinstance(value, Tensor):
        return value.reshape(-1).tolist()
    if isinstance(value, list | tuple):
        return [item for part in value for item in _flat(part)]
    return [value]


def _id(value: Any, path: Path) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{path}: id {value!r} is a {type(value).__name__}; ids are strings or whole numbers.")
    return str(value)


def _matrix(value: Any, path: Path) -> np.ndarray:
    """float32 [N, H] from a tensor [N, H] or a list of tensors [H] or [b, H]."""
    parts = list(value) if isinstance(value, list | tuple) else [value]
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise UserError(f"{path}: feats must be a tensor of N rows, or a list of such tensors.")
    shapes = sorted({tuple(part.shape) for part in parts})
    rows = [part[None] if part.ndim == 1 and isinstance(value, list | tuple) else part for part in parts]
    if any(part.ndim != 2 for part in rows) or len({part.shape[1] for part in rows}) != 1:
        raise UserError(f"{path}: feats have shapes {shapes[:5]}; N rows of one width H are needed.")
    return torch.cat([part.float() for part in rows]).numpy()


def _labels(value: Any, path: Path) -> np.ndarray:
    labels = np.array([UNLABELLED if item is None else item for item in _flat(value)])
    if not np.issubdtype(labels.dtype, np.number) or (labels != np.floor(labels)).any() or (labels < UNLABELLED).any():
        raise UserError(f"{path}: labels must be class indices (0, 1, …), or -1 for none.")
    return labels.astype(np.int64)
