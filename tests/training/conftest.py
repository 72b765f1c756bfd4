"""Synthetic image and text features whose label needs both, as stores; settings of runs of a second."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ra_hmd.features.store import Features, write_features
from ra_hmd.training.classification import TrainHeadArguments
from stage2.arguments import Stage2Arguments

SUBJECTS, IMAGE, TEXT = 4, 12, 8
FINGERPRINT = {"model": "m" * 64, "features": "pooled", "dtype": "float32"}
ENCODER = {"path": "encoders/some", "features": "pooled"}


def product_features(rows: int, seed: int, prefix: str, **columns: Any) -> Features:
    """Class 1 where the caption is about what the picture shows: subject and label are independent in each modality."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99)
    shows, says = directions.normal(size=(SUBJECTS, IMAGE)), directions.normal(size=(SUBJECTS, TEXT))
    labels, shown = rng.integers(0, 2, rows), rng.integers(0, SUBJECTS, rows)
    said = (shown + (1 - labels) * rng.integers(1, SUBJECTS, rows)) % SUBJECTS
    image = shows[shown] + 0.3 * rng.normal(size=(rows, IMAGE))
    text = says[said] + 0.3 * rng.normal(size=(rows, TEXT))
    extras = [{"shown": int(a), "both": sorted({int(a), int(b)})} for a, b in zip(shown, said, strict=True)]
    return Features(
        [f"{prefix}{row}" for row in range(rows)],
        columns.pop("labels", labels),
        np.concatenate([image, text], axis=1).astype(np.float32),
        extras=columns.pop("extras", extras),
        modalities=(IMAGE, TEXT),
        **columns,
    )


@dataclass
class Encoded:
    """Stores of an encoder's features."""

    folder: Path

    def store(self, name: str, features: Features, **content: Any) -> Path:
        """Write a store."""
        content = {"split": name, "encoder": ENCODER} | content
        write_features(self.folder / name, features, FINGERPRINT | {"data": name}, **content)
        return self.folder / name

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Of a run of a second, whatever the command."""
        paths = {"train": self.folder / "train", "dev": self.folder / "dev", "output_dir": self.folder / "out"}
        if "init_head" not in changes:
            paths |= {"map_dim": 32, "num_layers": 2, "proj_dim": 32}
        return paths | {"epochs": 10, "lr": 5e-3, "seed": 1} | changes

    def head(self, **changes: Any) -> TrainHeadArguments:
        """Settings of train-head."""
        return TrainHeadArguments(**self.settings(**changes))

    def stage2(self, **changes: Any) -> Stage2Arguments:
        """Settings of Stage 2 as RGCL has it."""
        shape = {} if "init_head" in changes else {"fusion": "align", "embedding": "linear"}
        return Stage2Arguments(**self.settings(**shape | {"loss": "triplet", "metric": "cos"} | changes))


@pytest.fixture
def encoded(tmp_path: Path) -> Encoded:
    world = Encoded(tmp_path)
    world.store("train", product_features(400, 0, "train"))
    world.store("dev", product_features(200, 1, "dev"))
    return world


@pytest.fixture
def features():
    return product_features
