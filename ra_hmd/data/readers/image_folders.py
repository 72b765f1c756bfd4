"""Finding the folder that holds the images of an annotation file."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from ra_hmd.data.readers.tree import Tree


@dataclass(frozen=True)
class ImageFolder:
    """Where the images of a part lie: `folder / field`, or `folder / name` if `flat`."""

    folder: Path
    flat: bool

    def path(self, image: Path) -> Path:
        """Path of the image that a row names."""
        return self.folder / (image.name if self.flat else image)


@dataclass(frozen=True)
class Wanted:
    """The images that an annotation file names.

    Attributes:
        file: The file.
        sample: The first of them, as the file has them.
        all: Gives all of them.
        shares: Other files that name some of the same images by design.
    """

    file: Path
    sample: list[Path]
    all: Callable[[], Iterable[Path]]
    shares: frozenset[Path] = frozenset()


def find_image_folders(wanted: list[Wanted], tree: Tree) -> tuple[dict[Path, ImageFolder], list[str]]:
    """The folder that holds most of each file's sample, and notes on what is odd.

    One folder per file, without a second to fall back to: another split's folder may have another meme under the same
    name. For the same reason a file does not get the folder of another one whose memes are all that it has there.
    """
    folders: dict[Path, ImageFolder] = {}
    notes = []
    for one in wanted:
        ranked = [
            (count, _shared_names(folder, one.file), -_distance(folder, one.file), not flat,
             _likeness(folder, one.file), folder)
            for folder in tree.folders
            for flat in (False, True)
            if (count := _hits(ImageFolder(folder, flat), one.sample))
        ]  # fmt: skip
        if ranked:
            best = max(ranked)
            folders[one.file] = ImageFolder(best[-1], flat=not best[3])
            twins = {str(other[-1]) for other in ranked if other[:4] == best[:4]} - {str(best[-1])}
            notes += [f"{one.file.name}: images taken from {best[-1]}; {twin} has the same names" for twin in twins]
    borrowed = [one.file for one in wanted if one.file in folders and _is_borrowed(one, wanted, folders)]
    for file in borrowed:
        del folders[file]
    for one in wanted:
        if one.file not in folders:
            notes.append(f"no images for {one.file.name} (looked for {one.sample[0]}): all its rows are rejected")
        elif missing := len(one.sample) - _hits(folders[one.file], one.sample):
            notes.append(f"{one.file.name}: of its first {len(one.sample)} images {missing} are not there")
    return folders, notes


def _hits(folder: ImageFolder, images: list[Path]) -> int:
    return sum(os.path.isfile(folder.path(image)) for image in images)  # noqa: PTH113 - survives odd names


def _is_borrowed(one: Wanted, wanted: list[Wanted], folders: dict[Path, ImageFolder]) -> bool:
    """Whether a file's folder is another one's, and what it has there of this file's names are that one's memes."""
    folder = folders[one.file]
    there = {path for path in map(folder.path, one.sample) if os.path.isfile(path)}  # noqa: PTH113
    if len(there) == len(set(one.sample)):
        return False
    for other in wanted:
        apart = other.file == one.file or other.file in one.shares or other.file not in folders
        if not apart and folders[other.file].folder == folder.folder:
            there.difference_update(map(folder.path, other.all()))
    return not there


def _shared_names(folder: Path, file: Path) -> int:
    """How many folder names two paths have in common, wherever they stand: gt/MAMI goes with image/MAMI/All."""
    return len(set(folder.parts) & set(file.parent.parts))


def _distance(folder: Path, file: Path) -> int:
    return len(Path(os.path.relpath(folder, file.parent)).parts)


def _likeness(folder: Path, file: Path) -> float:
    """How like two names are, 0 to 1: 2000_testdata.csv goes with 2000_data rather than with images."""
    return SequenceMatcher(None, folder.name, file.stem).ratio()
