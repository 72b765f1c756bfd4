"""Reading of the shards of a feature store.

Shapes: N rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ra_hmd.core.errors import UserError
from ra_hmd.core.storage import RemotePath

MATRICES = ("hidden", "embedding", "lrc_logit", "lmh_score")
"""Columns with a vector of each row."""
MODALITIES = ("image_features", "text_features")
"""Columns of an encoder's features in a store; side by side they are `Features.hidden`."""
VIEW = "view_"
"""What the names of the columns of further views begin with; see `Features.views`."""


def arrow_source(path: Path) -> Any:
    """What pyarrow reads a file from: a local path itself, of an object its content."""
    return pa.BufferReader(path.read_bytes()) if isinstance(path, RemotePath) else path


def read_parts(
    paths: Sequence[Path], rows: int, folder: Path
) -> tuple[pa.Table, dict[str, np.ndarray], tuple[int, ...]]:
    """Read shards one after the other, so that no matrix is in memory twice.

    Returns:
        The columns that hold one value per row; the matrices [N, …] of the others, of which the two of `MODALITIES` are
        joined as `hidden`; and the widths of those two, () without them.
    """
    narrow: list[pa.Table] = []
    matrices: dict[str, np.ndarray] = {}
    widths: tuple[int, ...] = ()
    first = 0
    for path in paths:
        part = pq.read_table(arrow_source(path))
        names = [name for name in part.column_names if name in (*MATRICES, *MODALITIES) or name.startswith(VIEW)]
        last = first + len(part)
        if last > rows:
            break
        found = {name: matrix_of(part[name]) for name in names}
        if not narrow:
            widths = tuple(found[name].shape[1] for name in MODALITIES if name in found)
            joined = {"hidden": (sum(widths), found[MODALITIES[0]].dtype)} if widths else {}
            shapes = {name: (one.shape[1], one.dtype) for name, one in found.items() if name not in MODALITIES} | joined
            matrices = {name: np.empty((rows, width), dtype) for name, (width, dtype) in shapes.items()}
        if widths:
            found["hidden"] = np.concatenate([found.pop(name) for name in MODALITIES], axis=1)
        for name, one in found.items():
            matrices[name][first:last] = one
        narrow.append(part.drop(names))
        first = last
    if first != rows or len(narrow) != len(paths):
        found_rows = sum(pq.read_metadata(arrow_source(path)).num_rows for path in paths)
        raise UserError(f"{folder} has {found_rows} rows, its manifest says {rows}; extract it again.")
    # A store that an earlier version began has shards without `content` or `pdq`.
    return pa.concat_tables(narrow, promote_options="default"), matrices, widths


def matrix_of(column: pa.ChunkedArray) -> np.ndarray:
    """The rows of a column of lists of equal length, [N, …]."""
    flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
    return flat.reshape(len(column), -1)
