"""From a data set as people have it on disk to records: `ra-hmd data import`."""

import hashlib
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from PIL import Image, UnidentifiedImageError

from ra_hmd.core.artifacts import (
    alone_in,
    atomic_path,
    plain,
    read_json,
    run_manifest,
    sha256_bytes,
    sha256_file,
    write_json,
)
from ra_hmd.core.errors import UserError
from ra_hmd.core.progress import track
from ra_hmd.data.images import UNKNOWN_FORMAT, describe_fault, open_image
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import DATASET_MANIFEST, REJECTED, MemeData, SplitWriter, json_line, open_data
from ra_hmd.data.readers.base import Found, Reader
from ra_hmd.data.readers.tree import absolute
from ra_hmd.data.rows import jsonl_rows
from ra_hmd.data.text import TextPolicy, normalise, well_formed

_CHUNK = 2048
_WORK = ".import"
_MOVED = "moved.json"
_FORMAT = 1  # of the records; a number more when a reader makes other ones
_MOST_SPLITS = 64
_DEV_SPLITS = ("val", "dev", "dev_seen", "dev_unseen")


@dataclass(frozen=True)
class ImportOptions:
    """What decides the records, besides the files.

    Attributes:
        text: What is done to captions.
        val_fraction: Share of `train` that becomes `val`, for data sets without one.
        seed: Of that cut.
    """

    text: TextPolicy = "single_line"
    val_fraction: float = 0.0
    seed: int = 0

    def split_of(self, meme: Meme) -> str:
        """The split of a meme, `val` for the chosen share of train. The choice depends on seed and id alone."""
        if not self.val_fraction or meme.split != "train":
            return meme.split
        draw = int.from_bytes(hashlib.sha256(f"{self.seed}/{meme.id}".encode()).digest()[:8], "big") / 2**64
        return "val" if draw < self.val_fraction else "train"


def import_data(
    reader: Reader,
    root: str | Path,
    output: str | Path,
    *,
    images: str | Path | None = None,
    add_on: str | Path | None = None,
    options: ImportOptions | None = None,
    workers: int = 1,
    show: bool = False,
) -> MemeData:
    """Read a data set below `root` and write validated records to `output`.

    A row becomes a record when its fields are understood, its id is new in its split and its image is there and begins
    like an image; other rows go to `rejected.jsonl` with the reason. Stopped and started again, it continues. A folder
    that already holds the same import is left as it is.

    Raises:
        UserError: nothing found, an `output` with something else in it, or no usable row at all.
    """
    options, output = options or ImportOptions(), Path(output)
    found = reader.locate(root, images=images, add_on=add_on)
    content = _content(reader, found, options, images)
    fingerprint = sha256_bytes(json.dumps(content, sort_keys=True).encode())
    with alone_in(output):
        _import(reader, found, output, content, fingerprint, root=root, options=options, workers=workers, show=show)
    return open_data(output)


def _import(
    reader: Reader,
    found: Found,
    output: Path,
    content: dict[str, Any],
    fingerprint: str,
    *,
    root: str | Path,
    options: ImportOptions,
    workers: int,
    show: bool,
) -> None:
    """Make `output`, unless it is there already."""
    folders = {f"{path}, {split}": str(folder.folder) for (path, split), folder in found.images.items()}
    if (output / DATASET_MANIFEST).is_file() and not _incomplete(output, fingerprint):
        return
    work = output / _WORK
    if output.is_dir() and any(output.iterdir()) and not work.is_dir() and not (output / DATASET_MANIFEST).is_file():
        raise UserError(f"{output} is not empty and holds no import; give another --output.")
    _prepare(work, sha256_bytes(fingerprint.encode(), json.dumps(folders).encode()))
    chunks = _validate_all(reader, found, work, options, workers=workers, show=show)
    merged = work / "merged"
    counts = _merge(merged, chunks)
    _check_counts(counts, options, reader, root)
    manifest = run_manifest(
        "dataset",
        **content,
        root=str(absolute(Path(root))),
        image_folders=folders,
        notes=[*found.notes, *_unlabelled_notes(counts, reader)],
        splits={split: counts["rows"][split] for split in sorted(counts["rows"])},
        rejected=dict(sorted(counts["rejected"].items())),
        reasons=dict(counts["reasons"].most_common(20)),
        fingerprint=fingerprint,
    )
    files = sorted(merged.iterdir())
    write_json(work / _MOVED, {"names": [path.name for path in files]})
    for path in files:
        path.replace(output / path.name)
    write_json(output / DATASET_MANIFEST, manifest)
    shutil.rmtree(work)


