"""What a backend of the bank does.

Shapes: N rows ever added, Q queries, D embedding, M rows.
"""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from ra_hmd.bank.versions import BankState, Change, VersionEntry
from ra_hmd.retrieval.nearest import CandidateIndex


class BankBackend(Protocol):
    """What a backend does. All else is the same for every backend, and in `Bank`."""

    place: Any
    settings: dict[str, Any]

    def writing(self) -> AbstractContextManager[None]: ...

    def newest(self, known: int) -> int: ...

    def read(self, first: int, last: int) -> list[tuple[VersionEntry, Change]]: ...

    def write(self, entry: VersionEntry, change: Change, new: np.ndarray | None, first: int) -> None: ...

    def embeddings(self, state: BankState, rows: np.ndarray) -> np.ndarray: ...

    def searched(self, state: BankState) -> CandidateIndex: ...

    def describe(self) -> dict[str, Any]: ...

    def close(self) -> None: ...
