"""An object store for tests: moto's S3 server over a real socket, in a thread of this process."""

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ra_hmd.core import storage
from ra_hmd.core.storage import RemotePath, as_path

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key-of-the-tests", "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests"}


@contextmanager
def s3_server() -> Iterator[Any]:
    """A client of a server that the environment names, as it does for commands that a test starts."""
    import boto3  # conftest.py imports this file for every test
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        with pointing_to("http://{}:{}".format(*server.get_host_and_port())):
            yield boto3.client("s3")
    finally:
        server.stop()


@contextmanager
def pointing_to(endpoint: str, **changes: str) -> Iterator[None]:
    """The environment of an object store at `endpoint`; clients that were made before are forgotten."""
    settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1", **CREDENTIALS, **changes}
    storage._file_system.cache_clear()
    with mock.patch.dict(os.environ, settings):
        yield
    storage._file_system.cache_clear()


def new_bucket(client: Any) -> RemotePath:
    """The path of a new bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    path = as_path(f"s3://{name}")
    assert isinstance(path, RemotePath)
    return path


def upload_folder(folder: Path, to: RemotePath) -> None:
    """Upload the files below a folder, as they are."""
    for path in folder.rglob("*"):
        if path.is_file():
            (to / path.relative_to(folder)).upload(path)


@pytest.fixture(scope="module")
def bucket() -> Iterator[RemotePath]:
    """The path of an empty bucket of a server of its own."""
    with s3_server() as client:
        yield new_bucket(client)
