"""The MAMI reader on small invented copies of every layout that MAMI is passed round in."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from meme_files import Imported, imported, jsonl, picture, table

from ra_hmd.core.errors import UserError
from ra_hmd.data.import_dataset import ImportOptions
from ra_hmd.data.meme_dataset import open_data
from ra_hmd.data.readers import get_reader

HEADER = "file_name\tmisogynous\tshaming\tstereotype\tobjectification\tviolence\tText Transcription\n"
TEST_HEADER = "file_name\tText Transcription\n"
TRIAL = "trial/Users/fersiniel/Desktop/MAMI - TO LABEL/TRIAL DATASET"
TRAINING_ROWS = (
    HEADER + "10.jpg\t0\t0\t0\t0\t0\tA CAT READS THE NEWSPAPER\n"
    "11.jpg\t1\t1\t0\t0\t1\tMore coffee, please\n"
    "15001.jpg\t1\t0\t1\t0\t0\tTwo umbrellas for one cloud\n"
)
TRIAL_ROWS = HEADER + "28.jpg\t1\t0\t0\t1\t0\tSunday is for naps\n"
TEST_ROWS = TEST_HEADER + "15001.jpg\tThe weather says no\n15003.jpg\tMonday, the sequel\n"
TEST_LABELS = "15003.jpg\t1\t0\t1\t1\t0\n15001.jpg\t0\t0\t0\t0\t0\n"


def official(
    root: Path,
    training: str = "training/TRAINING",
    test: str = "test/test",
    *,
    rows: str = TRAINING_ROWS,
    test_rows: str = TEST_ROWS,
    labels: str | None = TEST_LABELS,
    test_images: tuple[str, ...] = ("15001.jpg", "15003.jpg"),
) -> Path:
    """The unzipped folders with three training rows, one trial row and two test rows."""
    table(root / training / "training.csv", rows, bom=True)
    table(root / TRIAL / "trial.csv", TRIAL_ROWS, bom=True)
    table(root / test / "Test.csv", test_rows)
    if labels is not None:
        table(root / "test_labels.txt", labels)
    for name in ("10.jpg", "11.jpg", "15001.jpg"):
        picture(root / training / name)
    picture(root / TRIAL / "28.jpg")
    for name in test_images:
        picture(root / test / name)
    return root


def training_only(root: Path, rows: str, *names: str) -> Path:
    """A copy that is one training table with its images."""
    table(root / "training.csv", HEADER + rows, bom=True)
    for name in names:
        picture(root / name)
    return root


def rgcl(data: Path, **how: bool) -> Path:
    """`data/gt/MAMI` and `data/image/MAMI/All`, with the three renamed test items and a plain one."""
    rows = {
        "train": [("10", 0, "A cat reads the newspaper"), ("15004", 1, "More coffee, please")],
        "val": [("15001", 1, "Two umbrellas for one cloud")],
        "test": [
            ("15001", 0, "The weather says no"),
            ("15004_test", 0, "Monday, the sequel"),
            ("15005_test", 1, "Tea at noon"),
            ("15006_test", 0, "A snail in the rain"),
        ],
    }
    for split, items in rows.items():
        lines = [{"id": name, "img": f"img/{name}.jpg", "label": label, "text": text} for name, label, text in items]
        jsonl(data / f"gt/MAMI/{split}.jsonl", lines, **how)
    for name in ("10", "15001", "15004", "15004_test", "15005_test", "15006_test"):
        picture(data / f"image/MAMI/All/{name}.jpg")
    return data


def sharegpt(path: Path, *rows: tuple[str, str, int]) -> Path:
    """A ShareGPT file of (id, caption, label) as RA-HMD's are."""
    answers = ("No. It is not a hateful meme.", "Yes. It is a hateful meme.")
    records = [
        {
            "id": name,
            "messages": [
                {
                    "content": f'<image> This is an image with: "{caption}" written on it. Is it hateful?',
                    "role": "user",
                },
                {"content": answers[label], "role": "assistant"},
            ],
            "images": [f"./data/image/MAMI/All/{name}.jpg"],
            "label": label,
        }
        for name, caption, label in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=4))
    return path


