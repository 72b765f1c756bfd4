"""Invented, harmless copies of data sets for tests: pictures, annotation files, and what an import made of them."""

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from ra_hmd.data.import_dataset import ImportOptions, import_data
from ra_hmd.data.readers import get_reader


def picture(path: Path, kind: str | None = None, size: tuple[int, int] = (48, 40)) -> Path:
    """A picture of coloured tiles that no other path has; `kind` (PNG, JPEG, …) overrides what the suffix says."""
    rng = random.Random(str(path.name) + str(path.parent.name))
    tiles = Image.new("RGB", (6, 5))
    tiles.putdata([(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(30)])
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles.resize(size, Image.Resampling.NEAREST).save(path, format=kind)
    return path


def jsonl(
    path: Path, rows: list[dict[str, Any]], *, escape: bool = False, crlf: bool = False, end: bool = True
) -> Path:
    """Write JSON Lines: with `/` escaped, with CRLF, without a last newline."""
    lines = [json.dumps(row, ensure_ascii=escape, separators=(",", ":") if escape else None) for row in rows]
    newline = "\r\n" if crlf else "\n"
    text = newline.join(lines) + (newline if end else "")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((text.replace("/", "\\/") if escape else text).encode())
    return path


def table(path: Path, text: str, *, bom: bool = False, crlf: bool = False) -> Path:
    """Write a CSV or TSV file as given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((text.replace("\n", "\r\n") if crlf else text).encode("utf-8-sig" if bom else "utf-8"))
    return path


class Imported:
    """What an import wrote.

    Attributes:
        rows: Split → rows of its `.jsonl` file.
        rejected: Rows of `rejected.jsonl`.
        manifest: `dataset.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = json.loads((folder / "dataset.json").read_text())
        self.rows = {split: self._read(f"{split}.jsonl") for split in self.manifest["splits"]}
        self.rejected = self._read("rejected.jsonl")

    def _read(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").split("\n") if line]

    def column(self, split: str, name: str) -> list[Any]:
        """One field of all rows of a split; `extras.x` for a field of the extras."""
        field, _, extra = name.partition(".")
        return [row[field][extra] if extra else row[field] for row in self.rows[split]]


def imported(
    name: str,
    root: Path,
    output: Path,
    *,
    options: ImportOptions | None = None,
    columns: dict[str, str] | None = None,
    labels: dict[str, int] | None = None,
    **folders: Path,
) -> Imported:
    """Import `root` with the reader `name` into `output`; `folders` are `images` and `add_on`."""
    reader = get_reader(name, columns=columns, labels=labels)
    import_data(reader, root, output, options=options, **folders)
    return Imported(output)


def records(got: Imported, images: Path) -> dict[str, list[tuple[Any, ...]]]:
    """(id, image below `images`, label, text, raw text) of every record, each image being there."""
    for split, row in [(split, row) for split, rows in got.rows.items() for row in rows]:
        assert Path(row["image"]).is_file()
        assert row["split"] == split
    return {
        split: [
            (row["id"], str(Path(row["image"]).relative_to(images)), row["label"], row["text"], row["raw_text"])
            for row in rows
        ]
        for split, rows in got.rows.items()
    }
