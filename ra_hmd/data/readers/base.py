"""Base class of the readers of data sets, their registry, and helpers for fields of annotation files."""

import math
import re
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import Answers, PromptTemplate
from ra_hmd.data.readers.image_folders import ImageFolder, ImageSearch, SplitOfFile, find_image_folders
from ra_hmd.data.readers.tasks import HATE, Expected, Task
from ra_hmd.data.readers.tree import Tree, below
from ra_hmd.data.rows import Row, rows_of
from ra_hmd.data.training_records import TrainingRecord

_SAMPLE = 50
_MIXED_SAMPLE = 20_000  # rows that are sampled to see every split of a file that holds several
SHAREGPT = "RA-HMD ShareGPT files"


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file.

    Attributes:
        path: Path of the file.
        split: Split of its rows; "" where each row names its own.
    """

    path: Path
    split: str = ""


@dataclass(frozen=True)
class LocatedCopy:
    """A copy of a data set that a reader located below a folder.

    Attributes:
        layout: Name of its layout, for messages and the manifest.
        parts: Annotation files, in reading order.
        variant: Release, a key of `Reader.expected`; "" for a release without known counts.
        others: Further files by role.
        images: Image folder of each split of each annotation file.
        notes: Remarks on this copy for the user.
    """

    layout: str
    parts: tuple[AnnotationFile, ...]
    variant: str = ""
    others: Mapping[str, Path] = field(default_factory=dict)
    images: Mapping[SplitOfFile, ImageFolder] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def sharegpt_names(name: str, file: str, splits: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Build `Reader.sharegpt`.

    Args:
        name: Name of the training data in `dataset_info.json`.
        file: File name, with `{}` for the split.
        splits: Split → suffix of the name. A split that the official file names spell otherwise is `ours:theirs`.
    """
    pairs = ((*split.split(":"), split, suffix) for split, suffix in splits.items())
    return {ours: (f"{name}{suffix}", f"gt/{file.format(rest[0])}") for ours, *rest, suffix in pairs}


def split_files(tree: Tree, first: Mapping[str, str], stem: str = "") -> list[tuple[AnnotationFile, ...]]:
    """Return the train, val and test `.jsonl` files of each folder whose first row has the wanted fields.

    Args:
        tree: Where to look.
        first: Field → pattern that matches its whole value in the first row of the first file.
        stem: What stands between the split and the suffix in file names.
    """
    found = []
    for group in tree.groups({split: rf"{split}{stem}\.jsonl" for split in ("train", "val", "test")}):
        parts = tuple(AnnotationFile(path, split) for split, path in group.items())
        values = tree.first(parts[0].path)
        if all(field in values and re.fullmatch(pattern, str(values[field])) for field, pattern in first.items()):
            found.append(parts)
    return found