def pixels(path: str | Path) -> bytes:
    return Path(path).read_bytes()


@pytest.fixture
def official_copy(tmp_path: Path) -> Imported:
    return imported("mami", official(tmp_path / "MAMI DATASET"), tmp_path / "out")


def test_unzipped_folders(official_copy: Imported, tmp_path: Path) -> None:
    root = tmp_path / "MAMI DATASET"
    assert official_copy.rows["train"] == [
        {
            "id": "train_10",
            "image": str(root / "training/TRAINING/10.jpg"),
            "text": "A CAT READS THE NEWSPAPER",
            "raw_text": "A CAT READS THE NEWSPAPER",
            "label": 0,
            "split": "train",
            "extras": {"kind": []},
        },
        {
            "id": "train_11",
            "image": str(root / "training/TRAINING/11.jpg"),
            "text": "More coffee, please",
            "raw_text": "More coffee, please",
            "label": 1,
            "split": "train",
            "extras": {"kind": [0, 3]},
        },
        {
            "id": "train_15001",
            "image": str(root / "training/TRAINING/15001.jpg"),
            "text": "Two umbrellas for one cloud",
            "raw_text": "Two umbrellas for one cloud",
            "label": 1,
            "split": "train",
            "extras": {"kind": [1]},
        },
    ]
    assert official_copy.rows["trial"] == [
        {
            "id": "trial_28",
            "image": str(root / TRIAL / "28.jpg"),
            "text": "Sunday is for naps",
            "raw_text": "Sunday is for naps",
            "label": 1,
            "split": "trial",
            "extras": {"kind": [2]},
        }
    ]
    assert official_copy.rows["test"] == [
        {
            "id": "test_15001",
            "image": str(root / "test/test/15001.jpg"),
            "text": "The weather says no",
            "raw_text": "The weather says no",
            "label": 0,
            "split": "test",
            "extras": {"kind": []},
        },
        {
            "id": "test_15003",
            "image": str(root / "test/test/15003.jpg"),
            "text": "Monday, the sequel",
            "raw_text": "Monday, the sequel",
            "label": 1,
            "split": "test",
            "extras": {"kind": [1, 2]},
        },
    ]
    assert all(Path(row["image"]).is_file() for rows in official_copy.rows.values() for row in rows)
    assert official_copy.rejected == []
    manifest = official_copy.manifest
    assert (manifest["dataset"], manifest["layout"], manifest["variant"]) == ("mami", "official tables", "official")
    assert manifest["splits"] == {"test": 2, "train": 3, "trial": 1}
    assert manifest["notes"] == []
    assert set(manifest["files"]) == {
        str(root / "training/TRAINING/training.csv"),
        str(root / TRIAL / "trial.csv"),
        str(root / "test/test/Test.csv"),
        str(root / "test_labels.txt"),
    }


def test_shallower_folders(tmp_path: Path) -> None:
    data = imported("mami", official(tmp_path / "mami", "TRAINING", "test"), tmp_path / "out")
    assert data.column("train", "id") == ["train_10", "train_11", "train_15001"]
    assert data.column("train", "image")[2] == str(tmp_path / "mami/TRAINING/15001.jpg")
    assert data.column("test", "image") == [str(tmp_path / "mami/test" / name) for name in ("15001.jpg", "15003.jpg")]
    assert data.column("trial", "image") == [str(tmp_path / "mami" / TRIAL / "28.jpg")]
    assert data.column("test", "label") == [0, 1]


def test_names_of_the_official_baselines(tmp_path: Path) -> None:
    root = tmp_path / "baselines"
    table(root / "train.csv", TRAINING_ROWS, bom=True)
    table(root / "test.csv", TEST_ROWS)
    table(root / "ref/truth.txt", TEST_LABELS)
    for name in ("10.jpg", "11.jpg", "15001.jpg"):
        picture(root / "TRAINING" / name)
    for name in ("15001.jpg", "15003.jpg"):
        picture(root / "test" / name)
    data = imported("mami", root, tmp_path / "out")
    assert data.manifest["layout"] == "official tables"
    assert data.manifest["splits"] == {"test": 2, "train": 3}
    assert data.column("train", "image") == [str(root / f"TRAINING/{n}.jpg") for n in (10, 11, 15001)]
    assert data.column("test", "image") == [str(root / f"test/{n}.jpg") for n in (15001, 15003)]
    assert data.column("test", "label") == [0, 1]
    assert data.column("test", "extras.kind") == [[], [1, 2]]


