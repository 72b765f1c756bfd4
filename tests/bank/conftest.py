"""Small banks in both backends."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_banks import bank_of

from ra_hmd.bank.bank import Bank


@pytest.fixture(params=["bank", "bank.db"], ids=["faiss", "milvus"])
def new_bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Bank]]:
    """Makes a bank of either backend."""
    opened: list[Bank] = []

    def make(**options: Any) -> Bank:
        opened.append(bank_of(tmp_path / request.param, **options))
        return opened[-1]

    yield make
    for bank in opened:
        bank.close()
