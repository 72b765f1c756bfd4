"""Expensive folders that are made once per test run and that all worker processes of pytest-xdist read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

State = dict[str, list[int]]


class SharedFolders:
    """Folders that the first worker to need them fills, under a file lock.

    Args:
        root: Folder that all workers of the run have in common.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._served: set[str] = set()

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the folder of a name, filled by `make` unless a worker of this run has done that.

        `make` gets an empty folder. A folder is complete once the file `<name>.json` lies beside it; what a failed
        attempt left is removed before the next one. A test that needs to change the content copies it first.
        """
        folder, complete = self._root / name, self._root / f"{name}.json"
        self._root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not complete.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                make(folder)
                complete.write_text(json.dumps(_state(folder)))
        self._served.add(name)
        return folder

    def check_unchanged(self) -> None:
        """Raise an AssertionError that names the files of shared folders that tests changed."""
        changed = []
        for name in sorted(self._served):
            before, after = json.loads((self._root / f"{name}.json").read_text()), _state(self._root / name)
            changed += [f"{name}/{path}" for path in sorted(before | after) if before.get(path) != after.get(path)]
        assert not changed, f"Tests changed folders that other tests read; let them change a copy: {changed}"


def _state(folder: Path) -> State:
    """Size and time of modification of each file."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    stats = {str(path.relative_to(folder)): path.stat() for path in files}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the workers of one run share; without workers, the run's own."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
