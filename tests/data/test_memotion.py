"""Reader of Memotion 7k: tables, truth file and labels, beyond the contract of `test_readers.py`."""

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from meme_files import Imported, imported, picture, table

from ra_hmd.core.errors import UserError
from ra_hmd.data.import_dataset import ImportOptions
from ra_hmd.data.meme_dataset import open_data

TRAIN_HEADER = ",image_name,text_ocr,text_corrected,humour,sarcasm,offensive,motivational,overall_sentiment\n"
TRAIN = """\
0,image_1.jpg,COFFEE FIRTS,Coffee first,not_funny,not_sarcastic,not_offensive,not_motivational,very_negative
1,image_2.png,RAIN AGAIN,,funny,general,slight,motivational,negative
2,image_3.jpeg,,,very_funny,twisted_meaning,very_offensive,not_motivational,neutral
3,image_4.JPG,CATS SLEEP,"Cats, say ""I"",
 sleep",hilarious,very_twisted,hateful_offensive,motivational,positive
4,image_5.PNG,NA,  ,funny,not_sarcastic,not_offensive,not_motivational,very_positive
5,image_6.bmp,TEA,Tea,not_funny,general,slight,not_motivational,neutral
6,image_7.jpe,SNOW,Snow,not_funny,general,not_offensive,motivational,neutral
"""
TRAIN_FILES = [
    "image_1.jpg",
    "image_2.png",
    "image_3.jpeg",
    "image_4.JPG",
    "image_5.PNG",
    "image_6.bmp",
    "image_7.jpe",
]
TEST_HEADER = "Image_name,Image_URL,OCR_extracted_text,corrected_text\n"
TEST = """\
image_1.jpg,https://example.org/1,SUN OUT,Sun is out
sun.webp,https://example.org/2,FOG,
fog.png,https://example.org/3,,
snow.JPG,https://example.org/4,MILK,Milk
"""
TEST_FILES = ["image_1.jpg", "sun.webp", "fog.png", "snow.JPG"]
TRUTH = "Image_name,Labels\nsun.webp,-1_0110_0230\nfog.png,0_0000_0000\nimage_1.jpg,1_1001_3001\n"


def make_train(root: Path, rows: str = TRAIN) -> Path:
    folder = root / "memotion_dataset_7k"
    for name in TRAIN_FILES:
        picture(folder / "images" / name)
    table(folder / "labels.csv", TRAIN_HEADER + rows)
    return folder


def make_test(root: Path, truth: str = TRUTH, truth_name: str = "Meme_groundTruth.csv") -> Path:
    folder = root / "Test_Data"
    for name in TEST_FILES:
        picture(folder / "2000_data" / name)
    table(folder / "2000_testdata.csv", TEST_HEADER + TEST)
    if truth:
        table(folder / truth_name, truth)
    return folder


def many(root: Path, count: int) -> Path:
    """A train split of `count` memes, all with copies of one picture."""
    first = picture(root / "images" / "image_0.png")
    for number in range(1, count):
        shutil.copy(first, root / "images" / f"image_{number}.png")
    grades = "not_funny,general,slight,motivational,neutral"
    rows = "".join(f"{number},image_{number}.png,TEA,Tea,{grades}\n" for number in range(count))
    table(root / "labels.csv", TRAIN_HEADER + rows)
    return root


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Imported]:
    """Root and import of a copy with train, test and truth."""
    root = tmp_path_factory.mktemp("memotion")
    make_train(root)
    make_test(root)
    return root, imported("memotion", root, root / "out")


def test_all_image_suffixes(both: tuple[Path, Imported]) -> None:
    root, run = both
    train, test = root / "memotion_dataset_7k" / "images", root / "Test_Data" / "2000_data"
    assert run.column("train", "image") == [str(train / name) for name in TRAIN_FILES]
    assert run.column("test", "image") == [str(test / name) for name in TEST_FILES]


