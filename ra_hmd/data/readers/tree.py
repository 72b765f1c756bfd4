"""Search for annotation files below a folder."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.data.rows import rows_of

_ANNOTATIONS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z")
_FILES_PER_FOLDER = 500  # a folder with more files of one suffix holds a file per meme, not annotations
_DEPTH = 10


class Tree:
    """The annotation files and folders below some roots. Symbolic links are followed; a folder is visited once.

    Attributes:
        files: Annotation files.
        folders: All folders.
        archives: Archives that are still packed.
        unreadable: Messages about files and folders that cannot be read.
    """

    def __init__(self, *roots: Path) -> None:
        self.files: list[Path] = []
        self.folders: list[Path] = []
        self.archives: list[Path] = []
        self.unreadable: list[str] = []
        self._first: dict[Path, dict[str, Any]] = {}
        seen: set[str] = set()
        for root in roots:
            self._add(absolute(root), 0, seen)

    def _add(self, folder: Path, depth: int, seen: set[str]) -> None:
        real = os.path.realpath(folder)
        if real in seen:
            return
        if depth > _DEPTH:
            self.unreadable.append(f"{folder} lies too deep; name a folder nearer to it")
            return
        seen.add(real)
        self.folders.append(folder)
        kinds: dict[str, list[Path]] = defaultdict(list)
        below = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    suffix = Path(entry.name).suffix.lower()
                    if entry.is_dir():
                        below.append(Path(entry.path))
                    elif suffix in (*_ANNOTATIONS, *_ARCHIVES) and len(kinds[suffix]) <= _FILES_PER_FOLDER:
                        kinds[suffix].append(Path(entry.path))
        except OSError as error:
            self.unreadable.append(f"{folder} cannot be read ({error.strerror})")
        for suffix, paths in sorted(kinds.items()):
            if len(paths) <= _FILES_PER_FOLDER:
                (self.archives if suffix in _ARCHIVES else self.files).extend(sorted(paths))
        for path in sorted(below):
            self._add(path, depth + 1, seen)

    def named(self, pattern: str) -> list[Path]:
        """Return the files whose whole name matches a pattern, ignoring case."""
        return [path for path in self.files if re.fullmatch(pattern, path.name, re.IGNORECASE)]

    def first(self, path: Path) -> dict[str, Any]:
        """Return the fields of the first valid row of a file; {} if there is none."""
        if path not in self._first:
            try:
                rows = islice(rows_of(path), 5)
                self._first[path] = next((row.values for row in rows if not row.problem), {})
            except (UserError, OSError) as error:
                self._first[path] = {}
                self.unreadable.append(str(error))
        return self._first[path]

    def groups(self, names: Mapping[str, str]) -> list[dict[str, Path]]:
        """Return, for each folder with files of these names, role → path.

        Args:
            names: Role → pattern of the file name.
        """
        found: dict[Path, dict[str, Path]] = defaultdict(dict)
        for role, pattern in names.items():
            for path in self.named(pattern):
                found[path.parent].setdefault(role, path)
        return list(found.values())


def absolute(path: Path) -> Path:
    """Return an absolute path without `..`, as the file system resolves it, also behind a symbolic link."""
    return Path(os.path.realpath(path)) if ".." in path.parts else path.absolute()


def only(paths: list[Path], what: str, *, copies: bool = False) -> Path | None:
    """Return the one file of a kind, or None if there is none.

    Args:
        paths: All files of the kind.
        what: Name of the kind, for the message.
        copies: Accept several files with the same content.

    Raises:
        UserError: There are several.
    """
    if len({sha256_file(path) for path in paths} if copies else paths) > 1:
        shown = "\n".join(f"  - {path}" for path in paths)
        raise UserError(f"{what}: there is more than one such file; give a root with one of them:\n{shown}")
    return paths[0] if paths else None


def below(paths: list[Path], root: str | Path, limit: int = 8) -> list[str]:
    """Return the first paths, relative to `root`, for a message."""
    names = [os.path.relpath(path, root) for path in paths]
    return names[:limit] + ([f"… {len(names) - limit} more"] if len(names) > limit else [])
