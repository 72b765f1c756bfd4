"""Rows of a bank across its versions: what happened to one, what differs between two, and taking one change back."""

from pathlib import Path

import numpy as np
import pytest
from small_banks import SAID, bank_of, make_rows, points

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.identical import LabelConflictError
from ra_hmd.bank.row_history import difference, list_rows, row_history
from ra_hmd.bank.versions import BankRows
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    """Version 2 adds `new`, 3 relabels it and `m0`, 4 takes `m1` out, 5 restores version 1."""
    bank = bank_of(tmp_path / "bank", 6)
    bank.add(make_rows(["new"], [0]), points(1), **SAID)
    bank.relabel({"new": 1, "m0": 1 - label(bank, "m0")}, author="bob", reason="wrong")
    bank.remove(["m1"], **SAID)
    bank.rollback(1, **SAID)
    return bank


def label(bank: Bank, name: str) -> int:
    return bank.labels[bank.ids.index(name)].tolist()


def told(bank: Bank, name: str) -> list[tuple]:
    return [(one.entry.version, one.operation, one.before, one.after) for one in row_history(bank, name)]


def test_the_history_of_a_row_names_each_version_that_changed_it(bank):
    first = label(bank, "m0")
    assert told(bank, "m0") == [(1, "added", None, first), (3, "relabelled", first, 1 - first),
                                (5, "relabelled", 1 - first, first)]  # fmt: skip
    assert told(bank, "new") == [(2, "added", None, 0), (3, "relabelled", 0, 1), (5, "removed", 1, None)]
    assert [one[:2] for one in told(bank, "m1")] == [(1, "added"), (4, "removed"), (5, "restored")]
    assert row_history(bank, "m0")[1].to_dict()["author"] == "bob"
    assert told(bank, "m2") == [(1, "added", None, label(bank, "m2"))]
    assert told(bank, "nobody") == []


def test_an_id_that_is_added_anew_is_one_row(tmp_path):
    bank = bank_of(tmp_path / "bank", 3)
    bank.remove(["m1"], **SAID)
    bank.add(make_rows(["m1"], [1]), points(1), **SAID)
    assert [one[1:] for one in told(bank, "m1")][1:] == [("removed", label_at(bank, 1, "m1"), None), ("added", None, 1)]
    bank.take_back("m1", 3, **SAID)
    assert "m1" not in bank.ids


def label_at(bank: Bank, version: int, name: str) -> int:
    state = bank.state_at(version)
    return state.labels[state.ids.index(name)].tolist()


def test_what_differs_between_two_versions(bank):
    first = label_at(bank, 1, "m0")
    found = {one.row["id"]: (one.kind, one.before, one.after) for one in difference(bank, 1, 4)}
    gone = label_at(bank, 1, "m1")
    assert found == {"m0": ("relabelled", first, 1 - first), "m1": ("removed", gone, None), "new": ("added", None, 1)}
    back = {one.row["id"]: one.kind for one in difference(bank, 4, 1)}
    assert back == {"m0": "relabelled", "m1": "added", "new": "removed"}
    assert difference(bank, 1, 5) == difference(bank, 3, 3) == []
    with pytest.raises(UserError, match="1 to 5, not 9"):
        difference(bank, 1, 9)


def test_one_row_of_a_version_is_taken_back(tmp_path):
    bank = bank_of(tmp_path / "bank", 4)
    before = {name: label(bank, name) for name in ("m0", "m1")}
    bank.relabel({name: 1 - one for name, one in before.items()}, **SAID)
    entry = bank.take_back("m0", 2, author="ann", reason="a slip")
    assert (label(bank, "m0"), label(bank, "m1")) == (before["m0"], 1 - before["m1"])
    assert (entry.action, entry.restores, entry.counts["relabelled"]) == ("rollback", None, 1)
    with pytest.raises(UserError, match="again in version 3"):
        bank.take_back("m0", 2, **SAID)
    bank.remove(["m2", "m3"], **SAID)
    bank.take_back("m2", 4, **SAID)
    assert bank.ids == ["m0", "m1", "m2"]
    assert Bank.open(bank.location).ids == bank.ids


def test_what_cannot_be_taken_back(bank):
    with pytest.raises(UserError, match="created"):
        bank.take_back("m2", 1, **SAID)
    with pytest.raises(UserError, match="did not change"):
        bank.take_back("m2", 3, **SAID)


def rows(names: list[str], labels: list[int]) -> BankRows:
    decided = np.ones(len(names), bool)
    return BankRows(names, np.array(labels), contents=["one meme"] * len(names), decided=decided)


def test_rows_of_the_same_meme_are_taken_back_together(tmp_path):
    bank = bank_of(tmp_path / "bank", 2)
    bank.add(rows(["a", "b"], [0, 0]), points(2), **SAID)
    bank.relabel({"a": 1}, relabel_identical=True, **SAID)
    assert (label(bank, "a"), label(bank, "b")) == (1, 1)
    bank.take_back("a", 3, **SAID)
    assert (label(bank, "a"), label(bank, "b")) == (0, 0)
    bank.relabel({"a": 1}, relabel_identical=True, **SAID)
    bank.add(rows(["c"], [1]), points(1), **SAID)
    with pytest.raises(LabelConflictError, match="'c'"):
        bank.take_back("a", 5, **SAID)


def test_rows_are_listed_in_pages_by_filters(bank):
    page, count = list_rows(bank.state_at(), limit=2, offset=1)
    assert ([row["id"] for row in page], count) == (["m4", "m3"], 6)
    assert [row["id"] for row in list_rows(bank.state_at(), words="NOTE “M5")[0]] == ["m5"]
    assert [row["id"] for row in list_rows(bank.state_at(), source="source of m2")[0]] == ["m2"]
    assert list_rows(bank.state_at(), source="")[1] == 0
    ones = [name for name in bank.ids if label(bank, name) == 1]
    assert {row["id"] for row in list_rows(bank.state_at(), label=1)[0]} == set(ones)
    assert list_rows(bank.state_at(3), words="new")[1] == 1


def test_rows_of_one_class_among_several(tmp_path):
    bank = bank_of(tmp_path / "bank", 8, Problem("multi_label", 3))
    wanted = {name for name, row in zip(bank.ids, bank.labels, strict=True) if row[2] == 1}
    assert {row["id"] for row in list_rows(bank.state_at(), label=2)[0]} == wanted
    assert list_rows(bank.state_at(), label=7)[1] == 0