def test_jsonl_files_of_rgcl(tmp_path: Path) -> None:
    data = imported("mami", rgcl(tmp_path / "data"), tmp_path / "out")
    folder = tmp_path / "data/image/MAMI/All"
    assert (data.manifest["layout"], data.manifest["variant"]) == ("RA-HMD's jsonl files", "RA-HMD split")
    assert data.manifest["splits"] == {"test": 4, "train": 2, "val": 1}
    assert data.manifest["notes"] == ["val was cut from the official training set; no sub-labels in this layout"]
    assert data.rows["train"] == [
        {
            "id": "train_10",
            "image": str(folder / "10.jpg"),
            "text": "A cat reads the newspaper",
            "raw_text": "A cat reads the newspaper",
            "label": 0,
            "split": "train",
            "extras": {},
        },
        {
            "id": "train_15004",
            "image": str(folder / "15004.jpg"),
            "text": "More coffee, please",
            "raw_text": "More coffee, please",
            "label": 1,
            "split": "train",
            "extras": {},
        },
    ]
    assert data.column("val", "id") == ["val_15001"]
    assert data.column("val", "label") == [1]
    assert data.column("test", "label") == [0, 0, 1, 0]
    assert all(Path(row["image"]).is_file() for rows in data.rows.values() for row in rows)
    assert data.rejected == []


def test_renamed_test_items_keep_their_image_and_lose_the_suffix_in_the_id(tmp_path: Path) -> None:
    data = imported("mami", rgcl(tmp_path / "data"), tmp_path / "out")
    folder = tmp_path / "data/image/MAMI/All"
    assert data.column("test", "id") == ["test_15001", "test_15004", "test_15005", "test_15006"]
    assert data.column("test", "image") == [
        str(folder / name) for name in ("15001.jpg", "15004_test.jpg", "15005_test.jpg", "15006_test.jpg")
    ]
    assert pixels(data.rows["test"][1]["image"]) != pixels(data.rows["train"][1]["image"])


def test_a_missing_renamed_test_image_is_not_taken_from_training(tmp_path: Path) -> None:
    (rgcl(tmp_path / "data") / "image/MAMI/All/15004_test.jpg").unlink()
    data = imported("mami", tmp_path / "data", tmp_path / "out")
    assert data.column("train", "id") == ["train_10", "train_15004"]
    assert data.column("test", "id") == ["test_15001", "test_15005", "test_15006"]
    assert [row["id"] for row in data.rejected] == ["test_15004"]


def test_jsonl_with_crlf_escaped_slashes_and_no_last_newline(tmp_path: Path) -> None:
    data = imported("mami", rgcl(tmp_path / "data", escape=True, crlf=True, end=False), tmp_path / "out")
    assert data.manifest["splits"] == {"test": 4, "train": 2, "val": 1}
    assert data.column("test", "text")[-1] == "A snail in the rain"
    assert data.rejected == []


