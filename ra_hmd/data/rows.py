"""Streaming readers of the rows of JSON Lines, JSON, CSV and Parquet files."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import ijson

from ra_hmd.core.errors import UserError

_LONGEST_LINE = 1 << 24  # bytes

csv.field_size_limit(_LONGEST_LINE)


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        place: File and line, for messages.
        values: Fields; empty if the row cannot be read.
        problem: Why the row cannot be read; "" for a valid row.
    """

    place: str
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def jsonl_rows(path: Path, *, salvage: bool = False) -> Iterator[Row]:
    """Read a JSON Lines file. A byte order mark, CRLF, blank lines and a missing last newline are accepted.

    Args:
        path: The file.
        salvage: Report a line that is not UTF-8, or longer than 16 MiB, as a bad row of its own.

    Raises:
        UserError: without `salvage`, a file that is not UTF-8.
    """
    # Not splitlines() and not universal newlines: both would also split inside captions, at U+2028 or a lone CR.
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE if salvage else -1), b""), 1):
            place = f"{path.name}, line {number}"
            if salvage and len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield Row(place, problem=f"longer than {_LONGEST_LINE} bytes")
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield _object(place, json.loads(text))
            except UnicodeDecodeError as error:
                if not salvage:
                    raise _not_utf8(path, error) from error
                yield Row(place, problem=f"not UTF-8: {error}")
            except (ValueError, RecursionError) as error:
                yield Row(place, problem=f"not valid JSON: {error}")


def json_rows(path: Path) -> Iterator[Row]:
    """Read a JSON array of objects, or an object of objects whose keys become the field `id`."""
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        start, first = file.tell(), file.read(64).lstrip()[:1]
        file.seek(start)
        try:
            if first == b"{":
                for key, value in ijson.kvitems(file, "", use_float=True):
                    row = _object(f"{path.name}, {key}", value)
                    yield Row(row.place, {"id": key, **row.values}, row.problem)
            else:
                for number, value in enumerate(ijson.items(file, "item", use_float=True)):
                    yield _object(f"{path.name}, record {number}", value)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid JSON: {error}. Get a whole copy of the file.") from error


def csv_rows(path: Path, delimiter: str | None = None) -> Iterator[Row]:
    """Read a CSV file with a header. Every value is text exactly as in the file ("NA", "None" and "" too).

    Empty rows, and empty columns without a name, which spreadsheets leave at the end of a table, are dropped. After a
    quote that is not closed, the lines are read one by one, so that no row is lost.

    Args:
        path: The file.
        delimiter: By default the most frequent of comma, semicolon (as spreadsheets write it where the comma is the
            decimal sign) and TAB in the header, or the one that a first line such as `sep=;` names.

    Raises:
        UserError: The header names a column twice, or the file is no CSV file.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        decoded = _decoded(file, path)
        first, skipped = next(decoded, ""), 0
        if named := re.fullmatch(r'"?sep=(.)"?', first.strip("\r\n"), re.IGNORECASE):
            delimiter, first, skipped = named[1], next(decoded, ""), 1
        if delimiter is None:
            delimiter = max((",", ";", "\t"), key=first.count)
        taken: list[str] = []  # the lines of the present row

        def lines() -> Iterator[str]:
            for line in chain([first] if first else [], decoded):
                taken.append(line)
                yield line

        reader = csv.reader(lines(), delimiter=delimiter)
        try:
            header = [name.strip() for name in next(reader, [])]
            twice = [name for name, count in Counter(header).items() if name and count > 1]
            if twice:
                raise UserError(f"{path}: the header has {twice[0]!r} twice; name its columns differently.")
            taken.clear()
            for values in reader:
                block, last = list(taken), reader.line_num + skipped
                taken.clear()
                if any('"' in line for line in block) and not _is_whole(block, delimiter):
                    yield from _line_by_line(block, last, path, header, delimiter)
                elif any(values):
                    yield _csv_row(f"{path.name}, line {last}", header, values)
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num + skipped} cannot be read as CSV: {error}.") from error


def _csv_row(place: str, header: list[str], values: list[str]) -> Row:
    if len(values) < len(header) or any(values[len(header) :]):
        return Row(place, problem=f"{len(values)} columns, the header has {len(header)}")
    return Row(place, {name: value for name, value in zip(header, values, strict=False) if name or value})


def _is_whole(lines: list[str], delimiter: str) -> bool:
    """Return whether lines are one row with balanced quotes, and without TABs inside cells of a TAB-separated file."""
    try:
        (values,) = csv.reader(lines, delimiter=delimiter, strict=True)
    except (csv.Error, ValueError):
        return False
    return delimiter != "\t" or len(lines) == 1 or not any("\t" in value for value in values)


def _line_by_line(lines: list[str], last: int, path: Path, header: list[str], delimiter: str) -> Iterator[Row]:
    """Read lines that an unbalanced quote joined, each as a row; unbalanced quotes are kept as characters."""
    for number, line in enumerate(lines, last - len(lines) + 1):
        whole = _is_whole([line], delimiter)
        for values in csv.reader([line], delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if whole else csv.QUOTE_NONE):
            if any(values):
                yield _csv_row(f"{path.name}, line {number}", header, values)


def parquet_rows(path: Path) -> Iterator[Row]:
    """Read a Parquet file."""
    import pyarrow as pa  # every command reads lines, few read Parquet
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            # A batch is in memory as a whole, and images may be embedded.
            batches = (batch.to_pylist() for batch in file.iter_batches(64))
            for number, values in enumerate(chain.from_iterable(batches)):
                yield Row(f"{path.name}, row {number}", values)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file: {error}.") from error


KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Suffixes of the files that `rows_of` reads."""


def rows_of(path: Path) -> Iterator[Row]:
    """Read a file by its suffix (.jsonl, .json, .csv, .tsv, .parquet). A `.json` file may hold JSON Lines.

    Raises:
        UserError: The suffix is none of these, or the file cannot be read to its end.
    """
    match path.suffix.lower():
        case ".jsonl":
            return jsonl_rows(path)
        case ".json":
            return jsonl_rows(path) if _is_jsonl(path) else json_rows(path)
        case ".csv":
            return csv_rows(path)
        case ".tsv":
            return csv_rows(path, "\t")
        case ".parquet":
            return parquet_rows(path)
    raise UserError(f"{path}: files of kind {path.suffix or 'no suffix'!r} are not read; give .jsonl, .json, .csv, "
                    ".tsv or .parquet.")  # fmt: skip


def read_lines(path: Path) -> list[str]:
    """Read the lines of a small text file, without line ends.

    Raises:
        UserError: The file is not UTF-8.
    """
    with path.open(encoding="utf-8-sig") as file:
        return [line.rstrip("\n") for line in _decoded(file, path)]


def _is_jsonl(path: Path) -> bool:
    """Return whether the first line is a complete JSON object and another one follows."""
    with path.open("rb") as file:
        first, more = file.readline(1 << 20), file.readline(1 << 20).strip()
    try:
        return isinstance(json.loads(first.decode("utf-8-sig")), dict) and more.startswith(b"{")
    except ValueError:
        return False


def _object(place: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(place, value)
    return Row(place, problem=f"a {type(value).__name__} stands where an object is needed")


def _decoded(lines: Iterable[str], path: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def _not_utf8(path: Path, error: UnicodeDecodeError) -> UserError:
    wrong = error.object[error.start : error.start + 1]
    return UserError(f"{path} is not UTF-8 ({error.reason}: {wrong!r}); convert it, for example with iconv.")
