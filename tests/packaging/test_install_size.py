"""`scripts/bench/install_size.py` on a few packages that are not real."""

from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import pytest
from expert_models import bench

PROJECT = """
[project]
name = "ra-hmd"
dependencies = ["core-a>=1", "never; sys_platform == 'none'"]
[project.optional-dependencies]
lmm = ["host[fast]"]
train = ["ra-hmd[lmm]", "extra-t"]
gone = ["not-there"]
"""
# Name: its requirements, and the bytes of its file.
PACKAGES = {
    "core_a": (["core-b", "loop; extra == 'all'"], 3_000_000),
    "core-b": (["Core.A"], 1_000_000),
    "host": (["core-b", "speed; extra == 'fast'", "slow; extra == 'slow'"], 5_000_000),
    "speed": ([], 500_000),
    "extra-t": (["speed"], 250_000),
}


class Package(Distribution):
    """A distribution of one file in a folder, beside one that its record names and that does not exist."""

    def __init__(self, folder: Path, name: str) -> None:
        needed, size = PACKAGES[name]
        self.folder = folder / name
        self.folder.mkdir(exist_ok=True)
        (self.folder / "file.py").write_bytes(bytes(size))
        self.texts = {
            "METADATA": "\n".join([f"Name: {name}", *(f"Requires-Dist: {text}" for text in needed)]) + "\n\n",
            "RECORD": "file.py,,\nremoved.py,,\n",
        }

    def read_text(self, filename: str) -> str | None:
        return self.texts.get(filename)

    def locate_file(self, path: object) -> Path:
        return self.folder / str(path)


def test_the_base_what_each_extra_adds_and_all(tmp_path: Path) -> None:
    script = bench("install_size")
    project = tmp_path / "pyproject.toml"
    project.write_text(PROJECT)

    def find(name: str) -> Distribution:
        for known in PACKAGES:
            if known.replace("_", "-") == name.lower().replace(".", "-").replace("_", "-"):
                return Package(tmp_path, known)
        raise PackageNotFoundError(name)

    result = script.measure(["lmm", "train", "gone"], find, project)
    assert result["base"] == {"megabytes": 4.0, "packages": ["core-a", "core-b"]}
    assert result["extras"] == {
        "lmm": {"megabytes": 5.5, "packages": ["host", "speed"], "missing": []},
        "train": {"megabytes": 5.75, "packages": ["extra-t", "host", "speed"], "missing": []},
        "gone": {"megabytes": None, "packages": [], "missing": ["not-there"]},
    }
    assert result["all"]["megabytes"] == pytest.approx(9.75), "what two extras share counts once"
    assert list(result["sizes"])[:2] == ["host", "core-a"]

    with pytest.raises(SystemExit, match="Not installed here, so the base cannot be measured: core-a"):
        script.measure([], lambda name: find("none"), project)
