"""Memes of decided cases as a data set."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from servers import drawn
from typer.testing import CliRunner

from ra_hmd.cases import decided_memes
from ra_hmd.cases.database import Database
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.store import CaseStore, Decision, NewCase
from ra_hmd.cli.app import app
from ra_hmd.data.meme_files import read_memes


def add(store: CaseStore, pictures: CasePictures, name: str, label: int | None) -> str:
    """A case, decided where a label is given."""
    picture, digest = pictures.keep(drawn(colour="red" if label else "blue"))
    new = NewCase(meme_id=name, picture=picture, picture_digest=digest, caption=f"the {name}", source="forum")
    case = store.add([new])[0][0]
    if label is not None:
        store.finish(store.begin(case, "ana", Decision("label", label, "a joke")).id)
    return case


def test_decided_memes_with_their_labels(place: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(decided_memes, "_PAGE", 2)
    store, pictures = CaseStore(Database(place)), CasePictures(tmp_path / "pictures")
    cases = [add(store, pictures, name, label) for name, label in (("cat", 0), ("cake", 1), ("dog", None), ("cat", 1))]
    found = list(decided_memes.decided_memes(store.database))
    assert [(one["id"], one["label"], one["case"]) for one in found] == [
        ("cat", 0, cases[0]), ("cake", 1, cases[1]), (f"cat-{cases[3]}", 1, cases[3]),
    ]  # fmt: skip
    later = datetime.now(UTC) + timedelta(minutes=1)
    assert not list(decided_memes.decided_memes(store.database, since=later))
    assert len(list(decided_memes.decided_memes(store.database, until=later))) == 3


def test_the_file_is_imported(tmp_path: Path) -> None:
    place = str(tmp_path / "cases.sqlite")
    store, pictures = CaseStore(Database(place)), CasePictures(tmp_path / "cases.pictures")
    for name, label in (("cat", 0), ("cake", 1)):
        add(store, pictures, name, label)
    output = tmp_path / "decisions.jsonl"
    done = CliRunner().invoke(app, ["cases", "memes", str(output), "--cases", place, "--json"])
    assert json.loads(done.stdout)["memes"] == 2, done.output
    words = ["data", "import", "generic", str(output), "--output", str(tmp_path / "imported")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    memes = read_memes(tmp_path / "imported" / "decisions.jsonl")
    assert [(meme.id, meme.text, meme.label, meme.extras["source"]) for meme in memes] == [
        ("cat", "the cat", 0, "forum"), ("cake", "the cake", 1, "forum"),
    ]  # fmt: skip
    missing = CliRunner().invoke(app, ["cases", "memes", str(output), "--cases", "none.sqlite"])
    assert missing.exit_code == 2
    assert "does not exist" in missing.output
