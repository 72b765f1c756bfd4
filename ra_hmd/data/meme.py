"""The `Meme` record."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_CLASSES = 128
"""Most classes that a task may have."""


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


def class_index(value: Any) -> int | None:
    """Return a label as a class index; None stays None.

    Raises:
        ValueError: The label is no class index.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)  # tables of text, such as CSV
    if isinstance(value, bool) or value not in range(MOST_CLASSES):
        raise ValueError(f"label {value!r} is not a class index (0, 1, …)")
    return int(value)


def class_set(value: Any, classes: int) -> tuple[int, ...] | None:
    """Return a label of several classes as their indices, in order; None stays None.

    Raises:
        ValueError: The label is no list of different indices below `classes`.
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
