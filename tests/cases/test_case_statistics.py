"""Figures of a team, and the policy that makes cases."""

from datetime import UTC, datetime, timedelta

import pytest
from sklearn.metrics import cohen_kappa_score
from undos import undo

from ra_hmd.cases import statistics
from ra_hmd.cases.database import Database
from ra_hmd.cases.history import count_by_queue, events, history_of
from ra_hmd.cases.policy import CasePolicy, PolicyDraw, VerdictFacts
from ra_hmd.cases.store import CaseStore, Decision, NewCase

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(place: str) -> CaseStore:
    return CaseStore(Database(place))


def add(store: CaseStore, verdict: int | None, **fields) -> str:
    case = NewCase(meme_id="m", picture="p", picture_digest="d", verdict={"verdict": verdict}, **fields)
    return store.add([case])[0][0]


def give(store: CaseStore, case_id: str, person: str, label: int) -> None:
    store.finish(store.begin(case_id, person, Decision("label", label)).id)


def test_errors_are_estimated_from_the_audit_alone(store):
    for verdict, label, audited in ((1, 1, True), (0, 1, True), (1, 0, True), (0, 0, True), (None, 1, True),
                                    (0, 1, False), (0, 1, False)):  # fmt: skip
        give(store, add(store, verdict, audited=audited), "ann", label)
    add(store, 1, audited=True)
    found = statistics.audit(store.database, LONG_AGO)
    assert (found.decided, found.waiting) == (5, 1)
    assert (found.misses.count, found.misses.of) == (1, 2)
    assert (found.false_alarms.count, found.false_alarms.of) == (1, 2)
    assert (found.abstained.count, found.abstained.of) == (1, 5)
    assert (found.wrong.count, found.wrong.of) == (2, 4)
    assert found.misses.low < 0.5 < found.misses.high


def test_a_share_of_nothing_has_no_value():
    assert statistics.Share.at(0, 0).value is None
    whole = statistics.Share.at(3, 3)
    assert (whole.value, whole.high) == (1.0, 1.0)
    assert 0.4 < whole.low < 0.5


def test_kappa_equals_that_of_scikit_learn(store):
    labels = [(0, 0), (1, 1), (1, 0), (0, 0), (1, 1), (0, 1), (1, 1)]
    for first, second in labels:
        case = add(store, 1, opinions_needed=2)
        give(store, case, "ann", first)
        give(store, case, "bob", second)
    (found,) = statistics.agreements(store.database, LONG_AGO)
    assert (found.first, found.second, found.cases) == ("ann", "bob", 7)
    assert found.kappa == pytest.approx(cohen_kappa_score(*zip(*labels, strict=True)))
    assert statistics.kappa([("0", "0")] * 3) is None


def test_figures_of_people(store):
    first, second, third = (add(store, 1) for _ in range(3))
    give(store, first, "ann", 1)
    give(store, second, "ann", 0)
    store.finish(store.begin(third, "ann", Decision("escalate")).id)
    give(store, third, "bob", 1)
    opinion, _ = store.opinions_of("bob")[0]
    undo(store, opinion.id, "bob", "wrong key")
    ann, bob = statistics.people(store.database, LONG_AGO)
    assert (ann.person, ann.decided, ann.escalated, ann.with_model.value) == ("ann", 2, 1, 0.5)
    assert (bob.decided, bob.undone) == (0, 1)
    assert statistics.people(store.database, datetime.now(UTC) + timedelta(days=1)) == []


def test_figures_of_days_count_days_without_cases(store):
    add(store, 1, similarity=0.9)
    add(store, None, similarity=0.1)
    found = statistics.development(store.database, 2, 0.5)
    yesterday, today = found.days
    assert (yesterday.added, yesterday.far.value) == (0, None)
    assert (today.added, today.classes, today.far.count) == (2, {"1": 1, "none": 1}, 1)
    assert (found.random, found.far_below) == (False, 0.5)
    later = datetime.now(UTC) + timedelta(days=9)
    assert statistics.development(store.database, 2, now=later).far_below is None


