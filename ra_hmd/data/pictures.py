"""Where the picture of a row is: a file, however its name is spelled, or embedded in the row."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ra_hmd.core.artifacts import atomic_path, sha256_bytes


def spelled(folder: str | Path, name: str | Path) -> Path:
    """The path of `name` in `folder`. Where no such file is there, but one whose letters are composed the other way (é
    as one character, or as e with an accent, as macOS writes names), the path of that one.
    """
    path = Path(folder) / name
    if str(name).isascii() or os.path.isfile(path):  # noqa: PTH113 - survives odd names
        return path
    others = (Path(folder) / unicodedata.normalize(form, str(name)) for form in ("NFC", "NFD"))
    return next((other for other in others if os.path.isfile(other)), path)  # noqa: PTH113


def find_image(image: str | Path, folders: Sequence[Path], otherwise: Path) -> Path:
    """The path of `image` in the first of `folders` that holds it; where none does, its path in `otherwise`. Where a
    file of that name is not there, backslashes are read as Windows writes them.
    """
    names = dict.fromkeys((str(image), str(image).replace("\\", "/")))
    candidates = (os.path.normpath(spelled(folder, name)) for name in names for folder in folders)
    found = next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113 - survives odd names
    return Path(found or os.path.normpath(otherwise / image))


def find_picture(picture: Any, folders: Sequence[Path], otherwise: Path, unpacked: Path | None = None) -> Path:
    """`find_image`, also of a picture that is embedded as `bytes` and `path`: that is written into the folder
    `unpacked`, by default a temporary one that is there until the process ends.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(picture, str | Path):
        return find_image(picture, folders, otherwise)
    if not isinstance(picture, Mapping) or not (picture.get("bytes") or picture.get("path")):
        raise ValueError(f"its picture is {str(picture)[:60]!r}; a path is needed, or an embedded file (`bytes`)")
    if not picture.get("bytes"):
        return find_image(picture["path"], folders, otherwise)
    suffix = Path(str(picture.get("path") or "")).suffix
    folder = Path(_unpacked().name) if unpacked is None else unpacked
    path = folder / f"{sha256_bytes(picture['bytes'])[:32]}{suffix if suffix.isascii() else ''}"
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_bytes(picture["bytes"])
    return path


@cache
def _unpacked() -> "TemporaryDirectory[str]":
    return TemporaryDirectory(prefix="ra_hmd-pictures-")
