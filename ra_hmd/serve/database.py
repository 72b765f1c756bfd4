"""The database that the processes of a service share: one engine, one declarative base, transactions.

It holds what several processes must agree on and what must outlive them, and belongs to the service and not to the
console, so that routes may use it as well. A table is a subclass of `Base` in the module that uses it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from ra_hmd.core.errors import UserError, first_line

_WAIT_SECONDS = 30  # for other writers of a SQLite file


class Base(DeclarativeBase):
    """Base class of the tables."""


class Database:
    """A database with the tables of `Base`, which are created where they are missing.

    Args:
        location: Path of a SQLite file, or a URL as SQLAlchemy reads it. A SQLite file is for processes of one machine:
            its locks do not hold on network file systems.

    Raises:
        UserError: no database can be opened there, or the driver of the URL is not installed.
    """

    def __init__(self, location: str | Path) -> None:
        text = str(location)
        if "://" not in text:
            Path(text).parent.mkdir(parents=True, exist_ok=True)
            text = f"sqlite:///{Path(text).resolve()}"
        try:
            url = make_url(text)
            self.name = url.render_as_string(hide_password=True)
            options = {"connect_args": {"timeout": _WAIT_SECONDS}} if url.get_backend_name() == "sqlite" else {}
            self._engine = create_engine(url, pool_pre_ping=True, **options)
        except (NoSuchModuleError, ImportError, SQLAlchemyError, ValueError) as error:
            raise UserError(
                f"--database: no database can be opened there ({first_line(error)}); give the path of a SQLite file, "
                "or a URL such as postgresql+psycopg://HOST/NAME with its driver installed."
            ) from error
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)
        self._create_tables()

    def _create_tables(self) -> None:
        for last in (False, True):
            try:
                with self._reported():
                    Base.metadata.create_all(self._engine)
                return
            except UserError:  # another process created a table in the same moment
                if last:
                    raise

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction, which ends with the block.

        Raises:
            IntegrityError: a row breaks a condition of its table, such as that its key is there once.
            UserError: the database cannot be reached, or is locked by another process.
        """
        with self._reported(), self._sessions.begin() as session:
            yield session

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:  # what a table does not take is the caller's matter
            raise
        except SQLAlchemyError as error:
            raise UserError(
                f"The database {self.name} cannot be used: {first_line(error)} Look whether it is there and may be "
                "written, and try again."
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
