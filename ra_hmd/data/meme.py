"""The `Meme` record."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
