"""Synthetic features that a head has to work for, as stores."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ra_hmd.features.store import Features, write_features
from stage2.arguments import Stage2Arguments

HIDDEN = 16
FINGERPRINT = {"model": "m" * 64, "adapter": "a" * 64, "inputs.prompt_template": "<image> {text}?", "dtype": "auto"}


def synthetic_features(rows: int, seed: int, prefix: str, noise: float = 0.5) -> Features:
    """Class 1 where two hidden directions have the same sign: neither alone tells, and distances hardly do."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], size=(rows, 2))
    hidden = rng.normal(size=(rows, HIDDEN))
    hidden[:, :2] = signs + noise * rng.normal(size=(rows, 2))
    labels = (signs[:, 0] == signs[:, 1]).astype(np.int64)
    return Features([f"{prefix}{row}" for row in range(rows)], labels, hidden.astype(np.float32))


@dataclass
class World:
    """Stores and the settings of a short run on them."""

    folder: Path

    def store(self, name: str, features: Features, **fingerprint: str) -> Path:
        """Write a store."""
        write_features(self.folder / name, features, FINGERPRINT | {"data": name} | fingerprint)
        return self.folder / name

    def arguments(self, **changes: object) -> Stage2Arguments:
        """Settings of a run of a second or two."""
        settings = {
            "train": self.folder / "train",
            "dev": self.folder / "dev",
            "output_dir": self.folder / "out",
            "proj_dim": 32,
            "metric": "cos",
            "epochs": 12,
            "lr": 5e-3,
            "seed": 1,
        }
        return Stage2Arguments(**settings | changes)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.store("train", synthetic_features(400, 0, "train"))
    world.store("dev", synthetic_features(150, 1, "dev"))
    return world


@pytest.fixture
def features():
    return synthetic_features
