"""Reading memes from files of rows with image and caption, or of ShareGPT or Alpaca records."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.storage import as_path
from ra_hmd.data.image_files import locate_image
from ra_hmd.data.meme import Meme, class_index
from ra_hmd.data.prompt import Answers, PromptTemplate
from ra_hmd.data.rows import KINDS, jsonl_rows, rows_of
from ra_hmd.data.text import well_formed
from ra_hmd.data.training_records import RecordFormat, TrainingRecord, detect_format


def check_unique_ids(memes: list[Meme], place: str | Path) -> None:
    """Raise `UserError` if an id occurs twice, since predictions and bank rows are keyed by it."""
    twice = [f"id {name!r} occurs {count} times" for name, count in Counter(m.id for m in memes).items() if count > 1]
    raise_all(twice, f"{place}: ids must be unique")


def iter_memes(
    path: str | Path,
    *,
    split: str = "",
    prompt: PromptTemplate | None = None,
    answers: Answers | None = None,
    media_dir: str | Path | None = None,
    record_format: RecordFormat | None = None,
) -> Iterator[tuple[str, Meme | str]]:
    """Yield the rows of a file as (place, meme or error message). Arguments as for `read_memes`."""
    path = as_path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a .jsonl file, or one that LLaMA-Factory trains on.")
    prompt, answers = prompt or PromptTemplate(), answers or Answers()
    given = [as_path(media_dir)] if media_dir is not None else []
    # The RA-HMD release has paths such as ./data/image/…, which start some folders above its files.
    near, above = [*given, Path(), path.parent], [*given, Path(), *path.absolute().parents]
    for row in rows_of(path) if path.suffix.lower() in KINDS else jsonl_rows(path):
        try:
            if row.problem:
                raise ValueError(row.problem)
            known = record_format or detect_format(row.values)
            if known is None:
                fields = {"split": split, **_flat_fields(row.values)}
            else:
                record = TrainingRecord.of_row(row.values, prompt, known)
                label = record.class_label(answers)
                fields = {"id": record.id, "image": record.image, "text": record.caption, "label": label}
                fields["split"] = split
            fields["image"] = locate_image(fields["image"], near if known is None else above, path.parent)
            yield row.place, Meme(**fields)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            yield row.place, f"missing field {error}" if isinstance(error, KeyError) else str(error)


def read_memes(
    path: str | Path,
    *,
    split: str = "",
    prompt: PromptTemplate | None = None,
    answers: Answers | None = None,
    media_dir: str | Path | None = None,
    record_format: RecordFormat | None = None,
) -> list[Meme]:
    """Read a file of memes (.jsonl, .json, .csv, .tsv, .parquet).

    A row has `id`, `image` (or `img`) and `text`, as in an imported data set and in Hateful Memes, or it is a training
    record of LLaMA-Factory. Images are searched under `media_dir` and then as given, as in LLaMA-Factory, then beside
    the file, and for training records in the folders above it. In object stores they are not searched: a path starts at
    `media_dir`, or beside the file. Embedded images are written to a temporary folder.

    Args:
        path: The file.
        split: Split of memes that do not name one.
        prompt: Template of the questions of training records.
        answers: Answers of training records, which give the labels where there is no `label`.
        media_dir: Folder that relative image paths start from.
        record_format: Columns and tags of training records; by default they are detected.

    Raises:
        UserError: Rows are invalid, questions were not made by `prompt`, ids occur twice, or there are no rows.
    """
    rows = list(
        iter_memes(path, split=split, prompt=prompt, answers=answers, media_dir=media_dir, record_format=record_format)
    )
    raise_all([f"{place}: {row}" for place, row in rows if isinstance(row, str)], f"{path}: rows that cannot be read")
    memes = [row for _, row in rows if isinstance(row, Meme)]
    if not memes:
        raise UserError(f"{path} has no rows.")
    check_unique_ids(memes, path)
    return memes


def _flat_fields(row: dict[str, Any]) -> dict[str, Any]:
    image = row.get("image", row.get("img"))
    if image is None:
        raise KeyError("'img' (or 'image')")
    own = {key: row[key] for key in ("split", "raw_text") if isinstance(row.get(key), str)}
    nested = isinstance(row.get("extras"), dict)
    known = {"id", "image", "img", "text", "label", *own, *(["extras"] if nested else [])}
    empty = [name for name in ("id", "text") if row[name] is None]
    if empty:
        raise ValueError(f"{empty[0]} is null")
    return {
        "id": well_formed(str(row["id"])),
        "image": image,
        "text": well_formed(str(row["text"])),
        "label": class_index(row.get("label")),
        "extras": {key: value for key, value in row.items() if key not in known} | (row["extras"] if nested else {}),
        **own,
    }