def _incomplete(output: Path, fingerprint: str) -> bool:
    """Whether the import that `output` holds is this one, and lacks images that may be there by now. One that --fix or
    ocr changed since is left alone.

    Raises:
        UserError: it is another import.
    """
    manifest = read_json(output / DATASET_MANIFEST)
    if manifest.get("fingerprint") != fingerprint:
        raise UserError(f"{output} holds another import; remove it or give another --output.")
    lacking = any(map(_lacks_image, manifest.get("reasons", {})))
    return lacking and not manifest.get("fixed") and not manifest.get("ocr")


def _lacks_image(reason: str) -> bool:
    return reason.startswith(("image ", "not an image"))


def _unlabelled_notes(counts: dict[str, Counter[str]], reader: Reader) -> list[str]:
    """What is said of splits whose memes have no label, where the data set's first task gives one."""
    if reader.tasks[0].multi_label:
        return []
    rows = counts["rows"]
    return [
        f"{split}: {count} of {rows[split]} memes have no label"
        for split, count in counts["unlabelled"].items()
        if count
    ]


def _check_counts(counts: dict[str, Counter[str]], options: ImportOptions, reader: Reader, root: str | Path) -> None:
    if not counts["rows"].total():
        reasons = "; ".join(f"{reason} ({count})" for reason, count in counts["reasons"].most_common(3))
        raise UserError(f"Of {reader.title} below {root} no row could be used: {reasons}.")
    if options.val_fraction and not counts["rows"]["val"]:
        raise UserError("--val-fraction: no row of a split named 'train' was drawn; there are "
                        f"{', '.join(counts['rows'])}.")  # fmt: skip


def _content(reader: Reader, found: Found, options: ImportOptions, images: str | Path | None) -> dict[str, Any]:
    files = [part.path for part in found.parts] + list(found.others.values())
    return {
        "dataset": reader.name,
        "layout": found.layout,
        "variant": found.variant,
        "files": {str(path): sha256_file(path) for path in files},
        "images": None if images is None else str(absolute(Path(images))),
        "format": _FORMAT,
        "options": plain(vars(options) | reader.options),
    }


def _prepare(work: Path, fingerprint: str) -> None:
    """Make the folder of finished chunks, without those of another import."""
    mark = work / "fingerprint.json"
    if work.is_dir() and not (mark.is_file() and read_json(mark).get("fingerprint") == fingerprint):
        moved = read_json(work / _MOVED)["names"] if (work / _MOVED).is_file() else []
        for name in moved:  # of an import that was stopped while it moved its files here
            (work.parent / name).unlink(missing_ok=True)
        shutil.rmtree(work)
    shutil.rmtree(work / "merged", ignore_errors=True)
    write_json(mark, {"fingerprint": fingerprint})


def _validate_all(
    reader: Reader, found: Found, work: Path, options: ImportOptions, *, workers: int, show: bool
) -> list[Path]:
    """Validate every row in chunks; a chunk's file that is there is not made again."""
    paths: list[Path] = []

    def tasks() -> Iterator[Any]:
        rows = ((_checked_split(meme, part.split, options), row.place, meme) for part, row, meme in reader.read(found))
        chunks = iter(lambda: tuple(islice(rows, _CHUNK)), ())
        for number, chunk in enumerate(chunks):
            path = work / f"chunk-{number:06d}.jsonl"
            paths.append(path)
            yield delayed(_validate)(path, chunk, options)

    expected = sum(split.rows for split in reader.expected.get(found.variant, {}).values())
    done = Parallel(n_jobs=max(workers, 1), return_as="generator")(tasks())
    for _ in track(((size, None) for size in done), "Importing", expected or None, "memes", show=show):
        pass
    return paths


