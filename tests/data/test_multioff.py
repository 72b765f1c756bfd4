"""The MultiOFF reader on small invented copies of every layout that MultiOFF is passed round in."""

import json
from pathlib import Path

import pytest
from meme_files import Imported, imported, picture, table

from ra_hmd.core.errors import UserError
from ra_hmd.data.import_dataset import ImportOptions
from ra_hmd.data.readers import get_reader

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


@pytest.fixture
def official_copy(tmp_path: Path) -> Imported:
    return imported("multioff", copy(tmp_path / "MultiOFF_Dataset"), tmp_path / "out")


def test_official_folders(official_copy: Imported, tmp_path: Path) -> None:
    folder = tmp_path / "MultiOFF_Dataset/Labelled Images"
    assert official_copy.rows["train"] == [
        {
            "id": "aB3dE5f.png",
            "image": str(folder / "aB3dE5f.png"),
            "text": "VOTE FOR MORE COFFEE , SAID NOBODY",
            "raw_text": "VOTE FOR MORE COFFEE , SAID NOBODY ",
            "label": 0,
            "split": "train",
            "extras": {"label": "Non-offensiv"},
        },
        {
            "id": "kite7.jpg",
            "image": str(folder / "kite7.jpg"),
            "text": "A kite over the hill",
            "raw_text": "A kite over the hill ",
            "label": 1,
            "split": "train",
            "extras": {"label": "offensive"},
        },
        {
            "id": "cloud.jpg.png",
            "image": str(folder / "cloud.jpg.png"),
            "text": "The weather says `` no ''",
            "raw_text": "The weather says `` no '' ",
            "label": 1,
            "split": "train",
            "extras": {"label": "offensive"},
        },
    ]
    assert official_copy.rows["val"] == [
        {
            "id": "tea.png",
            "image": str(folder / "tea.png"),
            "text": "Tea at noon .",
            "raw_text": "Tea at noon . ",
            "label": 1,
            "split": "val",
            "extras": {"label": "offensive"},
        }
    ]
    assert official_copy.column("test", "id") == ["snail.png", "duck.jpg"]
    assert official_copy.column("test", "label") == [0, 1]
    assert all(Path(row["image"]).is_file() for rows in official_copy.rows.values() for row in rows)
    assert official_copy.rejected == []
    manifest = official_copy.manifest
    assert (manifest["dataset"], manifest["layout"], manifest["variant"]) == (
        "multioff",
        "official tables",
        "official",
    )
    assert manifest["splits"] == {"test": 2, "train": 3, "val": 1}
    assert manifest["notes"] == []


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


@pytest.mark.parametrize("root", ["", "data"])
@pytest.mark.parametrize("label", [True, False])
def test_sharegpt_files(tmp_path: Path, root: str, label: bool) -> None:
    gt, folder = tmp_path / "RA-HMD/data/gt/MultiOFF", tmp_path / "RA-HMD/data/image/MultiOFF/All"
    sharegpt(
        gt / "sharegpt_MultiOFF_train_instructblip.json",
        ("aB3dE5f.png", "MORE COFFEE", 0),
        ("cloud.jpg.png", "The weather says `` no ''", 1),
        label=label,
    )
    sharegpt(gt / "sharegpt_MultiOFF_dev_instructblip.json", ("tea.png", 'Tea "at" noon .', 1), label=label)
    sharegpt(gt / "sharegpt_MultiOFF_test_instructblip.json", ("snail.png", "A snail", 0), label=label)
    for name in NAMES:
        picture(folder / name)
    data = imported("multioff", tmp_path / "RA-HMD" / root, tmp_path / "out")
    assert data.manifest["layout"] == "RA-HMD ShareGPT files"
    assert data.manifest["splits"] == {"test": 1, "train": 2, "val": 1}
    assert data.rows["train"][1] == {
        "id": "cloud.jpg.png",
        "image": str(folder / "cloud.jpg.png"),
        "text": "The weather says `` no ''",
        "raw_text": "The weather says `` no ''",
        "label": 1,
        "split": "train",
        "extras": {},
    }
    assert data.rows["val"] == [
        {
            "id": "tea.png",
            "image": str(folder / "tea.png"),
            "text": 'Tea "at" noon .',
            "raw_text": 'Tea "at" noon .',
            "label": 1,
            "split": "val",
            "extras": {},
        }
    ]
    assert (data.column("test", "id"), data.column("test", "label")) == (["snail.png"], [0])