class Reader(ABC):
    """Reader of one data set, in any layout that it is distributed in.

    A subclass sets the class attributes and implements `layouts` and `meme`. Locating images, rejecting rows and
    resuming an import are done for it.

    Attributes:
        name: Name on the command line.
        title: Name for people.
        licence: Terms of use as we read them.
        owner: Distributor of the data set.
        looked_for: File names, for the error message where none is found.
        tasks: Labellings; the first one gives `Meme.label`.
        expected: Variant → split → rows and class counts of a whole copy.
        shared: Pair of splits that share memes by design → number of these memes.
        sharegpt: Split → (name in `dataset_info.json`, file name) of its LLaMA-Factory files.
    """

    name: str
    title: str
    licence: str
    owner: str
    looked_for: str
    tasks: tuple[Task, ...] = (HATE,)
    expected: Mapping[str, Mapping[str, Expected]] = {}
    shared: Mapping[tuple[str, str], int] = {}
    sharegpt: Mapping[str, tuple[str, str]] = {}

    @property
    def options(self) -> dict[str, Any]:
        """Options of this reader, for the manifest."""
        return {}

    @abstractmethod
    def layouts(self, tree: Tree) -> list[LocatedCopy]:
        """Locate every copy of this data set in a tree, the preferred one first."""

    @abstractmethod
    def meme(self, row: Row, part: AnnotationFile, copy: LocatedCopy) -> Meme:
        """Convert a row into a meme, with image path and caption as the row has them.

        Raises:
            KeyError, TypeError, ValueError: The row is invalid; the message becomes the reason of its rejection.
        """

    def rows(self, part: AnnotationFile, copy: LocatedCopy) -> Iterator[Row]:
        """Read the rows of an annotation file."""
        return rows_of(part.path)

    def read(self, copy: LocatedCopy) -> Iterator[tuple[AnnotationFile, Row, Meme | str]]:
        """Yield every row of every annotation file as a meme, or as the reason why it is none.

        The image of a meme is its path on disk; it is empty for a split without an image folder.
        """
        for part in copy.parts:
            for row, meme in self._memes(part, copy):
                if isinstance(meme, Meme):
                    folder = copy.images.get((part.path, meme.split))
                    meme = replace(meme, image=Path() if folder is None else folder.path(meme.path))  # noqa: PLW2901
                yield part, row, meme

    def _memes(self, part: AnnotationFile, copy: LocatedCopy) -> Iterator[tuple[Row, Meme | str]]:
        sharegpt = copy.layout == SHAREGPT
        for row in rows_of(part.path) if sharegpt else self.rows(part, copy):
            if row.problem:
                yield row, row.problem
                continue
            try:
                yield row, self._from_sharegpt(row, part) if sharegpt else self.meme(row, part, copy)
            except KeyError as error:
                yield row, f"field {error} is missing; this row has {', '.join(row.values)}"
            except ValueError as error:
                yield row, str(error)
            except (AttributeError, IndexError, TypeError) as error:
                yield row, f"a field is of another type than it should be ({error})"

    def meme_id(self, value: Any, split: str) -> str:
        """Return the id of a meme, from the one in an annotation file."""
        return given(value, "id")

    def leftovers(self, values: Mapping[str, Any], *used: str) -> dict[str, Any]:
        """Return the fields of a row that are not `used`; a field named like a task gets the suffix `_in_file`."""
        tasks = {task.name for task in self.tasks}
        return {f"{key}_in_file" if key in tasks else key: value for key, value in values.items() if key not in used}

    def _from_sharegpt(self, row: Row, part: AnnotationFile) -> Meme:
        record = TrainingRecord.of_row(row.values, PromptTemplate())
        label = record.class_label(Answers())
        if not isinstance(record.image, str):
            raise ValueError("its image is embedded in the row, and an import names files; save it as one (training, "
                             "extraction and prediction read such rows as they are)")  # fmt: skip
        own = record.id if "id" in row.values else Path(record.image).stem
        return Meme(self.meme_id(own, part.split), Path(record.image), record.caption, label, part.split)

    def locate(
        self, root: str | Path, *, images: str | Path | None = None, add_on: str | Path | None = None
    ) -> LocatedCopy:
        """Locate the data set below `root`, and its images there or below `images`.

        Args:
            root: Folder that the data set was unpacked to.
            images: Folder of the images, if they lie elsewhere.
            add_on: Folder with further annotations.

        Raises:
            UserError: No copy is found, two copies of one layout are found, or no image is found.
        """
        for folder in (root, images, add_on):
            if folder is not None and not Path(folder).is_dir():
                raise UserError(f"{folder} is not a folder; give the one that {self.title} was unpacked to.")
        tree = Tree(Path(root), *([Path(add_on)] if add_on else []))
        candidates = self.layouts(tree) + self._sharegpt_layouts(tree)
        if not candidates:
            raise UserError(
                f"No files of {self.title} below {root}. Looked for {self.looked_for}. "
                f"Annotation files there: {', '.join(below(tree.files, root)) or 'none'}."
                + (f" Unpack {', '.join(below(tree.archives, root))}." if tree.archives else "")
                + "".join(f"\n  - {problem}" for problem in tree.unreadable[:5])
            )
        copy, *more = candidates
        twice = [other for other in more if other.layout == copy.layout]
        if twice:
            where = "\n".join(dict.fromkeys(f"  - {other.parts[0].path.parent}" for other in (copy, *twice)))
            raise UserError(f"{self.title} ({copy.layout}) lies below {root} more than once; name one:\n{where}")
        notes = [f"also there and not read: {other.layout} in {other.parts[0].path.parent}" for other in more]
        below_images = Tree(Path(images)) if images else tree
        folders, image_notes = self._image_folders(copy, below_images, images or root, trust=bool(images))
        return replace(copy, images=folders, notes=(*copy.notes, *notes, *image_notes))

    def _sharegpt_layouts(self, tree: Tree) -> list[LocatedCopy]:
        names = {split: re.escape(Path(file).name) for split, (_, file) in self.sharegpt.items()}
        groups = tree.groups(names) if names else []
        return [
            LocatedCopy(SHAREGPT, tuple(AnnotationFile(path, split) for split, path in group.items()))
            for group in groups
        ]

    def _image_folders(
        self, copy: LocatedCopy, tree: Tree, where: str | Path, *, trust: bool
    ) -> tuple[dict[SplitOfFile, ImageFolder], tuple[str, ...]]:
        def images(part: AnnotationFile, split: str) -> Iterator[Path]:
            memes = (meme for _, meme in self._memes(part, copy) if isinstance(meme, Meme))
            return (meme.path for meme in memes if meme.split == split)

        samples: dict[SplitOfFile, list[Path]] = defaultdict(list)
        problems: Counter[str] = Counter()
        for part in copy.parts:
            for _, meme in islice(self._memes(part, copy), _SAMPLE if part.split else _MIXED_SAMPLE):
                if not isinstance(meme, Meme):
                    problems[meme] += 1
                elif len(samples[part.path, meme.split]) < _SAMPLE:
                    samples[part.path, meme.split].append(meme.path)
        if not samples:  # then the images are not what is wrong
            reasons = "; ".join(f"{problem} ({count})" for problem, count in problems.most_common(3))
            raise UserError(f"Of {self.title} below {where} no row can be used: {reasons or 'there is none'}.")
        parts = {part.path: part for part in copy.parts}
        wanted = []
        for (path, split), sample in samples.items():
            shares = {other for other in samples for pair in self.shared if {split, other[1]} == {*pair}}
            wanted.append(ImageSearch(path, split, sample, partial(images, parts[path], split), frozenset(shares)))
        folders, notes = find_image_folders(wanted, tree, trust=trust)
        if not folders:
            looked = "; ".join(f"{one.name} (looked for {one.sample[0]})" for one in wanted)
            archives = f" Unpack {', '.join(below(tree.archives, where))}." if tree.archives else ""
            raise UserError(
                f"No images of {self.title} below {where}: {looked}.{archives} "
                "Give the folder that holds them with --images."
            )
        return folders, tuple(notes)


