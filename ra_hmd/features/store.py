"""Feature stores: sharded Parquet files with a manifest, written atomically and resumable."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ra_hmd.core.artifacts import atomic_path, plain, sha256_bytes
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import (
    DataSource,
    FeatureOrigin,
    StoreManifest,
    ViewDescription,
    read_manifest,
    write_manifest,
)
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.core.storage import as_path
from ra_hmd.features.shard_files import MATRICES, MODALITIES, VIEW, matrix_of, read_parts

STORE_MANIFEST = "manifest.json"
_SECONDS = b"ra_hmd_seconds"  # key of the file's metadata
_COLUMNS = ("ids", "labels", *MATRICES, "texts", "image_hashes", "contents", "extras")
_HASHED = "pdqs"  # not in `Features.content`: it depends on what is installed
NO_STORE = StoreManifest(kind="features")
"""The manifest of features that were not read from a store: it states nothing."""


@dataclass(frozen=True)
class Features:
    """Features of N memes, in the order of the data.

    Attributes:
        ids: Ids, N.
        labels: int64 [N], class index, or [N, C] of 0 and 1 where a meme may have several classes; `UNLABELLED` where
            unknown.
        hidden: float32 [N, H], the LMM's hidden state at the last prompt token; for an encoder the image features,
            then the text features.
        embedding: float32 [N, D], the head's retrieval embedding, or None without a head.
        lrc_logit: float32 [N, C], the head's logits, or None without a head.
        lmh_score: float32 [N, C], the LM's probability of the positive answer, or of each of C answers; None without.
        texts: N captions, or None where the store has none.
        image_hashes: uint64 [N], perceptual hashes of the images (0: an image of one colour, similar to none), or None
            where the store has none.
        pdqs: N PDQ hashes of the images (64 hexadecimal digits; empty: an image without structure), or None where the
            store has none.
        contents: N hashes of image and caption (`content_hash`; empty: unknown), or None where the store has none.
        extras: N dictionaries of further fields (fine labels, time), or None where the store has none.
        manifest: The store's manifest; one that states nothing for features that were not read from a store.
        modalities: Number of image features and of text features among the H columns, for an encoder; else None.
        views: Further vectors of the same memes by name, float32 [N, D_v]; see `StoreManifest.views`.
    """

    ids: list[str]
    labels: np.ndarray
    hidden: np.ndarray
    embedding: np.ndarray | None = None
    lrc_logit: np.ndarray | None = None
    lmh_score: np.ndarray | None = None
    texts: list[str] | None = None
    image_hashes: np.ndarray | None = None
    pdqs: list[str] | None = None
    contents: list[str] | None = None
    extras: list[dict[str, Any]] | None = None
    manifest: StoreManifest = NO_STORE
    modalities: tuple[int, int] | None = None
    views: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in (*_COLUMNS, _HASHED)
                   if getattr(self, name) is not None}  # fmt: skip
        lengths |= {f"{VIEW}{name}": len(view) for name, view in self.views.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"features of different lengths: {lengths}")
        if self.modalities is not None and sum(self.modalities) != self.hidden.shape[1]:
            raise ValueError(f"{self.modalities} image and text features are not {self.hidden.shape[1]} columns")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def content(self) -> str:
        """SHA-256 of all columns, which differs where features were replaced under an unchanged manifest."""
        parts: list[bytes | memoryview] = [json.dumps(self.modalities).encode()]
        for name in _COLUMNS:
            column = getattr(self, name)
            if isinstance(column, np.ndarray):
                parts += [f"{name} {column.dtype.str} {column.shape}".encode(), np.ascontiguousarray(column).data]
            else:
                parts.append(json.dumps([name, plain(column)], ensure_ascii=False).encode())
        for name, view in self.views.items():
            parts += [f"{VIEW}{name} {view.dtype.str} {view.shape}".encode(), np.ascontiguousarray(view).data]
        return sha256_bytes(*parts)

    def select(self, rows: np.ndarray) -> "Features":
        """Features of the given rows (indices [M]), in the given order."""
        chosen: dict[str, Any] = {}
        for name in (*_COLUMNS, _HASHED):
            column = getattr(self, name)
            chosen[name] = [column[row] for row in rows] if isinstance(column, list) else column
            if isinstance(column, np.ndarray):
                chosen[name] = column[rows]
        views = {name: view[rows] for name, view in self.views.items()}
        return Features(**chosen, manifest=self.manifest, modalities=self.modalities, views=views)


def _origin(stated: FeatureOrigin) -> dict[str, Any]:
    """Split, data set and task; not the place, which may change."""
    source = stated.source or DataSource()
    names = {"source.dataset": source.dataset, "source.split": source.split, "source.task": source.task}
    return {"split": stated.split, **names}


class FeatureWriter:
    """Writes a store shard by shard. A shard that exists is complete; several processes may write different ones.

    Args:
        folder: The store.
        fingerprint: What the features depend on; a store made with another one is refused, not mixed.
        rows: N, the number of memes.
        shard_size: Rows per shard.
        ids: N ids of the rows; with `digests`.
        digests: N digests of what the rows are made from, for `data` in the fingerprint. In a store of the same ids,
            shards with other digests are written again.
        content: Further manifest fields.

    Raises:
        UserError: the folder holds a store with another fingerprint, row count or shard size.
    """

    def __init__(
        self,
        folder: str | Path,
        fingerprint: dict[str, Any],
        rows: int,
        shard_size: int,
        *,
        ids: Sequence[str] = (),
        digests: Sequence[str] = (),
        **content: Any,
    ) -> None:
        self.folder = as_path(folder)
        self.rows, self.shard_size = rows, shard_size
        self.shards = -(-rows // shard_size)
        self.fingerprint = plain(fingerprint)
        self._content = content
        self._made_from: dict[str, Any] = {}
        self._outdated: list[int] = []
        if digests:
            self.fingerprint["data"] = digest_of(digests)
            parts = [digest_of(digests[slice(*self.bounds(shard))]) for shard in range(self.shards)]
            self._made_from = {"ids": digest_of(ids), "shard_data": parts}
        path = self.folder / STORE_MANIFEST
        if path.is_file():
            self._check_same(read_manifest(path, StoreManifest))
        elif self.folder.is_dir() and any(self.folder.glob("part-*.parquet")):
            raise UserError(f"{folder} holds Parquet files without a manifest; choose another output folder.")

    def _check_same(self, manifest: StoreManifest) -> None:
        known, parts = manifest.shard_data, self._made_from.get("shard_data")
        old: dict[str, Any] = {}
        new: dict[str, Any] = {}
        stated = dict(manifest.fingerprint)
        if known is not None and parts is not None and len(known) == len(parts):
            if manifest.ids == self._made_from["ids"]:
                self._outdated = [shard for shard in range(self.shards) if known[shard] != parts[shard]]
                stated["data"] = self.fingerprint["data"]
            # Rows with other labels are an update of the same split and task, and a mistake where these differ.
            old, new = _origin(manifest), _origin(self._manifest(complete=False))
        old |= manifest.view_fingerprints()
        new |= self._manifest(complete=False).view_fingerprints()
        old |= {**stated, "rows": manifest.rows, "shard_size": manifest.shard_size, "format": manifest.format}
        new |= {**self.fingerprint, "rows": self.rows, "shard_size": self.shard_size, "format": StoreManifest.FORMAT}
        differing = [f"{key}: the store has {old.get(key)!r}, this run has {new.get(key)!r}"
                     for key in sorted({*old, *new}) if old.get(key) != new.get(key)]  # fmt: skip
        raise_all(differing, f"{self.folder} was made from something else; choose another output folder or remove it")

    def begin(self) -> None:
        """Write the manifest, marked incomplete, unless there is one with this fingerprint; remove outdated shards."""
        if self._outdated:
            # First the manifest, then the files: a stop in between leaves no outdated shard that counts as new.
            parts = [None if shard in self._outdated else part
                     for shard, part in enumerate(self._made_from["shard_data"])]  # fmt: skip
            self._write_manifest(complete=False, shard_data=parts)
            for shard in self._outdated:
                self.shard_path(shard).unlink(missing_ok=True)
        if self._outdated or not (self.folder / STORE_MANIFEST).is_file():
            self._write_manifest(complete=False)

    def _manifest(self, *, complete: bool, **marked: Any) -> StoreManifest:
        return StoreManifest.new(
            fingerprint=self.fingerprint,
            rows=self.rows,
            shard_size=self.shard_size,
            shards=self.shards,
            complete=complete,
            **plain({**self._made_from, **self._content, **marked}),
        )

    def _write_manifest(self, *, complete: bool, **marked: Any) -> None:
        write_manifest(self.folder / STORE_MANIFEST, self._manifest(complete=complete, **marked))

    def shard_path(self, shard: int) -> Path:
        """Path of a shard's file."""
        return self.folder / f"part-{shard:05d}.parquet"

    def missing(self) -> list[int]:
        """Indices of the shards that are still to be written."""
        there = {path.name for path in self.folder.glob("part-*.parquet")}  # one listing, not a request per shard
        return [shard for shard in range(self.shards) if self.shard_path(shard).name not in there]

    def bounds(self, shard: int) -> tuple[int, int]:
        """First row and one past the last row of a shard."""
        return shard * self.shard_size, min((shard + 1) * self.shard_size, self.rows)

    def write(self, shard: int, features: Features, seconds: Mapping[str, float] | None = None) -> None:
        """Write one shard, atomically.

        Args:
            shard: Its index.
            features: Its rows.
            seconds: Time that was spent on each view of the rows, and on the main model's features as `hidden`.
        """
        first, last = self.bounds(shard)
        if len(features) != last - first:
            raise ValueError(f"shard {shard} needs {last - first} rows, got {len(features)}")
        columns = {"id": pa.array(features.ids, pa.string()), "label": _label_column(features.labels)}
        matrices = {name: getattr(features, name) for name in MATRICES}
        if features.modalities is not None:
            parts = np.split(matrices.pop("hidden"), [features.modalities[0]], axis=1)
            matrices = dict(zip(MODALITIES, parts, strict=True)) | matrices
        matrices |= {f"{VIEW}{name}": view for name, view in features.views.items()}
        for name, matrix in matrices.items():
            if matrix is not None:
                values = pa.array(np.ascontiguousarray(matrix, dtype=np.float32).reshape(-1))
                columns[name] = pa.FixedSizeListArray.from_arrays(values, matrix.shape[1])
        if features.texts is not None:
            columns["text"] = pa.array(features.texts, pa.string())
        if features.image_hashes is not None:
            columns["image_hash"] = pa.array(features.image_hashes, pa.uint64())
        if features.pdqs is not None:
            columns["pdq"] = pa.array(features.pdqs, pa.string())
        if features.contents is not None:
            columns["content"] = pa.array(features.contents, pa.string())
        if features.extras is not None:
            lines = [json.dumps(plain(extras), ensure_ascii=False) for extras in features.extras]
            columns["extras"] = pa.array(lines, pa.string())  # JSON: its fields differ from data set to data set
        about = {_SECONDS: json.dumps(seconds)} if seconds else None
        with atomic_path(self.shard_path(shard)) as temporary:
            pq.write_table(pa.table(columns, metadata=about), temporary, compression="zstd")

    def finish(self) -> None:
        """Mark the store complete.

        Raises:
            UserError: a shard is missing.
        """
        if self.missing():
            raise UserError(f"{self.folder}: shards {self.missing()} are missing; run the same command again.")
        self._write_manifest(complete=True, **self._made_views())
        for leftover in self.folder.glob(".part-*.tmp"):  # of processes that were killed while they wrote
            leftover.unlink(missing_ok=True)

    def _schema(self, shard: int) -> pa.Schema:
        with self.shard_path(shard).open("rb") as file:
            return pq.read_schema(file)

    def _made_views(self) -> dict[str, Any]:
        """What the manifest states of the views that the shards have; nothing where they have none."""
        first = self._schema(0).names if self.shards else ()
        names = [name.removeprefix(VIEW) for name in first if name.startswith(VIEW)]
        if not names:
            return {}
        schemas = [self._schema(shard) for shard in range(self.shards)]
        spent = [json.loads((schema.metadata or {}).get(_SECONDS, "{}")) for schema in schemas]
        seconds = {name: round(sum(part[name] for part in spent) / self.rows, 6)
                   for name in ("hidden", *names) if all(name in part for part in spent)}  # fmt: skip
        stated = self._manifest(complete=False).views
        views = {}
        for name in names:
            made = {"width": schemas[0].field(VIEW + name).type.list_size, "seconds": seconds.get(name)}
            views[name] = stated.get(name, ViewDescription()).to_json() | made
        return {"views": views, "seconds": seconds.get("hidden")}


