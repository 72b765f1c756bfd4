"""What a reader of a public data set is, and what all of them share: finding files and images below a folder."""

import os
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ra_hmd.data.files import Row, rows_of
from ra_hmd.data.record import Meme, sharegpt_fields
from ra_hmd.data.sharegpt import OFFICIAL_ANSWERS, OFFICIAL_PROMPT, Answers, PromptTemplate
from ra_hmd.errors import UserError

_ANNOTATIONS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z")
_FILES_PER_FOLDER = 500  # a folder with more files of a kind holds one file per meme, not annotations
_DEPTH = 10
_SAMPLE = 50
SHAREGPT = "RA-HMD ShareGPT files"
CHOICE_PROMPT = '<image> This is an image with: "{text}" written on it. '


@dataclass(frozen=True)
class Task:
    """One labelling of a data set.

    Attributes:
        name: `Meme.extras[name]` holds its class index (or list of class indices), or None for a meme without; of a
            reader's first task it is `Meme.label`.
        classes: Names in index order.
        prompt: The question that asks for it.
        answers: Answer sentences in class order; their first words differ.
        multi_label: A meme may have any number of the classes.
        member_of: For "is it one of class c of that multi-label task?": the task's name and c.
    """

    name: str
    classes: tuple[str, ...]
    prompt: str = OFFICIAL_PROMPT
    answers: tuple[str, ...] = OFFICIAL_ANSWERS
    multi_label: bool = False
    member_of: tuple[str, int] | None = None

    def value(self, meme: Meme, *, first: bool) -> int | list[int] | None:
        """The class index of `meme` (a list of them if multi-label), or None where it has none."""
        if self.member_of is not None:
            name, index = self.member_of
            indices = meme.extras.get(name)
            return None if indices is None else int(index in indices)
        return meme.label if first and not self.multi_label else meme.extras.get(self.name)


def choice_task(name: str, classes: tuple[str, ...], question: str, *, multi_label: bool = False) -> Task:
    """A task whose answers are the names of its classes."""
    options = ", ".join([*classes, "none"] if multi_label else classes)
    how = "Name all of" if multi_label else "Answer with one of"
    return Task(name, classes, f"{CHOICE_PROMPT}{question} {how}: {options}.", classes, multi_label)


def yes_no_task(name: str, word: str, *, member_of: tuple[str, int] | None = None) -> Task:
    """A binary task in the wording of the official one."""
    answers = (f"No. It is not a {word} meme.", f"Yes. It is a {word} meme.")
    return Task(name, (f"not {word}", word), f"{CHOICE_PROMPT}Is it {word}?", answers, member_of=member_of)


HATE = Task("hate", ("not hateful", "hateful"))


