"""The `milvus` backend of a bank: three collections of a Milvus Lite file or of a Milvus cluster.

`NAME_rows` holds the embeddings (row number, the version that added it, id), `NAME_changes` the change of each version,
and `NAME_log` one entry per version, written last: a version exists once its entry does. Records are never updated. The
records of a process that died belong to a version without an entry; readers ignore them, and the next writer deletes
them.

A Milvus Lite file is open in one process at a time: opening a bank waits for the file. A cluster serves many readers at
once, and a lock file guards the writers that see it.

Shapes: N rows ever added, Q queries, D embedding.
"""

import base64
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ra_hmd.bank.backends.parquet import locked
from ra_hmd.bank.versions import BankState, Change, VersionEntry
from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.errors import UserError
from ra_hmd.core.extras import check_extra
from ra_hmd.core.manifests import BankManifest, parse_manifest
from ra_hmd.core.progress import track
from ra_hmd.retrieval.distinct_vectors import ABSENT, VectorRows
from ra_hmd.retrieval.index import EXACT_ROWS
from ra_hmd.retrieval.knn import unit_rows
from ra_hmd.retrieval.nearest import CandidateIndex

TOKEN_VARIABLE, LOCK_VARIABLE = "RA_HMD_MILVUS_TOKEN", "RA_HMD_MILVUS_LOCK"
_TEXT = 60_000  # bytes of a text field; Milvus takes 65,535
_CHUNKS = 1 << 20  # per version
_TEXTS_PER_REQUEST = 64
_DEEPEST = 16_384  # results per query, at most
_MESSAGE = 4 << 20  # bytes of rows per request
_GET = 1000  # rows per request
_MASKED = 2000  # removed rows excluded by the filter of a search; more are filtered out of its result instead
_SHOWN = 10_000  # rows from which on progress is shown
_SECONDS = 120  # timeout per request; the client retries a bad request for minutes without one
_LITE_LENGTH = 36  # characters of a file name, at most
_LITE_NAME = re.compile(rf"[a-zA-Z0-9._-]{{1,{_LITE_LENGTH}}}")
_NO_VECTOR = [0.0, 1.0]  # each collection must have a vector field