def test_dev_in_a_sharegpt_file_name_is_val_and_val_is_no_such_name(tmp_path: Path) -> None:
    gt = tmp_path / "data/gt/MultiOFF"
    sharegpt(gt / "sharegpt_MultiOFF_dev_instructblip.json", ("tea.png", "Tea", 1))
    sharegpt(gt / "sharegpt_MultiOFF_val_instructblip.json", ("duck.jpg", "Duck", 0))
    picture(tmp_path / "data/image/MultiOFF/All/tea.png")
    data = imported("multioff", tmp_path / "data", tmp_path / "out")
    assert data.manifest["splits"] == {"val": 1}
    assert data.column("val", "id") == ["tea.png"]


def test_names_of_the_sharegpt_files() -> None:
    assert get_reader("multioff").sharegpt == {
        "train": ("multioff", "gt/MultiOFF/sharegpt_MultiOFF_train_instructblip.json"),
        "val": ("multioff_dev", "gt/MultiOFF/sharegpt_MultiOFF_dev_instructblip.json"),
        "test": ("multioff_test", "gt/MultiOFF/sharegpt_MultiOFF_test_instructblip.json"),
    }


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


def test_missing_images_are_counted_not_fatal(tmp_path: Path) -> None:
    names = tuple(name for name in NAMES if name not in ("kite7.jpg", "cloud.jpg.png", "duck.jpg"))
    root = copy(tmp_path / "root", names=names)
    data = imported("multioff", root, tmp_path / "out")
    folder = root / "Labelled Images"
    assert data.manifest["splits"] == {"test": 1, "train": 1, "val": 1}
    assert data.manifest["rejected"] == {"test": 1, "train": 2}
    assert data.manifest["reasons"] == {"image missing": 3}
    assert data.rejected == [
        {
            "split": "train",
            "place": "Training_meme_dataset.csv, line 3",
            "id": "kite7.jpg",
            "reason": f"image missing: {folder / 'kite7.jpg'}",
        },
        {
            "split": "train",
            "place": "Training_meme_dataset.csv, line 4",
            "id": "cloud.jpg.png",
            "reason": f"image missing: {folder / 'cloud.jpg.png'}",
        },
        {
            "split": "test",
            "place": "Testing_meme_dataset.csv, line 3",
            "id": "duck.jpg",
            "reason": f"image missing: {folder / 'duck.jpg'}",
        },
    ]
    assert data.manifest["notes"] == [
        "Training_meme_dataset.csv: of its first 3 images 2 are not there",
        "Testing_meme_dataset.csv: of its first 2 images 1 are not there",
    ]


def test_images_that_no_row_names_make_no_memes(tmp_path: Path) -> None:
    extra = tuple(f"extra{number}.png" for number in range(6))
    data = imported("multioff", copy(tmp_path / "root", names=NAMES + extra), tmp_path / "out")
    assert data.manifest["splits"] == {"test": 2, "train": 3, "val": 1}
    assert data.rejected == []


def test_png_that_is_jpeg_loads(tmp_path: Path) -> None:
    root = training_only(tmp_path / "root", "cat.png,A cat naps ,Non-offensiv\n")
    path = picture(root / "Labelled Images/cat.png", "JPEG")
    assert path.read_bytes().startswith(b"\xff\xd8")
    data = imported("multioff", root, tmp_path / "out")
    assert data.column("train", "image") == [str(path)]
    assert data.rejected == []


def test_an_image_file_that_is_none_is_rejected(tmp_path: Path) -> None:
    root = training_only(tmp_path / "root", "cat.png,A cat ,offensive\ndog.png,A dog ,offensive\n", "cat.png")
    (root / "Labelled Images/dog.png").write_text("woof")
    data = imported("multioff", root, tmp_path / "out")
    assert data.column("train", "id") == ["cat.png"]
    assert [row["reason"] for row in data.rejected] == [f"not an image: {root / 'Labelled Images/dog.png'}"]


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


def test_crlf_is_no_part_of_the_label(official_copy: Imported, tmp_path: Path) -> None:
    path = tmp_path / "MultiOFF_Dataset/Split Dataset/Training_meme_dataset.csv"
    assert path.read_bytes().count(b"\r\n") == 4
    assert official_copy.column("train", "extras.label") == ["Non-offensiv", "offensive", "offensive"]


def test_byte_order_mark_and_plain_newlines_are_no_fault(tmp_path: Path) -> None:
    root = copy(tmp_path / "root")
    table(root / "Split Dataset/Training_meme_dataset.csv", TRAINING, bom=True)
    data = imported("multioff", root, tmp_path / "out")
    assert data.column("train", "id") == ["aB3dE5f.png", "kite7.jpg", "cloud.jpg.png"]
    assert data.column("train", "label") == [0, 1, 1]


