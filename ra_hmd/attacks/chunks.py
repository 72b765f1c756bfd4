"""The unit of work of `ra-hmd attack`: a few memes of a split, attacked by every variant."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ra_hmd.attacks.apply import CleanMeme, Taught, attacked
from ra_hmd.attacks.base import Variant
from ra_hmd.core.artifacts import atomic_path, plain
from ra_hmd.core.workers import Worker
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import json_line
from ra_hmd.data.readers.tree import absolute

_ROWS = ".rows"


@dataclass(frozen=True)
class Chunk:
    """Memes that one process attacks by all variants.

    Attributes:
        output: Folder of all variants.
        split: Split of the memes.
        first: Row of the first meme in its split.
        memes: The memes.
        variants: The variants.
        seed: Seed of the random choices.
        taught: Variant name to captions and what a teacher made of them.
    """

    output: Path
    split: str
    first: int
    memes: Sequence[Meme]
    variants: Sequence[Variant]
    seed: int
    taught: Mapping[str, Mapping[str, Taught]]

    def __str__(self) -> str:
        return f"memes {self.first} to {self.first + len(self.memes) - 1} of split {self.split}"

    def attack(self) -> int:
        """Write pictures and rows of each variant, and return the number of rows. Finished rows are kept."""
        todo = [variant for variant in self.variants if not self.rows_file(variant).is_file()]
        made: dict[str, list[tuple[dict[str, Any], str]]] = {variant.name: [] for variant in todo}
        for row, meme in enumerate(self.memes, self.first):
            clean = CleanMeme(meme)
            for variant in todo:
                outcome = attacked(clean, variant, self.seed, self.taught.get(variant.name))
                made[variant.name].append((self.record(outcome.meme, variant, row), outcome.reason))
        for variant in todo:
            write_rows(self.rows_file(variant), made[variant.name])
        return len(self.memes) * len(self.variants)

    def record(self, meme: Meme, variant: Variant, row: int) -> dict[str, Any]:
        """The row of an attacked meme, whose picture is written where it is a decoded one."""
        if isinstance(meme.image, Image.Image):
            path = save_picture(meme.image, self.output / variant.name / "images" / self.split, row)
        else:
            path = absolute(meme.path)
        return plain(replace(meme, image=path, split=self.split).to_row())

    def rows_file(self, variant: Variant) -> Path:
        """File of the finished rows of a variant."""
        return rows_folder(self.output / variant.name) / f"{self.split}-{self.first:08d}.jsonl"


def open_attacker() -> Worker[Chunk, int]:
    """The worker of an engine that attacks chunks; there is nothing to open."""
    return _attack_chunks


def _attack_chunks(units: Iterator[Chunk]) -> Iterator[tuple[int, int]]:
    for chunk in units:
        rows = chunk.attack()
        yield rows, rows


def write_rows(path: Path, rows: Sequence[tuple[dict[str, Any], str]]) -> None:
    """Write the finished rows of a chunk: records of memes, and why a meme is as it was."""
    lines = [json_line({"record": record, "unchanged": reason}) for record, reason in rows]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8", newline="\n")


def rows_folder(variant: Path) -> Path:
    """Folder of the rows of finished chunks, in the folder of a variant."""
    return variant / _ROWS


def save_picture(image: Image.Image, folder: Path, row: int) -> Path:
    """Write the picture of a row as PNG, which keeps every pixel, and return its path."""
    folder = folder / f"{row // 1000:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row:07d}.png"
    image.save(path, "PNG")
    return path
