"""Alerts: once per crossing, also with several processes, and signed like other webhooks."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, select

from ra_hmd.cases.alert_rules import AlertRules
from ra_hmd.cases.alerts import Alerts
from ra_hmd.cases.database import Database
from ra_hmd.cases.history import events
from ra_hmd.cases.store import CaseStore, Decision, NewCase
from ra_hmd.cases.tables import Base, Delivery
from ra_hmd.core.errors import UserError

URL = "https://chat.example/alerts"


@pytest.fixture
def store(place: str) -> CaseStore:
    return CaseStore(Database(place))


def add(store: CaseStore, count: int = 1, **fields) -> list[str]:
    case = NewCase(meme_id="m", picture="p", picture_digest="d", verdict={"verdict": 1}, **fields)
    return [name for name, _ in store.add([case] * count)]


def decide(store: CaseStore, names: list[str]) -> None:
    for name in names:
        store.finish(store.begin(name, "ann", Decision("agree", 1)).id)


def posted(store: CaseStore) -> list[dict]:
    with store.database.read() as session:
        return [json.loads(one.body) for one in session.scalars(select(Delivery).order_by(Delivery.id))]


def test_an_alert_is_posted_once_per_crossing(store):
    alerts = Alerts(store.database, AlertRules(alert_waiting=10), URL)
    names = add(store, 10)
    assert alerts.check() == []
    names += add(store)
    assert alerts.check() == ["waiting"]
    assert alerts.check() == []
    decide(store, names[:1])
    names += add(store)
    assert alerts.check() == []  # it hovers at the limit
    decide(store, names[1:4])
    assert alerts.check() == []
    assert alerts.states()[0].since is None
    add(store, 3)
    assert alerts.check() == ["waiting"]
    first, second = posted(store)
    assert first["text"] == "Cases that wait: 11, more than 10."
    assert (first["rule"], first["limit"], first["value"], second["value"]) == ("waiting", 10, 11, 11)
    kinds = [one.kind for one in events(store.database) if one.kind.startswith("alert")]
    assert kinds == ["alert", "alert over", "alert"]


def test_a_case_that_waits_too_long_is_told(store):
    alerts = Alerts(store.database, AlertRules(alert_minutes=30))
    (name,) = add(store)
    now = datetime.now(UTC)
    assert alerts.check(now + timedelta(minutes=29)) == []
    assert alerts.check(now + timedelta(minutes=31)) == ["minutes"]
    decide(store, [name])
    assert alerts.check(now + timedelta(minutes=32)) == []
    assert alerts.states()[0].since is None
    assert posted(store) == []


def test_drift_is_a_share_of_enough_memes_of_one_day(store):
    alerts = Alerts(store.database, AlertRules(alert_unlike=0.2, alert_similarity=0.5))
    add(store, 10, similarity=0.1)
    assert (alerts.check(), alerts.states()[0].value) == ([], None)
    add(store, 30, similarity=0.9)
    assert alerts.states()[0].value == 0.25
    assert alerts.states(datetime.now(UTC) + timedelta(days=2))[0].value is None
    assert alerts.check() == ["unlike"]
    add(store, 19, similarity=0.9, audited=True)
    add(store, 20, similarity=0.1, audited=False)
    assert alerts.states()[0].value == pytest.approx(30 / 79)
    add(store, similarity=0.1, audited=True)
    assert alerts.states()[0].value == 1 / 20


def test_processes_that_look_at_once_post_one_alert(place):
    add(CaseStore(Database(place)), 3)
    stores = [CaseStore(Database(place)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: Alerts(one.database, AlertRules(alert_waiting=1), URL).check(), stores))
    assert sum(map(len, found)) == 1
    assert len(posted(stores[0])) == 1


def test_rules_that_need_each_other_are_said():
    with pytest.raises(UserError, match="--alert-unlike and --alert-similarity belong together"):
        AlertRules(alert_unlike=0.2)
    assert AlertRules().limits == {}


def test_the_migrations_make_the_tables_that_the_code_reads(place):
    Database(place).close()
    engine = create_engine(place if "://" in place else f"sqlite:///{place}")
    # SQLite does not tell an index on an expression from another one.
    options = {"include_object": lambda item, name, kind, reflected, other: name != "cases_in_order"}
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []
    engine.dispose()