@pytest.mark.parametrize("root", ["", "data"])
def test_sharegpt_files(tmp_path: Path, root: str) -> None:
    repository = tmp_path / "RA-HMD"
    gt, folder = repository / "data/gt/MAMI", repository / "data/image/MAMI/All"
    sharegpt(gt / "sharegpt_MAMI_train_instructblip.json", ("10", "A cat reads the newspaper", 0))
    sharegpt(gt / "sharegpt_MAMI_val_instructblip.json", ("15001", 'A "big" umbrella', 1))
    sharegpt(gt / "sharegpt_MAMI_test_instructblip.json", ("15001", "The weather says no", 0), ("15004_test", "Tea", 1))
    for name in ("10", "15001", "15004_test"):
        picture(folder / f"{name}.jpg")
    data = imported("mami", repository / root, tmp_path / "out")
    assert data.manifest["layout"] == "RA-HMD ShareGPT files"
    assert data.manifest["splits"] == {"test": 2, "train": 1, "val": 1}
    assert data.rows["val"] == [
        {
            "id": "val_15001",
            "image": str(folder / "15001.jpg"),
            "text": 'A "big" umbrella',
            "raw_text": 'A "big" umbrella',
            "label": 1,
            "split": "val",
            "extras": {},
        }
    ]
    assert data.column("train", "id") == ["train_10"]
    assert data.column("test", "id") == ["test_15001", "test_15004"]
    assert data.column("test", "image") == [str(folder / "15001.jpg"), str(folder / "15004_test.jpg")]
    assert data.column("test", "label") == [0, 1]


def test_jsonl_files_come_before_the_sharegpt_files_beside_them(tmp_path: Path) -> None:
    rgcl(tmp_path / "data")
    gt = tmp_path / "data/gt/MAMI"
    sharegpt(gt / "sharegpt_MAMI_train_instructblip.json", ("10", "Not this caption", 1))
    data = imported("mami", tmp_path / "data", tmp_path / "out")
    assert data.column("train", "text") == ["A cat reads the newspaper", "More coffee, please"]
    assert f"also there and not read: RA-HMD ShareGPT files in {gt}" in data.manifest["notes"]


def test_byte_order_mark_is_not_part_of_the_first_column(official_copy: Imported, tmp_path: Path) -> None:
    for name in ("training/TRAINING/training.csv", f"{TRIAL}/trial.csv"):
        assert (tmp_path / "MAMI DATASET" / name).read_bytes().startswith(b"\xef\xbb\xbffile_name\t")
    assert official_copy.column("train", "id")[0] == "train_10"
    assert official_copy.column("trial", "id") == ["trial_28"]


@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("crlf", [False, True])
def test_test_table_and_labels_with_and_without_byte_order_mark_and_crlf(tmp_path: Path, bom: bool, crlf: bool) -> None:
    root = official(tmp_path / "mami")
    table(root / "test/test/Test.csv", TEST_ROWS, bom=bom, crlf=crlf)
    table(root / "test_labels.txt", "15001.jpg\t1\t0\t0\t0\t1\n15003.jpg\t0\t0\t0\t0\t0\n", bom=bom, crlf=crlf)
    data = imported("mami", root, tmp_path / "out")
    assert data.column("test", "id") == ["test_15001", "test_15003"]
    assert data.column("test", "label") == [1, 0]
    assert data.column("test", "extras.kind") == [[3], []]
    assert data.column("test", "raw_text") == ["The weather says no", "Monday, the sequel"]


def test_columns_are_separated_by_tabs_not_commas(tmp_path: Path) -> None:
    root = training_only(tmp_path / "mami", "1.jpg\t1\t0\t0\t1\t0\tred, green, and blue; all of them\n", "1.jpg")
    data = imported("mami", root, tmp_path / "out")
    assert data.column("train", "text") == ["red, green, and blue; all of them"]
    assert data.column("train", "extras.kind") == [[2]]


def test_file_and_folder_names_in_another_case(tmp_path: Path) -> None:
    root = tmp_path / "mami"
    table(root / "Training/Training.CSV", HEADER + "1.jpg\t1\t0\t0\t0\t0\tA duck\n", bom=True)
    table(root / "TEST/TEST.csv", TEST_HEADER + "2.jpg\tA goose\n")
    table(root / "Test_Labels.TXT", "2.jpg\t1\t0\t1\t0\t0\n")
    picture(root / "Training/1.jpg")
    picture(root / "TEST/2.jpg")
    data = imported("mami", root, tmp_path / "out")
    assert (data.column("train", "label"), data.column("test", "label")) == ([1], [1])
    assert data.column("test", "image") == [str(root / "TEST/2.jpg")]


