"""Readers of meme files: rows with a caption and an image, and ShareGPT or Alpaca records."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.layouts import Layout, layout_of, picture_name
from ra_hmd.data.meme import Meme
from ra_hmd.data.pictures import find_picture
from ra_hmd.data.prompt import Answers, PromptTemplate
from ra_hmd.data.rows import KINDS, jsonl_rows, rows_of
from ra_hmd.data.text import well_formed

MOST_CLASSES = 128


def check_unique_ids(memes: list[Meme], place: str | Path) -> None:
    """Raise `UserError` when an id occurs twice: predictions and bank rows are keyed by it."""
    twice = [f"id {name!r} occurs {count} times" for name, count in Counter(m.id for m in memes).items() if count > 1]
    raise_all(twice, f"{place}: ids must be unique")


def iter_memes(
    path: str | Path,
    *,
    split: str = "",
    prompt: PromptTemplate | None = None,
    answers: Answers | None = None,
    media_dir: str | Path | None = None,
    layout: Layout | None = None,
) -> Iterator[tuple[str, Meme | str]]:
    """The rows of a file as `read_memes` understands them, one at a time: (place, meme or what is wrong with it)."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a .jsonl file, or one that LLaMA-Factory trains on.")
    prompt, answers = prompt or PromptTemplate(), answers or Answers()
    given = [Path(media_dir)] if media_dir is not None else []
    # The RA-HMD release has paths such as ./data/image/…, which start some folders above its files.
    near, above = [*given, Path(), path.parent], [*given, Path(), *path.absolute().parents]
    for row in rows_of(path) if path.suffix.lower() in KINDS else jsonl_rows(path):
        try:
            if row.problem:
                raise ValueError(row.problem)
            known = layout or layout_of(row.values)
            fields = _flat_fields(row.values) if known is None else sharegpt_fields(row.values, prompt, answers, known)
            image = find_picture(fields.pop("image"), near if known is None else above, path.parent)
            yield row.place, Meme(image=image, **{"split": split, **fields})
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            yield row.place, f"missing field {error}" if isinstance(error, KeyError) else str(error)


def read_memes(
    path: str | Path,
    *,
    split: str = "",
    prompt: PromptTemplate | None = None,
    answers: Answers | None = None,
    media_dir: str | Path | None = None,
    layout: Layout | None = None,
) -> list[Meme]:
    """Read a file of memes (.jsonl, .json, .csv, .tsv, .parquet): rows with `id`, `image` (or `img`) and `text`, as an
    import and Hateful Memes have them, or records that LLaMA-Factory trains on.

    Images are looked for as LLaMA-Factory does (under `media_dir`, then as given), then beside the file, and for
    records from the folders above it. Embedded ones are written to a temporary folder.

    Args:
        path: The file.
        split: Recorded in each meme that does not name its own.
        prompt: Needed for records: the template whose `{text}` holds the caption.
        answers: Needed for records without a `label`, and for those whose `label` is a list.
        media_dir: Folder that relative image paths start from.
        layout: Columns and tags of the records; default is what their columns are called.

    Raises:
        UserError: unreadable rows, a question that `prompt` did not make, doubled ids, no rows at all.
    """
    rows = list(iter_memes(path, split=split, prompt=prompt, answers=answers, media_dir=media_dir, layout=layout))
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


def sharegpt_fields(
    row: dict[str, Any], prompt: PromptTemplate, answers: Answers, layout: Layout | None = None
) -> dict[str, Any]:
    """Fields of a meme from its record: id, image (as written there), text and label. `layout`: see `read_memes`.

    Raises:
        ValueError: a question that `prompt` did not make, an answer that `answers` do not know, or a label that is none
            (with `answers.several`: no list of them).
    """
    question, answer, image = (layout or layout_of(row) or Layout("sharegpt", images="images")).read(row)
    caption = prompt.caption_of(question)
    if caption is None:
        raise ValueError(f"its question was not made by the prompt {prompt.template!r}: {question[:120]!r}")
    given = row.get("label")
    label = class_set(given, len(answers.words)) if answers.several else class_index(given)
    return {
        "id": str(row["id"]) if "id" in row else picture_name(image),
        "image": image,
        "text": caption,
        "label": answers.label_of(answer) if label is None else label,
    }


def class_index(value: Any) -> int | None:
    """A label as a class index; None stays None.

    Raises:
        ValueError: it is neither.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)  # tables of text, such as CSV
    if isinstance(value, bool) or value not in range(MOST_CLASSES):
        raise ValueError(f"label {value!r} is not a class index (0, 1, …)")
    return int(value)


def class_set(value: Any, classes: int) -> tuple[int, ...] | None:
    """A label of several classes as their indices, in order; None stays None.

    Raises:
        ValueError: it is no list of different indices below `classes`.
    """
    if value is None:
        return None
    known = range(classes)
    if (
        not isinstance(value, list)
        or any(isinstance(index, bool) or index not in known for index in value)
        or len(set(value)) < len(value)
    ):
        raise ValueError(f"label {value!r} is not a list of different class indices from 0 to {classes - 1}")
    return tuple(sorted(int(index) for index in value))