def _checked_split(meme: Meme | str, split: str, options: ImportOptions) -> str:
    """The split of a row, for the files that it goes to."""
    split = meme.split if isinstance(meme, Meme) else split
    if split == Path(REJECTED).stem:
        raise UserError(f"A split cannot be named {split!r}: this is the name of another file; rename it.")
    if options.val_fraction and split in _DEV_SPLITS:
        raise UserError(f"--val-fraction: this data has a dev split of its own, {split!r}; leave the option out.")
    return split


def _validate(path: Path, chunk: tuple[tuple[str, str, Meme | str], ...], options: ImportOptions) -> int:
    """Write the chunk's records and rejects to `path`, unless it is there; returns how many there are. One that lacks
    images is made again: they may be there by now.
    """
    if path.is_file() and not any(_lacks_image(row.values.get("reason", "")) for row in jsonl_rows(path)):
        return len(chunk)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for split, place, meme in chunk:
            if isinstance(meme, str):
                value = _reject(split, place, None, meme)
            elif problem := _problem(meme):
                value = _reject(meme.split, place, meme.id, problem)
            else:
                value = {"place": place, "record": plain(_record(meme, options).to_row())}
            file.write(well_formed(json_line(value)))
    return len(chunk)


def _reject(split: str, place: str, name: str | None, reason: str) -> dict[str, Any]:
    return {"split": split, "place": place, "id": name, "reason": reason}


def _record(meme: Meme, options: ImportOptions) -> Meme:
    raw = meme.caption if meme.raw_text is None else meme.raw_text
    text, split = normalise(meme.caption, options.text), options.split_of(meme)
    return replace(meme, image=absolute(meme.path), text=text, raw_text=raw, split=split)


def _problem(meme: Meme) -> str:
    """What keeps a meme from being a record: "" if nothing does."""
    if not isinstance(meme.text, str):
        return f"its text is {meme.text!r}"
    if not meme.id.strip():
        return "its id is empty"
    if meme.image == Path():
        return "image missing: no folder has the images of its file"
    path = str(meme.path)
    if well_formed(path) != path or not os.path.isfile(path):  # noqa: PTH113 - survives odd names
        return f"image missing: {path}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_image(path):
                return ""
    except UnidentifiedImageError as error:
        return f"not an image: {path}" + ("" if str(error) == UNKNOWN_FORMAT else f" ({error})")
    except Exception as error:  # a parser may raise anything on hostile bytes
        return f"image cannot be opened: {path} ({describe_fault(error)})"


def _merge(folder: Path, chunks: list[Path]) -> dict[str, Counter[str]]:
    """Join the chunks into one pair of files per split; an id that comes again in its split is rejected."""
    counts: dict[str, Counter[str]] = {
        "rows": Counter(),
        "rejected": Counter(),
        "reasons": Counter(),
        "unlabelled": Counter(),
    }
    seen: set[tuple[str, str]] = set()
    with ExitStack() as stack:
        writers: dict[str, SplitWriter] = {}
        rejects = stack.enter_context(atomic_path(folder / REJECTED))
        rejects = stack.enter_context(rejects.open("w", encoding="utf-8", newline="\n"))
        for chunk in chunks:
            for row in jsonl_rows(chunk):
                value, record = row.values, row.values.get("record")
                if record is not None:
                    key = record["split"], record["id"]
                    if key in seen:
                        value, record = _reject(key[0], value["place"], key[1], "id came before in its split"), None
                    seen.add(key)
                if record is None:
                    rejects.write(json_line(value))
                    counts["rejected"][value["split"]] += 1
                    counts["reasons"][value["reason"].split(":")[0]] += 1
                    continue
                split = record["split"]
                if split not in writers:
                    if len(writers) == _MOST_SPLITS:
                        raise UserError(f"More than {_MOST_SPLITS} splits, e.g. {split!r}; is this the right column?")
                    writers[split] = stack.enter_context(SplitWriter(folder, split))
                writers[split].write(record)
                counts["rows"][split] += 1
                counts["unlabelled"][split] += record["label"] is None
    return counts