def test_commas_and_doubled_quotes_inside_a_caption(tmp_path: Path) -> None:
    rows = 'cat.png,"Cats , dogs , and ""ducks"" ",Non-offensiv\n'
    data = imported("multioff", training_only(tmp_path / "root", rows, "cat.png"), tmp_path / "out")
    assert data.column("train", "text") == ['Cats , dogs , and "ducks"']


def test_the_trailing_blank_is_stripped_and_kept_in_raw_text(tmp_path: Path) -> None:
    root = training_only(tmp_path / "root", "cat.png,A cat naps . ,Non-offensiv\n", "cat.png")
    data = imported("multioff", root, tmp_path / "out")
    assert (data.column("train", "text"), data.column("train", "raw_text")) == (["A cat naps ."], ["A cat naps . "])
    raw = imported("multioff", root, tmp_path / "raw", options=ImportOptions(text="raw"))
    assert raw.column("train", "text") == ["A cat naps . "]


def test_word_tokens_case_and_mojibake_stay_as_they_are(tmp_path: Path) -> None:
    caption = "It 's `` Monday '' , SAYS the cafÃ© ... donâ€™t  panic !"
    root = training_only(tmp_path / "root", f'cat.png,"{caption} ",Non-offensiv\n', "cat.png")
    assert imported("multioff", root, tmp_path / "out").column("train", "text") == [caption]


def test_caption_of_1601_characters_is_whole(tmp_path: Path) -> None:
    caption = "coffee , " * 177 + "no more"
    assert len(caption + " ") == 1601
    root = training_only(tmp_path / "root", f'cat.png,"{caption} ",Non-offensiv\n', "cat.png")
    data = imported("multioff", root, tmp_path / "out")
    assert data.column("train", "text") == [caption]
    assert data.column("train", "raw_text") == [caption + " "]


@pytest.mark.parametrize("word", ["None", "null", "NA", "nan"])
def test_caption_that_pandas_reads_as_missing_stays_text(tmp_path: Path, word: str) -> None:
    root = training_only(tmp_path / "root", f"cat.png,{word},offensive\n", "cat.png")
    assert imported("multioff", root, tmp_path / "out").column("train", "text") == [word]


def test_a_row_with_a_column_too_many_is_rejected(tmp_path: Path) -> None:
    rows = "cat.png,Cats , dogs ,offensive\ndog.png,A dog ,offensive\n"
    data = imported("multioff", training_only(tmp_path / "root", rows, "cat.png", "dog.png"), tmp_path / "out")
    assert data.column("train", "id") == ["dog.png"]
    assert [(row["id"], row["reason"]) for row in data.rejected] == [(None, "4 columns, the header has 3")]


def test_two_copies_below_one_root_are_an_error_that_lists_both(tmp_path: Path) -> None:
    copy(tmp_path / "all/official")
    copy(tmp_path / "all/data", "gt/MultiOFF", "image/MultiOFF/All")
    with pytest.raises(UserError, match="lies below .* more than once") as error:
        imported("multioff", tmp_path / "all", tmp_path / "out")
    assert f"  - {tmp_path / 'all/official/Split Dataset'}" in str(error.value)
    assert f"  - {tmp_path / 'all/data/gt/MultiOFF'}" in str(error.value)


def test_no_files_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    table(tmp_path / "root/Training_meme_dataset.csv", "name,words\ncat.png,A cat\n")
    with pytest.raises(UserError, match=r"Looked for Training_, Validation_ and Testing_meme_dataset\.csv"):
        imported("multioff", tmp_path / "root", tmp_path / "out")


@pytest.mark.parametrize(
    ("split", "rows", "classes"), [("train", 445, (258, 187)), ("val", 149, (91, 58)), ("test", 149, (91, 58))]
)
def test_expected_counts(split: str, rows: int, classes: tuple[int, int]) -> None:
    expected = get_reader("multioff").expected["official"][split]
    assert (expected.rows, dict(expected.tasks)) == (rows, {"hate": classes})


def test_expected_counts_add_up_to_743_images() -> None:
    expected = get_reader("multioff").expected
    assert list(expected) == ["official"]
    assert set(expected["official"]) == {"train", "val", "test"}
    assert sum(split.rows for split in expected["official"].values()) == 743


def test_classes_in_index_order() -> None:
    assert [(task.name, task.classes) for task in get_reader("multioff").tasks] == [
        ("hate", ("not offensive", "offensive"))
    ]
