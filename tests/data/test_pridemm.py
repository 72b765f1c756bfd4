"""Reader of PrideMM: layouts and cells, beyond the contract of `test_readers.py`."""

from pathlib import Path

import pytest
from meme_files import Imported, imported, jsonl, picture, records, table

from ra_hmd.data.meme_dataset import open_data

HEADER = "name,hate,target,stance,humour,split,text\n"
ROWS = (
    "img_1.png,0,NA,1,1,train,a rainbow flag on a sunny day \n"
    "img_2.png,1,2,2,0,val,two cats share one umbrella\n"
    "img_3.png,1,0,0,1,train, more coffee please\n"
    'img_4.png,1,3,2,0,test,"tea, cake, and ""rain"""\n'
    "img_5.png,0,NA,0,0,test,a snail in the rain\n"
    "img_6.png,1,1,1,1,train,monday again\n"
)


def copy(root: Path, images: str = "Images", *, rows: str = ROWS, **how: bool) -> Path:
    """`PrideMM.csv` and a picture of each of its rows in the folder `images`."""
    table(root / "PrideMM.csv", HEADER + rows, **how)
    for line in rows.splitlines():
        if line.startswith("img_"):
            picture(root / images / line.split(",")[0])
    return root


def rgcl(data: Path, **how: bool) -> Path:
    """`data/gt/PrideMM` and `data/image/PrideMM/All`."""
    rows = {
        "train": [("img_1", 0, "a rainbow flag on a sunny day "), ("img_3", 1, " more coffee please")],
        "val": [("img_2", 1, "two cats share one umbrella")],
        "test": [("img_4", 1, 'tea, cake, and "rain"'), ("img_5", 0, "a snail in the rain")],
    }
    for split, items in rows.items():
        lines = [{"id": name, "img": f"img/{name}.png", "label": label, "text": text} for name, label, text in items]
        jsonl(data / f"gt/PrideMM/{split}.jsonl", lines, **how)
        for name, _, _ in items:
            picture(data / f"image/PrideMM/All/{name}.png")
    return data


@pytest.fixture
def official_copy(tmp_path: Path) -> Imported:
    return imported("pridemm", copy(tmp_path / "PrideMM"), tmp_path / "out")


def test_official_table(official_copy: Imported) -> None:
    assert official_copy.rejected == []
    assert {split: official_copy.column(split, "extras") for split in official_copy.rows} == {
        "train": [
            {"target": None, "stance": 1, "humour": 1},
            {"target": 0, "stance": 0, "humour": 1},
            {"target": 1, "stance": 1, "humour": 1},
        ],
        "val": [{"target": 2, "stance": 2, "humour": 0}],
        "test": [{"target": 3, "stance": 2, "humour": 0}, {"target": None, "stance": 0, "humour": 0}],
    }


@pytest.mark.parametrize("folder", ["img", "data/all pictures", "."])
def test_another_image_folder_name(tmp_path: Path, folder: str) -> None:
    root = copy(tmp_path / "root", folder)
    data = imported("pridemm", root, tmp_path / "out")
    assert data.column("test", "image") == [str(root / folder / "img_4.png"), str(root / folder / "img_5.png")]
    assert data.rejected == []


def test_jsonl_files_of_rgcl(tmp_path: Path) -> None:
    data = imported("pridemm", rgcl(tmp_path / "data"), tmp_path / "out")
    assert data.manifest["layout"] == "RA-HMD's jsonl files"
    assert data.manifest["notes"] == ["this layout has the hate task alone"]
    assert records(data, tmp_path / "data/image/PrideMM/All") == {
        "train": [
            ("img_1", "img_1.png", 0, "a rainbow flag on a sunny day", "a rainbow flag on a sunny day "),
            ("img_3", "img_3.png", 1, "more coffee please", " more coffee please"),
        ],
        "val": [("img_2", "img_2.png", 1, "two cats share one umbrella", "two cats share one umbrella")],
        "test": [
            ("img_4", "img_4.png", 1, 'tea, cake, and "rain"', 'tea, cake, and "rain"'),
            ("img_5", "img_5.png", 0, "a snail in the rain", "a snail in the rain"),
        ],
    }
    assert data.column("train", "extras") == [{}, {}]
    assert data.rejected == []