def test_test_labels_are_joined_by_name_not_by_row_order(tmp_path: Path) -> None:
    rows = TEST_HEADER + "15003.jpg\tone\n15007.jpg\ttwo\n15001.jpg\tthree\n"
    labels = "15001.jpg\t1\t0\t0\t0\t1\n15003.jpg\t0\t0\t0\t0\t0\n15007.jpg\t1\t1\t0\t0\t0\n"
    images = ("15001.jpg", "15003.jpg", "15007.jpg")
    root = official(tmp_path / "mami", test_rows=rows, labels=labels, test_images=images)
    data = imported("mami", root, tmp_path / "out")
    by_id = dict(zip(data.column("test", "id"), data.column("test", "label"), strict=True))
    assert by_id == {"test_15001": 1, "test_15003": 0, "test_15007": 1}
    assert data.column("test", "extras.kind") == [[], [0], [3]]
    assert data.column("test", "text") == ["one", "two", "three"]


def test_a_test_meme_that_the_labels_do_not_name_is_unlabelled(tmp_path: Path) -> None:
    labels = "15003.jpg\t1\t1\t0\t0\t0\n15999.jpg\t1\t1\t1\t1\t1\n"
    data = imported("mami", official(tmp_path / "mami", labels=labels), tmp_path / "out")
    assert data.column("test", "label") == [None, 1]
    assert data.column("test", "extras.kind") == [None, [0]]


def test_labels_with_a_column_too_few_are_an_error_that_names_the_line(tmp_path: Path) -> None:
    root = official(tmp_path / "mami", labels="15001.jpg\t0\t0\t0\t0\t0\n15003.jpg\t1\t0\t1\t1\n")
    with pytest.raises(UserError, match=r"test_labels\.txt, line 2: 4 labels after the file name, 5 expected"):
        imported("mami", root, tmp_path / "out")


def test_missing_test_labels_leave_the_label_null_and_a_note(tmp_path: Path) -> None:
    data = imported("mami", official(tmp_path / "mami", labels=None), tmp_path / "out")
    assert data.column("test", "id") == ["test_15001", "test_15003"]
    assert data.column("test", "label") == [None, None]
    assert data.column("test", "extras.kind") == [None, None]
    assert data.column("train", "label") == [0, 1, 1]
    assert data.manifest["notes"] == [
        "no test_labels.txt: the test split has no labels",
        "test: 2 of 2 memes have no label",
    ]


def test_one_number_in_training_and_test_is_two_memes(official_copy: Imported) -> None:
    train, test = official_copy.rows["train"][2], official_copy.rows["test"][0]
    assert (train["id"], train["text"], train["label"]) == ("train_15001", "Two umbrellas for one cloud", 1)
    assert (test["id"], test["text"], test["label"]) == ("test_15001", "The weather says no", 0)
    assert Path(train["image"]).name == Path(test["image"]).name == "15001.jpg"
    assert pixels(train["image"]) != pixels(test["image"])
    ids = [name for split in ("train", "trial", "test") for name in official_copy.column(split, "id")]
    assert len(ids) == len(set(ids)) == 6


def test_one_number_in_val_and_test_of_rgcl_is_two_ids(tmp_path: Path) -> None:
    data = imported("mami", rgcl(tmp_path / "data"), tmp_path / "out")
    assert (data.rows["val"][0]["id"], data.rows["val"][0]["text"]) == ("val_15001", "Two umbrellas for one cloud")
    assert (data.rows["test"][0]["id"], data.rows["test"][0]["text"]) == ("test_15001", "The weather says no")


def test_a_missing_test_image_is_not_taken_from_training(tmp_path: Path) -> None:
    data = imported("mami", official(tmp_path / "mami", test_images=("15003.jpg",)), tmp_path / "out")
    assert (tmp_path / "mami/training/TRAINING/15001.jpg").is_file()
    assert data.column("test", "id") == ["test_15003"]
    assert [(row["split"], row["id"], row["reason"]) for row in data.rejected] == [
        ("test", "test_15001", f"image missing: {tmp_path / 'mami/test/test/15001.jpg'}")
    ]