def test_same_file_name_in_train_and_test_is_two_pictures(both: tuple[Path, Imported]) -> None:
    root, run = both
    train, test = run.rows["train"][0], run.rows["test"][0]
    assert (train["id"], test["id"]) == ("train_image_1.jpg", "test_image_1.jpg")
    assert train["image"] == str(root / "memotion_dataset_7k/images/image_1.jpg")
    assert test["image"] == str(root / "Test_Data/2000_data/image_1.jpg")
    assert Path(train["image"]).read_bytes() != Path(test["image"]).read_bytes()


def test_test_files_at_the_root_and_train_below(tmp_path: Path) -> None:
    make_train(tmp_path)
    for path in [*make_test(tmp_path).iterdir()]:
        path.rename(tmp_path / path.name)
    run = imported("memotion", tmp_path, tmp_path / "out")
    assert run.column("train", "image")[0] == str(tmp_path / "memotion_dataset_7k/images/image_1.jpg")
    assert run.column("test", "image")[0] == str(tmp_path / "2000_data/image_1.jpg")
    assert run.column("test", "label") == [0, 1, 0, None]


def test_corrected_text_then_ocr_then_empty(both: tuple[Path, Imported]) -> None:
    _, run = both
    assert run.column("train", "text") == [
        "Coffee first",
        "RAIN AGAIN",
        "",
        'Cats, say "I", sleep',
        "NA",
        "Tea",
        "Snow",
    ]
    assert run.column("test", "text") == ["Sun is out", "FOG", "", "Milk"]
    assert run.rows["train"][3]["raw_text"] == 'Cats, say "I",\n sleep'


def test_train_labels_are_offence_and_anything_but_not(both: tuple[Path, Imported]) -> None:
    _, run = both
    assert run.column("train", "label") == [0, 1, 1, 1, 0, 1, 0]
    assert run.column("train", "extras.offensive") == [0, 1, 1, 1, 0, 1, 0]
    assert run.column("train", "extras.humour") == [0, 1, 1, 1, 1, 0, 0]
    assert run.column("train", "extras.sarcasm") == [0, 1, 1, 1, 0, 1, 1]
    assert run.column("train", "extras.motivational") == [0, 1, 0, 1, 0, 0, 1]


def test_train_grades_are_in_order(both: tuple[Path, Imported]) -> None:
    _, run = both
    assert run.column("train", "extras.humour_grade") == [0, 1, 2, 3, 1, 0, 0]
    assert run.column("train", "extras.sarcasm_grade") == [0, 1, 2, 3, 0, 1, 1]
    assert run.column("train", "extras.offensive_grade") == [0, 1, 2, 3, 0, 1, 0]


def test_five_sentiments_become_three_and_stay_in_the_extras(both: tuple[Path, Imported]) -> None:
    _, run = both
    assert run.column("train", "extras.sentiment") == [0, 0, 1, 2, 2, 1, 1]
    assert run.column("train", "extras.overall_sentiment")[:5] == [
        "very_negative",
        "negative",
        "neutral",
        "positive",
        "very_positive",
    ]


def test_unnamed_index_column_is_no_extra(both: tuple[Path, Imported]) -> None:
    _, run = both
    assert run.rows["train"][0]["extras"] == {
        "image_name": "image_1.jpg",
        "text_ocr": "COFFEE FIRTS",
        "text_corrected": "Coffee first",
        "overall_sentiment": "very_negative",
        "humour": 0,
        "sarcasm": 0,
        "offensive": 0,
        "motivational": 0,
        "humour_grade": 0,
        "sarcasm_grade": 0,
        "offensive_grade": 0,
        "sentiment": 0,
    }


def test_truth_is_merged_by_image_name(both: tuple[Path, Imported]) -> None:
    _, run = both
    assert run.column("test", "label") == [0, 1, 0, None]
    assert run.rows["test"][0]["extras"] == {
        "Image_name": "image_1.jpg",
        "Image_URL": "https://example.org/1",
        "OCR_extracted_text": "SUN OUT",
        "corrected_text": "Sun is out",
        "Labels": "1_1001_3001",
        "humour": 1,
        "sarcasm": 0,
        "offensive": 0,
        "motivational": 1,
        "humour_grade": 3,
        "sarcasm_grade": 0,
        "offensive_grade": 0,
        "sentiment": 2,
    }


