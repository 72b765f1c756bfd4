"""Cases with nearly the same picture, and views that people save."""

from pathlib import Path

import pytest

from ra_hmd.cases.database import Database
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.near import count_near, near_copies
from ra_hmd.cases.store import CaseStore, Decision, NewCase
from ra_hmd.cases.views import LONGEST_NAME, MOST, remove_view, save_view, views_of
from ra_hmd.core.errors import UserError

BASE = 0xF0F0_0000_1234_5678


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    return CaseStore(Database(tmp_path / "cases.sqlite"))


def add(store: CaseStore, name: str, hashed: str) -> str:
    case = NewCase(meme_id=name, picture=name, picture_digest=name, picture_hash=hashed)
    return store.add([case])[0][0]


def flipped(bits: int) -> str:
    return f"{BASE ^ ((1 << bits) - 1):016x}"


def test_pictures_within_six_bits_are_near_the_nearest_first(store):
    ids = {bits: add(store, str(bits), flipped(bits)) for bits in (7, 6, 0, 3)}
    other = add(store, "other", f"{BASE ^ (0xFF << 40):016x}")
    found, count = near_copies(store.database, store.get(ids[0]))
    assert ([case.id for case in found], count) == ([ids[0], ids[3], ids[6]], 3)
    cases = [store.get(name) for name in (*ids.values(), other)]
    assert list(count_near(store.database, cases).values()) == [2, 3, 2, 3, 0]
    assert near_copies(store.database, store.get(ids[0]), limit=2)[1] == 3


def test_decided_cases_are_not_near_and_have_near_ones(store):
    first, second = add(store, "a", flipped(0)), add(store, "b", flipped(1))
    store.finish(store.begin(first, "ann", Decision("label", 1)).id)
    assert [case.id for case in near_copies(store.database, store.get(second))[0]] == [second]
    assert [case.id for case in near_copies(store.database, store.get(first))[0]] == [second]
    assert count_near(store.database, [store.get(first), store.get(second)]) == {first: 1, second: 0}


def test_pictures_without_a_hash_are_near_to_nothing(store):
    blank, none = add(store, "a", "0" * 16), add(store, "b", "")
    add(store, "c", f"{1:016x}")
    for name in (blank, none):
        found, count = near_copies(store.database, store.get(name))
        assert ([case.id for case in found], count) == ([name], 1)
    assert count_near(store.database, [store.get(blank), store.get(none)]) == {blank: 0, none: 0}


def test_views_are_a_persons_own(store):
    wanted = CaseFilter(queue="main", states=("escalated",), order="newest")
    save_view(store.database, "ann", " Escalated ", wanted)
    (view,) = views_of(store.database, "ann")
    assert (view.name, CaseFilter(**view.query)) == ("Escalated", wanted)
    save_view(store.database, "ann", "Escalated", CaseFilter())
    assert [view.query for view in views_of(store.database, "ann")] == [{}]
    remove_view(store.database, "bob", "Escalated")
    assert (len(views_of(store.database, "ann")), views_of(store.database, "bob")) == (1, [])
    remove_view(store.database, "ann", "Escalated")
    assert views_of(store.database, "ann") == []


@pytest.mark.parametrize("name", ["", " ", "x" * (LONGEST_NAME + 1)])
def test_a_view_needs_a_name(store, name):
    with pytest.raises(UserError, match="name"):
        save_view(store.database, "ann", name, CaseFilter())


def test_nobody_has_any_number_of_views(store):
    for number in range(MOST):
        save_view(store.database, "ann", str(number), CaseFilter())
    with pytest.raises(UserError, match="remove one"):
        save_view(store.database, "ann", "more", CaseFilter())
    save_view(store.database, "ann", "3", CaseFilter(queue="x"))