def test_jsonl_and_csv_agree(tmp_path: Path) -> None:
    rgcl_copy = imported("pridemm", rgcl(tmp_path / "data"), tmp_path / "a")
    csv_copy = imported("pridemm", copy(tmp_path / "PrideMM"), tmp_path / "b")
    for field in ("id", "text", "raw_text", "label"):
        assert rgcl_copy.column("test", field) == csv_copy.column("test", field)
        assert rgcl_copy.column("val", field) == csv_copy.column("val", field)


def test_na_target_is_none(official_copy: Imported) -> None:
    assert official_copy.column("train", "extras.target") == [None, 0, 1]
    assert official_copy.column("test", "extras.target") == [3, None]
    opened = open_data(official_copy.folder)
    assert [opened.value(opened.task("target"), meme) for meme in opened.memes("test")] == [3, None]


def test_na_target_does_not_make_the_other_targets_floats(official_copy: Imported) -> None:
    text = (official_copy.folder / "train.jsonl").read_text()
    assert '"target": null' in text
    assert '"target": 1' in text
    assert '"target": 1.0' not in text


@pytest.mark.parametrize(("cell", "target"), [("nan", None), ("", None), ("2.0", 2), ("0.0", 0), ("3", 3)])
def test_targets_of_a_copy_that_went_through_pandas(tmp_path: Path, cell: str, target: int | None) -> None:
    root = copy(tmp_path / "root", rows=f"img_1.png,1,{cell},0,0,train,a kite\n")
    assert imported("pridemm", root, tmp_path / "out").column("train", "extras.target") == [target]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ("2,NA,0,0,train", "hate is '2'; it should be 0 or 1"),
        ("1,4,0,0,train", "target is '4'; it should be NA or 0 to 3"),
        ("1,-1,0,0,train", "target is '-1'; it should be NA or 0 to 3"),
        ("1,1.5,0,0,train", "target is '1.5'; it should be NA or 0 to 3"),
        ("1,0,3,0,train", "stance is '3'; it should be NA or 0 to 2"),
        ("1,0,0,2,train", "humour is '2'; it should be 0 or 1"),
        ("1,0,0,0,dev", "split is 'dev'; it should be train, val or test"),
    ],
)
def test_a_value_that_is_not_of_the_scheme_is_rejected(tmp_path: Path, cells: str, reason: str) -> None:
    rows = f"img_1.png,{cells},a kite\nimg_2.png,0,NA,0,0,train,a boat\n"
    data = imported("pridemm", copy(tmp_path / "root", rows=rows), tmp_path / "out")
    assert data.column("train", "id") == ["img_2"]
    assert [(row["place"], row["reason"]) for row in data.rejected] == [("PrideMM.csv, line 2", reason)]


def test_splits_are_those_of_the_table_not_of_the_row_order(official_copy: Imported) -> None:
    assert official_copy.column("train", "id") == ["img_1", "img_3", "img_6"]
    assert official_copy.column("val", "id") == ["img_2"]
    assert official_copy.column("test", "id") == ["img_4", "img_5"]


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    root = tmp_path / "root"
    table(root / "PrideMM.csv", "text,split,name,humour,stance,target,hate\na kite,test,img_9.png,1,2,3,1\n")
    picture(root / "Images/img_9.png")
    data = imported("pridemm", root, tmp_path / "out")
    assert data.column("test", "text") == ["a kite"]
    assert data.column("test", "label") == [1]
    assert data.column("test", "extras") == [{"target": 3, "stance": 2, "humour": 1}]


def test_the_table_comes_before_the_jsonl_files_which_are_noted(tmp_path: Path) -> None:
    copy(tmp_path / "all/PrideMM")
    rgcl(tmp_path / "all/data")
    data = imported("pridemm", tmp_path / "all", tmp_path / "out")
    assert data.manifest["layout"] == "official table"
    where = tmp_path / "all/data/gt/PrideMM"
    assert data.manifest["notes"] == [f"also there and not read: RA-HMD's jsonl files in {where}"]
    assert data.column("train", "extras.stance") == [1, 0, 1]
