"""Reading of JSON files in tests."""

from pathlib import Path

from easydict import EasyDict

from ra_hmd.core import artifacts


def read_json(path: str | Path) -> EasyDict:
    """Read a JSON object whose keys are attributes too."""
    return EasyDict(artifacts.read_json(path))