def digest_of(digests: Iterable[str]) -> str:
    """Digest of digests, in their order."""
    return sha256_bytes(*map(str.encode, digests))


def write_features(folder: str | Path, features: Features, fingerprint: dict[str, Any], **content: Any) -> None:
    """Write features in memory as a complete store of one shard."""
    writer = FeatureWriter(folder, fingerprint, len(features), max(len(features), 1), **content)
    writer.begin()
    writer.write(0, features)
    writer.finish()


def read_store_manifest(folder: str | Path) -> StoreManifest:
    """Read the manifest of a store, which may be incomplete.

    Raises:
        UserError: no store there.
    """
    folder = as_path(folder)
    if not (folder / STORE_MANIFEST).is_file():
        raise UserError(
            f"{folder} is not a feature store, {STORE_MANIFEST} does not exist there; make one with `ra-hmd extract` "
            "(LMM) or `ra-hmd encode` (encoder)."
        )
    return read_manifest(folder / STORE_MANIFEST, StoreManifest)


def read_features(folder: str | Path) -> Features:
    """Read a complete store.

    Raises:
        UserError: no store there, an incomplete one, or one with doubled ids.
    """
    folder = as_path(folder)
    manifest = read_store_manifest(folder)
    if not manifest.complete:
        command = "encode" if manifest.encoder is not None else "extract"
        raise UserError(f"{folder} is incomplete: run its `ra-hmd {command}` command again, it continues.")
    if not manifest.rows:
        raise UserError(f"{folder} has no rows.")
    paths = [folder / f"part-{shard:05d}.parquet" for shard in range(manifest.shards)]
    table, matrices, modalities = read_parts(paths, manifest.rows, folder)
    ids = table["id"].to_pylist()
    check_unique(ids, folder)
    columns: dict[str, Any] = {name: matrices[name] for name in MATRICES if name in matrices}
    columns |= {"modalities": modalities} if modalities else {}
    columns["views"] = {name.removeprefix(VIEW): matrices[name] for name in sorted(matrices) if name.startswith(VIEW)}
    if "text" in table.column_names:
        columns["texts"] = table["text"].to_pylist()
    if "image_hash" in table.column_names:
        columns["image_hashes"] = table["image_hash"].to_numpy()
    if "pdq" in table.column_names:
        columns["pdqs"] = table["pdq"].fill_null("").to_pylist()
    if "content" in table.column_names:
        columns["contents"] = table["content"].fill_null("").to_pylist()
    if "extras" in table.column_names:
        columns["extras"] = [json.loads(line) for line in table["extras"].to_pylist()]
    return Features(ids, _labels(table["label"]), **columns, manifest=manifest)


def check_unique(ids: Sequence[str], place: str | Path) -> None:
    """Raise `UserError` where ids of the features at `place` occur more than once."""
    doubled = [f"id {name!r} occurs {count} times" for name, count in Counter(ids).items() if count > 1]
    raise_all(doubled, f"{place}: ids must be unique")


def _label_column(labels: np.ndarray) -> pa.Array:
    """Class indices as nullable integers, several classes per row as a fixed-size list of 0 and 1 (-1: unlabelled)."""
    if labels.ndim == 1:
        return pa.array(labels, pa.int64(), mask=labels == UNLABELLED)
    return pa.FixedSizeListArray.from_arrays(pa.array(labels.reshape(-1), pa.int8()), labels.shape[1])


def _labels(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_fixed_size_list(column.type):
        return matrix_of(column).astype(np.int64)
    return column.fill_null(UNLABELLED).to_numpy()
