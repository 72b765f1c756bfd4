"""One pass over the records: each row reduced to a few numbers, its image opened and hashed, by worker processes."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from PIL import Image

from ra_hmd.core.artifacts import sha256_bytes, write_text
from ra_hmd.core.progress import track
from ra_hmd.data.images import describe_fault, open_image, perceptual_hash, to_rgb_with_traits
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import MemeData
from ra_hmd.data.prompt import special_strings
from ra_hmd.data.readers.tasks import Task

HUGE_PIXELS = 50_000_000
_CHUNK = 512
_HASH_SIDE = 128
_FORMAT = 2  # of the facts that are kept
_SAME_FORMAT = {"MPO": "JPEG"}  # a JPEG with a second picture behind the first


@dataclass(frozen=True)
class ImageFacts:
    """What one image file is.

    Attributes:
        width, height: Pixels; 0 where the header cannot be read.
        hash: 64-bit perceptual hash (imagehash's pHash), or None without pixels.
        kind: Its format where the suffix says another, else "".
        animated: It has more than one frame.
        transparent, depth, turned: See `ra_hmd.data.images.Traits`.
        problem: "missing", "huge", or why it cannot be decoded; "" for a good one.
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
    """What one row is; `problem` alone where it could not be read."""

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


def scan(
    data: MemeData, tasks: tuple[Task, ...], cache: Path, *, workers: int, total: int | None, show: bool
) -> Iterator[tuple[str, list[RowFacts]]]:
    """(split, facts of some of its rows) in order. What was learnt about images is kept in `cache`, and used again as
    long as the files have the same sizes and times: a scan that was stopped continues.
    """

    def chunks() -> Iterator[tuple[str, Path, list[tuple[str, Meme | str]]]]:
        for split in data.splits:
            rows = data.rows(split)
            for number, chunk in enumerate(iter(lambda rows=rows: list(islice(rows, _CHUNK)), [])):
                yield split, cache / f"{split}-{number:06d}.json", chunk

    jobs = (delayed(_scan_chunk)(split, path, chunk, data, tasks) for split, path, chunk in chunks())
    done = Parallel(n_jobs=max(workers, 1), return_as="generator")(jobs)
    yield from track(((len(result[1]), result) for result in done), "Checking", total, "memes", show=show)


def _scan_chunk(
    split: str, cache: Path, chunk: list[tuple[str, Meme | str]], data: MemeData, tasks: tuple[Task, ...]
) -> tuple[str, list[RowFacts]]:
    images = iter(_images([str(meme.path) for _, meme in chunk if isinstance(meme, Meme)], cache))
    return split, [
        _row_facts(place, meme, next(images), data, tasks) if isinstance(meme, Meme) else RowFacts(place, meme)
        for place, meme in chunk
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
        pass  # none kept, or not readable: look at the images
    facts = [image_facts(path) for path in paths]
    write_text(cache, json.dumps({"key": key, "images": [asdict(fact) for fact in facts]}))
    return facts


def _stamp(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)  # noqa: PTH116 - survives odd names
    except (OSError, ValueError):
        return 0, 0
    # The last one changes also where a file of the same size was put here with an old time.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def image_facts(path: str) -> ImageFacts:
    """Open, decode and hash one image; never raises on what the file holds."""
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
                    image.draft("L", (_HASH_SIDE, _HASH_SIDE))  # decoded at a fraction of its size: much faster
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
