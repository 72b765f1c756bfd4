"""Imported data sets: a folder with `<split>.jsonl`, `<split>.parquet`, `rejected.jsonl` and a manifest."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ra_hmd.core.artifacts import atomic_path
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import DatasetManifest, read_manifest
from ra_hmd.core.storage import as_path
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import iter_memes
from ra_hmd.data.readers import READERS
from ra_hmd.data.readers.base import Reader
from ra_hmd.data.readers.tasks import Expected, Task
from ra_hmd.data.rows import jsonl_rows

DATASET_MANIFEST = "dataset.json"
REJECTED = "rejected.jsonl"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("text", pa.string()),
        ("raw_text", pa.string()),
        ("label", pa.int64()),
        ("split", pa.string()),
        ("extras", pa.string()),  # JSON: its fields differ from data set to data set
    ]
)
_ROW_GROUP = 4096


@dataclass(frozen=True)
class MemeData:
    """An imported data set.

    Attributes:
        folder: Folder of the data set.
        manifest: Its `dataset.json`; for a folder without one a manifest that names the generic reader.
        splits: Names of its splits.
    """

    folder: Path
    manifest: DatasetManifest
    splits: tuple[str, ...]

    @property
    def reader(self) -> type[Reader]:
        """Reader that imported it."""
        return READERS[self.manifest.dataset or "generic"]

    @property
    def expected(self) -> dict[str, Expected]:
        """Split → counts of a whole copy; {} if they are unknown."""
        return dict(self.reader.expected.get(self.manifest.variant, {}))

    def task(self, name: str | None) -> Task:
        """Return a task by its name; None stands for the first.

        Raises:
            UserError: There is no task of that name.
        """
        tasks = {task.name: task for task in self.reader.tasks}
        if name is None:
            return self.reader.tasks[0]
        if name not in tasks:
            raise UserError(f"{self.reader.title} has no task {name!r}; it has {', '.join(tasks)}.")
        return tasks[name]

    def value(self, task: Task, meme: Meme) -> int | list[int] | None:
        """Return the class index (or indices) of a meme in a task; None if it is unlabelled."""
        return task.value(meme, first=task == self.reader.tasks[0])

    def rows(self, split: str) -> Iterator[tuple[str, Meme | str]]:
        """Yield the rows of a split as (place, meme or error message)."""
        return iter_memes(self.folder / f"{split}.jsonl", split=split)

    def memes(self, split: str) -> Iterator[Meme]:
        """Yield the memes of a split.

        Raises:
            UserError: A row is invalid.
        """
        for place, meme in self.rows(split):
            if isinstance(meme, str):
                raise UserError(f"{self.folder}: {place}: {meme}; `ra-hmd data check` lists such rows.")
            yield meme

    def rejected(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that the import rejected, each with split, place and reason."""
        path = self.folder / REJECTED
        return (row.values for row in jsonl_rows(path) if not row.problem) if path.is_file() else iter(())


def open_data(folder: str | Path) -> MemeData:
    """Open an imported data set, or any folder of `<split>.jsonl` files.

    Raises:
        UserError: The folder is neither, or files that its manifest names are missing.
    """
    folder = as_path(folder)
    path = folder / DATASET_MANIFEST
    if path.is_file():
        manifest = read_manifest(path, DatasetManifest)
        if manifest.dataset not in READERS:
            raise UserError(f"{path} is of data set {manifest.dataset!r}; this version knows {', '.join(READERS)}.")
        gone = [
            str(folder / f"{split}.jsonl") for split in manifest.splits if not (folder / f"{split}.jsonl").is_file()
        ]
        raise_all(gone, f"{path} names files that are gone; import again into another folder")
        return MemeData(folder, manifest, tuple(manifest.splits))
    splits = tuple(sorted(file.stem for file in folder.glob("*.jsonl") if file.name != REJECTED))
    if not splits:
        raise UserError(f"{folder} holds no {DATASET_MANIFEST} and no .jsonl files; import a data set first.")
    return MemeData(folder, DatasetManifest(kind="dataset", dataset="generic"), splits)


class SplitWriter:
    """Context manager that writes a split as `.jsonl` and `.parquet`, row by row. Both files appear at its end."""

    def __init__(self, folder: Path, split: str) -> None:
        self._stack = ExitStack()
        self._paths = folder / f"{split}.jsonl", folder / f"{split}.parquet"
        self._pending: list[dict[str, Any]] = []
        self._lines: IO[str]
        self._table: pq.ParquetWriter

    def __enter__(self) -> "SplitWriter":
        lines, table = (self._stack.enter_context(atomic_path(path)) for path in self._paths)
        self._lines = self._stack.enter_context(lines.open("w", encoding="utf-8", newline="\n"))
        self._table = self._stack.enter_context(pq.ParquetWriter(table, _SCHEMA, compression="zstd"))
        return self

    def write(self, row: dict[str, Any]) -> None:
        """Write one row, as `Meme.to_row` returns it."""
        self._lines.write(json_line(row))
        self._pending.append({**row, "extras": json.dumps(row["extras"], ensure_ascii=False)})
        if len(self._pending) == _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._table.write_table(pa.Table.from_pylist(self._pending, _SCHEMA))
            self._pending = []

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is None:
            self._flush()
        return self._stack.__exit__(kind, value, trace)


def write_split(folder: Path, split: str, memes: Iterable[Meme]) -> None:
    """Write a split from its memes."""
    with SplitWriter(folder, split) as writer:
        for meme in memes:
            writer.write(meme.to_row())


def json_line(value: dict[str, Any]) -> str:
    """Format a value as one line of a JSON Lines file."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
