"""The small versions of a bank in one file, so that opening a bank with a long history reads few files.

A checkpoint duplicates the versions' own files, so it may be deleted or damaged at any time. Versions never change, so
it never becomes outdated.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ra_hmd.bank.versions import Change, VersionEntry
from ra_hmd.core.artifacts import atomic_path
from ra_hmd.features.shard_files import arrow_source

EVERY = 64
"""Number of versions after which a checkpoint is written."""
MOST_ROWS = 1024  # a version that changes more rows is read as fast from its own file
_KEY = b"ra_hmd"


def write_checkpoint(path: Path, versions: Sequence[tuple[VersionEntry, Change]]) -> None:
    """Write the small ones of the versions; the file appears in one step."""
    tables = [(entry, change.to_table()) for entry, change in versions]
    small = [(entry, table) for entry, table in tables if len(table) <= MOST_ROWS]
    if not small:
        return
    about = {"entries": [entry.to_dict() for entry, _ in small], "lines": [len(table) for _, table in small]}
    joined = pa.concat_tables(table for _, table in small)
    joined = joined.replace_schema_metadata({_KEY: json.dumps(about, ensure_ascii=False)})
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        pq.write_table(joined, temporary, compression="lz4")


def read_checkpoint(path: Path, *, multi_label: bool) -> dict[int, tuple[VersionEntry, Change]]:
    """The versions of a checkpoint by number; none where it is missing or damaged."""
    try:
        table = pq.read_table(arrow_source(path), use_threads=False)
        about = json.loads(table.schema.metadata[_KEY])
        bounds = [0]
        for lines in about["lines"]:
            bounds.append(bounds[-1] + lines)
        if bounds[-1] != len(table):
            return {}
        changes = Change.from_joined_tables(table, bounds, multi_label=multi_label)
        entries = [VersionEntry(**entry) for entry in about["entries"]]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return {}
    return {entry.version: (entry, change) for entry, change in zip(entries, changes, strict=True)}
