"""The store of cases: claims, opinions, and what they come to."""

import multiprocessing
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
from sqlalchemy import select
from undos import undo

from ra_hmd.cases.database import Database
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.history import history_of, list_cases
from ra_hmd.cases.outcome import OPEN, outcome
from ra_hmd.cases.steps import CaseConflict, NoSuchCase
from ra_hmd.cases.store import CaseStore, Decision, NewCase
from ra_hmd.cases.tables import Claim, Opinion
from ra_hmd.cases.undoing import abandon_undo, begin_undo, finish_undo, unfinished_undos

ALL = CaseFilter()


def new(name: str, **fields) -> NewCase:
    return NewCase(meme_id=name, picture=f"{name}.png", picture_digest=name, **fields)


@pytest.fixture
def store(place: str) -> CaseStore:
    return CaseStore(Database(place))


def decide(store: CaseStore, case_id: str, person: str, label: int, action="label"):
    return store.finish(store.begin(case_id, person, Decision(action, label, "spam")).id, {"version": 2})


def add(store: CaseStore, *names: str, **fields) -> list[str]:
    return [name for name, _ in store.add([new(name, **fields) for name in names])]


def test_the_most_urgent_then_the_least_certain_case_comes_first(store):
    a, b, c = (store.add([new(name, priority=priority, order=order)])[0][0]
               for name, priority, order in (("a", 0, 0.4), ("b", 0, 0.1), ("c", 5, 0.9)))  # fmt: skip
    seen = []
    while (case := store.next("ann", ALL)) is not None:
        seen.append(case.id)
        decide(store, case.id, "ann", 1)
    assert seen == [c, b, a]


def test_a_claim_belongs_to_a_person_and_survives_a_reload(store):
    first, second = add(store, "a", "b")
    assert store.next("ann", ALL).id == first
    assert store.next("ann", ALL).id == first
    assert store.next("bob", ALL).id == second
    with pytest.raises(CaseConflict, match="ann has this case"):
        store.begin(first, "bob", Decision("agree", 1))
    assert store.next("eve", ALL) is None
    assert (store.waiting("ann", ALL), store.waiting("bob", ALL), store.waiting("eve", ALL)) == (1, 1, 0)


def test_waiting_cases_are_counted_up_to_a_number(store):
    add(store, "a", "b", "c")
    assert [store.waiting("ann", ALL, most) for most in (2, 3, 4)] == [2, 3, 3]


def test_only_what_need_not_last_is_not_forced_to_the_disk(tmp_path):
    database = Database(tmp_path / "cases.sqlite")
    levels = []
    for lasting in (True, False, True):
        with database.write(lasting=lasting) as session:
            levels.append(session.connection().exec_driver_sql("PRAGMA synchronous").scalar())
    assert levels == [2, 1, 2]


def test_next_puts_the_case_back_and_shows_another_one(store):
    first, second = add(store, "a", "b")
    assert store.next("ann", ALL).id == first
    assert store.next("ann", ALL, after=first).id == second
    assert store.next("ann", ALL, after=second).id == first
    assert store.next("bob", ALL).id == second


def test_of_requests_with_one_key_at_once_one_adds_a_case(place):
    databases = [Database(place) for _ in range(4)]  # as of four processes: a lock of one would keep them apart
    start = Barrier(len(databases))

    def send(database, key):
        start.wait(30)
        ((name, added),) = CaseStore(database).add([new("a", request_key=key)])
        return name, added

    with ThreadPoolExecutor(len(databases)) as threads:
        for key in map(str, range(20)):
            sent = list(threads.map(send, databases, [key] * len(databases)))
            assert len({name for name, _ in sent}) == 1
            assert sum(added for _, added in sent) == 1


def test_a_claim_ends(store, monkeypatch):
    (only,) = add(store, "a")
    monkeypatch.setattr("ra_hmd.cases.steps.CLAIM_SECONDS", -1)
    assert store.next("ann", ALL).id == only
    assert store.next("bob", ALL).id == only


def test_skip_is_for_one_person(store):
    (only,) = add(store, "a")
    store.next("ann", ALL)
    store.skip(only, "ann")
    assert store.next("ann", ALL) is None
    assert store.next("bob", ALL).id == only


def test_two_opinions_on_one_case_are_one(store):
    (only,) = add(store, "a")
    assert decide(store, only, "ann", 1).state == "decided"
    for person in ("ann", "bob"):
        with pytest.raises(CaseConflict, match="decided already"):
            store.begin(only, person, Decision("label", 0))


def test_undo_puts_the_case_back_on_the_screen(store):
    (only,) = add(store, "a")
    decide(store, only, "ann", 1)
    (opinion, case), *_ = store.opinions_of("ann")
    assert (case.label, case.state) == (1, "decided")
    with pytest.raises(CaseConflict, match="only they"):
        undo(store, opinion.id, "bob", "no")
    assert undo(store, opinion.id, "ann", "wrong key").state == "waiting"
    assert store.next("ann", ALL).id == only
    with pytest.raises(CaseConflict, match="already"):
        undo(store, opinion.id, "ann", "again")
    assert store.get(only).label is None
    assert decide(store, only, "ann", 0).label == 0


