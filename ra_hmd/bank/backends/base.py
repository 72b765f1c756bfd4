"""The interface of bank backends, and the registry that finds the backend of a location.

To add a backend, write a class with the methods of `BankBackend` and register it with `register_backend`.

Shapes: N rows ever added, Q queries, D embedding, M rows.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ra_hmd.bank.versions import BankState, Change, VersionEntry
from ra_hmd.core.manifests import BankManifest, read_folder_manifest
from ra_hmd.core.storage import is_url
from ra_hmd.retrieval.nearest import CandidateIndex


class BankBackend(Protocol):
    """Storage and search of one bank. `Bank` implements everything else, once for all backends.

    Attributes:
        location: Folder, file or address of the bank.
        settings: The manifest of the bank, fixed at its creation.
    """

    location: Any
    settings: BankManifest

    def __init__(self, location: str | Path, wait: float = 60.0, **options: Any) -> None:
        """Open the bank at `location`, waiting up to `wait` seconds for other processes."""

    @classmethod
    def create(
        cls,
        location: str | Path,
        settings: BankManifest,
        entry: VersionEntry,
        change: Change,
        embedding: np.ndarray,
        **options: Any,
    ) -> None:
        """Write a new bank with its first version, whose rows have embeddings [M, D].

        `views` among the options are the further vectors of the rows, see `ViewBackend`.
        """

    def writing(self) -> AbstractContextManager[None]:
        """Exclude other writers; remove what a writer that died left behind."""
        ...

    def newest(self, known: int) -> int:
        """The newest version, at least `known`."""
        ...

    def read(self, first: int, last: int) -> list[tuple[VersionEntry, Change]]:
        """Log entries and changes of versions `first` to `last`."""
        ...

    def write(self, entry: VersionEntry, change: Change, embedding: np.ndarray | None, first: int) -> None:
        """Write a version, within `writing`; its new rows are numbered from `first` on.

        Raises:
            VersionTaken: another process wrote that version, because it does not see the lock of this one.
        """

    def embeddings(self, state: BankState, rows: np.ndarray) -> np.ndarray:
        """float32 [M, D], embeddings of row numbers [M] in rising order, as the head computed them."""
        ...

    def candidates(self, state: BankState) -> CandidateIndex:
        """The index that finds candidates among the rows of a state."""
        ...

    def describe(self) -> dict[str, Any]:
        """Facts of the backend for `Bank.info`."""
        ...

    def close(self) -> None:
        """Close files and connections."""


@runtime_checkable
class ViewBackend(Protocol):
    """Storage that keeps further views of the rows of a bank: `BankBackend` with this method.

    `create` and `write` take `views`, float32 [M, D_v] by name, where the bank keeps views and rows are added.
    """

    def view(self, state: BankState, rows: np.ndarray, name: str) -> np.ndarray:
        """float32 [M, D_v], vectors of row numbers [M] in rising order in a view."""
        ...


@dataclass(frozen=True)
class BackendSpec:
    """Registration of a backend: its addresses and its class.

    Attributes:
        name: Name of the backend, as in manifests and options.
        accepts: Whether a location belongs to the backend.
        is_bank: Whether there is a bank at such a location, as far as can be told without opening it.
        load: Imports and returns the backend's class.
    """

    name: str
    accepts: Callable[[str], bool]
    is_bank: Callable[[str], bool]
    load: Callable[[], type[BankBackend]]


_BACKENDS: dict[str, BackendSpec] = {}


def register_backend(spec: BackendSpec) -> None:
    """Register a backend. Where several accept a location, the one that was registered last has it.

    Raises:
        ValueError: the name is taken.
    """
    if spec.name in _BACKENDS:
        raise ValueError(f"bank backend {spec.name!r} is registered already")
    _BACKENDS[spec.name] = spec


def backend_of(location: str | Path) -> str:
    """Name of the backend that a location belongs to: `milvus` for an address or a file `….db`, else `faiss`."""
    return _spec_of(location).name


def backend_class(name: str) -> type[BankBackend]:
    """The class of a registered backend."""
    return _BACKENDS[name].load()


def is_bank(location: str | Path) -> bool:
    """Whether a path or address names a bank, as far as can be told without opening it."""
    return _spec_of(location).is_bank(str(location))


def _spec_of(location: str | Path) -> BackendSpec:
    return next(spec for spec in reversed(_BACKENDS.values()) if spec.accepts(str(location)))


def _is_bank_folder(location: str) -> bool:
    return isinstance(read_folder_manifest(location), BankManifest)


def _load_parquet() -> type[BankBackend]:
    from ra_hmd.bank.backends.parquet import ParquetBackend

    return ParquetBackend


def _load_milvus() -> type[BankBackend]:
    from ra_hmd.bank.backends.milvus import MilvusBackend

    return MilvusBackend


register_backend(BackendSpec("faiss", lambda location: True, _is_bank_folder, _load_parquet))
register_backend(
    BackendSpec(
        "milvus",
        lambda location: not is_url(location) and ("://" in location or location.endswith(".db")),
        lambda location: "://" in location or Path(location).is_file(),
        _load_milvus,
    )
)
