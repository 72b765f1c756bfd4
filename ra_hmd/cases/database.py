"""The case database: SQLite by default, any database of SQLAlchemy by its URL."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.orm import Session, sessionmaker

from ra_hmd.core.artifacts import alone_in
from ra_hmd.core.errors import UserError, first_line
from ra_hmd.core.extras import check_extra

UNAVAILABLE = (DBAPIError, NoConnection)
"""Errors of a database that is away, full, or has no connection left."""
_BUSY_SECONDS = 30
_TURN = 0x7261686D64  # number of PostgreSQL's advisory lock; any will do that all processes take
_one_migrates = threading.Lock()  # Alembic keeps what it works on in globals


class Database:
    """Sessions on a case database, whose tables are made or brought up to date when it is opened.

    Args:
        place: File of SQLite, made if it is missing, or URL of a database, such as `postgresql+psycopg://host/name`.

    Attributes:
        name: The place without a password.

    Raises:
        UserError: The database cannot be reached, its driver is not installed, or a newer release wrote it.
    """

    def __init__(self, place: str | Path) -> None:
        url = make_url(str(place)) if "://" in str(place) else make_url("sqlite:///" + str(Path(place).absolute()))
        self.name = url.render_as_string(hide_password=True)
        if url.drivername == "postgresql+psycopg":
            check_extra("postgresql", f"The database {self.name}")
        try:
            self._engine = _engine(url.render_as_string(hide_password=False))
            if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
                file = Path(str(url.database))
                with alone_in(file.parent):  # two processes that start at once migrate in turn
                    file.touch(0o600)  # captions and names are nobody else's; SQLite's further files get its mode
                    _migrate(self._engine)
            else:
                _migrate(self._engine)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise UserError(f"{self.name} is no database that can be opened here: {error}; a file name stands for "
                            "SQLite, `postgresql+psycopg://…` for PostgreSQL.") from error  # fmt: skip
        except DBAPIError as error:
            raise UserError(f"The database {self.name} cannot be opened: {first_line(error)}.") from error
        self._turn = threading.Lock()  # waiting on SQLite's own lock is not in turn, and may take seconds
        self._reading = sessionmaker(self._engine, expire_on_commit=False)
        self._writing = {
            lasting: sessionmaker(self._engine.execution_options(immediate=True, lasting=lasting),
                                  expire_on_commit=False)
            for lasting in (True, False)
        }  # fmt: skip

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads."""
        with self._reading() as session:
            yield session

    @contextmanager
    def write(self, *, lasting: bool = True) -> Iterator[Session]:
        """A session that writes; it is committed at the end, and rolled back after an error.

        Writing sessions of all processes take turns from their first statement on, so that what a session has read
        still holds when it writes.

        Args:
            lasting: Wait until the disk has it. Otherwise the change may be lost if the power fails before the next
                session that lasts; it is not lost if the process is killed.
        """
        with self._turn, self._writing[lasting].begin() as session:
            yield session

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _engine(url: str) -> Engine:
    engine = create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    if engine.dialect.name == "postgresql":
        event.listen(engine, "begin", _begin_postgresql)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver would begin a transaction late, and only for some statements
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", f"busy_timeout={_BUSY_SECONDS * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Any) -> None:
    options = connection.get_execution_options()
    connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options.get('lasting', True) else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("immediate", False) else "BEGIN")


def _begin_postgresql(connection: Any) -> None:
    options = connection.get_execution_options()
    if not options.get("lasting", True):
        connection.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")
    if options.get("immediate", False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_TURN})")


def _migrate(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    with _one_migrates, engine.execution_options(immediate=True).begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise UserError(
                f"The case database was written by a newer release of ra-hmd ({error}); install that one."
            ) from error