def test_no_test_image_at_all_is_not_taken_from_training(tmp_path: Path) -> None:
    data = imported("mami", official(tmp_path / "mami", test_images=()), tmp_path / "out")
    assert data.manifest["splits"] == {"train": 3, "trial": 1}
    assert [row["id"] for row in data.rejected] == ["test_15001", "test_15003"]
    assert "no images for Test.csv (looked for 15001.jpg): all its rows are rejected" in data.manifest["notes"]


def test_no_training_image_at_all_is_not_taken_from_test(tmp_path: Path) -> None:
    root = official(tmp_path / "mami")
    shutil.move(root / "training/TRAINING/training.csv", root / "training.csv")
    shutil.rmtree(root / "training")
    data = imported("mami", root, tmp_path / "out")
    assert data.manifest["splits"] == {"test": 2, "trial": 1}
    assert [row["id"] for row in data.rejected] == ["train_10", "train_11", "train_15001"]


def test_official_tables_with_all_images_in_one_folder(tmp_path: Path) -> None:
    root = tmp_path / "mami"
    table(root / "training.csv", HEADER + "1.jpg\t1\t0\t0\t0\t1\tA duck\n", bom=True)
    table(root / "Test.csv", TEST_HEADER + "2.jpg\tA goose\n")
    picture(tmp_path / "pictures/1.jpg")
    picture(tmp_path / "pictures/2.jpg")
    data = imported("mami", root, tmp_path / "out", images=tmp_path / "pictures")
    assert data.column("train", "image") == [str(tmp_path / "pictures/1.jpg")]
    assert data.column("test", "image") == [str(tmp_path / "pictures/2.jpg")]


def test_misogynous_without_sub_label_is_positive(tmp_path: Path) -> None:
    root = training_only(tmp_path / "mami", "1.jpg\t1\t0\t0\t0\t0\tA rainy day\n", "1.jpg")
    data = imported("mami", root, tmp_path / "out")
    assert (data.rows["train"][0]["label"], data.rows["train"][0]["extras"]) == (1, {"kind": []})


def test_sub_label_without_misogynous_is_negative(tmp_path: Path) -> None:
    root = training_only(tmp_path / "mami", "1.jpg\t0\t0\t1\t0\t0\tA sunny day\n", "1.jpg")
    data = imported("mami", root, tmp_path / "out")
    assert (data.rows["train"][0]["label"], data.rows["train"][0]["extras"]) == (0, {"kind": [1]})


@pytest.mark.parametrize(
    ("columns", "task"),
    [("1\t0\t0\t0", "shaming"), ("0\t1\t0\t0", "stereotype"), ("0\t0\t1\t0", "objectification"),
     ("0\t0\t0\t1", "violence")],
)  # fmt: skip
def test_each_sub_label_is_a_task_of_its_own(tmp_path: Path, columns: str, task: str) -> None:
    rows = f"1.jpg\t1\t{columns}\tA kite\n"
    data = imported("mami", training_only(tmp_path / "mami", rows, "1.jpg"), tmp_path / "out")
    opened = open_data(data.folder)
    meme = next(opened.memes("train"))
    values = {
        name: opened.value(opened.task(name), meme) for name in ("shaming", "stereotype", "objectification", "violence")
    }
    assert values == {name: int(name == task) for name in ("shaming", "stereotype", "objectification", "violence")}
    assert opened.value(opened.task(None), meme) == 1


def test_sub_tasks_of_an_unlabelled_meme_are_none(tmp_path: Path) -> None:
    opened = open_data(imported("mami", official(tmp_path / "mami", labels=None), tmp_path / "out").folder)
    meme = next(opened.memes("test"))
    names = ("hate", "kind", "shaming", "stereotype", "objectification", "violence")
    assert [opened.value(opened.task(name), meme) for name in names] == [None] * 6


def test_transcription_keeps_its_case_and_characters(tmp_path: Path) -> None:
    root = training_only(tmp_path / "mami", "1.jpg\t0\t0\t0\t0\t0\tCAFÉ au Lait — “twice” ☕\n", "1.jpg")
    assert imported("mami", root, tmp_path / "out").column("train", "text") == ["CAFÉ au Lait — “twice” ☕"]


