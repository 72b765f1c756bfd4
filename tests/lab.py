"""Stores and heads for evaluations of a second."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ra_hmd.evaluation.evaluate import evaluate
from ra_hmd.features.store import Features, write_features
from ra_hmd.models.head import HeadConfig, MemeHead, save_head

HIDDEN = 12
FINGERPRINT = {"model": "m" * 64, "adapter": "a" * 64, "inputs.prompt_template": "<image> {text}?", "dtype": "auto"}


@dataclass
class Lab:
    """A folder with stores and a head, and a shorthand for evaluating them."""

    folder: Path

    def features(
        self, rows: int, seed: int, prefix: str, *, domain: float = 0.0, lmh: bool = True, noise: float = 0.7
    ) -> Features:
        """Class 1 is one direction; another direction tells domains apart, and in domain 1 the class turns around."""
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(rows) % 2)
        hidden = noise * rng.normal(size=(rows, HIDDEN))
        hidden[:, 0] += (2 * labels - 1) * (1 - 2 * domain)
        hidden[:, 1] += 4 * domain - 2
        scores = np.clip(0.5 + 0.3 * (labels - 0.5) + 0.2 * rng.normal(size=rows), 0, 1)[:, None]
        return Features(
            [f"{prefix}{row}" for row in range(rows)],
            labels,
            hidden.astype(np.float32),
            lmh_score=scores.astype(np.float32) if lmh else None,
        )

    def store(self, name: str, features: Features, **fingerprint: Any) -> Path:
        """Write a store."""
        write_features(self.folder / name, features, FINGERPRINT | {"data": name} | fingerprint)
        return self.folder / name

    def head(self, name: str, **config: Any) -> Path:
        """A head whose logit is the class direction and whose embedding keeps all directions, both signs."""
        config = HeadConfig(**{"input_dim": HIDDEN, "proj_dim": 2 * HIDDEN} | config)
        head = MemeHead(config)
        if (config.input_dim, config.num_layers, config.proj_dim, config.output_dim) == (HIDDEN, 2, 2 * HIDDEN, 1):
            eye = torch.eye(HIDDEN)
            with torch.no_grad():
                head.layers[0].weight.copy_(torch.cat([eye, -eye]))
                head.layers[0].bias.zero_()
                head.output.weight.copy_(torch.cat([eye[0], -eye[0]])[None])
                head.output.bias.zero_()
        save_head(self.folder / name, config, head.state_dict())
        return self.folder / name

    def evaluate(self, **changes: Any) -> dict[str, Any]:
        """Evaluate with few resamples."""
        settings = {
            "checkpoint": self.folder / "head",
            "bank": self.folder / "bank",
            "queries": [self.folder / "test"],
            "output": self.folder / "out",
            "bootstrap_samples": 50,
            "device": "cpu",
            "final": True,
        }
        return evaluate(**settings | changes)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(tmp_path)
    lab.head("head")
    lab.store("bank", lab.features(200, 0, "bank"))
    lab.store("test", lab.features(120, 1, "test"))
    return lab
