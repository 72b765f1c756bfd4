"""Further views of the memes of a bank: which it keeps, and the vectors of new rows.

Shapes: M new rows, D_v width of a view.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import ViewDescription
from ra_hmd.retrieval.knn import as_matrix


def chosen_views(views: Mapping[str, np.ndarray], origins: Mapping[str, ViewDescription]) -> dict[str, ViewDescription]:
    """What the manifest of a new bank states of its views.

    Args:
        views: Vectors of the first rows.
        origins: What made them.
    """
    kept = {}
    for name, matrix in views.items():
        origin = origins.get(name, ViewDescription())
        width = np.asarray(matrix).shape[1]
        kept[name] = ViewDescription(fingerprint=origin.fingerprint, encoder=origin.encoder, width=width)
    return kept


def new_vectors(
    kept: Mapping[str, ViewDescription], views: Mapping[str, np.ndarray], rows: int, location: str | Path
) -> dict[str, np.ndarray]:
    """The vectors float32 [M, D_v] of M new rows in the views that a bank keeps; other views are left out.

    Args:
        kept: The views of the bank.
        views: Views of the new rows.
        rows: M.
        location: The bank, for messages.

    Raises:
        UserError: a missing view, vectors of another width or that are not finite.
    """
    missing = [name for name in kept if name not in views]
    if missing:
        remedy = " ".join(f"--views {_requested(name, kept[name])}" for name in missing)
        raise UserError(
            f"{location} keeps of each meme the views {', '.join(kept)}, and the new memes have no "
            f"{', '.join(missing)}. Make their features by `ra-hmd extract … {remedy}` (for an encoder's by `ra-hmd "
            "encode`), or create another bank without these views."
        )
    vectors = {name: as_matrix(views[name], f"view {name!r} of the new memes") for name in kept}
    if any(len(matrix) != rows for matrix in vectors.values()):
        raise ValueError(f"{rows} rows and views of {[len(matrix) for matrix in vectors.values()]}")
    raise_all(
        [f"view {name!r} has {matrix.shape[1]} dimensions, not {kept[name].width}." for name, matrix in vectors.items()
         if matrix.shape[1] != kept[name].width],
        f"The new memes do not fit {location}; make their features with the models of the bank",
    )  # fmt: skip
    return vectors


def _requested(name: str, view: ViewDescription) -> str:
    """The value of `--views` that makes a view."""
    return name if view.encoder is None else f"{name}={view.encoder.path}"