def test_days_are_those_of_the_random_audit_where_there_is_one(store):
    for similarity in range(10):
        add(store, 0, similarity=similarity / 10, audited=True)
    add(store, 1, similarity=0.01)
    found = statistics.development(store.database, 1)
    (today,) = found.days
    assert (found.random, found.far_below) == (True, 0.1)
    assert (today.added, today.classes, today.far.count, today.far.of) == (11, {"0": 10}, 1, 10)


def test_figures_of_queues_and_sources(store):
    first = add(store, 1, source="forum", similarity=0.9)
    add(store, 1, source="forum", similarity=0.2, queue="night")
    second = add(store, None, source="shop")
    give(store, first, "ann", 0)
    give(store, second, "ann", 0)
    store.finish(store.begin(add(store, 0), "ann", Decision("escalate")).id)
    main, night = statistics.waiting(store.database)
    assert (main.queue, main.states, night.queue, night.states) == ("main", {"escalated": 1}, "night", {"waiting": 1})
    assert night.oldest <= main.oldest
    forum, unknown, shop = statistics.sources(store.database, LONG_AGO, 0.5)
    assert (forum.source, forum.added, forum.waiting, forum.corrected.value, forum.far.value) == ("forum", 2, 1, 1, 0.5)
    assert (shop.source, shop.waiting, shop.corrected.of, unknown.source, unknown.waiting) == ("shop", 0, 0, "", 1)
    later = statistics.sources(store.database, datetime.now(UTC) + timedelta(days=1), 0.5)
    assert [(one.source, one.added, one.waiting) for one in later] == [("", 0, 1), ("forum", 0, 1)]


def test_the_log_tells_who_did_what(store):
    case = add(store, 1, queue="night", source="forum")
    give(store, case, "ann", 0)
    store.note(case, "bob", "seen before")
    rows = list(events(store.database))
    assert [(row.person, row.kind) for row in rows] == [
        ("ra-hmd", "case added"),
        ("ann", "decided"),
        ("bob", "noted"),
    ]
    assert rows[1].details["label"] == 0
    assert [event.person for event in events(store.database, person="bob")] == ["bob"]
    assert list(events(store.database, since=datetime.now(UTC) + timedelta(days=1))) == []
    history = history_of(store.database, case)
    assert (len(history.opinions), len(history.notes), len(history.events)) == (1, 1, 3)
    assert history_of(store.database, "none") is None
    assert count_by_queue(store.database) == {"night": {"decided": 1}}


def test_a_long_log_is_read_in_pages(store, monkeypatch):
    monkeypatch.setattr("ra_hmd.cases.history._PAGE", 3)
    for _ in range(7):
        add(store, 1)
    assert len({event.id for event in events(store.database)}) == 7


def facts(margin=0.5, abstained=False, disagreement=False, similarity=0.9) -> VerdictFacts:
    return VerdictFacts(margin, abstained, disagreement, similarity)


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ({}, None),
        ({"abstained": True}, "abstained"),
        ({"disagreement": True}, "disagreement"),
        ({"margin": 0.2}, "unsure"),
        ({"below_similarity": 0.5}, "unlike-the-bank"),
        ({"audit_rate": 1.0}, "audit"),
    ],
)
def test_the_policy_chooses_verdicts(policy, why):
    draw = PolicyDraw(CasePolicy(**policy))
    assert draw(facts(0.1, True, True, 0.2))[0] == why
    assert draw(facts())[0] == ("audit" if policy.get("audit_rate") else None)
    assert CasePolicy(**policy).active == bool(policy)


def test_the_audit_draws_among_all_verdicts_alike():
    draw = PolicyDraw(CasePolicy(audit_rate=0.2, margin=0.3, audit_seed=1))
    drawn = [draw(facts(margin)) for margin in (0.1, 0.9) for _ in range(2000)]
    unsure, sure = drawn[:2000], drawn[2000:]
    assert all(why == "unsure" for why, _ in unsure)
    for part in (unsure, sure):
        assert 0.17 < sum(audited for _, audited in part) / 2000 < 0.23
    assert CasePolicy(margin=0).active is False
