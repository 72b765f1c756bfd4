"""Captions by OCR for memes that have none: `ra-hmd data ocr`."""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ImageOps
from PIL.Image import Image

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.extras import check_extra
from ra_hmd.core.manifests import DatasetManifest, read_manifest, write_manifest
from ra_hmd.core.progress import track
from ra_hmd.data.images import file_digest, to_rgb
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import DATASET_MANIFEST, MemeData, open_data, write_split
from ra_hmd.data.rows import jsonl_rows
from ra_hmd.data.text import well_formed

if TYPE_CHECKING:
    from rapidocr import RapidOCR

SOURCE, READ_FROM = "text_source", "text_image"
_DONE = ".ocr"
_NARROWEST = 8  # largest ratio of the sides of an image that is read


def fill_captions(folder: str | Path, *, min_score: float = 0.5, show: bool = False) -> dict[str, int]:
    """Read the caption of every meme without one from its image, and write it into the records.

    For such a meme, `extras["text_source"]` is `ocr:rapidocr-<version>`, `extras["text_score"]` the lowest score of its
    lines, and `extras["text_image"]` a digest of the image: an image that was replaced is read again. `raw_text` stays
    unchanged. Memes without readable words keep their empty caption and are marked as well. Results are saved one by
    one, so that an interrupted run continues where it stopped.

    Args:
        folder: Imported data set.
        min_score: Lowest confidence of a line that is used.
        show: Show a progress bar.

    Returns:
        Number of captions filled per split.

    Raises:
        UserError: The extra `ocr` is not installed, the folder is no import, or images cannot be decoded. The latter is
            raised after all other images were read.
    """
    data = open_data(folder)
    path = data.folder / DATASET_MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} was not made by `ra-hmd data import`; import it first.")
    filled: dict[str, int] = {}
    problems: list[str] = []
    engine = None
    for split in data.splits:
        wanted = [meme for meme in data.memes(split) if _is_to_be_read(meme)]
        if not wanted:
            continue
        if engine is None:
            engine, source = open_ocr_engine()
        kept = data.folder / _DONE / f"{split}.jsonl"
        read = _read_all(wanted, engine, kept, min_score, problems, show=show)
        write_split(data.folder, split, _with_captions(data, split, read, source))
        shutil.rmtree(kept.parent)
        filled[split] = sum(bool(values["text"]) for values in read.values())
    if engine is None:
        return {}
    manifest = read_manifest(path, DatasetManifest)
    write_manifest(path, manifest.model_copy(update={"ocr": manifest.ocr | dict.fromkeys(filled, source)}))
    raise_all(problems, f"{folder}: images that cannot be read, all others were")
    return filled


def _is_to_be_read(meme: Meme) -> bool:
    if SOURCE not in meme.extras:
        return not meme.text
    now = file_digest(meme.path)  # "" for a missing image, whose caption stays
    return bool(now) and meme.extras.get(READ_FROM, now) != now


def open_ocr_engine() -> tuple["RapidOCR", str]:
    """Return the OCR engine, and its name for `text_source`.

    Raises:
        UserError: The extra `ocr` is not installed.
    """
    check_extra("ocr", "Reading captions")
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.text_score": 0.0})  # its own threshold would come before `min_score`
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)  # after the engine, which sets it too
    return engine, f"ocr:rapidocr-{version('rapidocr')}"


def _read_all(
    memes: list[Meme], engine: "RapidOCR", kept: Path, min_score: float, problems: list[str], *, show: bool
) -> dict[str, dict[str, Any]]:
    """Return id → text and score. Results are appended to the file `kept`, and those in it are not read again."""
    kept.parent.mkdir(exist_ok=True)
    rows = jsonl_rows(kept) if kept.is_file() else ()
    lines = (row.values for row in rows if not row.problem)  # a torn last line is read again
    images = {meme.id: file_digest(meme.path) for meme in memes}
    read = {
        line["id"]: line
        for line in lines
        if line["min_score"] == min_score and line["id"] in images and line.get("image") == images[line["id"]]
    }
    todo = [meme for meme in memes if meme.id not in read]
    with kept.open("a", encoding="utf-8", newline="\n") as file:
        file.write("\n")  # ends a torn line
        for meme in track(((1, meme) for meme in todo), "Reading captions", len(todo), "memes", show=show):
            try:
                result = read_text(engine, meme.load_image(), min_score)
            except UserError as error:
                problems.append(f"{meme.id}: {error}")
                continue
            read[meme.id] = {"id": meme.id, "image": images[meme.id], "min_score": min_score, **result}
            file.write(json.dumps(read[meme.id]) + "\n")  # ASCII: a torn line is never a torn character
            file.flush()
    return read


def read_text(engine: "RapidOCR", image: Image, min_score: float = 0.5) -> dict[str, Any]:
    """Return the lines on an image, top to bottom and joined by blanks, as `text`, and their lowest score (0 to 1).

    Raises:
        UserError: The engine fails on the image.
    """
    result = _run(engine, image)[0]
    lines = zip(result.txts or (), result.scores or (), strict=True)
    good = [(text, score) for text, score in lines if score >= min_score]
    text = " ".join(well_formed(text).strip() for text, _ in good)
    return {"text": text, "score": round(min((score for _, score in good), default=0.0), 4)}


def find_lines(engine: "RapidOCR", image: Image, min_score: float = 0.5) -> list[tuple[tuple[int, int, int, int], str]]:
    """Return box (left, top, right, bottom, in pixels) and text of each line on an image.

    Raises:
        UserError: The engine fails on the image.
    """
    result, (left, top) = _run(engine, image)
    lines = []
    for corners, text, score in zip(
        result.boxes if result.txts else (), result.txts or (), result.scores or (), strict=True
    ):
        if score >= min_score and text.strip():
            low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
            box = (low[0] - left, low[1] - top, high[0] - left, high[1] - top)
            limits = (image.width, image.height) * 2
            lines.append((tuple(int(min(max(at, 0), most)) for at, most in zip(box, limits, strict=True)), text))
    return [(box, text) for box, text in lines if box[0] < box[2] and box[1] < box[3]]  # type: ignore[misc]


def _run(engine: "RapidOCR", image: Image) -> tuple[Any, tuple[int, int]]:
    """Result of the engine on an image, and the width of the padding at its left and at its top."""
    # The engine scales the short side to 736 pixels, which would make a thin line endlessly long.
    wide, high = (max(0, -(-max(image.size) // _NARROWEST) - side) for side in image.size)
    padded = ImageOps.expand(to_rgb(image), (wide // 2, high // 2, -(-wide // 2), -(-high // 2)), "white")
    try:
        return engine(np.asarray(padded)[..., ::-1]), (wide // 2, high // 2)  # the engine takes BGR
    except Exception as error:  # its exceptions have no class in common
        raise UserError(
            f"its words cannot be read, of {image.width} x {image.height} pixels ({type(error).__name__}: {error}); "
            "give its text"
        ) from error


def _with_captions(data: MemeData, split: str, read: dict[str, dict[str, Any]], source: str) -> Iterator[Meme]:
    for meme in data.memes(split):
        if meme.id in read:
            values = read[meme.id]
            extras = {**meme.extras, SOURCE: source, "text_score": values["score"], READ_FROM: values["image"]}
            yield replace(meme, text=values["text"], extras=extras)
        else:
            yield meme