def test_transcription_of_1654_characters_is_whole(tmp_path: Path) -> None:
    caption = "coffee " * 236 + "ok"
    assert len(caption) == 1654
    root = training_only(tmp_path / "mami", f"1.jpg\t0\t0\t0\t0\t0\t{caption}\n", "1.jpg")
    assert imported("mami", root, tmp_path / "out").column("train", "text") == [caption]


def test_newline_inside_a_quoted_transcription_is_one_row(tmp_path: Path) -> None:
    rows = '1.jpg\t1\t0\t0\t0\t0\t"WHEN IT RAINS\nI say ""hello"""\n2.jpg\t0\t0\t0\t0\t0\tNext row\n'
    data = imported("mami", training_only(tmp_path / "mami", rows, "1.jpg", "2.jpg"), tmp_path / "out")
    assert data.column("train", "text") == ['WHEN IT RAINS I say "hello"', "Next row"]
    assert data.column("train", "raw_text") == ['WHEN IT RAINS\nI say "hello"', "Next row"]
    assert data.column("train", "label") == [1, 0]


@pytest.mark.parametrize("word", ["None", "null", "NA", "nan"])
def test_transcription_that_pandas_reads_as_missing_stays_text(tmp_path: Path, word: str) -> None:
    root = training_only(tmp_path / "mami", f"1.jpg\t0\t0\t0\t0\t0\t{word}\n", "1.jpg")
    assert imported("mami", root, tmp_path / "out").column("train", "text") == [word]


def test_blanks_are_stripped_and_kept_in_raw_text(tmp_path: Path) -> None:
    root = training_only(tmp_path / "mami", "1.jpg\t0\t0\t0\t0\t0\t  Good morning \n", "1.jpg")
    data = imported("mami", root, tmp_path / "out")
    assert (data.column("train", "text"), data.column("train", "raw_text")) == (["Good morning"], ["  Good morning "])
    raw = imported("mami", root, tmp_path / "raw", options=ImportOptions(text="raw"))
    assert raw.column("train", "text") == ["  Good morning "]


def test_missing_and_broken_images_are_counted_not_fatal(tmp_path: Path) -> None:
    rows = "".join(f"{number}.jpg\t0\t0\t0\t0\t0\tA boat\n" for number in (1, 2, 3))
    root = training_only(tmp_path / "mami", rows, "2.jpg")
    (root / "3.jpg").write_text("no picture")
    data = imported("mami", root, tmp_path / "out")
    assert data.column("train", "id") == ["train_2"]
    assert data.rejected == [
        {
            "split": "train",
            "place": "training.csv, line 2",
            "id": "train_1",
            "reason": f"image missing: {root / '1.jpg'}",
        },
        {
            "split": "train",
            "place": "training.csv, line 4",
            "id": "train_3",
            "reason": f"not an image: {root / '3.jpg'}",
        },
    ]
    assert data.manifest["rejected"] == {"train": 2}
    assert data.manifest["reasons"] == {"image missing": 1, "not an image": 1}
    assert "training.csv: of its first 3 images 1 are not there" in data.manifest["notes"]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ("2\t0\t0\t0\t0", "misogynous is '2'; it should be 0 or 1"),
        ("1\t0\tyes\t0\t0", "stereotype is 'yes'; it should be 0 or 1"),
    ],
)
def test_a_label_that_is_neither_0_nor_1_is_rejected(tmp_path: Path, cells: str, reason: str) -> None:
    rows = f"1.jpg\t{cells}\tA pond\n2.jpg\t1\t0\t0\t0\t0\tA lake\n"
    data = imported("mami", training_only(tmp_path / "mami", rows, "1.jpg", "2.jpg"), tmp_path / "out")
    assert data.column("train", "id") == ["train_2"]
    assert [(row["place"], row["reason"]) for row in data.rejected] == [("training.csv, line 2", reason)]


def test_a_row_that_comes_twice_is_one_meme(tmp_path: Path) -> None:
    rows = "1.jpg\t0\t0\t0\t0\t0\tA pond\n1.jpg\t1\t0\t0\t0\t0\tA lake\n"
    data = imported("mami", training_only(tmp_path / "mami", rows, "1.jpg"), tmp_path / "out")
    assert data.column("train", "text") == ["A pond"]
    assert [row["reason"] for row in data.rejected] == ["id came before in its split"]


