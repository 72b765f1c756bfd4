"""Scan of the records by worker processes: each row is reduced to a few numbers, and its image opened and hashed."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from ra_hmd.core.artifacts import sha256_bytes, write_text
from ra_hmd.core.workers import Worker, WorkerSettings, run_units
from ra_hmd.data.images import describe_fault, open_image, perceptual_hash, to_rgb_with_traits
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import MemeData
from ra_hmd.data.prompt import special_strings
from ra_hmd.data.readers.tasks import Task

HUGE_PIXELS = 50_000_000
_CHUNK = 512
_HASH_SIDE = 128
_FORMAT = 2  # version of the saved facts
_SAME_FORMAT = {"MPO": "JPEG"}  # a JPEG with a second image behind the first


@dataclass(frozen=True)
class ImageFacts:
    """Facts about an image file.

    Attributes:
        width: Width in pixels; 0 if the header cannot be read.
        height: Height in pixels; 0 if the header cannot be read.
        hash: 64-bit perceptual hash (imagehash's pHash); None without pixels, or for a single colour.
        kind: Format of the file if its suffix stands for another one, else "".
        animated: Whether there is more than one frame.
        transparent: As in `ra_hmd.data.images.ImageTraits`.
        depth: As in `ImageTraits`.
        turned: As in `ImageTraits`.
        problem: "missing", "huge", or why the file cannot be decoded; "" for a sound image.
    """

    width: int = 0
    height: int = 0
    hash: int | None = None
    kind: str = ""
    animated: bool = False
    transparent: bool = False
    depth: str = ""
    turned: bool = False
    problem: str = ""


@dataclass(frozen=True)
class RowFacts:
    """Facts about a row; only `place` and `problem` for a row that cannot be read."""

    place: str
    problem: str = ""
    id: str = ""
    path: str = ""
    path_hash: int = 0
    caption: int = 0
    content: int = 0
    characters: int = 0
    special: str = ""
    values: tuple[Any, ...] = ()
    image: ImageFacts = ImageFacts()


@dataclass(frozen=True)
class _Chunk:
    """Rows of a split, and the file of the facts about their images."""

    split: str
    cache: Path
    rows: list[tuple[str, Meme | str]]

    def __str__(self) -> str:
        return f"the rows of {self.cache.stem}"


def scan(
    data: MemeData,
    tasks: tuple[Task, ...],
    cache: Path,
    *,
    workers: int,
    engine: WorkerSettings | None = None,
    total: int | None,
    show: bool,
) -> Iterator[tuple[str, list[RowFacts]]]:
    """Yield (split, facts of the next rows) in order.

    Facts about images are saved in `cache` and reused as long as sizes and times of the files are the same, so that an
    interrupted scan continues where it stopped, also with another number of workers or on another engine.
    """

    def chunks() -> Iterator[_Chunk]:
        for split in data.splits:
            rows = data.rows(split)
            for number, chunk in enumerate(iter(partial(_next_rows, rows), [])):
                yield _Chunk(split, cache / f"{split}-{number:06d}.json", chunk)

    yield from run_units(
        partial(_open_scanner, data, tasks),
        chunks(),
        engine or WorkerSettings(),
        description="Checking",
        total=total,
        noun="memes",
        show=show,
        processes=workers,
        ordered=True,
    )


def _open_scanner(data: MemeData, tasks: tuple[Task, ...]) -> Worker[_Chunk, tuple[str, list[RowFacts]]]:
    def scanner(units: Iterator[_Chunk]) -> Iterator[tuple[int, tuple[str, list[RowFacts]]]]:
        for chunk in units:
            facts = _scan_chunk(chunk, data, tasks)
            yield len(facts), (chunk.split, facts)

    return scanner


def _next_rows(rows: Iterator[tuple[str, Meme | str]]) -> list[tuple[str, Meme | str]]:
    return list(islice(rows, _CHUNK))


def _scan_chunk(chunk: _Chunk, data: MemeData, tasks: tuple[Task, ...]) -> list[RowFacts]:
    images = iter(_images([str(meme.path) for _, meme in chunk.rows if isinstance(meme, Meme)], chunk.cache))
    return [
        _row_facts(place, meme, next(images), data, tasks) if isinstance(meme, Meme) else RowFacts(place, meme)
        for place, meme in chunk.rows
    ]


def _row_facts(place: str, meme: Meme, image: ImageFacts, data: MemeData, tasks: tuple[Task, ...]) -> RowFacts:
    found = special_strings(meme.caption)
    row = meme.to_row()
    return RowFacts(
        place=place,
        id=meme.id,
        path=str(meme.path),
        path_hash=_short_hash(str(meme.path)),
        caption=_short_hash(" ".join(meme.caption.casefold().split())),
        content=_short_hash(json.dumps(row, sort_keys=True)),
        characters=len(meme.caption),
        special=found[0] if found else "",
        values=tuple(data.value(task, meme) for task in tasks),
        image=image,
    )


def _short_hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _images(paths: list[str], cache: Path) -> list[ImageFacts]:
    key = sha256_bytes(json.dumps([_FORMAT, *((path, *_stamp(path)) for path in paths)]).encode())
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return [ImageFacts(**facts) for facts in kept["images"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no cache, or an unreadable one: open the images
    facts = [image_facts(path) for path in paths]
    write_text(cache, json.dumps({"key": key, "images": [asdict(fact) for fact in facts]}))
    return facts


def _stamp(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)  # noqa: PTH116 - survives odd names
    except (OSError, ValueError):
        return 0, 0
    # The last one changes even if a file of the same size is copied here with its old time.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def image_facts(path: str) -> ImageFacts:
    """Open, decode and hash an image. Faults of the file never raise; they become its `problem`."""
    if not os.path.isfile(path):  # noqa: PTH113 - survives odd names
        return ImageFacts(problem="missing")
    width = height = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(path) as image:
                width, height = image.size
                kind = _kind(path, image.format or "")
                if width * height > HUGE_PIXELS:
                    return ImageFacts(width, height, kind=kind, problem="huge")
                if image.format == "JPEG":
                    image.draft("L", (_HASH_SIDE, _HASH_SIDE))  # decodes at a fraction of the size: much faster
                seen, traits = to_rgb_with_traits(image)
                return ImageFacts(
                    width,
                    height,
                    perceptual_hash(seen),
                    kind,
                    animated=traits.frames,
                    transparent=traits.transparent,
                    depth=traits.depth,
                    turned=traits.turned,
                )
    except Image.DecompressionBombError:
        return ImageFacts(width, height, problem="huge")
    except Exception as error:  # a decoder may raise anything on hostile bytes; one bad file must not stop the check
        return ImageFacts(width, height, problem=describe_fault(error))


def _kind(path: str, kind: str) -> str:
    expected = Image.registered_extensions().get(os.path.splitext(path)[1].lower())  # noqa: PTH122
    actual = _SAME_FORMAT.get(kind, kind)
    return "" if expected == actual else actual
