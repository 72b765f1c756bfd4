"""CONTRIBUTING.md, "Four things that are one file each": one of each is added, as described there."""

import json
from pathlib import Path

import pytest
from meme_files import jsonl, picture
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.readers import READERS
from ra_hmd.data.readers.base import LocatedCopy, Reader, split_files
from ra_hmd.data.readers.tree import Tree
from ra_hmd.data.rows import Row
from ra_hmd.models.tokenization import FAMILY_TEMPLATES, check_family


class Teapots(Reader):
    """An invented data set."""

    name = "teapots"
    title = "Teapots"
    licence = "invented"
    owner = "this test"
    looked_for = "train.jsonl with the fields pot and words"

    def layouts(self, tree: Tree) -> list[LocatedCopy]:
        return [LocatedCopy("tables", parts) for parts in split_files(tree, {"pot": r".+\.png", "words": ".*"})]

    def meme(self, row: Row, part: object, copy: LocatedCopy) -> Meme:
        pot = row.values["pot"]
        return Meme(pot, Path(pot), row.values["words"], int(row.values["hateful"]), "train")


def test_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, Teapots.name, Teapots)
    picture(tmp_path / "copy" / "one.png")
    jsonl(tmp_path / "copy" / "train.jsonl", [{"pot": "one.png", "words": "tea is ready", "hateful": 0}])
    words = ["data", "import", "teapots", str(tmp_path / "copy"), "--output", str(tmp_path / "memes"), "--workers", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    (row,) = [json.loads(line) for line in (tmp_path / "memes" / "train.jsonl").read_text().splitlines()]
    assert (row["id"], row["text"], row["label"]) == ("one.png", "tea is ready", 0)
    assert "teapots" in CliRunner().invoke(app, ["data", "list"]).output


def test_an_lmm_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILY_TEMPLATES, "invented_vl", ("invented",))
    check_family("invented_vl", "invented")
    with pytest.raises(UserError, match="qwen2_vl") as error:
        check_family("invented_vl", "qwen2_vl")
    assert "invented" in str(error.value)
