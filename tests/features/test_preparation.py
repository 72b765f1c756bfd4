"""A model is prepared for the memes of an extraction, part by part, before they are encoded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ra_hmd.data.meme import Meme
from ra_hmd.features import shards
from ra_hmd.features.extraction import make_features
from ra_hmd.features.store import read_features


class Remembering:
    """Encodes only memes that it was prepared for, and only those of the last part."""

    def __init__(self) -> None:
        self.parts: list[list[str]] = []

    def prepare(self, memes: Sequence[Meme]) -> None:
        self.parts.append([meme.caption for meme in memes])

    def encode(self, text: str, image: Image.Image) -> int:
        if text not in self.parts[-1]:
            raise ValueError(f"{text} was not prepared")
        return int(text)

    def length(self, row: int) -> int:
        return 1

    def collate(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows)

    def columns(self, batch: Tensor) -> dict[str, Tensor]:
        return {"hidden": batch[:, None].float()}


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_are_prepared_before_their_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    memes = []
    for number in range(23):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        memes.append(Meme(str(number), tmp_path / f"{number}.png", str(number), number % 2))
    monkeypatch.setattr(shards, "_PREPARED_ROWS", 8)
    model = Remembering()

    def open_model(device: torch.device) -> Any:
        return model

    folder = make_features(memes, tmp_path / "store", open_model, {"model": "m"}, lambda meme, size: 1.0,
                           batch_size=3, shard_size=5, num_workers=workers)  # fmt: skip
    assert [len(part) for part in model.parts] == [5, 5, 5, 5, 3]
    assert sorted(int(text) for part in model.parts for text in part) == list(range(23))
    assert read_features(folder).hidden[:, 0].tolist() == list(range(23))