def test_label_with_minus_one_sentiment_is_longer(both: tuple[Path, Imported]) -> None:
    extras = both[1].rows["test"][1]["extras"]
    assert extras["Labels"] == "-1_0110_0230"
    names = ("sentiment", "humour", "sarcasm", "offensive", "motivational")
    assert [extras[name] for name in names] == [0, 0, 1, 1, 0]
    assert [extras[f"{name}_grade"] for name in ("humour", "sarcasm", "offensive")] == [0, 2, 3]


def test_unlabelled_test_rows_have_no_label(both: tuple[Path, Imported]) -> None:
    root, run = both
    data = open_data(root / "out")
    snow = list(data.memes("test"))[3]
    assert run.rows["test"][3]["extras"].keys() == {
        "Image_name",
        "Image_URL",
        "OCR_extracted_text",
        "corrected_text",
    }
    assert [data.value(task, snow) for task in data.reader.tasks] == [None] * 8


def test_without_truth_no_test_row_has_a_label(tmp_path: Path) -> None:
    make_test(tmp_path, truth="")
    run = imported("memotion", tmp_path, tmp_path / "out")
    assert run.column("test", "label") == [None, None, None, None]
    assert run.manifest["notes"] == [
        "no Meme_groundTruth.csv: the test split has no labels",
        "test: 4 of 4 memes have no label",
    ]


def test_truth_file_with_a_blank_before_the_dot(tmp_path: Path) -> None:
    make_test(tmp_path, truth_name="Meme_groundTruth .csv")
    run = imported("memotion", tmp_path, tmp_path / "out")
    assert run.column("test", "label") == [0, 1, 0, None]


def test_blanks_around_names_and_labels_of_the_truth(tmp_path: Path) -> None:
    make_test(tmp_path, "Image_name,Labels\r\n fog.png ,-1_0010_0010 \r\n")
    run = imported("memotion", tmp_path, tmp_path / "out")
    assert run.column("test", "label") == [None, None, 1, None]


def test_train_alone(tmp_path: Path) -> None:
    folder = make_train(tmp_path)
    run = imported("memotion", folder, tmp_path / "out")
    assert run.manifest["splits"] == {"train": 7}
    assert run.manifest["notes"] == ["no official dev split: cut one from train with --val-fraction"]


class Touch:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_labels_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_train(tmp_path)
    (folder / "labels_pd_pickle").write_bytes(pickle.dumps(Touch(tmp_path / "unpickled")))
    opened: list[str] = []
    plain_open = io.open

    def spy(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(Path(str(file)).name)
        return plain_open(file, *args, **kwargs)

    monkeypatch.setattr("io.open", spy)
    monkeypatch.setattr("builtins.open", spy)
    run = imported("memotion", tmp_path, tmp_path / "out")
    assert run.manifest["splits"] == {"train": 7}
    assert "labels.csv" in opened
    assert "labels_pd_pickle" not in opened
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("1_1100", "Labels is '1_1100'; it should look like 1_1100_1100 or -1_1100_1100"),
        ("2_1100_1100", "Labels is '2_1100_1100'; it should look like 1_1100_1100 or -1_1100_1100"),
        ("1_1200_1100", "Labels is '1_1200_1100': a digit is out of range"),
        ("1_1101_1102", "Labels is '1_1101_1102': a digit is out of range"),
        ("1_1100_4100", "Labels is '1_1100_4100': a digit is out of range"),
    ],
)
def test_odd_test_labels_are_rejected(tmp_path: Path, label: str, reason: str) -> None:
    make_test(tmp_path, f"Image_name,Labels\nfog.png,{label}\n")
    run = imported("memotion", tmp_path, tmp_path / "out")
    assert run.column("test", "id") == ["test_image_1.jpg", "test_sun.webp", "test_snow.JPG"]
    assert run.rejected == [
        {"split": "test", "place": "2000_testdata.csv, line 4", "id": None, "reason": reason},
    ]


