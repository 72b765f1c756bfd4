"""The file with the cluster of each training meme."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ra_hmd.core.artifacts import atomic_path
from ra_hmd.data.text import well_formed
from ra_hmd.features.store import Features
from ra_hmd.models.cluster_assignment import Assignment

ASSIGNMENTS = "assignments.parquet"


def write_assignments(path: Path, features: Features, assigned: Assignment) -> None:
    """Write one row per meme, in the order of the store."""
    margin = pa.array(assigned.margin, pa.float64(), mask=~np.isfinite(assigned.margin))  # none with one cluster
    columns = {
        "id": pa.array([well_formed(name) for name in features.ids], pa.string()),
        "content": pa.array(features.contents or [""] * len(features), pa.string()),
        "cluster": pa.array(assigned.cluster, pa.int64()),
        "distance": pa.array(assigned.distance, pa.float64()),
        "margin": margin,
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")
