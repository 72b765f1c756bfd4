"""Cases that are somebody's: assigned, or passed to a colleague by name."""

import pytest
from sqlalchemy import select
from undos import undo

from ra_hmd.cases.assigning import assign
from ra_hmd.cases.database import Database
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.history import list_cases
from ra_hmd.cases.steps import CaseConflict
from ra_hmd.cases.store import CaseStore, Decision, NewCase
from ra_hmd.cases.tables import Event

ALL = CaseFilter()


@pytest.fixture
def store(place: str) -> CaseStore:
    return CaseStore(Database(place))


def add(store: CaseStore, *names: str) -> list[str]:
    cases = [NewCase(meme_id=name, picture=f"{name}.png", picture_digest=name) for name in names]
    return [name for name, _ in store.add(cases)]


def test_an_assigned_case_comes_to_that_person_alone(store: CaseStore) -> None:
    first, second = add(store, "a", "b")
    assert store.next("ann", ALL).id == first
    assert assign(store.database, [first], "bob", "lea") == 1
    assert assign(store.database, [first], "bob", "lea") == 0
    assert store.next("ann", ALL).id == second, "the case left the screen of ann"
    with pytest.raises(CaseConflict, match="assigned to bob"):
        store.begin(first, "ann", Decision("agree", 1))
    assert store.next("bob", ALL).id == first
    assert [case.id for case in list_cases(store.database, CaseFilter(assigned="bob"))[0]] == [first]
    assert [case.id for case in list_cases(store.database, CaseFilter(assigned=""))[0]] == [second]
    store.skip(first, "bob")
    assert store.get(first).assigned == ""
    assign(store.database, [first], "bob", "lea")
    assert store.next("bob", ALL).id == first, "assigned again, a skipped case comes again"
    with store.database.read() as session:
        events = session.scalars(select(Event).where(Event.kind == "assigned"))
        assert [(one.person, one.case_id, one.details["colleague"]) for one in events] == [("lea", first, "bob")] * 2


def test_a_case_is_passed_to_a_colleague_by_name(store: CaseStore) -> None:
    (name,) = add(store, "a")
    opinion = store.begin(name, "ann", Decision("escalate", colleague="bob"))
    case = store.finish(opinion.id)
    assert (case.state, case.assigned) == ("escalated", "bob")
    assert store.next("eve", ALL) is None
    undone = undo(store, opinion.id, "ann", "")
    assert (undone.state, undone.assigned) == ("waiting", "")
    store.finish(store.begin(name, "ann", Decision("escalate", colleague="bob")).id)
    decided = store.finish(store.begin(name, "bob", Decision("label", 1)).id)
    assert (decided.state, decided.label, decided.assigned) == ("decided", 1, "")


def test_a_decided_case_is_not_assigned(store: CaseStore) -> None:
    (name,) = add(store, "a")
    store.finish(store.begin(name, "ann", Decision("label", 1)).id)
    assert assign(store.database, [name], "bob", "lea") == 0
