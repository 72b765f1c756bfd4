"""A PostgreSQL server of the tests, where its programs are installed: empty, reached by a socket, gone at the end."""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _program(name: str) -> str | None:
    found = shutil.which(name) or next((str(place / name) for place in _PLACES if (place / name).is_file()), None)
    return None if found is None else str(Path(found).resolve())


@contextmanager
def postgres_server() -> Iterator[str]:
    """The folder of the socket of a running server, whose user is `postgres`. Skips where there is none to start."""
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("no PostgreSQL server is installed")
    pytest.importorskip("psycopg", reason="psycopg, the driver for PostgreSQL, is not installed")
    folder = Path(tempfile.mkdtemp(prefix="postgres"))  # a socket's path must be short
    options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL}
    if os.geteuid() == 0:  # the server refuses to run as root
        owner = next((name for name in ("postgres", "nobody") if _exists(name)), None)
        if owner is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user for it")
        shutil.chown(folder, owner)
        options["user"] = owner
    data = str(folder / "data")
    subprocess.run(
        [initdb, "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8"], check=True, **options
    )
    settings = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c max_connections=300"
    try:
        subprocess.run(
            [pg_ctl, "-D", data, "-w", "-l", str(folder / "log"), "-o", settings, "start"], check=True, **options
        )
        yield str(folder)
    finally:
        subprocess.run([pg_ctl, "-D", data, "-m", "immediate", "stop"], check=False, **options)
        shutil.rmtree(folder)


def new_database(server: str) -> str:
    """The URL of an empty place: a schema of its own, which costs less than a database."""
    import psycopg

    name = "s" + secrets.token_hex(6)
    with psycopg.connect(host=server, user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")  # type: ignore[arg-type]
    return f"postgresql+psycopg://postgres@/postgres?host={server}&options=-csearch_path%3D{name}"


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
