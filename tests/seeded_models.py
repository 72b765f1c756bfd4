"""The contract of seeds that the makers of tiny models share."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ra_hmd.core.artifacts import sha256_file


def check_seed_decides_every_byte(make: Callable[..., Any], families: Sequence[str], folder: Path) -> None:
    """Assert that a seed gives equal files in another process, that another seed gives other weights, and that the
    caller's random state stays as it is.

    Args:
        make: A module's function of family, folder and `seed` that writes a model.
        families: All families that it makes.
        folder: An empty folder.
    """
    torch.manual_seed(99)
    for family in families:
        make(family, folder / "here" / family, seed=5)
    after = torch.rand(1)
    torch.manual_seed(99)
    assert torch.equal(after, torch.rand(1)), "the caller's random state must not move"
    code = (
        f"import sys; from pathlib import Path; from {make.__module__} import {make.__name__} as make\n"
        "for family in sys.argv[2:]: make(family, Path(sys.argv[1]) / family, seed=5)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(folder / "there"), *families], check=True, env=environment)
    for family in families:
        here, there = folder / "here" / family, folder / "there" / family
        names = sorted(path.name for path in here.iterdir())
        assert names == sorted(path.name for path in there.iterdir())
        for name in names:
            assert sha256_file(here / name) == sha256_file(there / name), f"{family}/{name}"
    first = families[0]
    make(first, folder / "other", seed=6)
    weights = [sha256_file(place / "model.safetensors") for place in (folder / "other", folder / "here" / first)]
    assert weights[0] != weights[1]
