"""The PrideMM reader on small invented copies of every layout that PrideMM is passed round in."""

import json
from pathlib import Path
from typing import Any

import pytest
from meme_files import Imported, imported, jsonl, picture, table

from ra_hmd.core.errors import UserError
from ra_hmd.data.import_dataset import ImportOptions
from ra_hmd.data.meme_dataset import open_data
from ra_hmd.data.readers import get_reader

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


def record(name: str, caption: str, answer: str, **more: Any) -> dict[str, Any]:
    """A record as RA-HMD's ShareGPT files have it."""
    return {
        "id": name,
        "messages": [
            {"content": f'<image> This is an image with: "{caption}" written on it. Is it hateful?', "role": "user"},
            {"content": answer, "role": "assistant"},
        ],
        "images": [f"./data/image/PrideMM/All/{name}.png"],
        **more,
    }


def array(path: Path, *records: dict[str, Any]) -> Path:
    """A JSON array, indented by 4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=4))
    return path


@pytest.fixture
def official_copy(tmp_path: Path) -> Imported:
    return imported("pridemm", copy(tmp_path / "PrideMM"), tmp_path / "out")


def test_official_table_and_images(official_copy: Imported, tmp_path: Path) -> None:
    folder = tmp_path / "PrideMM/Images"
    assert official_copy.rows["train"] == [
        {
            "id": "img_1",
            "image": str(folder / "img_1.png"),
            "text": "a rainbow flag on a sunny day",
            "raw_text": "a rainbow flag on a sunny day ",
            "label": 0,
            "split": "train",
            "extras": {"target": None, "stance": 1, "humour": 1},
        },
        {
            "id": "img_3",
            "image": str(folder / "img_3.png"),
            "text": "more coffee please",
            "raw_text": " more coffee please",
            "label": 1,
            "split": "train",
            "extras": {"target": 0, "stance": 0, "humour": 1},
        },
        {
            "id": "img_6",
            "image": str(folder / "img_6.png"),
            "text": "monday again",
            "raw_text": "monday again",
            "label": 1,
            "split": "train",
            "extras": {"target": 1, "stance": 1, "humour": 1},
        },
    ]
    assert official_copy.rows["val"] == [
        {
            "id": "img_2",
            "image": str(folder / "img_2.png"),
            "text": "two cats share one umbrella",
            "raw_text": "two cats share one umbrella",
            "label": 1,
            "split": "val",
            "extras": {"target": 2, "stance": 2, "humour": 0},
        }
    ]
    assert official_copy.rows["test"] == [
        {
            "id": "img_4",
            "image": str(folder / "img_4.png"),
            "text": 'tea, cake, and "rain"',
            "raw_text": 'tea, cake, and "rain"',
            "label": 1,
            "split": "test",
            "extras": {"target": 3, "stance": 2, "humour": 0},
        },
        {
            "id": "img_5",
            "image": str(folder / "img_5.png"),
            "text": "a snail in the rain",
            "raw_text": "a snail in the rain",
            "label": 0,
            "split": "test",
            "extras": {"target": None, "stance": 0, "humour": 0},
        },
    ]
    assert all(Path(row["image"]).is_file() for rows in official_copy.rows.values() for row in rows)
    assert official_copy.rejected == []
    manifest = official_copy.manifest
    assert (manifest["dataset"], manifest["layout"], manifest["variant"]) == ("pridemm", "official table", "official")
    assert manifest["splits"] == {"test": 2, "train": 3, "val": 1}
    assert manifest["notes"] == []


@pytest.mark.parametrize("folder", ["img", "data/all pictures", "."])
def test_another_image_folder_name(tmp_path: Path, folder: str) -> None:
    root = copy(tmp_path / "root", folder)
    data = imported("pridemm", root, tmp_path / "out")
    assert data.column("test", "image") == [str(root / folder / "img_4.png"), str(root / folder / "img_5.png")]
    assert data.rejected == []


def test_images_in_a_folder_of_their_own(tmp_path: Path) -> None:
    table(tmp_path / "tables/PrideMM.csv", HEADER + ROWS)
    for number in range(1, 7):
        picture(tmp_path / f"elsewhere/deep/img_{number}.png")
    data = imported("pridemm", tmp_path / "tables", tmp_path / "out", images=tmp_path / "elsewhere")
    assert data.column("val", "image") == [str(tmp_path / "elsewhere/deep/img_2.png")]
    assert data.manifest["splits"] == {"test": 2, "train": 3, "val": 1}


def test_jsonl_files_of_rgcl(tmp_path: Path) -> None:
    data = imported("pridemm", rgcl(tmp_path / "data"), tmp_path / "out")
    folder = tmp_path / "data/image/PrideMM/All"
    assert data.manifest["layout"] == "RA-HMD's jsonl files"
    assert data.manifest["splits"] == {"test": 2, "train": 2, "val": 1}
    assert data.manifest["notes"] == ["this layout has the hate task alone"]
    assert data.rows["train"] == [
        {
            "id": "img_1",
            "image": str(folder / "img_1.png"),
            "text": "a rainbow flag on a sunny day",
            "raw_text": "a rainbow flag on a sunny day ",
            "label": 0,
            "split": "train",
            "extras": {},
        },
        {
            "id": "img_3",
            "image": str(folder / "img_3.png"),
            "text": "more coffee please",
            "raw_text": " more coffee please",
            "label": 1,
            "split": "train",
            "extras": {},
        },
    ]
    assert data.column("val", "id") == ["img_2"]
    assert data.column("test", "id") == ["img_4", "img_5"]
    assert data.column("test", "label") == [1, 0]
    assert all(Path(row["image"]).is_file() for rows in data.rows.values() for row in rows)
    assert data.rejected == []


def test_jsonl_with_crlf_escaped_slashes_and_no_last_newline(tmp_path: Path) -> None:
    data = imported("pridemm", rgcl(tmp_path / "data", escape=True, crlf=True, end=False), tmp_path / "out")
    assert data.manifest["splits"] == {"test": 2, "train": 2, "val": 1}
    assert data.column("test", "text") == ['tea, cake, and "rain"', "a snail in the rain"]


def test_jsonl_and_csv_agree(tmp_path: Path) -> None:
    rgcl_copy = imported("pridemm", rgcl(tmp_path / "data"), tmp_path / "a")
    csv_copy = imported("pridemm", copy(tmp_path / "PrideMM"), tmp_path / "b")
    for field in ("id", "text", "raw_text", "label"):
        assert rgcl_copy.column("test", field) == csv_copy.column("test", field)
        assert rgcl_copy.column("val", field) == csv_copy.column("val", field)


@pytest.mark.parametrize("root", ["", "data"])
def test_sharegpt_files_with_relative_image_paths(tmp_path: Path, root: str) -> None:
    repository = tmp_path / "RA-HMD"
    gt, folder = repository / "data/gt/PrideMM", repository / "data/image/PrideMM/All"
    no, yes = "No. It is not a hateful meme.", "Yes. It is a hateful meme."
    array(
        gt / "sharegpt_PrideMM_train_instructblip.json",
        record("img_1", "a rainbow flag on a sunny day", no, label=0),
        record("img_3", 'more "coffee" please', yes, label=1),
    )
    array(gt / "sharegpt_PrideMM_val_instructblip.json", record("img_2", "two cats", yes, label=1))
    array(gt / "sharegpt_PrideMM_test_instructblip.json", record("img_5", "a snail in the rain", no, label=0))
    array(repository / "data/dataset_info.json")
    for number in (1, 2, 3, 5):
        picture(folder / f"img_{number}.png")
    data = imported("pridemm", repository / root, tmp_path / "out")
    assert data.manifest["layout"] == "RA-HMD ShareGPT files"
    assert data.manifest["splits"] == {"test": 1, "train": 2, "val": 1}
    assert data.rows["train"] == [
        {
            "id": "img_1",
            "image": str(folder / "img_1.png"),
            "text": "a rainbow flag on a sunny day",
            "raw_text": "a rainbow flag on a sunny day",
            "label": 0,
            "split": "train",
            "extras": {},
        },
        {
            "id": "img_3",
            "image": str(folder / "img_3.png"),
            "text": 'more "coffee" please',
            "raw_text": 'more "coffee" please',
            "label": 1,
            "split": "train",
            "extras": {},
        },
    ]
    assert (data.column("val", "id"), data.column("val", "label")) == (["img_2"], [1])
    assert data.column("test", "image") == [str(folder / "img_5.png")]


def test_sharegpt_answer_is_the_label_where_the_label_key_is_missing(tmp_path: Path) -> None:
    array(
        tmp_path / "data/gt/PrideMM/sharegpt_PrideMM_test_instructblip.json",
        record("img_1", "a flag", "No. It is not a hateful meme."),
        record("img_2", "a cat", "Yes. It is a hateful meme."),
        record("img_3", "a dog", "community"),
    )
    for number in (1, 2, 3):
        picture(tmp_path / f"data/image/PrideMM/All/img_{number}.png")
    data = imported("pridemm", tmp_path / "data", tmp_path / "out")
    assert (data.column("test", "id"), data.column("test", "label")) == (["img_1", "img_2"], [0, 1])
    assert [row["reason"] for row in data.rejected] == ["answer 'community' begins with neither 'No' or 'Yes'"]


def test_sharegpt_files_of_other_questions_are_not_read(tmp_path: Path) -> None:
    gt = tmp_path / "data/gt/PrideMM"
    array(gt / "sharegpt_PrideMM_train_target_choice.json", record("img_1", "a flag", "community"))
    array(gt / "sharegpt_PrideMM_train_stance_choice.json", record("img_1", "a flag", "support"))
    picture(tmp_path / "data/image/PrideMM/All/img_1.png")
    with pytest.raises(UserError, match="No files of PrideMM"):
        imported("pridemm", tmp_path / "data", tmp_path / "out")


def test_names_of_the_sharegpt_files() -> None:
    assert get_reader("pridemm").sharegpt == {
        "train": ("pridemm", "gt/PrideMM/sharegpt_PrideMM_train_instructblip.json"),
        "val": ("pridemm_dev", "gt/PrideMM/sharegpt_PrideMM_val_instructblip.json"),
        "test": ("pridemm_test", "gt/PrideMM/sharegpt_PrideMM_test_instructblip.json"),
    }


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


@pytest.mark.parametrize(("stance", "name"), [(0, "neutral"), (1, "support"), (2, "oppose")])
def test_stances(tmp_path: Path, stance: int, name: str) -> None:
    root = copy(tmp_path / "root", rows=f"img_1.png,0,NA,{stance},0,train,a kite\n")
    opened = open_data(imported("pridemm", root, tmp_path / "out").folder)
    task = opened.task("stance")
    assert task.classes[opened.value(task, next(opened.memes("train")))] == name


@pytest.mark.parametrize(
    ("target", "name"), [(0, "undirected"), (1, "individual"), (2, "community"), (3, "organization")]
)
def test_targets(tmp_path: Path, target: int, name: str) -> None:
    root = copy(tmp_path / "root", rows=f"img_1.png,1,{target},0,0,train,a kite\n")
    opened = open_data(imported("pridemm", root, tmp_path / "out").folder)
    task = opened.task("target")
    assert task.classes[opened.value(task, next(opened.memes("train")))] == name


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


@pytest.mark.parametrize("word", ["None", "none", "null", "NA", "nan", "N/A"])
def test_caption_none_or_null_stays_text(tmp_path: Path, word: str) -> None:
    data = imported("pridemm", copy(tmp_path / "root", rows=f"img_1.png,0,NA,0,0,train,{word}\n"), tmp_path / "out")
    assert data.column("train", "text") == [word]
    assert data.column("train", "raw_text") == [word]
    assert data.rejected == []


def test_caption_of_9516_characters_is_whole(tmp_path: Path) -> None:
    caption = "a flag on a sunny day, " * 413 + "a cat on the roof"
    assert len(caption) == 9516
    root = copy(tmp_path / "root", rows=f'img_1.png,0,NA,0,0,train,"{caption}"\n')
    data = imported("pridemm", root, tmp_path / "out")
    assert data.column("train", "text") == [caption]
    assert data.column("train", "raw_text") == [caption]


def test_blanks_are_stripped_and_kept_in_raw_text(tmp_path: Path) -> None:
    root = copy(tmp_path / "root", rows="img_1.png,0,NA,0,0,train,  a sunny  day \n")
    data = imported("pridemm", root, tmp_path / "out")
    assert (data.column("train", "text"), data.column("train", "raw_text")) == (["a sunny  day"], ["  a sunny  day "])
    raw = imported("pridemm", root, tmp_path / "raw", options=ImportOptions(text="raw"))
    assert raw.column("train", "text") == ["  a sunny  day "]


def test_splits_are_those_of_the_table_not_of_the_row_order(official_copy: Imported) -> None:
    assert official_copy.column("train", "id") == ["img_1", "img_3", "img_6"]
    assert official_copy.column("val", "id") == ["img_2"]
    assert official_copy.column("test", "id") == ["img_4", "img_5"]


def test_val_is_not_cut_from_train_and_not_test(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has a dev split of its own"):
        imported("pridemm", rgcl(tmp_path / "data"), tmp_path / "out", options=ImportOptions(val_fraction=0.5))


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    root = tmp_path / "root"
    table(root / "PrideMM.csv", "text,split,name,humour,stance,target,hate\na kite,test,img_9.png,1,2,3,1\n")
    picture(root / "Images/img_9.png")
    data = imported("pridemm", root, tmp_path / "out")
    assert data.column("test", "text") == ["a kite"]
    assert data.column("test", "label") == [1]
    assert data.column("test", "extras") == [{"target": 3, "stance": 2, "humour": 1}]


def test_byte_order_mark_and_crlf_are_no_fault(tmp_path: Path) -> None:
    data = imported("pridemm", copy(tmp_path / "root", bom=True, crlf=True), tmp_path / "out")
    assert data.manifest["splits"] == {"test": 2, "train": 3, "val": 1}
    assert data.column("train", "raw_text")[0] == "a rainbow flag on a sunny day "
    assert data.rejected == []


def test_png_that_is_jpeg_loads(tmp_path: Path) -> None:
    root = copy(tmp_path / "root", rows="img_1.png,0,NA,0,0,train,a kite\n")
    path = picture(root / "Images/img_1.png", "JPEG")
    assert path.read_bytes().startswith(b"\xff\xd8")
    assert imported("pridemm", root, tmp_path / "out").column("train", "image") == [str(path)]


def test_missing_images_are_counted_not_fatal(tmp_path: Path) -> None:
    root = copy(tmp_path / "root")
    for name in ("img_3.png", "img_5.png"):
        (root / "Images" / name).unlink()
    data = imported("pridemm", root, tmp_path / "out")
    assert data.manifest["splits"] == {"test": 1, "train": 2, "val": 1}
    assert data.manifest["rejected"] == {"test": 1, "train": 1}
    assert data.manifest["reasons"] == {"image missing": 2}
    assert data.rejected == [
        {
            "split": "train",
            "place": "PrideMM.csv, line 4",
            "id": "img_3",
            "reason": f"image missing: {root / 'Images/img_3.png'}",
        },
        {
            "split": "test",
            "place": "PrideMM.csv, line 6",
            "id": "img_5",
            "reason": f"image missing: {root / 'Images/img_5.png'}",
        },
    ]
    assert data.manifest["notes"] == [
        "PrideMM.csv, train: of its first 3 images 1 are not there",
        "PrideMM.csv, test: of its first 2 images 1 are not there",
    ]


def test_an_image_file_that_is_none_is_rejected(tmp_path: Path) -> None:
    root = copy(tmp_path / "root")
    (root / "Images/img_2.png").write_bytes(b"")
    data = imported("pridemm", root, tmp_path / "out")
    assert data.manifest["splits"] == {"test": 2, "train": 3}
    assert [(row["id"], row["reason"]) for row in data.rejected] == [
        ("img_2", f"not an image: {root / 'Images/img_2.png'} (the file is empty)")
    ]


def test_two_tables_below_one_root_are_an_error_that_lists_both(tmp_path: Path) -> None:
    copy(tmp_path / "all/first")
    copy(tmp_path / "all/second")
    with pytest.raises(UserError, match="lies below .* more than once") as error:
        imported("pridemm", tmp_path / "all", tmp_path / "out")
    assert f"  - {tmp_path / 'all/first'}\n" in str(error.value) + "\n"
    assert f"  - {tmp_path / 'all/second'}\n" in str(error.value) + "\n"


def test_two_copies_of_the_jsonl_files_are_an_error_that_lists_both(tmp_path: Path) -> None:
    rgcl(tmp_path / "all/first")
    rgcl(tmp_path / "all/second")
    with pytest.raises(UserError, match="lies below .* more than once") as error:
        imported("pridemm", tmp_path / "all", tmp_path / "out")
    assert f"  - {tmp_path / 'all/first/gt/PrideMM'}" in str(error.value)
    assert f"  - {tmp_path / 'all/second/gt/PrideMM'}" in str(error.value)


def test_the_table_comes_before_the_jsonl_files_which_are_noted(tmp_path: Path) -> None:
    copy(tmp_path / "all/PrideMM")
    rgcl(tmp_path / "all/data")
    data = imported("pridemm", tmp_path / "all", tmp_path / "out")
    assert data.manifest["layout"] == "official table"
    where = tmp_path / "all/data/gt/PrideMM"
    assert data.manifest["notes"] == [f"also there and not read: RA-HMD's jsonl files in {where}"]
    assert data.column("train", "extras.stance") == [1, 0, 1]


@pytest.mark.parametrize(
    ("split", "rows", "hate", "target", "stance", "humour"),
    [
        ("train", 4328, (2208, 2120), (666, 219, 986, 249), (1252, 1645, 1431), (1385, 2943)),
        ("val", 228, (113, 115), (37, 11, 56, 11), (66, 82, 80), (67, 161)),
        ("test", 507, (260, 247), (68, 19, 122, 38), (140, 182, 185), (190, 317)),
    ],
)
def test_expected_counts(
    split: str,
    rows: int,
    hate: tuple[int, ...],
    target: tuple[int, ...],
    stance: tuple[int, ...],
    humour: tuple[int, ...],
) -> None:
    expected = get_reader("pridemm").expected["official"][split]
    assert expected.rows == rows
    assert dict(expected.tasks) == {"hate": hate, "target": target, "stance": stance, "humour": humour}


def test_expected_counts_add_up_to_5063_rows() -> None:
    expected = get_reader("pridemm").expected
    assert list(expected) == ["official"]
    assert set(expected["official"]) == {"train", "val", "test"}
    assert sum(split.rows for split in expected["official"].values()) == 5063


def test_classes_in_index_order() -> None:
    tasks = {task.name: task.classes for task in get_reader("pridemm").tasks}
    assert tasks == {
        "hate": ("not hateful", "hateful"),
        "target": ("undirected", "individual", "community", "organization"),
        "stance": ("neutral", "support", "oppose"),
        "humour": ("not humorous", "humorous"),
    }
