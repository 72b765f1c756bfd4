"""CONTRIBUTING.md, "Four things that are one file each": an LMM family is added as described there.

A reader is added in tests/data/test_readers.py, a loss in tests/stage2, a bank backend in tests/memory_backend.py.
"""

import pytest

from ra_hmd.core.errors import UserError
from ra_hmd.models.families import FAMILIES, register_family
from ra_hmd.models.families.qwen2_vl import Qwen2VL
from ra_hmd.models.tokenization import check_family


def test_an_lmm_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ra_hmd.models.families.base.FAMILIES", FAMILIES.copy())

    class Invented(Qwen2VL):
        name = "invented_vl"
        templates = ("invented",)

    register_family(Invented)
    check_family("invented_vl", "invented")
    with pytest.raises(UserError, match="qwen2_vl") as error:
        check_family("invented_vl", "qwen2_vl")
    assert "invented" in str(error.value)
    with pytest.raises(ValueError, match="invented_vl"):
        register_family(Invented)