READERS: dict[str, type[Reader]] = {}
"""Name of a data set → its reader."""


def register_reader(reader: type[Reader]) -> type[Reader]:
    """Class decorator that enters a reader in `READERS` under its name.

    Raises:
        ValueError: The name is no identifier, or belongs to another reader.
    """
    if not re.fullmatch(r"[a-z]\w*", reader.name):
        raise ValueError(f"{reader.__qualname__}.name is {reader.name!r}; use lower-case letters, digits and _")
    other = READERS.setdefault(reader.name, reader)
    if other is not reader:
        raise ValueError(f"{reader.__qualname__}.name is {reader.name!r}, which {other.__qualname__} has already")
    return reader


def given(value: Any, name: str) -> str:
    """Return a field as text.

    Raises:
        ValueError: The field is empty, null, NaN, or no single value.
    """
    if value == "" or not isinstance(value, str | int | float) or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"its {name} is {repr(value)[:40]}, a text is needed")
    return str(value)


def binary(value: Any, name: str) -> int | None:
    """Return a 0/1 field as a class index; None for an unlabelled one (None or "").

    Raises:
        ValueError: The field is something else.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or str(value) not in ("0", "1", "0.0", "1.0"):
        raise ValueError(f"{name} is {value!r}; it should be 0 or 1")
    return int(float(value))


def graded(value: str, names: tuple[str, ...], name: str) -> int:
    """Return the index of a value among names, ignoring case and outer blanks.

    Raises:
        ValueError: The value is none of the names.
    """
    folded = value.strip().casefold()
    for index, known in enumerate(names):
        if folded == known.casefold():
            return index
    raise ValueError(f"{name} is {value!r}; known are {', '.join(names)}")
