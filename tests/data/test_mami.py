"""Reader of MAMI: layouts, test labels and shared image numbers, beyond the contract of `test_readers.py`."""

import shutil
from pathlib import Path

import pytest
from meme_files import Imported, imported, jsonl, picture, records, table

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme_dataset import open_data

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


def pixels(path: str | Path) -> bytes:
    return Path(path).read_bytes()


@pytest.fixture
def official_copy(tmp_path: Path) -> Imported:
    return imported("mami", official(tmp_path / "MAMI DATASET"), tmp_path / "out")


def test_unzipped_folders(official_copy: Imported, tmp_path: Path) -> None:
    root = tmp_path / "MAMI DATASET"
    assert records(official_copy, root) == {
        "train": [
            ("train_10", "training/TRAINING/10.jpg", 0, *["A CAT READS THE NEWSPAPER"] * 2),
            ("train_11", "training/TRAINING/11.jpg", 1, *["More coffee, please"] * 2),
            ("train_15001", "training/TRAINING/15001.jpg", 1, *["Two umbrellas for one cloud"] * 2),
        ],
        "trial": [("trial_28", f"{TRIAL}/28.jpg", 1, *["Sunday is for naps"] * 2)],
        "test": [
            ("test_15001", "test/test/15001.jpg", 0, *["The weather says no"] * 2),
            ("test_15003", "test/test/15003.jpg", 1, *["Monday, the sequel"] * 2),
        ],
    }
    kinds = {split: official_copy.column(split, "extras.kind") for split in official_copy.rows}
    assert kinds == {"train": [[], [0, 3], [1]], "trial": [[2]], "test": [[], [1, 2]]}
    assert official_copy.manifest["notes"] == []
    files = ("training/TRAINING/training.csv", f"{TRIAL}/trial.csv", "test/test/Test.csv", "test_labels.txt")
    assert {*official_copy.manifest["files"]} == {str(root / file) for file in files}


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
    assert (data.manifest["layout"], data.manifest["variant"]) == ("RA-HMD's jsonl files", "RA-HMD split")
    assert data.manifest["notes"] == ["val was cut from the official training set; no sub-labels in this layout"]
    assert records(data, tmp_path / "data/image/MAMI/All") == {
        "train": [
            ("train_10", "10.jpg", 0, *["A cat reads the newspaper"] * 2),
            ("train_15004", "15004.jpg", 1, *["More coffee, please"] * 2),
        ],
        "val": [("val_15001", "15001.jpg", 1, *["Two umbrellas for one cloud"] * 2)],
        "test": [
            ("test_15001", "15001.jpg", 0, *["The weather says no"] * 2),
            ("test_15004", "15004_test.jpg", 0, *["Monday, the sequel"] * 2),
            ("test_15005", "15005_test.jpg", 1, *["Tea at noon"] * 2),
            ("test_15006", "15006_test.jpg", 0, *["A snail in the rain"] * 2),
        ],
    }
    assert data.column("train", "extras") == [{}, {}]
    assert pixels(data.rows["test"][1]["image"]) != pixels(data.rows["train"][1]["image"])
    assert data.rejected == []


def test_a_missing_renamed_test_image_is_not_taken_from_training(tmp_path: Path) -> None:
    (rgcl(tmp_path / "data") / "image/MAMI/All/15004_test.jpg").unlink()
    data = imported("mami", tmp_path / "data", tmp_path / "out")
    assert data.column("train", "id") == ["train_10", "train_15004"]
    assert data.column("test", "id") == ["test_15001", "test_15005", "test_15006"]
    assert [row["id"] for row in data.rejected] == ["test_15004"]


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


def test_a_split_that_is_not_there_is_noted(tmp_path: Path) -> None:
    root = training_only(tmp_path / "mami", "1.jpg\t0\t0\t0\t0\t0\tA pond\n", "1.jpg")
    data = imported("mami", root, tmp_path / "out")
    assert data.manifest["splits"] == {"train": 1}
    assert data.manifest["notes"] == ["no test among the files"]
