"""Lists and figures of many cases: pages, names of queues and sources, and what a migration fills."""

import random
from itertools import chain, pairwise

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, select, text

import ra_hmd.cases.database as database_module
from ra_hmd.cases.database import Database
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.history import list_cases
from ra_hmd.cases.outcome import OPEN
from ra_hmd.cases.store import CaseStore, Decision, NewCase
from ra_hmd.cases.tables import Case
from ra_hmd.cases.views import queues_of, sources_of

KEYS = {
    "urgent": lambda case: (-case.priority, case.order, case.id),
    "oldest": lambda case: case.id,
    "newest": lambda case: tuple(-ord(letter) for letter in case.id),
    "least-similar": lambda case: (case.similarity, case.id),
}


@pytest.fixture
def store(place: str) -> CaseStore:
    """Thirty cases, of which every third is decided."""
    store, chance = CaseStore(Database(place)), random.Random(1)
    new = [
        NewCase(f"m{number}", "p", "d", queue=f"q{number % 3}", source="" if number % 4 == 0 else f"s{number % 4}",
                priority=number % 2, order=chance.random(), similarity=chance.random(), verdict={"verdict": number % 2})
        for number in range(30)
    ]  # fmt: skip
    for name, _ in store.add(new)[::3]:
        store.finish(store.begin(name, "ann", Decision("label", 1)).id)
    return store


@pytest.mark.parametrize("order", KEYS)
@pytest.mark.parametrize("states", [(), OPEN, ("decided",), ("waiting", "decided")])
def test_pages_are_the_list_in_its_order(store, order, states):
    wanted = CaseFilter(states=states, order=order)
    pages = [list_cases(store.database, wanted, limit=4, offset=offset) for offset in range(0, 32, 4)]
    found = list(chain.from_iterable(page for page, _ in pages))
    number = {(): 30, OPEN: 20, ("decided",): 10}.get(states, 30)
    assert {count for _, count in pages} == {number}
    assert len({case.id for case in found}) == number
    assert all(KEYS[order](one) < KEYS[order](other) for one, other in pairwise(found))


def test_names_of_queues_and_sources_are_those_of_all_cases(store):
    store.finish(store.begin(store.add([NewCase("x", "p", "d", queue="only decided")])[0][0], "ann",
                             Decision("label", 1)).id)  # fmt: skip
    assert queues_of(store.database) == ["only decided", "q0", "q1", "q2"]
    assert queues_of(store.database, 2) == ["only decided", "q0"]
    assert sources_of(store.database) == ["s1", "s2", "s3"]


def test_the_verdicts_of_older_databases_are_filled_in(store, place):
    engine, config = create_engine(place if "://" in place else f"sqlite:///{place}"), Config()
    config.set_main_option("script_location", str(database_module.Path(database_module.__file__).parent / "migrations"))
    with store.database.read() as session:
        columns = select(Case.id, Case.judged, Case.corrected).order_by(Case.id)
        before = session.execute(columns).tuples().all()
    assert {corrected for *_, corrected in before} == {None, True, False}
    store.database.close()
    with engine.begin() as connection:
        for index in ("cases_by_age", "cases_by_similarity", "cases_by_queue", "cases_by_source", "cases_by_hash",
                      "cases_judged", "cases_by_intake"):  # fmt: skip
            connection.execute(text(f"DROP INDEX {index}"))
        for column in ("judged", "corrected"):
            connection.execute(text(f"ALTER TABLE cases DROP COLUMN {column}"))
        connection.execute(text("CREATE INDEX cases_by_intake ON cases (created)"))
        config.attributes["connection"] = connection
        command.stamp(config, "0003")
    engine.dispose()
    with Database(place).read() as session:
        assert session.execute(columns).tuples().all() == before
