"""Small banks in every backend: those of the package, and one that a test adds."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import memory_backend  # noqa: F401 - registers itself
import pytest
from small_banks import bank_of

from ra_hmd.bank.bank import Bank


@pytest.fixture(params=["bank", "bank.db", "memory"], ids=["faiss", "milvus", "added"])
def new_bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Bank]]:
    """Creates a bank of a backend."""
    opened: list[Bank] = []

    def make(**options: Any) -> Bank:
        memory = request.param == "memory"
        opened.append(bank_of(f"memory://{tmp_path}" if memory else tmp_path / request.param, **options))
        return opened[-1]

    yield make
    for bank in opened:
        bank.close()
