"""Locating the image of a row: a file, however its name is composed, or an embedded one. Decoding is in `images`."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ra_hmd.core.artifacts import atomic_path, sha256_bytes
from ra_hmd.core.storage import RemotePath, as_path, is_url

PICTURE_FORMATS = {
    "PNG": "PNG",
    "JPEG": "JPEG",
    "WEBP": "WebP",
    "GIF": "GIF",
    "BMP": "BMP",
    "TIFF": "TIFF",
    "AVIF": "AVIF",
    "HEIF": "HEIF",
    "JPEG2000": "JPEG 2000",
    "PPM": "PPM",
}
"""The formats of pictures that every command and the API decode: Pillow's name, and the usual one.

Of files that the user of a command named, Pillow's rarer formats (PSD, TGA, FITS, …) are decoded too. The API and the
console, to which anyone may send bytes, stop at these: every parser more is one more to attack, and an ICO or ICNS
file, for example, holds pictures larger than its header says.
"""
PICTURE_FORMAT_NAMES = ", ".join(PICTURE_FORMATS.values())


def existing_path(folder: str | Path, name: str | Path) -> Path:
    """Return the path of `name` in `folder`.

    If there is no such file, but one whose letters are composed the other way (é as one character, or as e with an
    accent, as macOS writes names), return the path of that one.
    """
    path = Path(folder) / name
    if str(name).isascii() or os.path.isfile(path):  # noqa: PTH113 - survives odd names
        return path
    others = (Path(folder) / unicodedata.normalize(form, str(name)) for form in ("NFC", "NFD"))
    return next((other for other in others if os.path.isfile(other)), path)  # noqa: PTH113


def find_image_file(name: str | Path, folders: Sequence[Path], default: Path) -> Path:
    """Return the path of `name` in the first of `folders` that holds it, or in `default` if none does.

    Where no file has that name, backslashes are read as path separators, as Windows writes them. A URL is the path
    itself. Folders of object stores are not searched, which would be a request per row: where the first folder is one,
    its path is returned, and where `default` is one, no further folders of object stores are looked into.
    """
    if is_url(name):
        return as_path(name)
    if folders and isinstance(folders[0], RemotePath):
        return as_path(str(folders[0] / name))
    folders = [folder for folder in folders if not isinstance(folder, RemotePath)]
    names = dict.fromkeys((str(name), str(name).replace("\\", "/")))
    candidates = (os.path.normpath(existing_path(folder, one)) for one in names for folder in folders)
    path = next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113 - survives odd names
    if path is None and isinstance(default, RemotePath):
        return as_path(str(default / name))
    return Path(path or os.path.normpath(default / name))


def locate_image(image: Any, folders: Sequence[Path], default: Path, unpack_to: Path | None = None) -> Path:
    """Return the path of an image that a row names or embeds.

    Args:
        image: A path, or a mapping with `bytes` and `path`, as `datasets` writes embedded images.
        folders: Where a path is looked for, see `find_image_file`.
        default: Folder of a path that none of them holds.
        unpack_to: Folder that embedded files are written to; by default a temporary one that lasts as long as the
            process.

    Raises:
        ValueError: `image` is neither.
    """
    if isinstance(image, str | Path):
        return find_image_file(image, folders, default)
    if not isinstance(image, Mapping) or not (image.get("bytes") or image.get("path")):
        raise ValueError(f"its image is {str(image)[:60]!r}; a path is needed, or an embedded file (`bytes`)")
    if not image.get("bytes"):
        return find_image_file(image["path"], folders, default)
    suffix = Path(str(image.get("path") or "")).suffix
    folder = Path(_temporary_folder().name) if unpack_to is None else unpack_to
    path = folder / f"{sha256_bytes(image['bytes'])[:32]}{suffix if suffix.isascii() else ''}"
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_bytes(image["bytes"])
    return path


@cache
def _temporary_folder() -> "TemporaryDirectory[str]":
    return TemporaryDirectory(prefix="ra_hmd-pictures-")
