"""The memes of a file or folder, one at a time: good rows as queries, bad ones with their reason."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ra_hmd.core.errors import UserError
from ra_hmd.data.image_files import locate_image
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import PromptTemplate
from ra_hmd.data.rows import Row, rows_of
from ra_hmd.data.text import well_formed
from ra_hmd.data.training_records import TrainingRecord, detect_format

_LONGEST_LINE = 1 << 24  # bytes


@dataclass(frozen=True)
class BatchRow:
    """One row of the input: a query, or what is wrong with it.

    Attributes:
        place: Where it stands.
        id: Its name, where it has one.
        query: The meme; its picture is not opened yet.
        problem: Why it is none.
    """

    place: str
    id: str | None = None
    meme: Meme | None = None
    problem: str = ""


def read_batch(
    source: str | Path,
    media_dir: str | Path | None = None,
    prompt: PromptTemplate | None = None,
    output: str | Path | None = None,
) -> Iterator[BatchRow]:
    """The memes of a file (.jsonl, .json, .csv, .tsv, .parquet) or of a folder of pictures, one at a time, in order.

    A row has `id`, `image` (or `img`) and, unless the caption shall be read from the picture, `text`; an empty `text`
    is a meme without words. Records that LLaMA-Factory trains on do as well: `prompt` is the template of their
    questions, by default the official one. Pictures are looked for under `media_dir`, or in the present folder and
    beside the file. Of a folder, with what is below it, every file is a row, in the order of the paths, whatever its
    suffix: what it is is known once it is opened; the path below the folder is its id. `output` in it, and what is
    written beside that, is left out. An id that came before makes a row a bad one; of each id 16 bytes are remembered.

    Raises:
        UserError: nothing there, or a file that cannot be read to its end.
    """
    source, seen = Path(source), set()
    rows = _pictures(source, output) if source.is_dir() else _memes(source, media_dir, prompt)
    for row in rows:
        if row.meme is not None:
            key = hashlib.blake2b(row.meme.id.encode(), digest_size=16).digest()
            if key in seen:
                yield replace(row, meme=None, problem="its id came before")
                continue
            seen.add(key)
        yield row


def _paths(folder: Path, output: str | Path | None) -> list[str]:
    """Paths of files below `folder`, in order; of folders too where they are links, or cannot be listed."""
    found, closed = [], []
    own = None if output is None else os.path.abspath(output)  # noqa: PTH100 - of odd names too, and fast
    for place, folders, names in os.walk(folder, onerror=lambda error: closed.append(error.filename)):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]  # noqa: PTH114, PTH118
        inside = os.path.abspath(place)  # noqa: PTH100
        for name in names + links:
            path = os.path.join(inside, name)  # noqa: PTH118
            if own is None or not _belongs(path, own):
                found.append(os.path.join(place, name))  # noqa: PTH118
    return sorted(os.path.relpath(path, folder) for path in found + closed)


def _belongs(path: str, output: str) -> bool:
    """Whether a file is an output, or one of those beside it: `<output>.parts/…`, `.<output>.….tmp`."""
    place, name = os.path.split(output)
    return path == output or path.startswith((f"{output}.", os.path.join(place, f".{name}.")))  # noqa: PTH118


def _pictures(folder: Path, output: str | Path | None) -> Iterator[BatchRow]:
    for name in _paths(folder, output):
        shown = well_formed(name)
        if shown == name:
            yield BatchRow(shown, name, Meme(name, folder / name))
        else:
            yield BatchRow(shown, problem="its name is not UTF-8")


def _memes(path: Path, media_dir: str | Path | None, prompt: PromptTemplate | None) -> Iterator[BatchRow]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a .jsonl, .csv or .parquet file, or a folder of pictures.")
    folders = [Path(media_dir)] if media_dir is not None else [Path(), path.parent]
    for row in jsonl_rows(path) if path.suffix.lower() == ".jsonl" else rows_of(path):
        try:
            if row.problem:
                raise ValueError(row.problem)
            query = _query(row.values, folders, prompt or PromptTemplate())
            yield BatchRow(row.place, query.id, query)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            name = row.values.get("id")
            named = well_formed(str(name)) if isinstance(name, str | int) else None
            problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            yield BatchRow(row.place, named, problem=well_formed(problem))


def _query(values: Mapping[str, Any], folders: list[Path], prompt: PromptTemplate) -> Meme:
    """Raises `ValueError`: a field is missing, or is no such field."""
    name, text = values.get("id"), values.get("text")
    image = values.get("image", values.get("img"))
    record_format = detect_format(values)
    if record_format is not None:
        record = TrainingRecord.of_row(values, prompt, record_format)
        image, text, name = record.image, record.caption, values.get("id", record.id)
    for field, value in (("id", name), ("image", image)):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise ValueError(
                f"it has no `{field}`{' (or `img`)' if field == 'image' else ''}; it has {', '.join(values)}"
            )
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError(f"its id is {name!r}, a text or a whole number is needed")
    for field, value, kinds in (("image", image, str | Mapping | None), ("text", text, str | None)):
        if not isinstance(value, kinds):
            raise ValueError(f"its {field} is of type {type(value).__name__}, text is needed")
    name, text = well_formed(str(name)), None if text is None else well_formed(text)
    return Meme(name, locate_image(image, folders, folders[-1]), text)


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Rows of a JSON Lines file, as `ra_hmd.data.rows.jsonl_rows`, past lines without end or not in UTF-8."""
    with path.open("rb") as file:
        for number, read in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
            place = f"{path.name}, line {number}"
            if len(read) == _LONGEST_LINE and not read.endswith(b"\n"):
                while (rest := file.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield Row(place, problem=f"longer than {_LONGEST_LINE} bytes")
                continue
            line = read.removeprefix(b"\xef\xbb\xbf") if number == 1 else read
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                yield Row(place, problem=f"not valid JSON in UTF-8: {error}")
                continue
            known = isinstance(value, dict)
            yield Row(place, value if known else {}, "" if known else f"a {type(value).__name__}, not an object")
