"""Finished chunks of a batch prediction that can be stopped and resumed: the folder `<output>.parts`.

A chunk is a file `chunk-….jsonl`: a line with the digest of its images and the seconds that it took, then a line for
each row of the input, `{"answer": …}` or `{"reject": …}`. `fingerprint.json` holds the settings of the run.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import atomic_path, read_json, sha256_bytes, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.storage import RemotePath, remove_tree
from ra_hmd.data.meme_dataset import json_line
from ra_hmd.data.rows import jsonl_rows

_FINGERPRINT = "fingerprint.json"


@dataclass(frozen=True)
class ChunkFolder:
    """The chunks of one run.

    Attributes:
        folder: The folder.
        settings: Everything that a chunk depends on besides its images; runs with equal settings continue each other.
        images: Digest of the image files of each chunk.
    """

    folder: Path
    settings: Mapping[str, Any]
    images: list[str]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The settings together with a digest of all images."""
        return {**self.settings, "pictures": sha256_bytes(*map(str.encode, self.images))}

    def prepare(self) -> None:
        """Create the folder.

        Raises:
            UserError: it holds chunks of another run, or other files.
        """
        mark = self.folder / _FINGERPRINT
        if mark.is_file():
            old = read_json(mark)
            other = [name for name in sorted({*old, *self.settings}) if old.get(name) != self.settings.get(name)]
            if other:
                raise UserError(
                    f"{self.folder} holds unfinished work of another run; what differs: {', '.join(other)}. "
                    "Remove the folder, or give another --output."
                )
        elif self.folder.exists() and not (
            self.folder.is_dir() and all(path.name.startswith(".") for path in self.folder.iterdir())
        ):
            raise UserError(
                f"{self.folder} is in the way: finished parts would be kept there. Remove it, or rename --output."
            )
        else:
            write_json(mark, self.settings)

    def remove_leftovers(self) -> None:
        """Remove the folder of this run, after its output is complete; a run may have been stopped while doing that."""
        mark = self.folder / _FINGERPRINT
        if not mark.is_file() or read_json(mark) == self.settings:
            remove_tree(self.folder)

    def is_finished(self, number: int) -> bool:
        """Whether a chunk is there, made from the images as they are now."""
        try:
            with self._path(number).open(encoding="utf-8") as file:
                return bool(json.loads(file.readline())["pictures"] == self.images[number])
        except FileNotFoundError:
            return False

    def missing(self) -> list[int]:
        """Numbers of the chunks that are not finished."""
        there = {path.name for path in self.folder.glob("chunk-*.jsonl")}  # one listing, not a request per chunk
        numbers = range(len(self.images))
        return [one for one in numbers if self._path(one).name not in there or not self.is_finished(one)]

    def write(self, number: int, seconds: float, lines: list[dict[str, Any]]) -> None:
        """Write a finished chunk."""
        with atomic_path(self._path(number)) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(json_line({"pictures": self.images[number], "seconds": seconds}))
            file.writelines(map(json_line, lines))

    def lines(self) -> Iterator[dict[str, Any]]:
        """Lines of all chunks, in order."""
        for number in range(len(self.images)):
            yield from self.lines_of(number)

    def lines_of(self, number: int) -> Iterator[dict[str, Any]]:
        """Lines of a finished chunk."""
        return (row.values for row in jsonl_rows(self._path(number)))

    @contextmanager
    def merging(self) -> Iterator[bool]:
        """Lock the folder for merging, and remove it at the end; yields False where another rank has merged already."""
        if isinstance(self.folder, RemotePath):  # written by one process, see `predict_files`
            yield True
            self.folder.remove_below()
            return
        try:
            lock = (self.folder / ".lock").open("w")
        except FileNotFoundError:
            yield False
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the process ends, in whatever way
            if not self.folder.is_dir():
                yield False
                return
            yield True
            shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk-{number:07d}.jsonl"
