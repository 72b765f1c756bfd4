"""docs/robustness.md names every attack with its severities, and every suite."""

import re

import pytest
from engines import ROOT

from ra_hmd.attacks.base import SUITES, Attack
from ra_hmd.attacks.suites import ATTACKS

PAGE = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
ATTACKS_SECTION = PAGE.partition("### The attacks")[2].partition("\n### ")[0]
IN_WORDS = ("font", "flip", "mirrored_text", "spacing")


@pytest.mark.parametrize("attack", [one for one in ATTACKS.values() if any(one.parameters)], ids=lambda one: one.name)
def test_the_table_has_the_attack_with_its_severities(attack: Attack) -> None:
    (row,) = re.findall(rf"^\| .*`{attack.name}`.*$", ATTACKS_SECTION, re.MULTILINE)
    if attack.name not in IN_WORDS:
        levels = " / ".join(str(next(iter(stated.values()))) for stated in attack.parameters)
        assert f"| {levels}" in row
    section = PAGE.partition(f"| **{attack.family}** |")[2].partition("| **")[0]
    assert row in section
    assert ("class 1 only" in row) == attack.positive_only
    assert ("field only" in row) == (attack.channels == ("field",))


def test_the_page_has_every_suite() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE.partition("| suite |")[2].partition("\n\n")[0], re.MULTILINE) == [*SUITES]
