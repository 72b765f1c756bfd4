"""Tables as spreadsheets, browsers and Windows leave them."""

import json
from pathlib import Path

import pytest
from meme_files import Imported, picture
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.import_dataset import import_data
from ra_hmd.data.readers import get_reader
from ra_hmd.data.rows import csv_rows
from ra_hmd.inference.batch_reader import read_batch

HEADER = "id,image,text,label\n"


def _import(folder: Path, text: str, name: str = "train.csv", **options: dict[str, int]) -> Imported:
    for image in ("a.png", "b.png"):
        picture(folder / "img" / image)
    (folder / name).write_text(text, encoding="utf-8", newline="")
    import_data(get_reader("generic", **options), folder, folder / "out")
    return Imported(folder / "out")


@pytest.mark.parametrize(
    "text",
    [
        "id,image,text,label,,\n1,img/a.png,x,1,,\n2,img/b.png,y,0,,\n,,,,,\n,,,,,\n",
        "\ufeffid;image;text;label\r\n1;img/a.png;x;1\r\n2;img/b.png;y;0\r\n;;;\r\n",
        "sep=;\r\nid;image;text;label\r\n1;img/a.png;x;1\r\n2;img/b.png;y;0\r\n",
        '"sep=,"\r\n' + HEADER + "1,img/a.png,x,1\n2,img/b.png,y,0\n",
        HEADER + "1,img/a.png,x,1,\n2,img/b.png,y,0,,\n",
        HEADER + "1,img\\a.png,x, 1 \n2,.\\img\\b.png,y,0 \n",
    ],
    ids=["blank-edges", "semicolons", "sep-line", "sep-line-quoted", "longer-rows", "backslashes"],
)
def test_what_a_spreadsheet_adds_is_no_meme(tmp_path: Path, text: str) -> None:
    got = _import(tmp_path, text)
    assert [(row["id"], row["text"], row["label"], row["extras"]) for row in got.rows["train"]] == [
        ("1", "x", 1, {}),
        ("2", "y", 0, {}),
    ]
    assert got.rejected == []


def test_lines_are_counted_from_the_files_first_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\na;b\n1;2\n;\n1;2;3\n")
    rows = list(csv_rows(tmp_path / "a.csv"))
    assert [(row.place, row.values, row.problem) for row in rows] == [
        ("a.csv, line 3", {"a": "1", "b": "2"}, ""),
        ("a.csv, line 5", {}, "3 columns, the header has 2"),
    ]


def test_cells_without_a_heading_that_say_something_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,\n1,\n1,note\n")
    assert [row.values for row in csv_rows(tmp_path / "a.csv")] == [{"a": "1"}, {"a": "1", "": "note"}]


def test_a_blank_label_is_none(tmp_path: Path) -> None:
    got = _import(tmp_path, HEADER + "1,img/a.png,x, \n2,img/b.png,y,no \n", labels={"no": 0})
    assert got.column("train", "label") == [None, 0]


@pytest.mark.parametrize(("label", "hint"), [("TRUE", "--labels TRUE=1"), ("not hateful", "--labels 'not hateful=1'")])
def test_labels_that_are_words_are_what_is_told_not_images(tmp_path: Path, label: str, hint: str) -> None:
    with pytest.raises(UserError) as told:
        _import(tmp_path, f"{HEADER}1,img/a.png,x,{label}\n")
    assert repr(label) in str(told.value)
    assert hint in str(told.value)
    assert "--images" not in str(told.value)


def test_a_second_download_of_a_table_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(HEADER + "1,img/a.png,x,1\n")
    with pytest.raises(UserError, match=r"train \(1\)\.csv"):
        _import(tmp_path, HEADER + "1,img/a.png,x,1\n2,img/b.png,y,0\n", "train (1).csv")


@pytest.mark.parametrize("text", ["", HEADER])
def test_a_table_without_rows_is_called_so(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="no row"):
        _import(tmp_path, text)


def test_rows_to_judge_are_read_alike(tmp_path: Path) -> None:
    picture(tmp_path / "img" / "a.png")
    (tmp_path / "a.csv").write_text("sep=;\nid;image;text;\n1;img\\a.png;x;\n;;;\n  ;img/a.png;x;\n")
    first, blank = read_batch(tmp_path / "a.csv")
    assert first.meme is not None
    assert (first.id, first.meme.image) == ("1", tmp_path / "img" / "a.png")
    assert (blank.place, blank.meme) == ("a.csv, line 5", None)
    (tmp_path / "b.csv").write_text("Id,Image,Text\n1,img/a.png,x\n")
    (row,) = read_batch(tmp_path / "b.csv")
    assert "Id, Image, Text" in row.problem


@pytest.mark.parametrize("output", ["memes.jsonl", "link.jsonl"])
def test_verdicts_do_not_replace_the_memes(served_clip: Path, tmp_path: Path, output: str) -> None:
    picture(tmp_path / "a.png")
    rows = json.dumps({"id": "1", "image": "a.png", "text": "x"})
    (tmp_path / "memes.jsonl").write_text(rows)
    (tmp_path / "link.jsonl").symlink_to("memes.jsonl")
    words = ["predict", "--checkpoint", served_clip / "head", "--input", tmp_path / "memes.jsonl"]
    done = CliRunner().invoke(app, [str(word) for word in [*words, "--output", tmp_path / output]])
    assert done.exit_code == 2
    assert (tmp_path / "memes.jsonl").read_text() == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "link.jsonl", "memes.jsonl"]
