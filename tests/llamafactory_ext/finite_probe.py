"""Train with stock LLaMA-Factory where rank 1 gets pictures of NaN: `python finite_probe.py CONFIG.yaml`."""

import os
import sys
from pathlib import Path
from typing import Any

import yaml
from llamafactory.train import tuner
from torch import Tensor

from llamafactory_ext.sft_classifier.workflow import ClassifierCollator


def main() -> None:
    """Run as said above."""
    collate = ClassifierCollator.__call__

    def poisoned(self: ClassifierCollator, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = collate(self, features)
        if os.environ["RANK"] == "1":
            batch["pixel_values"] = batch["pixel_values"] * float("nan")
        return batch

    ClassifierCollator.__call__ = poisoned
    tuner.run_exp(yaml.safe_load(Path(sys.argv[1]).read_text()))


if __name__ == "__main__":
    main()
