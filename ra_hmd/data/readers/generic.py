"""Reader of user-supplied data: JSON Lines, CSV, TSV or Parquet with a column map, and ShareGPT files."""

import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.meme import MOST_CLASSES, Meme, class_index
from ra_hmd.data.readers.base import SHAREGPT, AnnotationFile, LocatedCopy, Reader, given, register_reader
from ra_hmd.data.readers.tree import Tree
from ra_hmd.data.rows import KINDS, Row
from ra_hmd.data.training_records import detect_format

FIELDS = ("id", "image", "text", "label", "split")
FILE_NAME = re.compile(r"[\w-][\w.-]*")
_TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
_SPLIT_IN_NAME = re.compile(
    r"(?<![a-z])(train|dev_seen|dev_unseen|test_seen|test_unseen|dev|val|test)(?![a-z])", re.IGNORECASE
)


@register_reader
class Generic(Reader):
    """Reader of a file, or of a folder with one file per split.

    Args:
        columns: Field (`id`, `image`, `text`, `label`, `split`) → column of the file. `image` may be a pattern with
            columns in braces, such as `{id}.png`. By default columns are named like fields (`img` stands for `image`).
        labels: Label in the file → class index. By default labels are class indices.
    """

    name = "generic"
    title = "your own data"
    licence = "yours"
    owner = "you"
    looked_for = "files with the image column (.jsonl, .csv, .tsv, .parquet) or ShareGPT .json files, here, not below"

    def __init__(self, columns: Mapping[str, str] | None = None, labels: Mapping[str, int] | None = None) -> None:
        self.columns, self.labels = dict(columns or {}), dict(labels or {})
        self._only: Path | None = None
        unknown = sorted(self.columns.keys() - set(FIELDS))
        too_high = [f"{name}={index}" for name, index in self.labels.items() if index not in range(MOST_CLASSES)]
        if too_high:
            raise UserError(f"--labels {too_high[0]}: a class index is 0 to {MOST_CLASSES - 1}.")
        if unknown:
            raise UserError(f"--columns {', '.join(unknown)}: our fields are {', '.join(FIELDS)}.")

    @property
    def options(self) -> dict[str, Any]:
        return {"columns": self.columns, "labels": self.labels}

    def locate(
        self, root: str | Path, *, images: str | Path | None = None, add_on: str | Path | None = None
    ) -> LocatedCopy:
        path = Path(root)
        self._only = Path(path.absolute()) if path.is_file() else None
        return super().locate(path.parent if self._only else path, images=images, add_on=add_on)

    def layouts(self, tree: Tree) -> list[LocatedCopy]:
        here = [path for path in tree.files if path.parent == tree.folders[0]]
        files = [self._only] if self._only else here
        sharegpt = [
            path for path in files if path.suffix.lower() in KINDS and detect_format(tree.first(path)) is not None
        ]
        if sharegpt:
            return [
                LocatedCopy(
                    SHAREGPT, tuple(AnnotationFile(path, split) for path, split in _splits_of(sharegpt).items())
                )
            ]
        tables = [path for path in files if path.suffix.lower() in _TABLES]
        lacking = {path: self._lacking(tree.first(path)) for path in tables}
        if tables and all(lacking.values()):
            path = next((path for path in tables if tree.first(path)), tables[0])
            problem = (
                f"has no column {' and no column '.join(lacking[path])}; it has {', '.join(tree.first(path))}. "
                f"Say which is which: --columns {' '.join(f'{name}=…' for name in FIELDS[:4])}"
                if tree.first(path)
                else "has no row that can be read."
            )
            raise UserError(f"{path} {problem}" + "".join(f"\n  - {one}" for one in tree.unreadable[:5]))
        good = [path for path in tables if not lacking[path]]
        notes = tuple(
            f"not read: {path.name} has no column {', '.join(lacking[path])}" for path in tables if lacking[path]
        )
        splits = _splits_of([path for path in good if not self._column("split", tree.first(path))])
        parts = tuple(AnnotationFile(path, splits.get(path, "")) for path in good)
        return [LocatedCopy("files with columns", parts, notes=notes)] if parts else []

    def _lacking(self, values: Mapping[str, Any]) -> list[str]:
        wanted = dict.fromkeys(("image", "text", *self.columns))
        return [self.columns.get(field, field) for field in wanted if self._column(field, values) is None]

    def _column(self, field: str, values: Mapping[str, Any]) -> str | None:
        """Return the column or image pattern of a field, or None if these values lack it."""
        if field in self.columns:
            name = self.columns[field]
            there = set(re.findall(r"\{([^{}]*)\}", name)) if field == "image" and "{" in name else {name}
            return name if there <= values.keys() else None
        names = ("image", "img") if field == "image" else (field,)
        return next((name for name in names if name in values), None)

    def meme(self, row: Row, part: AnnotationFile, copy: LocatedCopy) -> Meme:
        values = row.values
        used = {field: self._column(field, values) for field in FIELDS}
        for field in ("image", "text", *self.columns):
            if used[field] is None:
                raise KeyError(self.columns.get(field, field))
        pattern = str(used["image"])
        image = (
            re.sub(r"\{([^{}]*)\}", lambda match: given(values[match[1]], match[1]), pattern)
            if "{" in pattern
            else given(values[pattern], "image")
        )

        def value(field: str) -> Any:
            column = used[field]
            return None if column is None else values[column]

        text = value("text")
        return Meme(
            id=given(value("id"), "id") if used["id"] else image,
            image=Path(image),
            text=text if text == "" else given(text, "text"),
            label=self._label(value("label")),
            split=part.split or _split_name(value("split")),
            extras=self.leftovers(values, *(name for name in used.values() if name)),
        )

    def _label(self, value: Any) -> int | None:
        value = value.strip() if isinstance(value, str) else value
        if value is None or value == "":
            return None
        if self.labels:
            if str(value) not in self.labels:
                raise ValueError(f"label {value!r} is not in --labels {', '.join(self.labels)}")
            return self.labels[str(value)]
        try:
            index = class_index(float(value))
        except (TypeError, ValueError):
            index = None
        if index is None or index < 0:
            raise ValueError(
                f"label {value!r} is no class index; say what it means, e.g. --labels {shlex.quote(f'{value}=1')}"
            )
        return index

    def _from_sharegpt(self, row: Row, part: AnnotationFile) -> Meme:
        meme = super()._from_sharegpt(row, part)
        return meme if "id" in row.values else replace(meme, id=str(meme.path))


