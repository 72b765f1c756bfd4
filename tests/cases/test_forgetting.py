"""Removal of what cases hold of their memes."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from ra_hmd.cases import forgetting
from ra_hmd.cases.database import Database
from ra_hmd.cases.history import history_of
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.steps import CaseConflict
from ra_hmd.cases.store import CaseStore, Decision, NewCase
from ra_hmd.cases.tables import Note
from ra_hmd.cli.app import app

VERDICT = {"verdict": 1, "text": "words", "caption_check": {"read": "words"}}


def add(store: CaseStore, pictures: CasePictures, content: bytes, *, decided: bool = True) -> str:
    """A case with a picture and words."""
    picture, digest = pictures.keep(content)
    new = NewCase(meme_id="m", picture=picture, picture_digest=digest, picture_hash="f" * 16, caption="words",
                  context="around", verdict=VERDICT)  # fmt: skip
    case = store.add([new])[0][0]
    store.note(case, "ana", "a name")
    if decided:
        store.finish(store.begin(case, "ana", Decision("label", 0, "a joke")).id)
    return case


def test_memes_of_decided_cases_go_and_decisions_stay(place: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(forgetting, "_PAGE", 1)
    store, pictures = CaseStore(Database(place)), CasePictures(tmp_path / "pictures")
    old, alone, waiting = (
        add(store, pictures, content, decided=decided)
        for content, decided in ((b"shared", True), (b"alone", True), (b"shared", False))
    )
    later = datetime.now(UTC) + timedelta(seconds=1)
    assert forgetting.forget(store.database, pictures, later - timedelta(days=1), "eva") == 0
    assert forgetting.forget(store.database, pictures, later, "eva") == 2
    assert forgetting.forget(store.database, pictures, later, "eva") == 0
    for name in (old, alone):
        history = history_of(store.database, name)
        case = history.case
        assert (case.picture, case.picture_hash, case.caption, case.context, history.notes) == ("", "", "", "", [])
        assert case.verdict == {"verdict": 1, "text": ""}
        assert (case.label, history.opinions[0].reason) == (0, "a joke")
        assert (history.events[-1].kind, history.events[-1].person) == ("forgotten", "eva")
        with pytest.raises(CaseConflict, match="were removed"):
            store.appeal(name, "author", "no")
    kept = store.get(waiting)
    assert (kept.caption, Path(kept.picture).read_bytes()) == ("words", b"shared")
    assert len([path for path in pictures.folder.rglob("*") if path.is_file()]) == 1, "one that no case has goes"
    with store.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Note)) == 1


def test_command(tmp_path: Path) -> None:
    store = CaseStore(Database(tmp_path / "cases.sqlite"))
    add(store, CasePictures(tmp_path / "cases.pictures"), b"one")
    words = ["cases", "forget", "--cases", str(tmp_path / "cases.sqlite"), "--author", "eva", "--before"]
    assert '"cases": 0' in CliRunner().invoke(app, [*words, "2020-01-01", "--json"]).output
    assert "Memes of 1 cases" in CliRunner().invoke(app, [*words, "2100-01-01"]).output
    missing = CliRunner().invoke(app, ["cases", "forget", "--cases", "none.sqlite", "--before", "2020-01-01"])
    assert missing.exit_code == 2
    assert "does not exist" in missing.output
