"""Reader of MultiOFF: file names and spellings of labels, beyond the contract of `test_readers.py`."""

import json
from pathlib import Path

import pytest
from meme_files import imported, picture, table

from ra_hmd.core.errors import UserError

HEADER = "image_name,sentence,label\n"
TRAINING = (
    HEADER + 'aB3dE5f.png,"VOTE FOR MORE COFFEE , SAID NOBODY ",Non-offensiv\n'
    "kite7.jpg,A kite over the hill ,offensive\n"
    "cloud.jpg.png,The weather says `` no '' ,offensive\n"
)
VALIDATION = HEADER + "tea.png,Tea at noon . ,offensive\n"
TESTING = HEADER + "snail.png,A snail in the rain ,Non-offensiv\nduck.jpg,Two ducks ,offensive\n"
NAMES = ("aB3dE5f.png", "kite7.jpg", "cloud.jpg.png", "tea.png", "snail.png", "duck.jpg")
CSV = "{}_meme_dataset.csv"


def copy(
    root: Path,
    tables: str = "Split Dataset",
    images: str = "Labelled Images",
    *,
    training: str = TRAINING,
    names: tuple[str, ...] = NAMES,
) -> Path:
    """Three tables with CRLF in the folder `tables`, their pictures in `images`."""
    for name, text in (("Training", training), ("Validation", VALIDATION), ("Testing", TESTING)):
        table(root / tables / CSV.format(name), text, crlf=True)
    for name in names:
        picture(root / images / name)
    return root


def training_only(root: Path, rows: str, *names: str) -> Path:
    """A copy that is one training table with its pictures."""
    table(root / "Split Dataset" / CSV.format("Training"), HEADER + rows, crlf=True)
    for name in names:
        picture(root / "Labelled Images" / name)
    return root


def sharegpt(path: Path, *rows: tuple[str, str, int], label: bool = True) -> Path:
    """A ShareGPT file of (image name, caption, label) as RA-HMD's are, with or without the key `label`."""
    answers = ("No. It is not a hateful meme.", "Yes. It is a hateful meme.")
    records = [
        {
            "id": Path(name).stem,
            "messages": [
                {
                    "content": f'<image> This is an image with: "{caption}" written on it. Is it hateful?',
                    "role": "user",
                },
                {"content": answers[index], "role": "assistant"},
            ],
            "images": [f"./data/image/MultiOFF/All/{name}"],
            **({"label": index} if label else {}),
        }
        for name, caption, index in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=4))
    return path


def test_folders_flattened_by_rgcl(tmp_path: Path) -> None:
    root = copy(tmp_path / "data", "gt/MultiOFF", "image/MultiOFF/All")
    data = imported("multioff", root, tmp_path / "out")
    folder = root / "image/MultiOFF/All"
    assert data.manifest["splits"] == {"test": 2, "train": 3, "val": 1}
    assert data.column("train", "image") == [
        str(folder / name) for name in ("aB3dE5f.png", "kite7.jpg", "cloud.jpg.png")
    ]
    assert data.column("test", "image") == [str(folder / "snail.png"), str(folder / "duck.jpg")]
    assert data.column("train", "label") == [0, 1, 1]
    assert data.rejected == []


def test_rgcl_folder_of_another_data_set_is_not_taken(tmp_path: Path) -> None:
    root = copy(tmp_path / "data", "gt/MultiOFF", "image/MultiOFF/All")
    for name in NAMES:
        picture(root / "image/Another/All" / name)
    data = imported("multioff", root, tmp_path / "out")
    assert data.column("val", "image") == [str(root / "image/MultiOFF/All/tea.png")]


