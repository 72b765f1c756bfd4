"""The back-up of docs/console.md, run on a database that is being written."""

import contextlib
import shutil
from pathlib import Path

import pytest
from documented import blocks, expanded
from engines import run

from ra_hmd.cases.database import Database
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.store import CaseStore, NewCase


def test_a_back_up_of_the_cases_opens(tmp_path: Path) -> None:
    if shutil.which("sqlite3") is None:
        pytest.skip("the program sqlite3 is not installed")
    (block,) = (one for one in blocks("bash", ("docs/console.md",)) if "sqlite3" in one.text)
    (tmp_path / "banks" / "memes.cases.pictures").mkdir(parents=True)
    store = CaseStore(Database(tmp_path / "banks" / "memes.cases.sqlite"))
    store.add([NewCase(meme_id=name, picture="p", picture_digest="d") for name in "abc"])
    with contextlib.chdir(tmp_path):
        for words in expanded(block.text, tmp_path):
            ended = run(words, tmp_path)
            assert ended.returncode == 0, ended.stdout
    (copy,) = tmp_path.glob("cases-*.sqlite")
    assert CaseStore(Database(copy)).waiting("ana", CaseFilter()) == 3
    assert list(tmp_path.glob("pictures-*.tar.gz"))
