"""A trial backend that keeps a bank in LanceDB, for `bank_stores.py`; the toolkit itself does not have it.

Table `rows` has the lines of `Change.to_table` with the embedding of new rows, and table `log` one line per version,
written last: a version exists once its line does. LanceDB never refuses two appends that meet. What it does refuse is a
second line with the same primary key by `merge_insert`, so the number of the version is that key, and a writer that
comes second plans its change again. The lines of its attempt stay in `rows`; no version names that attempt.

    pip install lancedb    # 0.40

Shapes: N rows ever added, Q queries, M rows, D embedding.
"""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa

from ra_hmd.bank.backends.base import BackendSpec, register_backend
from ra_hmd.bank.versions import BankState, Change, VersionEntry, VersionTaken
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import BankManifest, parse_manifest
from ra_hmd.retrieval.distinct_vectors import ABSENT, VectorRows
from ra_hmd.retrieval.knn import unit_rows
from ra_hmd.retrieval.nearest import CandidateIndex

STORAGE: dict[str, str] = {}
"""Options of an object store, given to every connection."""
_LOG = pa.schema([pa.field("version", pa.int64(), nullable=False), ("text", pa.string()), ("attempt", pa.string())])


class LanceBackend:
    """A bank in a folder or under an address that ends in `.lance`."""

    def __init__(self, location: Any, wait: float = 60.0, **options: Any) -> None:
        self.location = location
        self._open()
        settings = self._log.search().where("version = 0").to_list()
        if not settings:
            raise UserError(f"{location} is not an example bank.")
        self.settings = parse_manifest(json.loads(settings[0]["text"]), BankManifest, location)
        self._multi_label = self.settings.problem.kind == "multi_label"
        self._row_ids = np.zeros(0, np.int64)  # of Lance, of each row number

    def _open(self) -> None:
        database = lancedb.connect(str(self.location), storage_options=STORAGE or None)
        self._log, self._rows = database.open_table("log"), database.open_table("rows")

    @classmethod
    def create(
        cls,
        location: Any,
        settings: BankManifest,
        entry: VersionEntry,
        change: Change,
        embedding: np.ndarray,
        **options: Any,
    ) -> None:
        """Make both tables, then the first version."""
        database = lancedb.connect(str(location), storage_options=STORAGE or None)
        database.create_table("rows", schema=_lines(change, embedding, 0, "").schema)
        log = database.create_table("log", schema=_LOG)
        log.set_unenforced_primary_key("version")
        log.add(_entry(0, settings.to_json(), ""))
        backend = cls(location)
        backend.write(entry, change, embedding, 0)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nothing to hold: the commit itself is exclusive."""
        yield

    def newest(self, known: int) -> int:
        """The newest version."""
        self._log.checkout_latest()
        return self._log.count_rows() - 1

    def read(self, first: int, last: int) -> list[tuple[VersionEntry, Change]]:
        """Log entries and changes; also where the new rows are."""
        within = f"version >= {first} AND version <= {last}"
        log = self._log.search().where(within).to_arrow().sort_by("version")
        self._rows.checkout_latest()
        names = [name for name in self._rows.schema.names if name != "embedding"]
        lines = self._rows.search().where(within).select(names).with_row_id(True).to_arrow()
        versions, numbers = lines["version"].to_numpy(), lines["attempt"].to_numpy(zero_copy_only=False)
        order = np.argsort(versions, kind="stable")
        starts = np.searchsorted(versions[order], np.arange(first, last + 2))
        result, row_ids = [], [self._row_ids]
        for version, text, attempt in zip(*(log[name].to_pylist() for name in _LOG.names), strict=True):
            mine = order[starts[version - first] : starts[version - first + 1]]
            table = lines.take(mine[numbers[mine] == attempt]).sort_by("line")
            change = Change.from_table(table, multi_label=self._multi_label)
            row_ids.append(table["_rowid"].to_numpy()[: len(change.added)].astype(np.int64))
            result.append((VersionEntry(**json.loads(text)), change))
        self._row_ids = np.concatenate(row_ids)
        return result

    def write(self, entry: VersionEntry, change: Change, embedding: np.ndarray | None, first: int) -> None:
        """Append the lines, then make the version exist. Raises `VersionTaken` where another writer was faster."""
        attempt = secrets.token_hex(8)
        self._rows.add(_lines(change, embedding, entry.version, attempt, self.settings.dimension))
        line = _entry(entry.version, entry.to_dict(), attempt)
        if not self._log.merge_insert("version").when_not_matched_insert_all().execute(line).num_inserted_rows:
            raise VersionTaken(f"version {entry.version} was made by another writer")
        if len(change.added):  # `Bank` does not read what it wrote
            mine = self._rows.search().where(f"attempt = '{attempt}' AND operation = 0").select(["line"])
            found = mine.with_row_id(True).to_arrow().sort_by("line")
            self._row_ids = np.concatenate([self._row_ids[:first], found["_rowid"].to_numpy().astype(np.int64)])

    def embeddings(self, state: BankState, rows: np.ndarray) -> np.ndarray:
        """float32 [M, D], embeddings of row numbers [M]."""
        wanted = self._row_ids[rows]
        found = self._rows.take_row_ids(wanted.tolist()).select(["embedding"]).with_row_id().to_arrow()
        order = np.argsort(found["_rowid"].to_numpy().astype(np.int64))
        matrix = found["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, self.settings.dimension)
        return matrix[order[np.searchsorted(found["_rowid"].to_numpy().astype(np.int64)[order], wanted)]]

    def candidates(self, state: BankState) -> CandidateIndex:
        """LanceDB's own search by cosine: over every row, unless the table has an index."""
        order = np.argsort(self._row_ids)
        sorted_ids, dead = self._row_ids[order], int((~state.alive).sum())

        def propose(queries: np.ndarray, depth: int) -> np.ndarray:
            found = np.full((len(queries), depth), ABSENT)
            for line, query in enumerate(queries):
                search = self._rows.search(query, vector_column_name="embedding").distance_type("cosine")
                near = search.limit(min(depth + dead, len(order))).select(["line"]).with_row_id(True).to_arrow()
                ids = near.sort_by("_distance")["_rowid"].to_numpy().astype(np.int64)
                at = np.searchsorted(sorted_ids, ids).clip(max=len(order) - 1)
                rows = order[at[sorted_ids[at] == ids]]  # lines of lost attempts are no rows
                rows = rows[state.alive[rows]][:depth]
                found[line, : len(rows)] = rows
            return found

        point = np.full(len(state.alive), ABSENT)
        point[state.members] = np.arange(len(state.members))

        def points(queries: np.ndarray, depth: int) -> np.ndarray:
            rows = propose(queries, depth)
            return np.where(rows == ABSENT, ABSENT, point[rows])

        def vectors(points: np.ndarray) -> np.ndarray:
            return unit_rows(self.embeddings(state, state.members[points]))

        return CandidateIndex(points, vectors, VectorRows.of(point, len(state.members)))

    def compact(self) -> None:
        """What LanceDB's documentation asks for now and then: join small files, drop what no version needs."""
        from datetime import timedelta

        for table in (self._rows, self._log):
            table.optimize(cleanup_older_than=timedelta(0))

    def describe(self) -> dict[str, Any]:
        """The version of the table, which is not the bank's."""
        return {"index": "none", "table_version": self._rows.version}

    def close(self) -> None:
        """Do nothing: no file is kept open."""


def _entry(version: int, content: dict[str, Any], attempt: str) -> pa.Table:
    text = json.dumps(content, ensure_ascii=False)
    return pa.table({"version": [version], "text": [text], "attempt": [attempt]}, schema=_LOG)


def _lines(change: Change, embedding: np.ndarray | None, version: int, attempt: str, dimension: int = 0) -> pa.Table:
    """The lines of a change. Lines of earlier rows have no embedding, so that no search finds them."""
    table = change.to_table()
    new, count = 0 if embedding is None else len(embedding), len(table)
    dimension = dimension if embedding is None else embedding.shape[1]
    values = np.zeros((count, dimension), np.float32)
    values[:new] = 0 if embedding is None else embedding
    mask = pa.array(np.arange(count) >= new)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dimension, mask=mask)
    more = {
        "embedding": vectors,
        "version": pa.array(np.full(count, version)),
        "line": pa.array(np.arange(count)),
        "attempt": pa.array([attempt] * count),
    }
    for name, column in more.items():
        table = table.append_column(name, column)
    return table


register_backend(
    BackendSpec("lance", lambda location: location.endswith(".lance"), lambda location: True, lambda: LanceBackend)
)