class MilvusBackend:
    """A bank in Milvus.

    Attributes:
        location: A file `….db`, or `http://host:port#name`.
        settings: The manifest of the bank.
        lite: Whether the bank is a file of Milvus Lite.

    Args:
        location: A file `….db`, or `http://host:port#name`.
        wait: Seconds to wait for the file (Lite) or for other writers.
        lock: Lock file of the writers, on a path that all of them see; default: `RA_HMD_MILVUS_LOCK`, or one per
            address on this machine.
        token: `user:password` or API key of a cluster; default: `RA_HMD_MILVUS_TOKEN`.
    """

    def __init__(
        self, location: str | Path, wait: float = 60.0, lock: str | Path | None = None, token: str | None = None
    ) -> None:
        self.location = location
        self._wait = wait
        self._prepared: tuple[BankState, CandidateIndex] | None = None
        self._held = ExitStack()
        address, self._name, self.lite = parse_location(location)
        if self.lite and not Path(address).is_file():
            raise UserError(f"{location} is not an example bank; make one with `ra-hmd bank create`.")
        self._connect(address, lock, token)
        try:
            settings = self._texts("log", 0, 1).get(0) if self._has("log") else None
            if settings is None or self.newest(0) == 0:
                raise UserError(f"{location} is not an example bank, or its creation was broken off; create it again.")
            self.settings = parse_manifest(json.loads(settings), BankManifest, location)
        except BaseException:
            self.close()
            raise
        self._multi_label = self.settings.problem.kind == "multi_label"

    def _connect(self, address: str, lock: str | Path | None, token: str | None) -> None:
        check_extra("milvus", "Milvus", ("pymilvus",))
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException

        if self.lite:
            address = str(Path(address).resolve())
            lock = Path(f"{address}.lock")
            self._held.enter_context(locked(lock, self._wait, self.location))
            _await_end_of_servers(address, self._wait)
        else:
            digest = sha256_bytes(address.encode(), self._name.encode())[:16]
            lock = lock or os.environ.get(LOCK_VARIABLE) or Path(tempfile.gettempdir()) / f"ra_hmd-{digest}.lock"
            token = token or os.environ.get(TOKEN_VARIABLE)
        self._lock = Path(lock)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="pkg_resources")  # imported by Milvus Lite
                self._client = MilvusClient(
                    address, token=token or "", timeout=min(self._wait, _SECONDS), dedicated=True
                )
        except MilvusException as error:
            self._held.close()
            raise UserError(f"{self.location} cannot be opened: {error.message}") from error
        if self.lite:
            from milvus_lite.server_manager import server_manager_instance

            self._held.callback(server_manager_instance.release_server, address)
        self._held.callback(self._client.close)

    @classmethod
    def create(
        cls,
        location: str | Path,
        settings: BankManifest,
        entry: VersionEntry,
        change: Change,
        embedding: np.ndarray,
        **options: Any,
    ) -> None:
        """Create the collections with the first version; they are a bank once its entry is written.

        Raises:
            UserError: a bank of that name exists; an index that Milvus Lite does not have.
        """
        backend = cls.__new__(cls)
        backend.location, backend.settings, backend._held = location, settings, ExitStack()
        backend._wait = options.get("wait", 60.0)
        address, backend._name, backend.lite = parse_location(location)
        if backend.lite:
            Path(address).parent.mkdir(parents=True, exist_ok=True)
            if settings.index not in ("auto", "flat"):
                raise UserError(f"Milvus Lite searches exhaustively; index {settings.index!r} needs a cluster.")
        backend._connect(address, options.get("lock"), options.get("token"))
        try:
            with backend.writing(clean=False):
                if backend._has("log") and backend.newest(0):
                    raise UserError(f"{location} holds a bank already; open it, or choose another place.")
                backend._create_collections(len(change.added))
                backend._insert_text("log", 0, json.dumps(settings.to_json(), ensure_ascii=False))
                backend.write(entry, change, embedding, 0)
        finally:
            backend.close()

    def _create_collections(self, rows: int) -> None:
        from pymilvus import DataType

        for part in ("rows", "changes", "log"):
            if self._has(part):  # left behind by an interrupted creation
                self._client.drop_collection(self._collection(part), timeout=_SECONDS)
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            index = self._client.prepare_index_params()
            schema.add_field("key", DataType.INT64, is_primary=True)
            if part == "rows":
                schema.add_field("version", DataType.INT64)
                schema.add_field("id", DataType.VARCHAR, max_length=65_535)
                schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.settings.dimension)
                index.add_index("vector", metric_type="COSINE", **self._index_of(rows))
            else:
                schema.add_field("text", DataType.VARCHAR, max_length=65_535)
                schema.add_field("vector", DataType.FLOAT_VECTOR, dim=len(_NO_VECTOR))
                index.add_index("vector", metric_type="L2", index_type="FLAT")
            self._client.create_collection(
                self._collection(part), schema=schema, index_params=index, consistency_level="Strong", timeout=_SECONDS
            )

    def _index_of(self, rows: int) -> dict[str, Any]:
        kind = self.settings.index
        if kind == "hnsw":
            return {"index_type": "HNSW", "params": {"M": 32, "efConstruction": 200}}
        if kind == "ivf" or (kind == "auto" and rows > EXACT_ROWS and not self.lite):
            return {"index_type": "IVF_FLAT", "params": {"nlist": self._lists(rows)}}
        return {"index_type": "FLAT"}

    @staticmethod
    def _lists(rows: int) -> int:
        return min(max(round(2 * rows**0.5), 64), 65_536)

    @contextmanager
    def writing(self, *, clean: bool = True) -> Iterator[None]:
        """Exclude the writers that see the lock file; remove the records of one that died."""
        with ExitStack() as stack:
            if not self.lite:  # a Lite file is locked as long as it is open
                stack.enter_context(locked(self._lock, self._wait, self.location))
            if clean:
                last = self.newest(0)
                self._delete("rows", f"version > {last}")
                self._delete("changes", f"key >= {(last + 1) * _CHUNKS}")
            yield

    def _delete(self, part: str, condition: str) -> None:
        name = self._collection(part)
        if self._client.query(name, filter=condition, output_fields=["key"], limit=1, timeout=_SECONDS):
            self._client.delete(name, filter=condition, timeout=_SECONDS)

    def newest(self, known: int) -> int:
        """The newest version, at least `known`."""
        while True:
            found = self._client.query(
                self._collection("log"),
                filter=f"key > {known} and key <= {known + _GET}",
                output_fields=["key"],
                timeout=_SECONDS,
            )
            if not found:
                return known
            known = max(row["key"] for row in found)

    def read(self, first: int, last: int) -> list[tuple[VersionEntry, Change]]:
        """Log entries and changes of versions `first` to `last`."""
        versions = []
        for version, text in self._texts("log", first, last + 1).items():
            about = json.loads(text)
            start = version * _CHUNKS
            encoded = "".join(self._texts("changes", start, start + about["chunks"]).values())
            table = pa.ipc.open_stream(base64.b85decode(encoded)).read_all()
            versions.append((VersionEntry(**about["entry"]), Change.from_table(table, multi_label=self._multi_label)))
        return versions

    def write(self, entry: VersionEntry, change: Change, embedding: np.ndarray | None, first: int) -> None:
        """Write a version, within `writing`."""
        if embedding is not None and len(embedding):
            self._insert_rows(entry.version, change, np.ascontiguousarray(embedding, dtype=np.float32), first)
        sink = pa.BufferOutputStream()
        table = change.to_table()
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
        encoded = base64.b85encode(sink.getvalue()).decode("ascii")
        chunks = [encoded[start : start + _TEXT] for start in range(0, len(encoded), _TEXT)]
        for number, chunk in enumerate(chunks):
            self._insert_text("changes", entry.version * _CHUNKS + number, chunk)
        about = {"entry": entry.to_dict(), "chunks": len(chunks)}
        self._insert_text("log", entry.version, json.dumps(about, ensure_ascii=False))

    def _insert_rows(self, version: int, change: Change, embedding: np.ndarray, number: int) -> None:
        """Insert the new rows of a change in requests of limited size, numbered from `number` on."""
        size = max(1, min(_GET, _MESSAGE // (4 * embedding.shape[1])))
        blocks = ((min(size, len(embedding) - first), first) for first in range(0, len(embedding), size))
        show = len(embedding) > _SHOWN
        for first in track(blocks, "Writing rows", len(embedding), "rows", show=show):
            rows = [
                {"key": number + i, "version": version, "id": change.added.ids[i], "vector": embedding[i]}
                for i in range(first, min(first + size, len(embedding)))
            ]
            self._client.insert(self._collection("rows"), rows, timeout=_SECONDS)

    def _insert_text(self, part: str, key: int, text: str) -> None:
        if len(text.encode()) > 65_535:
            raise UserError(f"The log entry takes {len(text.encode())} bytes, Milvus takes 65,535; shorten the reason.")
        row = {"key": key, "text": text, "vector": _NO_VECTOR}
        self._client.insert(self._collection(part), [row], timeout=_SECONDS)

    def _texts(self, part: str, first: int, end: int) -> dict[int, str]:
        """The texts of keys `first` to `end` − 1, in order of keys."""
        found: dict[int, str] = {}
        for start in range(first, end, _TEXTS_PER_REQUEST):
            condition = f"key >= {start} and key < {min(start + _TEXTS_PER_REQUEST, end)}"
            rows = self._client.query(
                self._collection(part), filter=condition, output_fields=["key", "text"], timeout=_SECONDS
            )
            found |= {row["key"]: row["text"] for row in rows}
        return dict(sorted(found.items()))

    def embeddings(self, state: BankState, rows: np.ndarray) -> np.ndarray:
        """float32 [M, D], embeddings of row numbers [M], as the head computed them."""
        matrix = np.zeros((len(rows), self.settings.dimension), np.float32)
        for first in range(0, len(rows), _GET):
            wanted = rows[first : first + _GET].tolist()
            found = self._client.query(
                self._collection("rows"),
                filter=f"key in {wanted}",
                output_fields=["key", "vector"],
                timeout=_SECONDS,
            )
            vectors = {row["key"]: row["vector"] for row in found}
            matrix[first : first + len(wanted)] = [vectors[key] for key in wanted]
        return matrix

    def candidates(self, state: BankState) -> CandidateIndex:
        """The index that finds candidates among the rows of a state: that of Milvus, where each row has its vector."""
        if self._prepared is None or self._prepared[0] is not state:
            candidates = CandidateIndex(
                lambda queries, depth: self._search(queries, depth, state),
                lambda rows: unit_rows(self.embeddings(state, rows)),
                VectorRows.single(state.alive),
            )
            self._prepared = state, candidates
        return self._prepared[1]

    def _search(self, queries: np.ndarray, depth: int, state: BankState) -> np.ndarray:
        """Numbers int64 [Q, depth] of the rows most similar to unit queries [Q, D]; -1 where absent.

        Rows that the state does not have may be among them. The depth is limited to 16,384.
        """
        depth = min(depth, _DEEPEST)
        dead = np.flatnonzero(~state.alive)
        condition = f"version <= {state.version}"
        if 0 < len(dead) <= _MASKED:
            condition += f" and key not in {dead.tolist()}"
        rows = np.full((len(queries), depth), ABSENT, dtype=np.int64)
        results = self._client.search(
            self._collection("rows"),
            data=list(queries),
            limit=depth,
            filter=condition,
            search_params={"params": self._search_params(depth, len(state.alive))},
            timeout=_SECONDS,
        )
        for line, hits in enumerate(results):
            rows[line, : len(hits)] = hits.ids
        return rows

    def _search_params(self, depth: int, rows: int) -> dict[str, int]:
        """The width of search of an approximate index on a cluster; `FLAT` ignores it."""
        return {"ef": max(4 * depth, 256), "nprobe": max(self._lists(rows) // 8, 16)}

    def describe(self) -> dict[str, Any]:
        """Type of the index, and whether the bank is a file."""
        index = self._client.describe_index(self._collection("rows"), "vector", timeout=_SECONDS)
        return {"index": index["index_type"], "lite": self.lite}

    def close(self) -> None:
        """Close the connection, and end the server of Milvus Lite."""
        self._held.close()

    def _collection(self, part: str) -> str:
        return f"{self._name}_{part}"

    def _has(self, part: str) -> bool:
        return self._client.has_collection(self._collection(part), timeout=_SECONDS)


def parse_location(location: str | Path) -> tuple[str, str, bool]:
    """Address, name of the bank, and whether it is a file of Milvus Lite.

    Raises:
        UserError: an address without a name, or a file name that Milvus Lite does not accept.
    """
    text = str(location)
    if "://" not in text:
        name = Path(text).resolve().name
        if not _LITE_NAME.fullmatch(name):
            raise UserError(
                f"Milvus Lite takes no file of the name {name!r} ({len(name)} characters): use up to {_LITE_LENGTH} "
                "letters from a to z, digits, '.', '-' and '_', without blanks; or leave out `.db`: a folder may have "
                "any name."
            )
        return text, "bank", True
    address, _, name = text.partition("#")
    if not name.isidentifier():
        raise UserError(f"{location!r} names no bank; write http://host:port#name, the name in letters, digits and _.")
    return address, name, False


def _await_end_of_servers(address: str, seconds: float) -> None:
    """Wait until the Milvus Lite server of a killed process has ended: it may still be writing.

    Raises:
        UserError: it does not end in time.
    """
    import psutil

    end = time.monotonic() + seconds
    while True:
        servers = [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if address in (process.info["cmdline"] or [])[1:2]
        ]
        if not servers:
            return
        if time.monotonic() > end:
            raise UserError(
                f"A Milvus Lite server (process {servers[0]}) still uses {address}; end it, or wait longer."
            )
        time.sleep(0.02)
