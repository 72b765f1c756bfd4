"""The `Meme` record and the readers of its two file shapes: JSON Lines and ShareGPT."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ra_hmd.data.sharegpt import Answers, PromptTemplate
from ra_hmd.errors import UserError, raise_all


@dataclass(frozen=True)
class Meme:
    """One meme.

    Attributes:
        id: Unique within a data set; a string also where the file has a number.
        image: Path of the image.
        text: The caption, as written in the file.
        label: Class index, or None where the file has none.
        split: Name of the split, for the record.
        extras: Further fields of the file, untouched.
    """

    id: str
    image: Path
    text: str
    label: int | None = None
    split: str = ""
    extras: dict[str, Any] = field(default_factory=dict)


def check_unique_ids(memes: list[Meme], place: str | Path) -> None:
    """Raise `UserError` when an id occurs twice: predictions and bank rows are keyed by it."""
    twice = [f"id {name!r} occurs {count} times" for name, count in Counter(m.id for m in memes).items() if count > 1]
    raise_all(twice, f"{place}: ids must be unique")


def read_memes(
    path: str | Path,
    *,
    split: str = "",
    prompt: PromptTemplate | None = None,
    answers: Answers | None = None,
    media_dir: str | Path | None = None,
) -> list[Meme]:
    """Read a `.jsonl` file (Hateful Memes layout) or a ShareGPT `.json` file.

    Images are looked for as LLaMA-Factory does (under `media_dir`, then as given), then beside the file.

    Args:
        path: The file.
        split: Recorded in each meme.
        prompt: Needed for ShareGPT: the template whose `{text}` holds the caption.
        answers: Needed for ShareGPT records without a `label`.
        media_dir: Folder that relative image paths start from.

    Raises:
        UserError: unreadable rows, a question that `prompt` did not make, doubled ids, no rows at all.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a .jsonl or a ShareGPT .json file.")
    folders = [Path(media_dir)] if media_dir is not None else []
    folders += [Path(), path.parent]
    reader = _sharegpt_fields if path.suffix == ".json" else _jsonl_fields
    memes, problems = [], []
    for place, row in _rows(path):
        try:
            fields = reader(row, prompt or PromptTemplate(), answers or Answers())
            memes.append(Meme(image=_find_image(fields.pop("image"), folders), split=split, **fields))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            said = f"missing field {error}" if isinstance(error, KeyError) else str(error)
            problems.append(f"{place}: {said}")
    raise_all(problems, f"{path}: rows that cannot be read")
    if not memes:
        raise UserError(f"{path} has no rows.")
    check_unique_ids(memes, path)
    return memes


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        texts = [("", text)]
    else:  # not splitlines(): it would also split inside captions, at U+2028 and its like
        texts = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for place, part in texts:
        try:
            value = json.loads(part)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, {place or 'the file'} is not valid JSON: {error}.") from error
        if place:
            yield place, value
        else:
            yield from ((f"record {index}", row) for index, row in enumerate(value))


def _jsonl_fields(row: dict[str, Any], prompt: PromptTemplate, answers: Answers) -> dict[str, Any]:
    image = row.get("image", row.get("img"))
    if image is None:
        raise KeyError("'img' (or 'image')")
    known = {"id", "image", "img", "text", "label"}
    return {
        "id": str(row["id"]),
        "image": image,
        "text": str(row["text"]),
        "label": _label(row.get("label")),
        "extras": {key: value for key, value in row.items() if key not in known},
    }


def _sharegpt_fields(row: dict[str, Any], prompt: PromptTemplate, answers: Answers) -> dict[str, Any]:
    question, answer = (message.get("content", message.get("value")) for message in row["messages"][-2:])
    caption = prompt.caption_of(question)
    if caption is None:
        raise ValueError(f"its question was not made by the prompt {prompt.template!r}: {question[:120]!r}")
    images = row["images"]
    image = images if isinstance(images, str) else images[0]
    label = _label(row.get("label"))
    return {
        "id": str(row.get("id", image)),
        "image": image,
        "text": caption,
        "label": answers.label_of(answer) if label is None else label,
    }


def _label(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or int(value) != value:
        raise ValueError(f"label {value!r} is not a class index (0, 1, …)")
    return int(value)


def _find_image(image: str, folders: list[Path]) -> Path:
    candidates = [Path(os.path.normpath(folder / image)) for folder in folders]
    return next((path for path in candidates if path.is_file()), candidates[-1])
