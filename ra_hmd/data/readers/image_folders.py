"""Search for the folder that holds the images of a split."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from ra_hmd.data.image_files import existing_path
from ra_hmd.data.readers.tree import Tree

SplitOfFile = tuple[Path, str]  # an annotation file and one of its splits


@dataclass(frozen=True)
class ImageFolder:
    """Folder of the images of a split.

    Attributes:
        folder: The folder.
        flat: Whether images lie directly in it, so that only the file name of the image field counts.
    """

    folder: Path
    flat: bool

    def path(self, image: Path) -> Path:
        """Return the path of the image that a row names."""
        image = Path(str(image).replace("\\", "/"))
        return existing_path(self.folder, image.name if self.flat else image)


@dataclass(frozen=True)
class ImageSearch:
    """The images that an annotation file names for a split, whose folder is searched for.

    Attributes:
        file: The annotation file.
        split: The split.
        sample: Paths of the first images, as the file has them.
        all: Function that yields all paths.
        shares: Other splits that name some of the same images by design.
    """

    file: Path
    split: str
    sample: list[Path]
    all: Callable[[], Iterable[Path]]
    shares: frozenset[SplitOfFile] = frozenset()

    @property
    def source(self) -> SplitOfFile:
        """Annotation file and split, as a key."""
        return self.file, self.split

    @property
    def name(self) -> str:
        """Name for messages."""
        return self.file.name if self.split in self.file.stem.lower() else f"{self.file.name}, {self.split}"

    def hits(self, folder: ImageFolder) -> int:
        """Count the images of the sample that exist in a folder."""
        return sum(os.path.isfile(folder.path(image)) for image in self.sample)  # noqa: PTH113 - survives odd names

    def nearness(self, folder: Path) -> tuple[int, bool]:
        """Rank a folder by its distance from the annotation file, and by being named after the split."""
        steps = len(Path(os.path.relpath(folder, self.file.parent)).parts)
        return -steps, bool(self.split) and self.split.lower() in folder.name.lower()


def find_image_folders(
    wanted: list[ImageSearch], tree: Tree, *, trust: bool = False
) -> tuple[dict[SplitOfFile, ImageFolder], list[str]]:
    """Assign to each split the nearest folder that holds most of its sample, and note what is odd.

    A split has exactly one folder: the folder of another split may hold another meme under the same name. For the same
    reason a split does not get a folder that is nearer to another split and holds only images of that one; it gets the
    next best folder instead. With `trust`, because the user named the folder, it does.
    """
    ranked = {one.source: _rank(one, tree) for one in wanted}
    folders = {source: found[0][1] for source, found in ranked.items() if found}
    notes = []
    for one in wanted:
        while not trust and _is_borrowed(one, wanted, folders):
            ranked[one.source] = [rank for rank in ranked[one.source] if rank[1].folder != folders[one.source].folder]
            del folders[one.source]
            if ranked[one.source]:
                folders[one.source] = ranked[one.source][0][1]
    for one in wanted:
        if one.source not in folders:
            notes.append(f"no images for {one.name} (looked for {one.sample[0]}): all its rows are rejected")
            continue
        best = ranked[one.source][0][0]
        chosen = folders[one.source]
        twins = {str(other.folder) for rank, other in ranked[one.source] if rank[1:4] == best[1:4]}
        notes += [
            f"{one.name}: images taken from {chosen.folder}; {twin} has the same names"
            for twin in sorted(twins - {str(chosen.folder)})
        ]
        if missing := len(one.sample) - one.hits(chosen):
            notes.append(f"{one.name}: of its first {len(one.sample)} images {missing} are not there")
    return folders, notes


def _rank(one: ImageSearch, tree: Tree) -> list[tuple[tuple[object, ...], ImageFolder]]:
    """Rank the folders that hold some of the sample: by holding half of it, shared names, distance and likeness."""
    found = []
    for folder in tree.folders:
        for flat in (False, True):
            count = one.hits(ImageFolder(folder, flat))
            if count:
                names = _shared_names(folder, one.file), one.nearness(folder), not flat, _likeness(folder, one.file)
                found.append(((count * 2 >= len(one.sample), *names, count, str(folder)), ImageFolder(folder, flat)))
    return sorted(found, key=lambda rank: rank[0], reverse=True)


def _is_borrowed(one: ImageSearch, wanted: list[ImageSearch], folders: dict[SplitOfFile, ImageFolder]) -> bool:
    """Return whether a split's folder belongs to other splits, and holds only their images under this one's names."""
    folder = folders.get(one.source)
    if folder is None:
        return False
    there = {path for path in map(folder.path, one.sample) if os.path.isfile(path)}  # noqa: PTH113
    for other in wanted:
        theirs = folders.get(other.source)
        if theirs is None or theirs.folder != folder.folder or other.source in one.shares:
            continue
        if other.nearness(folder.folder) > one.nearness(folder.folder):
            there.difference_update(map(theirs.path, other.all()))
    return not there


def _shared_names(folder: Path, file: Path) -> int:
    """Count the folder names that two paths share, wherever they stand: gt/MAMI goes with image/MAMI/All."""
    return len(set(folder.parts) & set(file.parent.parts))


def _likeness(folder: Path, file: Path) -> float:
    """Return the similarity of two names, 0 to 1: 2000_testdata.csv goes with 2000_data rather than with images."""
    return SequenceMatcher(None, folder.name, file.stem).ratio()