def _splits_of(paths: list[Path]) -> dict[Path, str]:
    """Return the split of each file: the one named in its file name, or the whole name where that is ambiguous.

    Raises:
        UserError: Two files have the same split, or a name cannot be a split.
    """
    spoken = {path: match[0].lower() for path in paths if (match := _SPLIT_IN_NAME.search(path.stem))}
    counts = Counter(spoken.values())
    splits = {path: spoken[path] if counts[spoken.get(path, "")] == 1 else path.stem for path in paths}
    twice = [path.name for path in paths if Counter(splits.values())[splits[path]] > 1]
    if twice:
        raise UserError(f"{' and '.join(twice)} would be one split; name them differently, or give one of them.")
    raise_all(
        [f"{path.name}: {problem}" for path, split in splits.items() if (problem := _split_problem(split))],
        "The split of a file is in its name; rename these, or give one of them",
    )
    return splits


def _split_name(value: Any) -> str:
    name = value.strip() if isinstance(value, str) else value
    if problem := _split_problem(name):
        raise ValueError(problem)
    return str(name)


def _split_problem(value: Any) -> str:
    if isinstance(value, str) and FILE_NAME.fullmatch(value):
        return ""
    return f"split is {value!r}; a split becomes a file name: letters, digits, '-', '_' and '.'"