def test_undo_comes_before_the_case_that_is_on_the_screen_by_then(store):
    (other,) = add(store, "b", priority=9)
    decide(store, other, "ann", 1)
    add(store, "c", priority=10)
    assert store.next("ann", ALL).meme_id == "c"
    undo(store, store.opinions_of("ann")[0][0].id, "ann", "")
    assert store.next("ann", ALL).meme_id == "b"
    assert store.next("bob", ALL).meme_id == "c"


def test_a_second_opinion_decides_or_makes_a_conflict_that_a_third_ends(store):
    same, other = add(store, "a", "b", opinions_needed=2)
    assert decide(store, same, "ann", 1).state == "waiting"
    assert store.next("ann", ALL).id == other
    assert decide(store, same, "bob", 1).state == "decided"
    decide(store, other, "ann", 1)
    assert decide(store, other, "bob", 0).state == "conflict"
    assert store.next("ann", ALL) is None
    assert store.next("eve", ALL).id == other
    final = decide(store, other, "eve", 0)
    assert (final.state, final.label) == ("decided", 0)


def test_an_escalated_case_waits_for_a_colleague(store):
    (only,) = add(store, "a")
    store.next("ann", ALL)
    assert store.finish(store.begin(only, "ann", Decision("escalate", None, "unsure")).id).state == "escalated"
    assert store.next("ann", ALL) is None
    assert store.next("bob", ALL).id == only
    assert decide(store, only, "bob", 1).state == "decided"


def test_an_appeal_reopens_a_case_for_others(store):
    (only,) = add(store, "a")
    with pytest.raises(CaseConflict, match="not decided"):
        store.appeal(only, "author", "not yet")
    decide(store, only, "ann", 1)
    assert store.appeal(only, "author", "it is a joke", priority=9).state == "waiting"
    assert store.next("ann", ALL) is None
    for call in (lambda: store.take(only, "ann"), lambda: store.begin(only, "ann", Decision("agree", 1))):
        with pytest.raises(CaseConflict, match="a colleague decides on the appeal"):
            call()
    assert store.next("bob", ALL).id == only
    final = decide(store, only, "bob", 0)
    assert (final.label, final.round, final.why) == (0, 2, "appeal")
    opinion, _ = store.opinions_of("ann")[0]
    with pytest.raises(CaseConflict, match="appealed since"):
        undo(store, opinion.id, "ann", "late")


def test_an_intake_that_is_sent_twice_adds_one_case(store):
    first = store.add([new("a", request_key="k"), new("a", request_key="k"), new("b")])
    assert [created for _, created in first] == [True, False, True]
    assert first[0][0] == first[1][0] == store.add([new("other", request_key="k")])[0][0]


def test_an_opinion_that_a_kill_cut_short_is_found_and_can_be_finished(store):
    (only,) = add(store, "a")
    opinion = store.begin(only, "ann", Decision("label", 1))
    assert store.decides(opinion.id) == 1
    assert store.next("bob", ALL) is None
    assert [one.id for one in store.unfinished()] == [opinion.id]
    assert store.unfinished(60) == []
    store.finish(opinion.id, {"version": 3})
    assert store.finish(opinion.id, {"version": 4}).state == "decided"
    assert store.opinions_of("ann")[0][0].change == {"version": 3}
    other = store.begin(add(store, "b")[0], "ann", Decision("label", 1))
    store.abandon(other.id)
    assert store.next("bob", ALL) is not None


def test_an_undoing_that_a_kill_cut_short_is_found_and_can_be_finished(store):
    database, (only, other) = store.database, add(store, "a", "b")
    decide(store, only, "ann", 1)
    (opinion, _), *_ = store.opinions_of("ann")
    begin_undo(database, [opinion.id], "ann", "wrong key")
    assert store.get(only).state == "decided"
    assert [one.id for one in unfinished_undos(database)] == [opinion.id]
    assert unfinished_undos(database, 60) == []
    for call in (lambda: store.appeal(only, "author", "no"), lambda: undo(store, opinion.id, "ann", "again")):
        with pytest.raises(CaseConflict, match="is being taken back"):
            call()
    assert store.next("ann", ALL).id == other
    assert finish_undo(database, opinion.id, {"version": 3}, on_screen=False).state == "waiting"
    assert {case for case, name in claims(store) if name == "ann"} == {only, other}
    decide(store, only, "ann", 0)
    assert finish_undo(database, opinion.id).state == "decided"
    undone = [one.details for one in history_of(database, only).events if one.kind == "undone"]
    assert undone == [{"opinion": opinion.id, "reason": "wrong key", "version": 3}]