def test_odd_train_values_are_rejected(tmp_path: Path) -> None:
    good = "0,image_1.jpg,TEA,Tea,funny,general,slight,motivational,neutral\n"
    grade = "1,image_2.png,TEA,Tea,fun,general,slight,motivational,neutral\n"
    sentiment = "2,image_3.jpeg,TEA,Tea,funny,general,slight,motivational,sunny\n"
    short = "3,image_4.JPG,TEA\n"
    missing = "4,image_9.jpg,TEA,Tea,funny,general,slight,motivational,neutral\n"
    folder = make_train(tmp_path, good + grade + sentiment + short + missing)
    run = imported("memotion", folder, tmp_path / "out")
    assert run.column("train", "id") == ["train_image_1.jpg"]
    assert [row["reason"] for row in run.rejected] == [
        "humour is 'fun'; known are not_funny, funny, very_funny, hilarious",
        "overall_sentiment is 'sunny'; known are very_negative, negative, neutral, positive, very_positive",
        "3 columns, the header has 9",
        f"image missing: {folder}/images/image_9.jpg",
    ]


def test_two_truth_files_that_differ_are_refused(tmp_path: Path) -> None:
    folder = make_test(tmp_path)
    table(folder / "Meme_groundTruth .csv", "Image_name,Labels\nfog.png,1_1111_1111\n")
    named = r"(?s)Test_Data/Meme_groundTruth \.csv.*Test_Data/Meme_groundTruth\.csv"
    with pytest.raises(UserError, match=named):
        imported("memotion", tmp_path, tmp_path / "out")


def test_two_equal_truth_files_are_one(tmp_path: Path) -> None:
    folder = make_test(tmp_path)
    table(folder / "Meme_groundTruth .csv", TRUTH)
    run = imported("memotion", tmp_path, tmp_path / "out")
    assert run.column("test", "label") == [0, 1, 0, None]


def test_labels_csv_of_something_else_is_not_taken(tmp_path: Path) -> None:
    table(tmp_path / "labels.csv", "name,weather\na.png,rain\n")
    with pytest.raises(UserError, match=r"No files of Memotion 7k .* Annotation files there: labels\.csv"):
        imported("memotion", tmp_path, tmp_path / "out")


def test_val_fraction_puts_every_train_id_in_exactly_one_of_both(tmp_path: Path) -> None:
    root = many(tmp_path / "data", 80)
    run = imported("memotion", root, tmp_path / "out", options=ImportOptions(val_fraction=0.25))
    train, val = run.column("train", "id"), run.column("val", "id")
    assert sorted(train + val) == sorted(f"train_image_{number}.png" for number in range(80))
    assert 10 <= len(val) <= 30


def test_val_fraction_same_seed_same_ids_other_seed_other_ids(tmp_path: Path) -> None:
    root = many(tmp_path / "data", 80)
    one, again, other = (
        set(imported("memotion", root, tmp_path / out, options=ImportOptions(val_fraction=0.25, seed=seed)).column(
            "val", "id"
        ))
        for out, seed in (("one", 1), ("again", 1), ("other", 2))
    )  # fmt: skip
    assert one == again
    assert other - one
    assert one - other


def test_val_fraction_of_a_meme_does_not_depend_on_the_others(tmp_path: Path) -> None:
    options = ImportOptions(val_fraction=0.25)
    small = imported("memotion", many(tmp_path / "small", 40), tmp_path / "a", options=options)
    large = imported("memotion", many(tmp_path / "large", 80), tmp_path / "b", options=options)
    first = {f"train_image_{number}.png" for number in range(40)}
    assert set(small.column("val", "id")) == set(large.column("val", "id")) & first
