"""The formats of verdicts on memes: JSON Lines, CSV, Parquet, and the CSV of Hate-CLIPper."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from ra_hmd.core.config import choose
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.core.problem import Problem

if TYPE_CHECKING:
    from ra_hmd.inference.detector import Detector
    from ra_hmd.inference.types import Verdict

HATECLIPPER_COLUMNS = ("id", "prob_hate", "pred_label")
FileFormat = Literal["jsonl", "csv", "parquet", "hateclipper-csv"]
_BY_SUFFIX: dict[str, FileFormat] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_ROW_GROUP = 4096
_HEADS = get_args(Head)
_PER_HEAD = ("score", "probability", "verdict")


def choose_format(output: Path, style: FileFormat | None) -> FileFormat:
    """The format of a file: what is asked for, else what its suffix says.

    Raises:
        UserError: neither says it, they contradict each other, or `output` is a folder.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder; give a file to write, for example {output / 'verdicts.jsonl'}.")
    by_suffix = _BY_SUFFIX.get(output.suffix.lower())
    if style is None:
        if by_suffix is None:
            raise UserError(
                f"{output}: its suffix says no format; end it in .jsonl, .csv or .parquet, or give --format."
            )
        return by_suffix
    choose("format", style, get_args(FileFormat))
    if by_suffix not in (None, "csv" if style == "hateclipper-csv" else style):
        raise UserError(f"--format {style} and the suffix of {output} contradict each other; change one of them.")
    return style


def check_format(style: FileFormat, detector: "Detector") -> None:
    """Raise `UserError` where a format cannot hold a detector's answers."""
    if style != "hateclipper-csv":
        return
    problem, voting = detector.problem, detector.scorer.voting
    if problem.kind != "binary":
        raise UserError(
            f"`hateclipper-csv` has one probability and one class per meme; this head decides `{problem.kind}` of "
            f"{problem.outputs} classes. Use another --format."
        )
    if detector.abstain or (detector.head == "rkc" and voting.min_similarity is not None):
        raise UserError(
            "`hateclipper-csv` cannot say that a meme is left to a person; use another --format, or leave out "
            "--abstain and --min-similarity."
        )


def answer_of(found: "Verdict") -> dict[str, Any]:
    """A detection as one line: `id`, `head`, `score`, `probability`, `verdict` of who decides, as `ra-hmd predict` has
    them of a store, then all that `Verdict` has.
    """
    values = found.to_dict()
    first = {
        "id": found.id,
        "head": found.head,
        "score": found.scores[found.head],
        "probability": found.probabilities[found.head],
        "verdict": found.verdict,
    }
    return first | {name: value for name, value in values.items() if name not in first}


def verdict_names(verdict: int | list[int] | None) -> list[str]:
    """The classes of a verdict, for counts; of label sets those that it holds."""
    if verdict is None:
        return ["abstained"]
    if isinstance(verdict, int):
        return [str(verdict)]
    return [str(number) for number, holds in enumerate(verdict) if holds] or ["none"]


@contextmanager
def open_writer(path: Path, style: FileFormat, problem: Problem) -> Iterator[Callable[[dict[str, Any]], object]]:
    """Yield what adds an answer (`answer_of`) to a new file."""
    if style == "parquet":
        with pq.ParquetWriter(path, _schema(problem), compression="zstd") as table:
            waiting: list[dict[str, Any]] = []

            def flush() -> None:
                table.write_table(pa.Table.from_pylist(waiting, schema=table.schema))
                waiting.clear()

            def add(answer: dict[str, Any]) -> None:
                waiting.append(_flat(answer))
                if len(waiting) == _ROW_GROUP:
                    flush()

            yield add
            flush()
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if style == "jsonl":
            yield lambda answer: file.write(json.dumps(answer, ensure_ascii=False, allow_nan=False) + "\n")
            return
        table = csv.writer(file, lineterminator="\n")
        if style == "hateclipper-csv":
            table.writerow(HATECLIPPER_COLUMNS)
            yield lambda answer: table.writerow((answer["id"], answer["probability"], answer["verdict"]))
            return
        table.writerow(_schema(problem).names)
        yield lambda answer: table.writerow(map(_cell, _flat(answer).values()))


def _flat(answer: dict[str, Any]) -> dict[str, Any]:
    """The columns of CSV and Parquet; what a head does not say is None. `identical` is the id of the bank's row."""
    values = {name: answer[name] for name in ("id", "head", "score", "probability", "verdict", "threshold")}
    for head in _HEADS:
        for name, plural in zip(_PER_HEAD, ("scores", "probabilities", "verdicts"), strict=True):
            values[f"{head}_{name}"] = answer[plural].get(head)
    return (
        values
        | {name: answer[name] for name in ("text", "text_source", "neighbours")}
        | {"identical": (answer["identical"] or {}).get("id")}
    )


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _schema(problem: Problem) -> pa.Schema:
    """Columns of `_flat`, typed: several values per meme are lists."""
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
    )
