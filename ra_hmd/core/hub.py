"""Files of the Hugging Face hub: weights as safetensors alone, never a pickle."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HUB_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""Patterns of the files beside the weights that a model is opened with."""


@contextmanager
def connection_errors() -> Iterator[None]:
    """Turn errors of the connection into `OSError`, as the hub's client does with those of a request."""
    from httpx import HTTPError

    try:
        yield
    except HTTPError as error:
        raise error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}") from error


def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder of a repository of the hub at a revision, downloaded or as it was downloaded before.

    Raises:
        OSError, ValueError: no such repository or revision, no access, no connection, or no name of a repository.
    """
    from huggingface_hub import snapshot_download

    asked: dict[str, Any] = {"revision": revision, "allow_patterns": list(patterns)}
    try:
        with connection_errors():
            return Path(snapshot_download(name, **asked))
    except OSError as error:
        try:  # offline, a commit whose files are all there would not be taken otherwise
            return Path(snapshot_download(name, **asked, local_files_only=True))
        except OSError:
            raise error from None
