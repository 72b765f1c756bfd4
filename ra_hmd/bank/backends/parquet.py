"""The `faiss` backend of a bank: a folder, or a prefix of an object store, with one immutable Parquet file per version.

A version exists once its file has its final name: the file is written under another name, synchronised to disk and
linked. So a reader sees whole versions only, and a process that dies leaves at most a file that is never read. A name
that is taken is never replaced: of two writers that make the same version the second plans its change again. On an
object store (`s3://`) this alone keeps writers apart, by conditional writes; folders have a lock file besides.

Shapes: N rows ever added, Q queries, D embedding.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ra_hmd.bank.backends.parquet_index import ParquetIndex
from ra_hmd.bank.log_checkpoint import EVERY, read_checkpoint, write_checkpoint
from ra_hmd.bank.versions import BankInUse, BankState, Change, VersionEntry, VersionTaken
from ra_hmd.core.artifacts import MANIFEST_NAME, atomic_path, new_folder, sha256_bytes
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import BankManifest, read_manifest, write_manifest
from ra_hmd.core.storage import RemotePath, as_path, over_places
from ra_hmd.features.shard_files import VIEW, arrow_source
from ra_hmd.retrieval.nearest import CandidateIndex

T = TypeVar("T")
VERSIONS, CACHE, LOCK = "versions", "cache", ".lock"
_KEY, _ATTEMPT = b"ra_hmd", b"ra_hmd_attempt"
_CHECKPOINT = "log.parquet"
_ROW_GROUP = 16_384


@contextmanager
def locked(path: Path, seconds: float, location: str | Path) -> Iterator[None]:
    """Hold the lock file at `path`; the operating system releases it when the process ends, however it ends.

    Raises:
        BankInUse: another process held it for `seconds`.
    """
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise BankInUse(
            f"{location} has been in use by another process for {seconds:g} s ({path}); try again, or wait longer with "
            "--wait."
        ) from error
    try:
        yield
    finally:
        lock.release()


def sync_folder(folder: Path) -> None:
    """Synchronise the names in a folder to disk."""
    if isinstance(folder, RemotePath):
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ParquetBackend:
    """A bank in a folder or on an object store.

    Attributes:
        location: The folder, or the prefix of the objects.
        settings: The manifest of the bank.
    """

    def __init__(self, location: str | Path, wait: float = 60.0) -> None:
        self.location = as_path(location)
        self._wait = wait
        if not (self.location / MANIFEST_NAME).is_file() or not (self.location / VERSIONS).is_dir():
            raise UserError(f"{location} is not an example bank; make one with `ra-hmd bank create`.")
        self.settings = read_manifest(self.location / MANIFEST_NAME, BankManifest)
        self._multi_label = self.settings.problem.kind == "multi_label"
        self._index = ParquetIndex(_index_cache(self.location, self.settings), self.settings, self.embeddings)

    @classmethod
    def create(
        cls,
        location: str | Path,
        settings: BankManifest,
        entry: VersionEntry,
        change: Change,
        embedding: np.ndarray,
        views: Mapping[str, np.ndarray] | None = None,
        **options: Any,
    ) -> None:
        """Write the folder with its first version; it appears in one step, so no other option is needed.

        Raises:
            UserError: the folder exists.
        """
        with new_folder(location) as temporary:
            (temporary / VERSIONS).mkdir()
            write_manifest(temporary / MANIFEST_NAME, settings)
            _write_version(temporary, entry, change, _vectors(embedding, views))
            sync_folder(temporary)
        sync_folder(as_path(location).parent)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Exclude other writers; remove the temporary files of one that died. Nothing to do on an object store."""
        if isinstance(self.location, RemotePath):
            yield
            return
        with locked(self.location / LOCK, self._wait, self.location):
            for path in [*(self.location / VERSIONS).glob(".*.tmp"), *(self.location / CACHE).glob(".*.tmp")]:
                path.unlink(missing_ok=True)
            yield

    def newest(self, known: int) -> int:
        """The newest version, at least `known`."""
        if isinstance(self.location, RemotePath) and not known:  # one listing instead of a request per version
            return max((int(path.stem) for path in (self.location / VERSIONS).glob("*.parquet")), default=0)
        while self._path(known + 1).is_file():
            known += 1
        return known

    def read(self, first: int, last: int) -> list[tuple[VersionEntry, Change]]:
        """Log entries and changes of versions `first` to `last`."""
        names = Change.of(np.zeros(0, np.int64)).to_table().column_names
        kept = self._checkpoint(last) if last - first >= EVERY else {}

        def one(version: int) -> tuple[VersionEntry, Change]:
            with pq.ParquetFile(arrow_source(self._path(version))) as file:
                known = [name for name in names if name in file.schema_arrow.names]
                table = file.read(columns=known, use_threads=file.num_row_groups > 1)
            entry = VersionEntry(**json.loads(table.schema.metadata[_KEY]))
            return entry, Change.from_table(table, multi_label=self._multi_label)

        missing = [version for version in range(first, last + 1) if version not in kept]
        read = dict(zip(missing, self._over(one, missing), strict=True))
        return [kept[version] if version in kept else read[version] for version in range(first, last + 1)]

    def _over(self, function: Callable[[int], T], versions: list[int]) -> Iterator[T]:
        """`map`; on an object store some versions at a time."""
        numbers = {self._path(version): version for version in versions}
        return over_places(lambda path: function(numbers[path]), numbers)

    def write(
        self,
        entry: VersionEntry,
        change: Change,
        embedding: np.ndarray | None,
        first: int,
        views: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write a version, within `writing`.

        Raises:
            VersionTaken: the version exists, because another writer did not see the lock.
        """
        _write_version(self.location, entry, change, _vectors(embedding, views))
        if entry.version % EVERY == 0:
            versions = self.read(1, entry.version)
            with suppress(OSError):  # a checkpoint is optional: the disk may be full, or the folder read-only
                write_checkpoint(self.location / CACHE / _CHECKPOINT, versions)

    def _checkpoint(self, last: int) -> dict[int, tuple[VersionEntry, Change]]:
        """The versions in the checkpoint, if it belongs to this bank."""
        kept = read_checkpoint(self.location / CACHE / _CHECKPOINT, multi_label=self._multi_label)
        newest = max((version for version in kept if version <= last), default=0)
        if not newest:
            return {}
        own = pq.read_schema(arrow_source(self._path(newest))).metadata[
            _KEY
        ]  # a checkpoint may be from a bank copied over this one
        return kept if VersionEntry(**json.loads(own)) == kept[newest][0] else {}

    def embeddings(self, state: BankState, rows: np.ndarray) -> np.ndarray:
        """float32 [M, D], embeddings of row numbers [M] in rising order, as the head computed them."""
        return self._column(state, rows, "embedding", self.settings.dimension)

    def view(self, state: BankState, rows: np.ndarray, name: str) -> np.ndarray:
        """See `ViewBackend`."""
        return self._column(state, rows, VIEW + name, self.settings.views[name].width or 0)

    def _column(self, state: BankState, rows: np.ndarray, name: str, width: int) -> np.ndarray:
        """float32 [M, width], vectors in a column of the versions' files."""
        starts = np.searchsorted(rows, state.origins)
        versions = (np.flatnonzero(np.diff(starts)) + 1).tolist()  # those that added some of the rows

        def one(version: int) -> np.ndarray:
            wanted = rows[starts[version - 1] : starts[version]] - state.origins[version - 1]
            with pq.ParquetFile(arrow_source(self._path(version))) as file:
                parts = []
                for group in np.unique(wanted // _ROW_GROUP):
                    column = file.read_row_group(int(group), columns=[name])[name]
                    matrix = column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)
                    parts.append(matrix[wanted[wanted // _ROW_GROUP == group] - group * _ROW_GROUP])
                return np.concatenate(parts)

        return np.concatenate([np.zeros((0, width), np.float32), *self._over(one, versions)])

    def candidates(self, state: BankState) -> CandidateIndex:
        """The index that finds candidates among the rows of a state."""
        return self._index.prepare(state)

    def describe(self) -> dict[str, Any]:
        """Size on disk and the index."""
        if isinstance(self.location, RemotePath):
            return {"bytes": self.location.size_below(), **self._index.describe()}
        files = [path for path in self.location.rglob("*") if path.is_file()]
        return {"bytes": sum(path.stat().st_size for path in files), **self._index.describe()}

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def _path(self, version: int) -> Path:
        return self.location / VERSIONS / f"{version:08d}.parquet"


def _index_cache(location: Path, settings: BankManifest) -> Path:
    """Where the index is kept: beside the versions, or of an object store in the user's cache on this machine."""
    if not isinstance(location, RemotePath):
        return location / CACHE
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = sha256_bytes(str(location).encode(), json.dumps(settings.to_json(), sort_keys=True).encode())[:32]
    return caches / "ra_hmd" / "banks" / name


def _vectors(embedding: np.ndarray | None, views: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """The columns of new rows' vectors."""
    vectors = {} if embedding is None else {"embedding": embedding}
    return vectors | {VIEW + name: matrix for name, matrix in (views or {}).items()}


def _write_version(folder: Path, entry: VersionEntry, change: Change, vectors: Mapping[str, np.ndarray]) -> None:
    path = folder / VERSIONS / f"{entry.version:08d}.parquet"
    table = change.to_table()
    for name, new in vectors.items():
        width = new.shape[1]
        matrix = np.zeros((len(table), width), np.float32)  # zeros for earlier rows, whose lines come last
        matrix[: len(new)] = new
        values = pa.array(matrix.reshape(-1))
        table = table.append_column(name, pa.FixedSizeListArray.from_arrays(values, width))
    # The second key tells the file of one writer from that of another, whatever both hold.
    about = {_KEY: json.dumps(entry.to_dict(), ensure_ascii=False), _ATTEMPT: secrets.token_hex(8)}
    table = table.replace_schema_metadata(about)
    taken = VersionTaken(f"{path} exists: another writer made version {entry.version} at the same time. Nothing was "
                         "changed; try again.")  # fmt: skip
    if path.exists():
        raise taken
    try:
        with atomic_path(path, exclusive=True) as temporary:
            dictionaries = ["source", "note", "time"]
            pq.write_table(table, temporary, compression="lz4", use_dictionary=dictionaries, row_group_size=_ROW_GROUP)
    except FileExistsError as error:
        raise taken from error
    sync_folder(path.parent)
