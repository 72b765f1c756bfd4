"""The YAML files below `configs`, checked by one test per interface."""

from collections.abc import Callable, Iterable
from pathlib import Path


def name_of(path: Path) -> str:
    """Folder and stem of a file."""
    return f"{path.parent.name}/{path.stem}"


def check_each(paths: Iterable[Path], check: Callable[[Path], None]) -> None:
    """Run `check` on every file, of which there must be one; a failure names all the files that fail."""
    paths, failed = list(paths), []
    for path in paths:
        try:
            check(path)
        except Exception as error:
            failed.append(f"{name_of(path)}: {type(error).__name__}: {error}")
    assert paths
    assert not failed, "\n".join(failed)