def test_a_split_that_is_not_there_is_noted(tmp_path: Path) -> None:
    root = training_only(tmp_path / "mami", "1.jpg\t0\t0\t0\t0\t0\tA pond\n", "1.jpg")
    data = imported("mami", root, tmp_path / "out")
    assert data.manifest["splits"] == {"train": 1}
    assert data.manifest["notes"] == ["no test among the files"]


def test_two_official_copies_below_one_root_are_an_error_that_lists_both(tmp_path: Path) -> None:
    official(tmp_path / "all/first")
    official(tmp_path / "all/second")
    with pytest.raises(UserError, match="more than one|more than once") as error:
        imported("mami", tmp_path / "all", tmp_path / "out")
    assert str(tmp_path / "all/first") in str(error.value)
    assert str(tmp_path / "all/second") in str(error.value)


def test_two_copies_of_the_jsonl_files_are_an_error_that_lists_both(tmp_path: Path) -> None:
    rgcl(tmp_path / "all/first")
    rgcl(tmp_path / "all/second")
    with pytest.raises(UserError, match="lies below .* more than once") as error:
        imported("mami", tmp_path / "all", tmp_path / "out")
    assert f"  - {tmp_path / 'all/first/gt/MAMI'}" in str(error.value)
    assert f"  - {tmp_path / 'all/second/gt/MAMI'}" in str(error.value)


def test_archives_that_are_still_packed_are_named(tmp_path: Path) -> None:
    (tmp_path / "mami").mkdir()
    (tmp_path / "mami/training.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"No files of MAMI .*Unpack training\.zip"):
        imported("mami", tmp_path / "mami", tmp_path / "out")


def test_tables_without_images_are_an_error(tmp_path: Path) -> None:
    table(tmp_path / "mami/training.csv", TRAINING_ROWS, bom=True)
    with pytest.raises(UserError, match=r"No images of MAMI .*looked for 10\.jpg"):
        imported("mami", tmp_path / "mami", tmp_path / "out")


@pytest.mark.parametrize(
    ("variant", "split", "rows", "tasks"),
    [
        ("official", "train", 10000, {"hate": (5000, 5000), "kind": (1274, 2810, 2202, 953)}),
        ("official", "trial", 100, {}),
        ("official", "test", 1000, {"hate": (500, 500), "kind": (146, 350, 348, 153)}),
        ("RA-HMD split", "train", 9000, {"hate": (4500, 4500)}),
        ("RA-HMD split", "val", 1000, {"hate": (500, 500)}),
        ("RA-HMD split", "test", 1000, {"hate": (500, 500)}),
    ],
)
def test_expected_counts(variant: str, split: str, rows: int, tasks: dict[str, Any]) -> None:
    expected = get_reader("mami").expected[variant][split]
    assert (expected.rows, dict(expected.tasks)) == (rows, tasks)


def test_variants_and_splits_that_are_expected() -> None:
    splits = {variant: set(of) for variant, of in get_reader("mami").expected.items()}
    assert splits == {"official": {"train", "trial", "test"}, "RA-HMD split": {"train", "val", "test"}}


def test_classes_in_index_order() -> None:
    tasks = {task.name: task.classes for task in get_reader("mami").tasks}
    assert list(tasks) == ["hate", "kind", "shaming", "stereotype", "objectification", "violence"]
    assert tasks["hate"] == ("not misogynous", "misogynous")
    assert tasks["kind"] == ("shaming", "stereotype", "objectification", "violence")


def test_names_of_the_sharegpt_files() -> None:
    names = get_reader("mami").sharegpt
    assert names["train"] == ("mami", "gt/MAMI/sharegpt_MAMI_train_instructblip.json")
    assert names["val"] == ("mami_dev", "gt/MAMI/sharegpt_MAMI_val_instructblip.json")
    assert names["test"] == ("mami_test", "gt/MAMI/sharegpt_MAMI_test_instructblip.json")
