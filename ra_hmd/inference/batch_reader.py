"""Input of batch prediction: the memes of a file or folder, one at a time, bad rows with the reason."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.storage import RemotePath, as_path, is_url, over_places
from ra_hmd.data.image_files import locate_image
from ra_hmd.data.images import describe_fault, file_digest, open_image
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import PromptTemplate
from ra_hmd.data.rows import jsonl_rows, rows_of
from ra_hmd.data.text import well_formed
from ra_hmd.data.training_records import TrainingRecord, detect_format

_PROBLEMS_SHOWN = 3


@dataclass(frozen=True)
class BatchRow:
    """One row of the input: a meme, or the reason why it is none.

    Attributes:
        place: Place of the row in the input.
        id: Id of the meme, where the row has one.
        meme: The meme; its image is not opened yet.
        problem: Why there is no meme.
    """

    place: str
    id: str | None = None
    meme: Meme | None = None
    problem: str = ""


@dataclass(frozen=True)
class BatchInput:
    """A file or folder of memes for batch prediction.

    Attributes:
        source: A file (.jsonl, .json, .csv, .tsv, .parquet), or a folder of images.
        media_dir: Folder that relative image paths start from; default are the working directory and the file's folder.
        prompt: Template of the questions of training records; default is the official one.
        output: File of predictions; if it lies in `source`, it is no part of the input.
        unpack_to: Folder that embedded images are written to; default is a temporary one of this process.
    """

    source: Path
    media_dir: str | Path | None = None
    prompt: PromptTemplate | None = None
    output: Path | None = None
    unpack_to: Path | None = None

    def __iter__(self) -> Iterator[BatchRow]:
        return read_batch(self.source, self.media_dir, self.prompt, self.output, self.unpack_to)

    def chunks(self, size: int) -> Iterator[list[BatchRow]]:
        """The rows in lists of `size`, the last one shorter."""
        rows = iter(self)
        return iter(lambda: list(islice(rows, size)), [])

    def survey(self, size: int) -> "Survey":
        """Read the input once to its end, before any work is done.

        Raises:
            UserError: an input without any meme, a file that cannot be read to its end.
        """
        rows, usable, names = 0, False, hashlib.sha256()
        problems: list[str] = []
        images: list[str] = []
        for chunk in self.chunks(size):
            rows += len(chunk)
            for row in chunk:
                names.update(f"{row.place}\n".encode())
                problem = row.problem
                if row.meme is not None and not usable and self.source.is_dir():
                    problem = _header_problem(row.meme)  # a folder has files of any kind
                usable = usable or not problem
                if problem and len(problems) < _PROBLEMS_SHOWN:
                    problems.append(f"{row.place}: {problem}")
            files = (row.meme.image for row in chunk if row.meme is not None)
            digests = over_places(file_digest, (image for image in files if isinstance(image, Path)))
            images.append(sha256_bytes(*map(str.encode, digests)))
        if usable:
            return Survey(rows, names.hexdigest(), images)
        raise_all(problems, f"{self.source}: no row can be used, of {rows}; the first of them")
        raise UserError(f"{self.source} has no {'images' if self.source.is_dir() else 'rows'}.")


@dataclass(frozen=True)
class Survey:
    """Result of one pass over an input.

    Attributes:
        rows: Number of rows, bad ones included.
        names: Digest of the rows' places.
        images: Digest of the image files of each chunk.
    """

    rows: int
    names: str
    images: list[str]


def read_batch(
    source: str | Path,
    media_dir: str | Path | None = None,
    prompt: PromptTemplate | None = None,
    output: str | Path | None = None,
    unpack_to: Path | None = None,
) -> Iterator[BatchRow]:
    """Read the memes of a file (.jsonl, .json, .csv, .tsv, .parquet) or of a folder of images, one at a time, in order.

    A row has `id`, `image` (or `img`) and `text`; without `text` the caption is read from the image, and an empty
    `text` is a meme without words. Records that LLaMA-Factory trains on are read too, with `prompt` as the template of
    their questions, by default the official one. Images are looked for under `media_dir`, or in the working directory
    and beside the file. Of a folder, every file at any depth is a row, in the order of the paths and whatever its
    suffix; its id is the path below the folder. `output` in it, and the files beside that, are left out. A row with
    an id that occurred before is a bad row; 16 bytes are kept of each id. Embedded images are written to `unpack_to`.

    Raises:
        UserError: a missing source, or a file that cannot be read to its end.
    """
    source, seen = as_path(source), set()
    rows = _image_files(source, output) if source.is_dir() else _memes(source, media_dir, prompt, unpack_to)
    for row in rows:
        if row.meme is not None:
            key = hashlib.blake2b(row.meme.id.encode(), digest_size=16).digest()
            if key in seen:
                yield replace(row, meme=None, problem="its id came before")
                continue
            seen.add(key)
        yield row


def _paths(folder: Path, output: str | Path | None) -> list[str]:
    """Paths of files below `folder`, in order; and of folders that are links, or cannot be listed."""
    if isinstance(folder, RemotePath):
        return [
            name for name in folder.files_below() if output is None or not _is_output(str(folder / name), str(output))
        ]
    found: list[str] = []
    closed: list[str] = []
    own = None if output is None or is_url(output) else os.path.abspath(output)  # noqa: PTH100 - of odd names too, and fast
    for place, folders, names in os.walk(folder, onerror=lambda error: closed.append(error.filename)):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]  # noqa: PTH114, PTH118
        inside = os.path.abspath(place)  # noqa: PTH100
        for name in names + links:
            path = os.path.join(inside, name)  # noqa: PTH118
            if own is None or not _is_output(path, own):
                found.append(os.path.join(place, name))  # noqa: PTH118
    return sorted(os.path.relpath(path, folder) for path in found + closed)


def _is_output(path: str, output: str) -> bool:
    """Whether a file is the output, or one of those beside it: `<output>.parts/…`, `.<output>.….tmp`."""
    place, name = os.path.split(output)
    return path == output or path.startswith((f"{output}.", os.path.join(place, f".{name}.")))  # noqa: PTH118


def _image_files(folder: Path, output: str | Path | None) -> Iterator[BatchRow]:
    for name in _paths(folder, output):
        shown = well_formed(name)
        if shown == name:
            yield BatchRow(shown, name, Meme(name, folder / name))
        else:
            yield BatchRow(shown, problem="its name is not UTF-8")


def _header_problem(meme: Meme) -> str:
    try:
        with open_image(meme.path):
            return ""
    except Exception as error:  # a parser may raise anything on hostile bytes
        return well_formed(describe_fault(error))


def _memes(
    path: Path, media_dir: str | Path | None, prompt: PromptTemplate | None, unpack_to: Path | None
) -> Iterator[BatchRow]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a .jsonl, .csv or .parquet file, or a folder of images.")
    folders = [as_path(media_dir)] if media_dir is not None else [Path(), path.parent]
    for row in jsonl_rows(path, salvage=True) if path.suffix.lower() == ".jsonl" else rows_of(path):
        try:
            if row.problem:
                raise ValueError(row.problem)
            meme = _meme(row.values, folders, prompt or PromptTemplate(), unpack_to)
            yield BatchRow(row.place, meme.id, meme)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            name = row.values.get("id")
            named = well_formed(str(name)) if isinstance(name, str | int) else None
            problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            yield BatchRow(row.place, named, problem=well_formed(problem))


def _meme(values: Mapping[str, Any], folders: list[Path], prompt: PromptTemplate, unpack_to: Path | None) -> Meme:
    """The meme of a row. Raises `ValueError` for a missing field, and for one of another type."""
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
    return Meme(name, locate_image(image, folders, folders[-1], unpack_to), text)
