"""The small versions of a bank's log in one file, so that opening a bank with a long history opens few files.

It holds nothing that the versions' own files do not hold, and may be deleted or damaged at any time. A version never
changes once it exists, so a checkpoint that was right stays right.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ra_hmd.bank.versions import Change, VersionEntry
from ra_hmd.core.artifacts import atomic_path

EVERY = 64
"""A checkpoint is written when so many versions have come."""
MOST_ROWS = 1024  # a version that touches more rows is read from its own file, which takes as long
_KEY = b"ra_hmd"


def write_checkpoint(path: Path, versions: Mapping[int, tuple[VersionEntry, Change]]) -> None:
    """Write those of the versions, by number, that are small; the file appears in one step."""
    tables = [(entry, change.to_table()) for entry, change in versions.values()]
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
    """Number → version of those that a checkpoint holds; none where it is missing or damaged."""
    try:
        table = pq.read_table(path, use_threads=False)
        about = json.loads(table.schema.metadata[_KEY])
        bounds = [0]
        for lines in about["lines"]:
            bounds.append(bounds[-1] + lines)
        if bounds[-1] != len(table):
            return {}
        changes = Change.several(table, bounds, multi_label=multi_label)
        entries = [VersionEntry(**entry) for entry in about["entries"]]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return {}
    return {entry.version: (entry, change) for entry, change in zip(entries, changes, strict=True)}
