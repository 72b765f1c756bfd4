"""Fixtures of the tests of cases: an empty database of each kind."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import new_database, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A running PostgreSQL server: the folder of its socket."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a case database, which is empty."""
    if request.param == "sqlite":
        return str(tmp_path / "cases.sqlite")
    return new_database(request.getfixturevalue("postgres"))
