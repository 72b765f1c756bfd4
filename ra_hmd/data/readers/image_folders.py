"""Finding the folder that holds the images of a split."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from ra_hmd.data.image_files import existing_path
from ra_hmd.data.readers.tree import Tree

Source = tuple[Path, str]  # an annotation file and one of its splits


@dataclass(frozen=True)
class ImageFolder:
    """Where the images of a split lie: `folder / field`, or `folder / name` if `flat`."""

    folder: Path
    flat: bool

    def path(self, image: Path) -> Path:
        """Path of the image that a row names."""
        image = Path(str(image).replace("\\", "/"))
        return existing_path(self.folder, image.name if self.flat else image)


@dataclass(frozen=True)
class Wanted:
    """The images that an annotation file names for a split.

    Attributes:
        file, split: Which.
        sample: The first of them, as the file has them.
        all: Gives all of them.
        shares: Others that name some of the same images by design.
    """

    file: Path
    split: str
    sample: list[Path]
    all: Callable[[], Iterable[Path]]
    shares: frozenset[Source] = frozenset()

    @property
    def source(self) -> Source:
        """Its key."""
        return self.file, self.split

    @property
    def name(self) -> str:
        """For messages."""
        return self.file.name if self.split in self.file.stem.lower() else f"{self.file.name}, {self.split}"

    def hits(self, folder: ImageFolder) -> int:
        """How many of the sample are there."""
        return sum(os.path.isfile(folder.path(image)) for image in self.sample)  # noqa: PTH113 - survives odd names

    def nearness(self, folder: Path) -> tuple[int, bool]:
        """How near a folder is: by steps from the file, and by being named after the split."""
        steps = len(Path(os.path.relpath(folder, self.file.parent)).parts)
        return -steps, bool(self.split) and self.split.lower() in folder.name.lower()


def find_image_folders(
    wanted: list[Wanted], tree: Tree, *, trust: bool = False
) -> tuple[dict[Source, ImageFolder], list[str]]:
    """The nearest folder that holds most of each split's sample, and notes on what is odd.

    One folder per split, without a second to fall back to: another split's folder may have another meme under the same
    name. For the same reason a split does not get a folder that is nearer to another one, if what it has of its names
    are that one's memes; it gets the next best one then. With `trust` it does: the user named the folder.
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


def _rank(one: Wanted, tree: Tree) -> list[tuple[tuple[object, ...], ImageFolder]]:
    """Every folder with some of the sample, best first: with half of it, near, alike in name."""
    found = []
    for folder in tree.folders:
        for flat in (False, True):
            count = one.hits(ImageFolder(folder, flat))
            if count:
                names = _shared_names(folder, one.file), one.nearness(folder), not flat, _likeness(folder, one.file)
                found.append(((count * 2 >= len(one.sample), *names, count, str(folder)), ImageFolder(folder, flat)))
    return sorted(found, key=lambda rank: rank[0], reverse=True)


def _is_borrowed(one: Wanted, wanted: list[Wanted], folders: dict[Source, ImageFolder]) -> bool:
    """Whether a split's folder is another one's, and what it has there of this split's names are that one's memes."""
    folder = folders.get(one.source)
    if folder is None:
        return False
    there = {path for path in map(folder.path, one.sample) if os.path.isfile(path)}  # noqa: PTH113
    for other in wanted:
        theirs = folders.get(other.source)
        same = theirs is not None and theirs.folder == folder.folder and other.source not in one.shares
        if same and other.nearness(folder.folder) > one.nearness(folder.folder):
            there.difference_update(map(theirs.path, other.all()))
    return not there


def _shared_names(folder: Path, file: Path) -> int:
    """How many folder names two paths have in common, wherever they stand: gt/MAMI goes with image/MAMI/All."""
    return len(set(folder.parts) & set(file.parent.parts))


def _likeness(folder: Path, file: Path) -> float:
    """How like two names are, 0 to 1: 2000_testdata.csv goes with 2000_data rather than with images."""
    return SequenceMatcher(None, folder.name, file.stem).ratio()
