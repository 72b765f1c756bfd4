"""Import of a data set, as it lies on disk, into validated records: `ra-hmd data import`."""

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
    sha256_bytes,
    sha256_file,
    write_json,
)
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import DatasetManifest, read_manifest, write_manifest
from ra_hmd.core.progress import track
from ra_hmd.data.images import UNKNOWN_FORMAT, describe_fault, open_image
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import DATASET_MANIFEST, REJECTED, MemeData, SplitWriter, json_line, open_data
from ra_hmd.data.readers.base import LocatedCopy, Reader
from ra_hmd.data.readers.tree import absolute
from ra_hmd.data.rows import jsonl_rows
from ra_hmd.data.text import TextPolicy, normalise, well_formed

_CHUNK = 2048
_WORK = ".import"
_MOVED = "moved.json"
_FORMAT = 1  # version of the records; raised when a reader makes other records from the same files
_MOST_SPLITS = 64
_DEV_SPLITS = ("val", "dev", "dev_seen", "dev_unseen")


@dataclass(frozen=True)
class ImportOptions:
    """Settings that decide the records, besides the files.

    Attributes:
        text: Normalisation of captions.
        val_fraction: Share of `train` that becomes `val`, for data sets without a dev split.
        seed: Seed of that split.
    """

    text: TextPolicy = "single_line"
    val_fraction: float = 0.0
    seed: int = 0

    def split_of(self, meme: Meme) -> str:
        """Return the split of a meme: `val` for the drawn share of train. The draw depends on seed and id alone."""
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

    A row becomes a record if its fields are valid, its id is new in its split, and its image exists and can be
    identified. Other rows go to `rejected.jsonl` with the reason. An interrupted import continues where it stopped; a
    folder that already holds the same import is left unchanged.

    Raises:
        UserError: No data set is found, `output` holds something else, or no row is valid.
    """
    options, output = options or ImportOptions(), Path(output)
    copy = reader.locate(root, images=images, add_on=add_on)
    content = _content(reader, copy, options, images)
    fingerprint = sha256_bytes(json.dumps(content, sort_keys=True).encode())
    with alone_in(output):
        _import(reader, copy, output, content, fingerprint, root=root, options=options, workers=workers, show=show)
    return open_data(output)


def _import(
    reader: Reader,
    copy: LocatedCopy,
    output: Path,
    content: dict[str, Any],
    fingerprint: str,
    *,
    root: str | Path,
    options: ImportOptions,
    workers: int,
    show: bool,
) -> None:
    """Write `output`, unless it holds this import already."""
    folders = {f"{path}, {split}": str(folder.folder) for (path, split), folder in copy.images.items()}
    if (output / DATASET_MANIFEST).is_file() and not _incomplete(output, fingerprint):
        return
    work = output / _WORK
    if output.is_dir() and any(output.iterdir()) and not work.is_dir() and not (output / DATASET_MANIFEST).is_file():
        raise UserError(f"{output} is not empty and holds no import; give another --output.")
    _prepare(work, sha256_bytes(fingerprint.encode(), json.dumps(folders).encode()))
    chunks = _validate_all(reader, copy, work, options, workers=workers, show=show)
    merged = work / "merged"
    counts = _merge(merged, chunks)
    _check_counts(counts, options, reader, root)
    manifest = DatasetManifest.new(
        **content,
        root=str(absolute(Path(root))),
        image_folders=folders,
        notes=[*copy.notes, *_unlabelled_notes(counts, reader)],
        splits={split: counts["rows"][split] for split in sorted(counts["rows"])},
        rejected=dict(sorted(counts["rejected"].items())),
        reasons=dict(counts["reasons"].most_common(20)),
        fingerprint=fingerprint,
    )
    files = sorted(merged.iterdir())
    write_json(work / _MOVED, {"names": [path.name for path in files]})
    for path in files:
        path.replace(output / path.name)
    write_manifest(output / DATASET_MANIFEST, manifest)
    shutil.rmtree(work)


def _incomplete(output: Path, fingerprint: str) -> bool:
    """Return whether `output` holds this import and lacks images, which may have arrived since.

    An import that `--fix` or `ra-hmd data ocr` changed counts as complete.

    Raises:
        UserError: `output` holds another import.
    """
    manifest = read_manifest(output / DATASET_MANIFEST, DatasetManifest)
    if manifest.fingerprint != fingerprint:
        raise UserError(f"{output} holds another import; remove it or give another --output.")
    return any(map(_lacks_image, manifest.reasons)) and not manifest.fixed and not manifest.ocr


def _lacks_image(reason: str) -> bool:
    return reason.startswith(("image ", "not an image"))


def _unlabelled_notes(counts: dict[str, Counter[str]], reader: Reader) -> list[str]:
    """Return a note for each split with unlabelled memes, unless the first task is a multi-label one."""
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


def _content(reader: Reader, copy: LocatedCopy, options: ImportOptions, images: str | Path | None) -> dict[str, Any]:
    files = [part.path for part in copy.parts] + list(copy.others.values())
    return {
        "dataset": reader.name,
        "layout": copy.layout,
        "variant": copy.variant,
        "files": {str(path): sha256_file(path) for path in files},
        "images": None if images is None else str(absolute(Path(images))),
        "format": _FORMAT,
        "options": plain(vars(options) | reader.options),
    }


def _prepare(work: Path, fingerprint: str) -> None:
    """Create the folder of finished chunks, and remove the chunks of another import."""
    mark = work / "fingerprint.json"
    if work.is_dir() and not (mark.is_file() and read_json(mark).get("fingerprint") == fingerprint):
        moved = read_json(work / _MOVED)["names"] if (work / _MOVED).is_file() else []
        for name in moved:  # the other import was stopped while it moved its files here
            (work.parent / name).unlink(missing_ok=True)
        shutil.rmtree(work)
    shutil.rmtree(work / "merged", ignore_errors=True)
    write_json(mark, {"fingerprint": fingerprint})


def _validate_all(
    reader: Reader, copy: LocatedCopy, work: Path, options: ImportOptions, *, workers: int, show: bool
) -> list[Path]:
    """Validate every row in chunks; return the files of the chunks. Finished chunks are reused."""
    paths: list[Path] = []

    def tasks() -> Iterator[Any]:
        rows = ((_checked_split(meme, part.split, options), row.place, meme) for part, row, meme in reader.read(copy))
        chunks = iter(lambda: tuple(islice(rows, _CHUNK)), ())
        for number, chunk in enumerate(chunks):
            path = work / f"chunk-{number:06d}.jsonl"
            paths.append(path)
            yield delayed(_validate)(path, chunk, options)

    expected = sum(split.rows for split in reader.expected.get(copy.variant, {}).values())
    done = Parallel(n_jobs=max(workers, 1), return_as="generator")(tasks())
    for _ in track(((size, None) for size in done), "Importing", expected or None, "memes", show=show):
        pass
    return paths


def _checked_split(meme: Meme | str, split: str, options: ImportOptions) -> str:
    """Return the split that a row belongs to.

    Raises:
        UserError: The name is reserved, or `val_fraction` is set although there is a dev split.
    """
    split = meme.split if isinstance(meme, Meme) else split
    if split == Path(REJECTED).stem:
        raise UserError(f"A split cannot be named {split!r}: this is the name of another file; rename it.")
    if options.val_fraction and split in _DEV_SPLITS:
        raise UserError(f"--val-fraction: this data has a dev split of its own, {split!r}; leave the option out.")
    return split


def _validate(path: Path, chunk: tuple[tuple[str, str, Meme | str], ...], options: ImportOptions) -> int:
    """Write a chunk's records and rejected rows to `path` and return their number.

    An existing file is reused, unless it lacks images, which may have arrived since.
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
    """Return why a meme cannot become a record; "" if it can."""
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
    """Join the chunks into a pair of files per split, and reject ids that occur again in their split.

    Returns:
        Counters by split (`rows`, `rejected`, `unlabelled`) and by reason (`reasons`).
    """
    counts: dict[str, Counter[str]] = {
        "rows": Counter(),
        "rejected": Counter(),
        "reasons": Counter(),
        "unlabelled": Counter(),
    }
    seen: set[tuple[str, str]] = set()
    with ExitStack() as stack:
        writers: dict[str, SplitWriter] = {}
        path = stack.enter_context(atomic_path(folder / REJECTED))
        rejects = stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
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