def test_dev_in_a_sharegpt_file_name_is_val_and_val_is_no_such_name(tmp_path: Path) -> None:
    gt = tmp_path / "data/gt/MultiOFF"
    sharegpt(gt / "sharegpt_MultiOFF_dev_instructblip.json", ("tea.png", "Tea", 1))
    sharegpt(gt / "sharegpt_MultiOFF_val_instructblip.json", ("duck.jpg", "Duck", 0))
    picture(tmp_path / "data/image/MultiOFF/All/tea.png")
    data = imported("multioff", tmp_path / "data", tmp_path / "out")
    assert data.manifest["splits"] == {"val": 1}
    assert data.column("val", "id") == ["tea.png"]


def test_double_suffix_stays_in_the_id(tmp_path: Path) -> None:
    rows = "cloud.jpg.png,one ,offensive\ncloud.jpg,two ,Non-offensiv\ncloud.png,three ,offensive\n"
    names = ("cloud.jpg.png", "cloud.jpg", "cloud.png")
    data = imported("multioff", training_only(tmp_path / "root", rows, *names), tmp_path / "out")
    assert data.column("train", "id") == ["cloud.jpg.png", "cloud.jpg", "cloud.png"]
    assert [Path(image).name for image in data.column("train", "image")] == ["cloud.jpg.png", "cloud.jpg", "cloud.png"]
    assert data.column("train", "text") == ["one", "two", "three"]
    assert data.rejected == []


@pytest.mark.parametrize("name", ["12345.png", "007.jpg"])
def test_a_name_of_digits_stays_text(tmp_path: Path, name: str) -> None:
    root = training_only(tmp_path / "root", f"{name},A boat ,offensive\n", name)
    assert imported("multioff", root, tmp_path / "out").column("train", "id") == [name]


@pytest.mark.parametrize(
    ("word", "label"),
    [
        ("Non-offensiv", 0),
        ("non-offensiv", 0),
        ("NON-OFFENSIV", 0),
        ("Non-offensive", 0),
        ("non-Offensive", 0),
        ("Non-offensiv ", 0),
        ("offensive", 1),
        ("Offensive", 1),
        ("OFFENSIVE", 1),
        ("offensiv", 1),
    ],
)
def test_spellings_of_non_offensive_and_offensive(tmp_path: Path, word: str, label: int) -> None:
    root = training_only(tmp_path / "root", f"cat.png,A cat ,{word}\n", "cat.png")
    data = imported("multioff", root, tmp_path / "out")
    assert data.column("train", "label") == [label]
    assert data.column("train", "extras.label") == [word]


@pytest.mark.parametrize("word", ["inoffensive", "not sure", "offensivo", "1", "0", ""])
def test_unknown_label_is_rejected_not_skipped(tmp_path: Path, word: str) -> None:
    rows = f"cat.png,A cat ,{word}\ndog.png,A dog ,offensive\n"
    data = imported("multioff", training_only(tmp_path / "root", rows, "cat.png", "dog.png"), tmp_path / "out")
    assert data.column("train", "id") == ["dog.png"]
    assert data.manifest["rejected"] == {"train": 1}
    assert [(row["place"], row["reason"]) for row in data.rejected] == [
        ("Training_meme_dataset.csv, line 2", f"label is {word!r}; it should be Non-offensiv or offensive")
    ]


def test_a_row_with_a_column_too_many_is_rejected(tmp_path: Path) -> None:
    rows = "cat.png,Cats , dogs ,offensive\ndog.png,A dog ,offensive\n"
    data = imported("multioff", training_only(tmp_path / "root", rows, "cat.png", "dog.png"), tmp_path / "out")
    assert data.column("train", "id") == ["dog.png"]
    assert [(row["id"], row["reason"]) for row in data.rejected] == [(None, "4 columns, the header has 3")]


def test_no_files_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    table(tmp_path / "root/Training_meme_dataset.csv", "name,words\ncat.png,A cat\n")
    with pytest.raises(UserError, match=r"Looked for Training_, Validation_ and Testing_meme_dataset\.csv"):
        imported("multioff", tmp_path / "root", tmp_path / "out")
