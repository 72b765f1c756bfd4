"""The back-up and the export of docs/console.md, run on a database that is being written."""

import contextlib
import csv
import shutil
from pathlib import Path

import pytest
from documented import blocks, expanded
from engines import run
from typer.testing import CliRunner

from ra_hmd.cases.database import Database
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.store import CaseStore, NewCase
from ra_hmd.cli.app import app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a case database of three cases."""
    (tmp_path / "banks" / "memes.cases.pictures").mkdir(parents=True)
    store = CaseStore(Database(tmp_path / "banks" / "memes.cases.sqlite"))
    store.add([NewCase(meme_id=name, picture="p", picture_digest="d") for name in "abc"])
    return tmp_path


def test_a_back_up_of_the_cases_opens(folder: Path) -> None:
    if shutil.which("sqlite3") is None:
        pytest.skip("the program sqlite3 is not installed")
    (block,) = (one for one in blocks("bash", ("docs/console.md",)) if "sqlite3" in one.text)
    with contextlib.chdir(folder):
        for words in expanded(block.text, folder):
            ended = run(words, folder)
            assert ended.returncode == 0, ended.stdout
    (copy,) = folder.glob("cases-*.sqlite")
    assert CaseStore(Database(copy)).waiting("ana", CaseFilter()) == 3
    assert list(folder.glob("pictures-*.tar.gz"))


def test_the_audit_log_is_exported(folder: Path, clip_bank: Path) -> None:
    shutil.copytree(clip_bank, folder / "banks" / "memes")
    (block,) = (one for one in blocks("bash", ("docs/console.md",)) if "cases export" in one.text)
    with contextlib.chdir(folder):
        for words in expanded(block.text, folder):
            done = CliRunner().invoke(app, words[1:])
            assert done.exit_code == 0, done.output
    lines = list(csv.DictReader((folder / "audit.csv").open(encoding="utf-8", newline="")))
    assert [line["kind"] for line in lines].count("case added") == 3
    assert len(lines) == 4, "and the version of the bank"
    assert (folder / "one-row.jsonl").read_text() == "", "no such row"
