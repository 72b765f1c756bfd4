"""Data sets that `datasets.load_dataset` knows by name, as files that the reader of your own data takes.

No code of a data set is run: `datasets` 4 loads tables and folders of images alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra_hmd.core.artifacts import new_folder, read_json, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme_dataset import json_line

if TYPE_CHECKING:
    from datasets import Dataset

ROWS, ORIGIN = "rows.jsonl", "download.json"


def fetch_dataset(name: str, output: str | Path, *, subset: str | None = None, revision: str | None = None) -> Path:
    """Load a data set and write its rows and images to a folder. Done once: a folder of the same origin is kept.

    Args:
        name: Name on the Hugging Face hub, or whatever else `datasets.load_dataset` takes.
        output: Folder for `rows.jsonl`, with the column `split`, and for the images.
        subset: Configuration of the data set, where it has several.
        revision: Branch, tag or commit.

    Raises:
        UserError: it cannot be loaded, has no column of images, or `output` holds something else.
    """
    output = Path(output)
    origin = {"name": name, "subset": subset, "revision": revision}
    if (output / ORIGIN).is_file() and read_json(output / ORIGIN) == origin:
        return output
    splits = _load(name, subset, revision)
    with new_folder(output) as folder:
        with (folder / ROWS).open("w", encoding="utf-8") as file:
            for split, rows in splits.items():
                for row in _rows(name, split, rows, folder):
                    file.write(json_line(row) + "\n")
        write_json(folder / ORIGIN, origin)
    return output


def _load(name: str, subset: str | None, revision: str | None) -> Mapping[str, "Dataset"]:
    from datasets import load_dataset

    try:
        return load_dataset(name, subset, revision=revision)
    except Exception as error:  # the library raises errors of many kinds, and of its packages
        raise UserError(
            f"{name} is neither here nor a data set that `datasets.load_dataset` can load: {error}\nGive a file, a "
            "folder, or the name of a data set on the Hugging Face hub; with several configurations also --subset."
        ) from error


def _rows(name: str, split: str, rows: "Dataset", folder: Path) -> Any:
    """Yield the rows of a split; their images are written to the folder."""
    from datasets import Image

    pictures = [column for column, feature in rows.features.items() if isinstance(feature, Image)]
    if not pictures:
        raise UserError(f"{name}, split {split}, has no column of images; it has {', '.join(rows.features)}.")
    for column in pictures:
        rows = rows.cast_column(column, Image(decode=False))
    (folder / "images" / split).mkdir(parents=True)
    for number, row in enumerate(rows):
        for column in pictures:
            suffix = Path(row[column]["path"] or "").suffix if row[column] else ""
            place = Path("images", split, f"{number:07d}_{column}{suffix or '.png'}")
            row[column] = _write(row[column], folder / place) and place.as_posix()
        yield {"split": split} | row


def _write(image: Mapping[str, Any] | None, path: Path) -> bool:
    """Write the bytes of an image as they are. Returns whether there are any."""
    if image is None:
        return False
    path.write_bytes(image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes())
    return True