def test_several_opinions_are_taken_back_or_none(store):
    database, names = store.database, add(store, "a", "b")
    for name in names:
        decide(store, name, "ann", 1)
    ids = [opinion.id for opinion, _ in store.opinions_of("ann")]
    with pytest.raises(NoSuchCase):
        begin_undo(database, [*ids, 99], "ann", "")
    assert unfinished_undos(database) == []
    begin_undo(database, ids, "ann", "")
    assert [one.id for one in unfinished_undos(database)] == ids, "the newest first, as they are taken back"
    abandon_undo(database, ids)
    assert unfinished_undos(database) == []
    assert {store.get(name).state for name in names} == {"decided"}
    assert undo(store, ids[0], "ann", "").state == "waiting"


def claims(store: CaseStore) -> list[tuple[str, str]]:
    with store.database.read() as session:
        return list(session.execute(select(Claim.case_id, Claim.person)).tuples())


def test_unknown_cases_and_decisions(store):
    with pytest.raises(NoSuchCase, match="'x'"):
        store.get("x")
    with pytest.raises(NoSuchCase, match="7"):
        store.finish(7)


def test_outcome_of_no_opinion_waits():
    assert outcome([], 1).state == "waiting"
    several = [Opinion(person=name, action="label", label=[0, 1]) for name in "ab"]
    assert outcome(several, 2).label == [0, 1]


def test_filters_and_orders(store):
    store.add([new("a", source="x", caption="A cat_"), new("b", source="y", similarity=0.1), new("c", similarity=0.9)])
    for wanted, count in ((CaseFilter(source="x"), 1), (CaseFilter(words="CAT_"), 1), (CaseFilter(words="_a"), 0)):
        assert store.waiting("ann", wanted) == count
    assert store.next("ann", CaseFilter(order="newest")).meme_id == "c"
    assert store.next("bob", CaseFilter(order="least-similar", source="y")).meme_id == "b"


def test_a_label_is_the_decided_one_or_else_that_of_the_verdict(store):
    for name, verdict in (("a", 0), ("b", 1), ("c", None), ("d", [0, 1])):
        add(store, name, verdict={"verdict": verdict})
    decide(store, store.next("ann", ALL).id, "ann", 1)
    found, count = list_cases(store.database, CaseFilter(label=1, order="oldest"))
    assert [case.meme_id for case in found] == ["a", "b"]
    assert count == 2
    assert list_cases(store.database, CaseFilter(label=0)) == ([], 0)


def test_a_case_that_is_taken_comes_next_and_is_nobody_elses(store):
    first, second = add(store, "a", "b", opinions_needed=2)
    assert store.next("ann", ALL).id == first
    store.take(second, "ann")
    assert (store.next("ann", ALL).id, store.next("bob", ALL).id) == (second, first)
    with pytest.raises(CaseConflict, match="bob has this case"):
        store.take(first, "ann")
    decide(store, second, "ann", 1)
    with pytest.raises(CaseConflict, match="second opinion"):
        store.take(second, "ann")


def _work(place: str, person: str) -> list[str]:
    store, done = CaseStore(Database(place)), []
    while (case := store.next(person, ALL)) is not None:
        store.finish(store.begin(case.id, person, Decision("agree", 1)).id)
        done.append(case.id)
    return done


def test_processes_and_threads_decide_each_case_once(place):
    names = add(CaseStore(Database(place)), *map(str, range(60)))
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool, ThreadPoolExecutor(3) as threads:
        theirs = pool.starmap_async(_work, [(place, "p1"), (place, "p2")])
        mine = [threads.submit(_work, place, f"t{number}") for number in range(3)]
        done = [name for part in [*theirs.get(120), *(one.result() for one in mine)] for name in part]
    assert Counter(done) == Counter(names)


def test_writers_of_all_processes_take_turns(place):
    first, second = Database(place), Database(place)
    written = Event()

    def write() -> None:
        with second.write() as session:
            session.scalar(select(1))
        written.set()

    with ThreadPoolExecutor(1) as threads:
        with first.write() as session:
            session.scalar(select(1))
            done = threads.submit(write)
            assert not written.wait(0.3)
        done.result(30)
    assert written.is_set()


def _open(place: str) -> str:
    return Database(place).name


def test_processes_and_threads_that_open_a_new_database_at_once_make_its_tables_once(place):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool, ThreadPoolExecutor(3) as threads:
        theirs = pool.map_async(_open, [place] * 4)
        mine = [threads.submit(_open, place) for _ in range(3)]
        assert len({*theirs.get(120), *(one.result() for one in mine)}) == 1
    assert CaseStore(Database(place)).waiting("ann", ALL) == 0


def test_no_other_user_reads_the_file(tmp_path):
    store = CaseStore(Database(tmp_path / "cases.sqlite"))
    add(store, "a")
    files = [path for path in tmp_path.iterdir() if path.name.startswith("cases.sqlite")]
    assert len(files) == 3
    assert [path.stat().st_mode & 0o077 for path in files] == [0] * 3


def test_open_states_are_those_of_undecided_cases():
    assert set(OPEN) == {"waiting", "escalated", "conflict"}
