"""Feature stores: sharded Parquet with a manifest, written atomically, resumable."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ra_hmd.errors import UserError, raise_all
from ra_hmd.manifest import atomic_path, plain, read_json, run_manifest, write_json

STORE_MANIFEST = "manifest.json"
UNLABELLED = -1
_MATRICES = ("hidden", "embedding", "lrc_logit", "lmh_score")


@dataclass(frozen=True)
class Features:
    """Features of N memes, in the order of the data.

    Attributes:
        ids: N ids.
        labels: int64 [N], class index or `UNLABELLED`.
        hidden: float32 [N, H], the LMM's hidden state at the last prompt token.
        embedding: float32 [N, D], the head's retrieval embedding, or None without a head.
        lrc_logit: float32 [N, C], the head's logits, or None without a head.
        lmh_score: float32 [N, C], p(positive answer) by the LM, or None where unknown.
        manifest: The store's manifest ({} for features that were not read from a store).
    """

    ids: list[str]
    labels: np.ndarray
    hidden: np.ndarray
    embedding: np.ndarray | None = None
    lrc_logit: np.ndarray | None = None
    lmh_score: np.ndarray | None = None
    manifest: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("ids", "labels", *_MATRICES)
                   if getattr(self, name) is not None}  # fmt: skip
        if len(set(lengths.values())) > 1:
            raise ValueError(f"features of different lengths: {lengths}")

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: np.ndarray) -> "Features":
        """The given rows (indices [M]), in the given order."""
        matrices = {name: None if getattr(self, name) is None else getattr(self, name)[rows] for name in _MATRICES}
        return Features([self.ids[row] for row in rows], self.labels[rows], **matrices, manifest=self.manifest)

    def require_labels(self, place: str | Path) -> None:
        """Raise `UserError` unless every row has a label."""
        missing = int((self.labels == UNLABELLED).sum())
        if missing:
            raise UserError(f"{place}: {missing} of {len(self)} rows have no label; training and evaluation need one.")


class FeatureWriter:
    """Writes a store shard by shard. A shard that exists is complete; several processes may write different ones.

    Args:
        folder: The store.
        fingerprint: What the features depend on; a store made with another one is refused, not mixed.
        rows: N, the number of memes.
        shard_size: Rows per shard.
        content: Further manifest fields.

    Raises:
        UserError: the folder holds a store with another fingerprint, row count or shard size.
    """

    def __init__(self, folder: str | Path, fingerprint: dict[str, Any], rows: int, shard_size: int, **content: Any):
        self.folder = Path(folder)
        self.rows, self.shard_size = rows, shard_size
        self.shards = -(-rows // shard_size)
        self.fingerprint = plain(fingerprint)
        self._content = content
        path = self.folder / STORE_MANIFEST
        if path.is_file():
            self._check_same(read_json(path))
        elif self.folder.is_dir() and any(self.folder.glob("part-*.parquet")):
            raise UserError(f"{folder} holds Parquet files without a manifest; choose another output folder.")

    def _check_same(self, manifest: dict[str, Any]) -> None:
        old = {**manifest.get("fingerprint", {}), "rows": manifest.get("rows"), "shard_size": manifest["shard_size"]}
        new = {**self.fingerprint, "rows": self.rows, "shard_size": self.shard_size}
        differing = [f"{key}: the store has {old.get(key)!r}, this run has {new.get(key)!r}"
                     for key in sorted({*old, *new}) if old.get(key) != new.get(key)]  # fmt: skip
        raise_all(differing, f"{self.folder} was made from something else; choose another output folder or remove it")

    def begin(self) -> None:
        """Write the manifest, marked incomplete, unless a complete one of this fingerprint is there."""
        path = self.folder / STORE_MANIFEST
        if not path.is_file():
            self._write_manifest(complete=False)

    def _write_manifest(self, *, complete: bool) -> None:
        write_json(
            self.folder / STORE_MANIFEST,
            run_manifest(
                "features",
                fingerprint=self.fingerprint,
                rows=self.rows,
                shard_size=self.shard_size,
                shards=self.shards,
                complete=complete,
                **plain(self._content),
            ),
        )

    def shard_path(self, shard: int) -> Path:
        """Path of a shard's file."""
        return self.folder / f"part-{shard:05d}.parquet"

    def missing(self) -> list[int]:
        """Indices of the shards that are still to be written."""
        return [shard for shard in range(self.shards) if not self.shard_path(shard).is_file()]

    def bounds(self, shard: int) -> tuple[int, int]:
        """First row and one past the last row of a shard."""
        return shard * self.shard_size, min((shard + 1) * self.shard_size, self.rows)

    def write(self, shard: int, features: Features) -> None:
        """Write one shard, atomically."""
        first, last = self.bounds(shard)
        if len(features) != last - first:
            raise ValueError(f"shard {shard} needs {last - first} rows, got {len(features)}")
        labels = pa.array(features.labels, pa.int64(), mask=features.labels == UNLABELLED)
        columns = {"id": pa.array(features.ids, pa.string()), "label": labels}
        for name in _MATRICES:
            matrix = getattr(features, name)
            if matrix is not None:
                values = pa.array(np.ascontiguousarray(matrix, dtype=np.float32).reshape(-1))
                columns[name] = pa.FixedSizeListArray.from_arrays(values, matrix.shape[1])
        with atomic_path(self.shard_path(shard)) as temporary:
            pq.write_table(pa.table(columns), temporary, compression="zstd")

    def finish(self) -> None:
        """Mark the store complete.

        Raises:
            UserError: a shard is missing.
        """
        if self.missing():
            raise UserError(f"{self.folder}: shards {self.missing()} are missing; run the same command again.")
        self._write_manifest(complete=True)


def write_features(folder: str | Path, features: Features, fingerprint: dict[str, Any], **content: Any) -> None:
    """Write features that are already in memory as a complete one-shard store."""
    writer = FeatureWriter(folder, fingerprint, len(features), max(len(features), 1), **content)
    writer.begin()
    writer.write(0, features)
    writer.finish()


def read_features(folder: str | Path) -> Features:
    """Read a complete store.

    Raises:
        UserError: no store there, an incomplete one, or one with doubled ids.
    """
    folder = Path(folder)
    manifest = read_json(folder / STORE_MANIFEST)
    if not manifest.get("complete"):
        raise UserError(f"{folder} is incomplete: run its `ra-hmd extract` command again, it continues.")
    if not manifest.rows:
        raise UserError(f"{folder} has no rows.")
    paths = [folder / f"part-{shard:05d}.parquet" for shard in range(manifest.shards)]
    table = pa.concat_tables(pq.read_table(path) for path in paths)
    if table.num_rows != manifest.rows:
        raise UserError(f"{folder} has {table.num_rows} rows, its manifest says {manifest.rows}; extract it again.")
    ids = table["id"].to_pylist()
    doubled = [f"id {name!r} occurs {count} times" for name, count in Counter(ids).items() if count > 1]
    raise_all(doubled, f"{folder}: ids must be unique")
    labels = table["label"].fill_null(UNLABELLED).to_numpy()
    matrices = {name: _matrix(table[name]) for name in _MATRICES if name in table.column_names}
    return Features(ids, labels, **matrices, manifest=manifest)


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
    return flat.reshape(len(column), -1)
