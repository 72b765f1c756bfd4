"""`lint-imports` with the contracts of pyproject.toml: what holds here, and that it refuses what they forbid."""

import shutil
import tomllib
from pathlib import Path

import pytest
from engines import BIN, ROOT, run

UPWARD, CIRCLE = "Imports go down the layers", "No circles between the modules of a package"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the three packages and of the contracts."""
    for package in ("ra_hmd", "stage2", "llamafactory_ext"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def verdicts(folder: Path) -> dict[str, str]:
    """KEPT or BROKEN for each contract."""
    done = run([str(BIN / "lint-imports"), "--no-cache"], folder, PYTHONPATH="", COLUMNS="200")
    found = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in done.stdout.splitlines()
             if line.endswith((" KEPT", " BROKEN"))}  # fmt: skip
    assert done.returncode == int("BROKEN" in found.values()), done.stdout
    return found


def plant(module: Path, line: str) -> None:
    module.write_text(module.read_text(encoding="utf-8") + line, encoding="utf-8")


def test_both_contracts_hold(copy: Path) -> None:
    assert verdicts(copy) == {UPWARD: "KEPT", CIRCLE: "KEPT"}


def test_every_package_has_a_layer() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = [contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"]
    named = {name for layer in layers for name in layer.split(" | ")}
    inside = {f"ra_hmd.{path.stem}" for path in (ROOT / "ra_hmd").iterdir() if (path / "__init__.py").is_file()}
    inside |= {f"ra_hmd.{path.stem}" for path in (ROOT / "ra_hmd").glob("*.py") if not path.stem.startswith("__")}
    assert inside | {"stage2", "llamafactory_ext"} == named


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("ra_hmd/core/errors.py", "ra_hmd.evaluation.evaluate"),  # from the lowest layer
        ("ra_hmd/serve/auth.py", "ra_hmd.cards.build"),  # between packages of one layer
        ("stage2/mining.py", "llamafactory_ext.arguments"),  # between distributions
    ],
)
def test_an_upward_import_is_refused(module: str, imported: str, copy: Path) -> None:
    plant(copy / module, f"\n\ndef late():\n    import {imported}\n")
    assert verdicts(copy)[UPWARD] == "BROKEN"


@pytest.mark.parametrize("guard", ["", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "])
def test_a_circle_is_refused_for_types_too(guard: str, copy: Path) -> None:
    package = copy / "ra_hmd" / "core"
    (package / "one.py").write_text(f"{guard}from ra_hmd.core import two\n")
    (package / "two.py").write_text("from ra_hmd.core import one\n")
    assert verdicts(copy) == {UPWARD: "KEPT", CIRCLE: "BROKEN"}
