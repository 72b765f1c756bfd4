"""Settings of `ra-hmd bank attack`."""

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from ra_hmd.core.config import Settings


class BankAttackSettings(Settings):
    """Rows that an attacker slips into a bank."""

    TITLE: ClassVar[str] = "bank attack"

    sizes: list[int] = Field(default=[1, 2, 4, 8, 16, 32], description="Numbers of rows that are added: 1 2 4 …")
    similarity: float = Field(
        default=1.0, gt=0, le=1, description="Cosine similarity of an added row to the meme that it copies."
    )
    sample: int = Field(default=50, ge=1, description="Queries that flipped near-duplicates are aimed at.")
    draws: int = Field(default=3, ge=1, description="Memes of each class whose near-duplicates flood the bank.")
    seed: int = Field(default=0, ge=0, description="Seed of all random choices.")

    def _problems(self) -> Iterator[str]:
        if not self.sizes or min(self.sizes) < 1 or sorted(set(self.sizes)) != self.sizes:
            yield f"`sizes` is {self.sizes}; give numbers from 1 on, in rising order."
