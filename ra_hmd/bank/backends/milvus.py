"""Where the `milvus` backend keeps a bank: three collections of a Milvus Lite file or of a Milvus cluster.

`NAME_rows` has the embeddings (row number, the version that added it, id), `NAME_changes` what each version does, and
`NAME_log` one entry per version, written last: a version exists once its entry does. Nothing is ever updated. What a
process that died left behind belongs to a version without an entry, which no reader looks at; the next writer deletes
it.

A Milvus Lite file is open in one process at a time: opening a bank waits for the file. On a cluster many readers work
side by side, and a lock file guards the writers that see it.

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
from ra_hmd.core.progress import track
from ra_hmd.retrieval.distinct_vectors import ABSENT, VectorRows
from ra_hmd.retrieval.index import EXACT_ROWS
from ra_hmd.retrieval.knn import unit_rows
from ra_hmd.retrieval.nearest import CandidateIndex

TOKEN_VARIABLE, LOCK_VARIABLE = "RA_HMD_MILVUS_TOKEN", "RA_HMD_MILVUS_LOCK"
_TEXT = 60_000  # bytes of a text field; Milvus takes 65,535
_CHUNKS = 1 << 20  # per version
_WINDOW = 64  # texts per request
_DEEPEST = 16_384  # results that Milvus gives per query
_MESSAGE = 4 << 20  # bytes of rows per request
_GET = 1000  # rows per request
_MASKED = 2000  # removed rows that are named in a search; more are left out of its result instead
_SHOWN = 10_000  # rows from which on a bar is shown
_SECONDS = 120  # per request; without, the client tries a bad one for minutes
_LITE_LENGTH = 36  # of a file's name
_LITE_NAME = re.compile(rf"[a-zA-Z0-9._-]{{1,{_LITE_LENGTH}}}")
_NO_VECTOR = [0.0, 1.0]  # each collection must have one


class MilvusBackend:
    """The collections of one bank.

    Attributes:
        place: As given.
        settings: What was fixed when the bank was made.

    Args:
        place: A file `….db`, or `http://host:port#name`.
        wait: Seconds to wait for the file (Lite) or for other writers.
        lock: Lock file of the writers, on a path that all of them see; default: `RA_HMD_MILVUS_LOCK`, or one per
            address on this machine.
        token: `user:password` or API key of a cluster; default: `RA_HMD_MILVUS_TOKEN`.
    """

    def __init__(
        self, place: str | Path, wait: float = 60.0, lock: str | Path | None = None, token: str | None = None
    ) -> None:
        self.place = place
        self._wait = wait
        self._searched: tuple[BankState, CandidateIndex] | None = None
        self._held = ExitStack()
        address, self._name, self.lite = parse_place(place)
        if self.lite and not Path(address).is_file():
            raise UserError(f"{place} is not an example bank; make one with `ra-hmd bank create`.")
        self._connect(address, lock, token)
        try:
            settings = self._texts("log", 0, 1).get(0) if self._has("log") else None
            if settings is None or self.newest(0) == 0:
                raise UserError(f"{place} is not an example bank, or its creation was broken off; create it again.")
        except BaseException:
            self.close()
            raise
        self.settings: dict[str, Any] = json.loads(settings)
        self._multi_label = self.settings["problem"]["kind"] == "multi_label"

    def _connect(self, address: str, lock: str | Path | None, token: str | None) -> None:
        try:
            from pymilvus import MilvusClient
            from pymilvus.exceptions import MilvusException
        except ImportError as error:
            raise UserError("Milvus needs the extra: pip install 'ra-hmd[milvus]'.") from error
        if self.lite:
            address = str(Path(address).resolve())
            lock = Path(f"{address}.lock")
            self._held.enter_context(locked(lock, self._wait, self.place))
            _await_end_of_servers(address, self._wait)
        else:
            digest = sha256_bytes(address.encode(), self._name.encode())[:16]
            lock = lock or os.environ.get(LOCK_VARIABLE) or Path(tempfile.gettempdir()) / f"ra_hmd-{digest}.lock"
            token = token or os.environ.get(TOKEN_VARIABLE)
        self._lock = Path(lock)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="pkg_resources")  # Milvus Lite asks it for its version
                self._client = MilvusClient(
                    address, token=token or "", timeout=min(self._wait, _SECONDS), dedicated=True
                )
        except MilvusException as error:
            self._held.close()
            raise UserError(f"{self.place} cannot be opened: {error.message}") from error
        if self.lite:
            from milvus_lite.server_manager import server_manager_instance

            self._held.callback(server_manager_instance.release_server, address)
        self._held.callback(self._client.close)

    @classmethod
    def create(
        cls,
        place: str | Path,
        settings: dict[str, Any],
        entry: VersionEntry,
        change: Change,
        new: np.ndarray,
        **options: Any,
    ) -> None:
        """Make the collections with the first version; they are a bank once its entry is written.

        Raises:
            UserError: there is a bank of that name already; an index that Milvus Lite does not have.
        """
        store = cls.__new__(cls)
        store.place, store.settings, store._held = place, settings, ExitStack()
        store._wait = options.get("wait", 60.0)
        address, store._name, store.lite = parse_place(place)
        if store.lite:
            Path(address).parent.mkdir(parents=True, exist_ok=True)
            if settings["index"] not in ("auto", "flat"):
                raise UserError(f"Milvus Lite searches exhaustively; index {settings['index']!r} needs a cluster.")
        store._connect(address, options.get("lock"), options.get("token"))
        try:
            with store.writing(cleaning=False):
                if store._has("log") and store.newest(0):
                    raise UserError(f"{place} holds a bank already; open it, or choose another place.")
                store._make_collections(len(change.added))
                store._insert_text("log", 0, json.dumps(settings, ensure_ascii=False))
                store.write(entry, change, new, 0)
        finally:
            store.close()

    def _make_collections(self, rows: int) -> None:
        from pymilvus import DataType

        for part in ("rows", "changes", "log"):
            if self._has(part):  # of a creation that was broken off
                self._client.drop_collection(self._collection(part), timeout=_SECONDS)
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            index = self._client.prepare_index_params()
            schema.add_field("key", DataType.INT64, is_primary=True)
            if part == "rows":
                schema.add_field("version", DataType.INT64)
                schema.add_field("id", DataType.VARCHAR, max_length=65_535)
                schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.settings["dimension"])
                index.add_index("vector", metric_type="COSINE", **self._index_of(rows))
            else:
                schema.add_field("text", DataType.VARCHAR, max_length=65_535)
                schema.add_field("vector", DataType.FLOAT_VECTOR, dim=len(_NO_VECTOR))
                index.add_index("vector", metric_type="L2", index_type="FLAT")
            self._client.create_collection(
                self._collection(part), schema=schema, index_params=index, consistency_level="Strong", timeout=_SECONDS
            )

    def _index_of(self, rows: int) -> dict[str, Any]:
        kind = self.settings["index"]
        if kind == "hnsw":
            return {"index_type": "HNSW", "params": {"M": 32, "efConstruction": 200}}
        if kind == "ivf" or (kind == "auto" and rows > EXACT_ROWS and not self.lite):
            return {"index_type": "IVF_FLAT", "params": {"nlist": self._lists(rows)}}
        return {"index_type": "FLAT"}

    @staticmethod
    def _lists(rows: int) -> int:
        return min(max(round(2 * rows**0.5), 64), 65_536)

    @contextmanager
    def writing(self, *, cleaning: bool = True) -> Iterator[None]:
        """Alone among the writers that see the lock file; what a dead one left is removed first."""
        with ExitStack() as stack:
            if not self.lite:  # else it is held as long as the file is open
                stack.enter_context(locked(self._lock, self._wait, self.place))
            if cleaning:
                last = self.newest(0)
                self._delete("rows", f"version > {last}")
                self._delete("changes", f"key >= {(last + 1) * _CHUNKS}")
            yield

    def _delete(self, part: str, condition: str) -> None:
        name = self._collection(part)
        if self._client.query(name, filter=condition, output_fields=["key"], limit=1, timeout=_SECONDS):
            self._client.delete(name, filter=condition, timeout=_SECONDS)

    def newest(self, known: int) -> int:
        """The last version, at least `known`."""
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
        """The log and changes of versions first … last."""
        found = []
        for version, text in self._texts("log", first, last + 1).items():
            about = json.loads(text)
            start = version * _CHUNKS
            encoded = "".join(self._texts("changes", start, start + about["chunks"]).values())
            table = pa.ipc.open_stream(base64.b85decode(encoded)).read_all()
            found.append((VersionEntry(**about["entry"]), Change.from_table(table, multi_label=self._multi_label)))
        return found

    def write(self, entry: VersionEntry, change: Change, new: np.ndarray | None, first: int) -> None:
        """Make a version exist; to be called within `writing`. New rows get the numbers `first`, `first` + 1, …"""
        if new is not None and len(new):
            self._insert_rows(entry.version, change, np.ascontiguousarray(new, dtype=np.float32), first)
        sink = pa.BufferOutputStream()
        table = change.to_table()
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
        encoded = base64.b85encode(sink.getvalue()).decode("ascii")
        chunks = [encoded[first : first + _TEXT] for first in range(0, len(encoded), _TEXT)]
        for number, chunk in enumerate(chunks):
            self._insert_text("changes", entry.version * _CHUNKS + number, chunk)
        about = {"entry": entry.to_dict(), "chunks": len(chunks)}
        self._insert_text("log", entry.version, json.dumps(about, ensure_ascii=False))

    def _insert_rows(self, version: int, change: Change, new: np.ndarray, number: int) -> None:
        size = max(1, min(_GET, _MESSAGE // (4 * new.shape[1])))
        blocks = ((min(size, len(new) - first), first) for first in range(0, len(new), size))
        for first in track(blocks, "Writing rows", len(new), "rows", show=len(new) > _SHOWN):
            rows = [
                {"key": number + place, "version": version, "id": change.added.ids[place], "vector": new[place]}
                for place in range(first, min(first + size, len(new)))
            ]
            self._client.insert(self._collection("rows"), rows, timeout=_SECONDS)

    def _insert_text(self, part: str, key: int, text: str) -> None:
        if len(text.encode()) > 65_535:
            raise UserError(f"The log entry takes {len(text.encode())} bytes, Milvus takes 65,535; shorten the reason.")
        row = {"key": key, "text": text, "vector": _NO_VECTOR}
        self._client.insert(self._collection(part), [row], timeout=_SECONDS)

    def _texts(self, part: str, first: int, end: int) -> dict[int, str]:
        """Key to text of the keys first … end − 1, in order."""
        found: dict[int, str] = {}
        for start in range(first, end, _WINDOW):
            condition = f"key >= {start} and key < {min(start + _WINDOW, end)}"
            rows = self._client.query(
                self._collection(part), filter=condition, output_fields=["key", "text"], timeout=_SECONDS
            )
            found |= {row["key"]: row["text"] for row in rows}
        return dict(sorted(found.items()))

    def embeddings(self, state: BankState, rows: np.ndarray) -> np.ndarray:
        """float32 [M, D] of row numbers [M], as the head made them."""
        matrix = np.zeros((len(rows), self.settings["dimension"]), np.float32)
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

    def searched(self, state: BankState) -> CandidateIndex:
        """What finds the rows of a state; Milvus keeps its own index. Each row is a point of its own."""
        if self._searched is None or self._searched[0] is not state:
            searched = CandidateIndex(
                lambda queries, depth: self._candidates(queries, depth, state),
                lambda rows: unit_rows(self.embeddings(state, rows)),
                VectorRows.single(state.alive),
            )
            self._searched = state, searched
        return self._searched[1]

    def _candidates(self, queries: np.ndarray, depth: int, state: BankState) -> np.ndarray:
        """Row numbers int64 [Q, depth] of the most similar rows to unit queries [Q, D]; -1 where absent.

        Rows that the state does not have may be among them. No more than 16,384 columns are given, whatever the depth.
        """
        depth = min(depth, _DEEPEST)
        dead = np.flatnonzero(~state.alive)
        condition = f"version <= {state.version}"
        if 0 < len(dead) <= _MASKED:
            condition += f" and key not in {dead.tolist()}"
        found = np.full((len(queries), depth), ABSENT, dtype=np.int64)
        results = self._client.search(
            self._collection("rows"),
            data=list(queries),
            limit=depth,
            filter=condition,
            search_params={"params": self._width(depth, len(state.alive))},
            timeout=_SECONDS,
        )
        for line, hits in enumerate(results):
            found[line, : len(hits)] = hits.ids
        return found

    def _width(self, depth: int, rows: int) -> dict[str, int]:
        """How widely an approximate index of a cluster looks; `FLAT` ignores it."""
        return {"ef": max(4 * depth, 256), "nprobe": max(self._lists(rows) // 8, 16)}

    def describe(self) -> dict[str, Any]:
        """What `info` tells of the backend."""
        index = self._client.describe_index(self._collection("rows"), "vector", timeout=_SECONDS)
        return {"index": index["index_type"], "lite": self.lite}

    def close(self) -> None:
        """End the connection; of a file also Milvus Lite's server."""
        self._held.close()

    def _collection(self, part: str) -> str:
        return f"{self._name}_{part}"

    def _has(self, part: str) -> bool:
        return self._client.has_collection(self._collection(part), timeout=_SECONDS)


def parse_place(place: str | Path) -> tuple[str, str, bool]:
    """Address, name of the bank, and whether it is a file of Milvus Lite.

    Raises:
        UserError: an address without a name, or a file name that Milvus Lite does not take.
    """
    text = str(place)
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
        raise UserError(f"{place!r} names no bank; write http://host:port#name, the name in letters, digits and _.")
    return address, name, False


def _await_end_of_servers(address: str, seconds: float) -> None:
    """Wait until the Milvus Lite server of a process that was killed has ended: it may still be writing.

    Raises:
        UserError: it does not end.
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
