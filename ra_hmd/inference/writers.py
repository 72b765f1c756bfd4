"""Formats of prediction files: JSON Lines, CSV, Parquet, and the CSV of Hate-CLIPper."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from ra_hmd.core.config import choose
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.core.problem import Problem
from ra_hmd.inference.options import FileFormat

HATECLIPPER_COLUMNS = ("id", "prob_hate", "pred_label")
_BY_SUFFIX: dict[str, FileFormat] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_ROW_GROUP = 4096
_HEADS = get_args(Head)
_CHECKED = {"read": pa.string(), "agreement": pa.float64(), "agrees": pa.bool_()}
_KNOWN = {
    "id": pa.string(),
    "hash": pa.string(),
    "distance": pa.int64(),
    "transform": pa.string(),
    "same_caption": pa.bool_(),
    "decides": pa.bool_(),
}
_PER_HEAD = ("score", "probability", "verdict")


def choose_format(output: Path, style: FileFormat | None) -> FileFormat:
    """Return the format of a prediction file: `style`, or the one that the file's suffix stands for.

    Raises:
        UserError: no style and an unknown suffix, a style and a suffix that contradict each other, or a folder.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder; give a file to write, for example {output / 'verdicts.jsonl'}.")
    by_suffix = _BY_SUFFIX.get(output.suffix.lower())
    if style is None:
        if by_suffix is None:
            raise UserError(
                f"{output}: its suffix stands for no format; end it in .jsonl, .csv or .parquet, or give --format."
            )
        return by_suffix
    choose("format", style, get_args(FileFormat))
    if by_suffix not in (None, "csv" if style == "hateclipper-csv" else style):
        raise UserError(f"--format {style} and the suffix of {output} contradict each other; change one of them.")
    return style


def check_format(style: FileFormat, problem: Problem, *, abstains: bool = False, known: bool = False) -> None:
    """Raise `UserError` where a format cannot hold verdicts of a problem.

    Args:
        style: The format.
        problem: What the head decides.
        abstains: Whether memes may be left to a person.
        known: Whether memes may be known, and have no probability.
    """
    if style != "hateclipper-csv":
        return
    if problem.kind != "binary":
        raise UserError(
            f"`hateclipper-csv` has one probability and one class per meme; this head decides `{problem.kind}` of "
            f"{problem.outputs} classes. Use `--format jsonl`."
        )
    if abstains:
        raise UserError(
            "`hateclipper-csv` cannot express that a meme is left to a person; use another --format, or leave out "
            "--abstain, --min-similarity and --check-captions abstain."
        )
    if known:
        raise UserError(
            "`hateclipper-csv` has a probability for each meme, and a known meme has none; use another --format, or "
            "leave out --known-memes."
        )


def manifest_path(output: Path) -> Path:
    """Path of the manifest of a prediction file."""
    return output.with_name(f"{output.name}.manifest.json")


def verdict_names(verdict: int | list[int] | None) -> list[str]:
    """Names of a verdict's classes, for counts; of a label set, the classes that are in it."""
    if verdict is None:
        return ["abstained"]
    if isinstance(verdict, int):
        return [str(verdict)]
    return [str(number) for number, holds in enumerate(verdict) if holds] or ["none"]


@contextmanager
def open_writer(
    path: Path, style: FileFormat, problem: Problem, *, known: bool = False, checked: bool = False
) -> Iterator[Callable[[dict[str, Any]], object]]:
    """Open a new file and yield a function that adds a row (`Verdict.to_row`) to it; `known`: with the columns of known
    memes, `checked`: of checked captions, in CSV and Parquet.
    """
    if style == "parquet":
        with pq.ParquetWriter(path, _schema(problem, known, checked), compression="zstd") as table:
            waiting: list[dict[str, Any]] = []

            def flush() -> None:
                table.write_table(pa.Table.from_pylist(waiting, schema=table.schema))
                waiting.clear()

            def add(row: dict[str, Any]) -> None:
                waiting.append(_flatten(row, known, checked))
                if len(waiting) == _ROW_GROUP:
                    flush()

            yield add
            flush()
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if style == "jsonl":
            yield lambda row: file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            return
        table = csv.writer(file, lineterminator="\n")
        if style == "hateclipper-csv":
            table.writerow(HATECLIPPER_COLUMNS)
            yield lambda row: table.writerow((row["id"], row["probability"], row["verdict"]))
            return
        table.writerow(_schema(problem, known, checked).names)
        yield lambda row: table.writerow(map(_cell, _flatten(row, known, checked).values()))


def _flatten(row: dict[str, Any], known: bool, checked: bool) -> dict[str, Any]:
    """Columns of CSV and Parquet, from a row: None for heads without scores, and the id alone of `identical`."""
    copy = row.get("known") or {}
    values = {name: row[name] for name in ("id", "head", "score", "probability", "verdict", "threshold")}
    for head in _HEADS:
        for name, plural in zip(_PER_HEAD, ("scores", "probabilities", "verdicts"), strict=True):
            values[f"{head}_{name}"] = row[plural].get(head)
    return (
        values
        | {name: row[name] for name in ("text", "text_source", "neighbours")}
        | {"identical": (row["identical"] or {}).get("id")}
        | ({f"known_{name}": copy.get(name) for name in _KNOWN} if known else {})
        | ({f"caption_{name}": (row.get("caption_check") or {}).get(name) for name in _CHECKED} if checked else {})
    )


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _schema(problem: Problem, known: bool, checked: bool) -> pa.Schema:
    """Typed columns of `_flatten`; several values per meme are lists."""
    number = pa.float64() if problem.kind == "binary" else pa.list_(pa.float64())
    several = problem.kind == "multi_label"
    label = pa.list_(pa.int64()) if several else pa.int64()
    kinds = dict(zip(_PER_HEAD, (number, number, label), strict=True))
    neighbour = {"id": pa.string(), "label": label, "similarity": pa.float64(), "vote": number, "share": pa.float64()}
    neighbour |= dict.fromkeys(("source", "note", "time"), pa.string())
    return pa.schema(
        {"id": pa.string(), "head": pa.string()}
        | kinds
        | {"threshold": number}
        | {f"{head}_{name}": kind for head in _HEADS for name, kind in kinds.items()}
        | {"text": pa.string(), "text_source": pa.string()}
        | {"neighbours": pa.list_(pa.struct(list(neighbour.items()))), "identical": pa.string()}
        | ({f"known_{name}": kind for name, kind in _KNOWN.items()} if known else {})
        | ({f"caption_{name}": kind for name, kind in _CHECKED.items()} if checked else {})
    )
