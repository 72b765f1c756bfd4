"""CONTRIBUTING.md, "Four things that are one file each": an LMM family and a bank backend are added as described there.

A reader is added in tests/data/test_readers.py, a loss in tests/stage2.
"""

from pathlib import Path

import pytest
from small_banks import bank_of, queries_of

from ra_hmd.bank.backends import base
from ra_hmd.bank.backends.base import BackendSpec, backend_of, register_backend
from ra_hmd.bank.backends.parquet import ParquetBackend
from ra_hmd.bank.bank import Bank
from ra_hmd.core.errors import UserError
from ra_hmd.models.tokenization import FAMILY_TEMPLATES, check_family


class Shelf(ParquetBackend):
    """A backend of places that end in `.shelf`."""


def test_a_bank_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_BACKENDS", dict(base._BACKENDS))
    spec = BackendSpec(
        "shelf", lambda place: place.endswith(".shelf"), lambda place: Path(place).is_dir(), lambda: Shelf
    )
    register_backend(spec)
    assert (backend_of(tmp_path / "memes.shelf"), backend_of(tmp_path / "memes")) == ("shelf", "faiss")
    made = bank_of(tmp_path / "memes.shelf")
    assert isinstance(made._backend, Shelf)
    with Bank.open(tmp_path / "memes.shelf") as bank:
        assert bank.version == 1
        assert len(bank.ids) == 60
        assert bank.search(queries_of(), 3)
    with pytest.raises(ValueError, match="shelf"):
        register_backend(spec)


def test_an_lmm_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILY_TEMPLATES, "invented_vl", ("invented",))
    check_family("invented_vl", "invented")
    with pytest.raises(UserError, match="qwen2_vl") as error:
        check_family("invented_vl", "qwen2_vl")
    assert "invented" in str(error.value)