@dataclass(frozen=True)
class Expected:
    """What a whole copy of a split holds: rows, and of each task the rows per class (of a multi-label one, positives
    per class).
    """

    rows: int
    tasks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One annotation file. `split` is its split, or "" where each row names its own."""

    path: Path
    split: str = ""


@dataclass(frozen=True)
class ImageFolder:
    """Where the images of a part lie: `folder / field`, or `folder / name` if `flat`."""

    folder: Path
    flat: bool

    def path(self, image: Path) -> Path:
        """Path of the image that a row names."""
        return self.folder / (image.name if self.flat else image)


@dataclass(frozen=True)
class Found:
    """What a reader found below a folder.

    Attributes:
        layout: In words.
        parts: The annotation files, in the order in which they are read.
        variant: Which release this is, a key of `Reader.expected`; "" for one without known counts.
        others: Further files, by role.
        images: Image folder of each part.
        notes: What the user should know about this copy.
    """

    layout: str
    parts: tuple[Part, ...]
    variant: str = ""
    others: Mapping[str, Path] = field(default_factory=dict)
    images: Mapping[Path, ImageFolder] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Tree:
    """The annotation files and the folders below some roots, symbolic links followed, each folder once."""

    def __init__(self, *roots: Path) -> None:
        self.files: list[Path] = []
        self.folders: list[Path] = []
        self.archives: list[Path] = []
        self._first: dict[Path, dict[str, Any]] = {}
        seen: set[str] = set()
        for root in roots:
            self._add(root.absolute(), 0, seen)

    def _add(self, folder: Path, depth: int, seen: set[str]) -> None:
        real = os.path.realpath(folder)
        if real in seen or depth > _DEPTH:
            return
        seen.add(real)
        self.folders.append(folder)
        kinds: dict[str, list[Path]] = defaultdict(list)
        below = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                suffix = Path(entry.name).suffix.lower()
                if suffix in _ANNOTATIONS or suffix in _ARCHIVES:
                    if len(kinds[suffix]) <= _FILES_PER_FOLDER and entry.is_file():
                        kinds[suffix].append(Path(entry.path))
                elif entry.is_dir():
                    below.append(Path(entry.path))
        for suffix, paths in sorted(kinds.items()):
            if len(paths) <= _FILES_PER_FOLDER:
                (self.archives if suffix in _ARCHIVES else self.files).extend(sorted(paths))
        for path in sorted(below):
            self._add(path, depth + 1, seen)

    def named(self, pattern: str) -> list[Path]:
        """Files whose whole name matches, ignoring case."""
        return [path for path in self.files if re.fullmatch(pattern, path.name, re.IGNORECASE)]

    def first(self, path: Path) -> dict[str, Any]:
        """Fields of the first good row of a file; {} if there is none."""
        if path not in self._first:
            try:
                rows = islice(rows_of(path), 5)
                self._first[path] = next((row.values for row in rows if not row.problem), {})
            except (UserError, OSError):
                self._first[path] = {}
        return self._first[path]

    def groups(self, names: Mapping[str, str], *, first: str | None = None) -> list[dict[str, Path]]:
        """Folders that hold files of these names (role → pattern), as role → path; with `first`, only with that."""
        found: dict[Path, dict[str, Path]] = defaultdict(dict)
        for role, pattern in names.items():
            for path in self.named(pattern):
                found[path.parent].setdefault(role, path)
        return [group for group in found.values() if first is None or first in group]


def sharegpt_names(name: str, file: str, splits: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """`Reader.sharegpt` from the name of the training data, a file name with a gap, and split → suffix of the name.

    A split that the official file names spell otherwise is given as `ours:theirs`.
    """
    pairs = ((*split.split(":"), split, suffix) for split, suffix in splits.items())
    return {ours: (f"{name}{suffix}", f"gt/{file.format(rest[0])}") for ours, *rest, suffix in pairs}


class Reader(ABC):
    """Reads one data set in whatever layout it lies below a folder.

    Class attributes:
        name: On the command line.
        title, licence, owner: For people: what it is, its terms as we read them, who distributes it.
        tasks: Its labellings; the first one gives `Meme.label`.
        expected: Variant → split → what a whole copy holds.
        shared: Pairs of splits that share memes by design, with how many.
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
        """What this reader was told, for the manifest."""
        return {}

    @abstractmethod
    def layouts(self, tree: Tree) -> list[Found]:
        """Every copy of this data set in the tree, best first."""

    @abstractmethod
    def meme(self, row: Row, part: Part, found: Found) -> Meme:
        """The meme of a row; its `image` is the path as the row has it, its `text` the caption as the row has it.

        Raises:
            KeyError, TypeError, ValueError: a row that does not fit; the message goes into the list of rejects.
        """

    def rows(self, part: Part, found: Found) -> Iterator[Row]:
        """Rows of an annotation file."""
        del found
        return rows_of(part.path)

    def read(self, found: Found) -> Iterator[tuple[Part, Row, Meme | str]]:
        """Every row of every part, as a meme with its image looked up, or as what is wrong with it."""
        for part in found.parts:
            folder = found.images.get(part.path)
            for row, meme in self._memes(part, found):
                if isinstance(meme, Meme) and folder is not None:
                    meme = replace(meme, image=folder.path(meme.image))  # noqa: PLW2901
                yield part, row, meme

    def _memes(self, part: Part, found: Found) -> Iterator[tuple[Row, Meme | str]]:
        sharegpt = found.layout == SHAREGPT
        for row in rows_of(part.path) if sharegpt else self.rows(part, found):
            if row.problem:
                yield row, row.problem
                continue
            try:
                yield row, self._from_sharegpt(row, part) if sharegpt else self.meme(row, part, found)
            except KeyError as error:
                yield row, f"field {error} is missing; this row has {', '.join(row.values)}"
            except (AttributeError, IndexError, TypeError, ValueError) as error:
                yield row, str(error)

    def meme_id(self, value: Any, split: str) -> str:
        """The id of a meme from the one in an annotation file."""
        del split
        return str(value)

    def _from_sharegpt(self, row: Row, part: Part) -> Meme:
        fields = sharegpt_fields(row.values, PromptTemplate(), Answers())
        own = fields["id"] if "id" in row.values else Path(fields["image"]).stem
        fields |= {"id": self.meme_id(own, part.split), "image": Path(fields["image"])}
        return Meme(split=part.split, **fields)

    def locate(self, root: str | Path, *, images: str | Path | None = None, add_on: str | Path | None = None) -> Found:
        """Find the data set below `root`, and its images there or below `images`.

        Raises:
            UserError: nothing found, the same layout found twice, or no image found.
        """
        for folder in (root, images, add_on):
            if folder is not None and not Path(folder).is_dir():
                raise UserError(f"{folder} is not a folder; give the one that {self.title} was unpacked to.")
        tree = Tree(Path(root), *([Path(add_on)] if add_on else []))
        candidates = self.layouts(tree) + self._sharegpt_layouts(tree)
        if not candidates:
            raise UserError(
                f"No files of {self.title} below {root}. Looked for {self.looked_for}. "
                f"Annotation files there: {', '.join(_below(tree.files, root)) or 'none'}."
                + (f" Unpack {', '.join(_below(tree.archives, root))}." if tree.archives else "")
            )
        found, *more = candidates
        twice = [other for other in more if other.layout == found.layout]
        if twice:
            where = "\n".join(f"  - {other.parts[0].path.parent}" for other in (found, *twice))
            raise UserError(f"{self.title} ({found.layout}) lies below {root} more than once; name one:\n{where}")
        notes = [f"also there and not read: {other.layout} in {other.parts[0].path.parent}" for other in more]
        folders, image_notes = self._image_folders(found, Tree(Path(images)) if images else tree, images or root)
        return replace(found, images=folders, notes=(*found.notes, *notes, *image_notes))

    def _sharegpt_layouts(self, tree: Tree) -> list[Found]:
        names = {split: re.escape(Path(file).name) for split, (_, file) in self.sharegpt.items()}
        groups = tree.groups(names) if names else []
        return [Found(SHAREGPT, tuple(Part(path, split) for split, path in group.items())) for group in groups]

    def _image_folders(
        self, found: Found, tree: Tree, where: str | Path
    ) -> tuple[dict[Path, ImageFolder], tuple[str, ...]]:
        """The folder of each part that holds most of its first images.

        One folder per part, without a second to fall back to: another split's folder may have another meme of the same
        file name.
        """
        folders, notes, missing = {}, [], []
        for part in found.parts:
            wanted = [meme.image for _, meme in islice(self._memes(part, found), _SAMPLE) if isinstance(meme, Meme)]
            if not wanted:
                continue
            ranked = [
                (hits, _shared_names(folder, part.path), -_distance(folder, part.path), not flat, folder)
                for folder in tree.folders
                for flat in (False, True)
                if (hits := sum(os.path.isfile(ImageFolder(folder, flat).path(image)) for image in wanted))  # noqa: PTH113
            ]
            if not ranked:
                missing.append(f"{part.path.name} (looked for {wanted[0]})")
                continue
            hits, _, _, full, folder = max(ranked)
            folders[part.path] = ImageFolder(folder, not full)
            if hits < len(wanted):
                notes.append(f"{part.path.name}: of its first {len(wanted)} images {len(wanted) - hits} are not there")
        if not folders:
            archives = f" Unpack {', '.join(_below(tree.archives, where))}." if tree.archives else ""
            raise UserError(
                f"No images of {self.title} below {where}, for {'; '.join(missing) or 'any row'}.{archives} "
                "Give the folder that holds them with --images."
            )
        notes += [f"no images for {text}: all its rows are rejected" for text in missing]
        return folders, tuple(notes)


def _below(paths: list[Path], root: str | Path, limit: int = 8) -> list[str]:
    names = [os.path.relpath(path, root) for path in paths]
    return names[:limit] + ([f"… {len(names) - limit} more"] if len(names) > limit else [])


def _shared_names(folder: Path, file: Path) -> int:
    """How many folder names two paths have in common, wherever they stand: gt/MAMI goes with image/MAMI/All."""
    return len(set(folder.parts) & set(file.parent.parts))


def _distance(folder: Path, file: Path) -> int:
    return len(Path(os.path.relpath(folder, file.parent)).parts)


def binary(value: Any, name: str) -> int | None:
    """A 0/1 field; None and "" are unlabelled.

    Raises:
        ValueError: anything else.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or str(value) not in ("0", "1", "0.0", "1.0"):
        raise ValueError(f"{name} is {value!r}; it should be 0 or 1")
    return int(float(value))


def graded(value: str, names: tuple[str, ...], name: str) -> int:
    """Index of a value among names, ignoring case and outer blanks.

    Raises:
        ValueError: it is none of them.
    """
    folded = value.strip().casefold()
    for index, known in enumerate(names):
        if folded == known.casefold():
            return index
    raise ValueError(f"{name} is {value!r}; known are {', '.join(names)}")
