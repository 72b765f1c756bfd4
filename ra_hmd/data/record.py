"""The `Meme` record and the readers of its two file shapes: JSON Lines and ShareGPT."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ra_hmd.data.files import json_rows, jsonl_rows
from ra_hmd.data.sharegpt import Answers, PromptTemplate
from ra_hmd.data.text import well_formed
from ra_hmd.errors import UserError, raise_all

MOST_CLASSES = 128


@dataclass(frozen=True)
class Meme:
    """One meme.

    Attributes:
        id: Unique within a data set; a string also where the file has a number.
        image: Path of the image.
        text: The caption.
        label: Class index, of a task that gives a meme several classes their indices; None where the file has none.
        split: Name of the split, for the record.
        extras: Further fields; of an imported set also the class index of each further task.
        raw_text: The caption as the data set's file has it, where `text` was normalised.
    """

    id: str
    image: Path
    text: str
    label: int | tuple[int, ...] | None = None
    split: str = ""
    extras: dict[str, Any] = field(default_factory=dict)
    raw_text: str | None = None

    def to_row(self) -> dict[str, Any]:
        """The line of an imported set's `<split>.jsonl`."""
        return {
            "id": self.id,
            "image": str(self.image),
            "text": self.text,
            "raw_text": self.text if self.raw_text is None else self.raw_text,
            "label": self.label,
            "split": self.split,
            "extras": self.extras,
        }


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
) -> Iterator[tuple[str, Meme | str]]:
    """The rows of a file as `read_memes` understands them, one at a time: (place, meme or what is wrong with it)."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a .jsonl or a ShareGPT .json file.")
    prompt, answers = prompt or PromptTemplate(), answers or Answers()
    folders = [Path(media_dir)] if media_dir is not None else []
    sharegpt = path.suffix == ".json"
    # The RA-HMD release has paths such as ./data/image/…, which start some folders above its files.
    folders += [Path(), *(path.absolute().parents if sharegpt else [path.parent])]
    for row in json_rows(path) if sharegpt else jsonl_rows(path):
        try:
            if row.problem:
                raise ValueError(row.problem)
            fields = sharegpt_fields(row.values, prompt, answers) if sharegpt else _jsonl_fields(row.values)
            image = find_image(fields.pop("image"), folders, path.parent)
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
) -> list[Meme]:
    """Read a `.jsonl` file (of an import, or Hateful Memes layout) or a ShareGPT `.json` file.

    Images are looked for as LLaMA-Factory does (under `media_dir`, then as given), then beside the file, and for
    ShareGPT from the folders above it.

    Args:
        path: The file.
        split: Recorded in each meme that does not name its own.
        prompt: Needed for ShareGPT: the template whose `{text}` holds the caption.
        answers: Needed for ShareGPT records without a `label`, and for those whose `label` is a list.
        media_dir: Folder that relative image paths start from.

    Raises:
        UserError: unreadable rows, a question that `prompt` did not make, doubled ids, no rows at all.
    """
    rows = list(iter_memes(path, split=split, prompt=prompt, answers=answers, media_dir=media_dir))
    raise_all([f"{place}: {row}" for place, row in rows if isinstance(row, str)], f"{path}: rows that cannot be read")
    memes = [row for _, row in rows if isinstance(row, Meme)]
    if not memes:
        raise UserError(f"{path} has no rows.")
    check_unique_ids(memes, path)
    return memes


def _jsonl_fields(row: dict[str, Any]) -> dict[str, Any]:
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


def sharegpt_fields(row: dict[str, Any], prompt: PromptTemplate, answers: Answers) -> dict[str, Any]:
    """Fields of a meme from its ShareGPT record: id, image (as written there), text and label.

    Raises:
        ValueError: a question that `prompt` did not make, an answer that `answers` do not know, or a label that is none
            (with `answers.several`: no list of them).
    """
    question, answer = (message.get("content", message.get("value")) for message in row["messages"][-2:])
    caption = prompt.caption_of(question)
    if caption is None:
        raise ValueError(f"its question was not made by the prompt {prompt.template!r}: {question[:120]!r}")
    images = row["images"]
    image = images if isinstance(images, str) else images[0]
    given = row.get("label")
    label = class_set(given, len(answers.words)) if answers.several else class_index(given)
    return {
        "id": str(row.get("id", image)),
        "image": image,
        "text": caption,
        "label": answers.label_of(answer) if label is None else label,
    }


def class_index(value: Any) -> int | None:
    """A label as a class index; None stays None.

    Raises:
        ValueError: it is neither.
    """
    if value is None:
        return None
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


def find_image(image: str, folders: list[Path], otherwise: Path) -> Path:
    """The path of `image` in the first of `folders` that holds it; where none does, its path in `otherwise`."""
    candidates = (os.path.normpath(folder / image) for folder in folders)
    found = next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113 - survives odd names
    return Path(found or os.path.normpath(otherwise / image))
