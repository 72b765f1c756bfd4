"""The `Meme` type, and class labels as files have them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL.Image import Image

from ra_hmd.core.storage import as_path
from ra_hmd.data.images import load_image

MOST_CLASSES = 128
"""Most classes that a task may have."""


@dataclass(frozen=True)
class Meme:
    """One meme: a row of a data set, or a request for a verdict.

    Attributes:
        id: Unique within a data set; a string even where the file has a number. A bank row with the same id does not
            vote on the meme.
        image: Path of the image file, the content of that file, or a decoded image. A string is taken as a path,
            or as the URL of an object (`s3://…`).
        text: The caption; None: it is read from the image by OCR (extra `ocr`).
        label: Class index; of a multi-label task the tuple of class indices; None for an unlabelled meme.
        split: Name of the split, for the record.
        extras: Further fields; of an imported data set also the class index of each further task.
        raw_text: The caption as the data set's file has it, where `text` was normalised.
    """

    id: str
    image: Path | str | bytes | Image
    text: str | None = None
    label: int | tuple[int, ...] | None = None
    split: str = ""
    extras: dict[str, Any] = field(default_factory=dict)
    raw_text: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.image, str):
            object.__setattr__(self, "image", as_path(self.image))

    @property
    def path(self) -> Path:
        """Path of the image file.

        Raises:
            ValueError: the image is held in memory.
        """
        if not isinstance(self.image, Path):
            raise ValueError(f"meme {self.id!r} has its image in memory; write it to a file and give the path.")
        return self.image

    @property
    def caption(self) -> str:
        """The caption, of a meme that has one.

        Raises:
            ValueError: `text` is None.
        """
        if self.text is None:
            raise ValueError(f"meme {self.id!r} has no caption; give its text, or read it with `ra-hmd data ocr`.")
        return self.text

    def load_image(self) -> Image:
        """Decode the image.

        Raises:
            UserError: the image cannot be decoded.
        """
        return load_image(self.image)

    def to_row(self) -> dict[str, Any]:
        """The line of an imported data set's `<split>.jsonl`."""
        return {
            "id": self.id,
            "image": str(self.path),
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
