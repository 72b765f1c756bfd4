"""docs/families.md: a row for every family and every recipe, and cells that a run wrote."""

import re
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from config_files import ROOT

from ra_hmd.models.families import FAMILIES

PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")


def table(name: str) -> str:
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    return PAGE.partition(begin)[2].partition(end)[0]


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(scope="module")
def make_families_table() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import make_families_table

        yield make_families_table
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def test_the_page_has_a_cell_for_every_family_and_every_step_of_the_suite() -> None:
    names, _, *rows = cells(table("steps"))
    assert [row[0] for row in rows] == [f"`{family}`" for family in FAMILIES]
    suite = (ROOT / "tests" / "e2e" / "test_families.py").read_text(encoding="utf-8")
    assert {*names[1:]} == {*re.findall(r'record\("([^"]+)"', suite)}
    reasons = {number for number, _ in re.findall(r"^(\d+)\. (\S.*)$", table("steps"), re.MULTILINE)}
    found = {cell for row in rows for cell in row[1:]}
    assert found <= {"✓"} | {f"refused ({number})" for number in reasons}
    assert len(found) == len(reasons) + 1


def test_the_page_has_the_sizes_of_the_recipes(make_families_table: ModuleType) -> None:
    assert table("recipes") == make_families_table.sizes_table(), "run scripts/make_families_table.py --sizes"


def test_a_refusal_is_a_cell_and_a_failed_test_leaves_the_page_alone(make_families_table: ModuleType) -> None:
    cell = {"train": "✓", "experts": "✓"}
    made = make_families_table.steps_table({"a": cell | {"experts": "It is one."}, "b": cell})
    assert cells(made)[2:] == [["`a`", "✓", "refused (1)"], ["`b`", "✓", "✓"]]
    assert made.endswith("1. It is one.")
    recorder = make_families_table.Recorder()

    class Report:
        nodeid, when, outcome, passed = "test_x[a]", "call", "failed", False
        user_properties = ()

    recorder.pytest_runtest_logreport(Report())
    assert (recorder.cells, recorder.failed) == ({}, ["test_x[a] (call: failed)"])
