"""Reader of MMHS150K: votes, split lists, large ids and tweets, beyond the contract of `test_readers.py`."""

import json
from pathlib import Path
from typing import Any

import pytest
from meme_files import Imported, imported, picture

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme_dataset import open_data

# Ids that one float apart would be the same number.
A, B, C = "1114679353714016256", "1114679353714016257", "1114679353714016258"
D, E, F = "1063020048816660480", "1063020048816660481", "1108927368075374593"
NAMES = ("NotHate", "Racist", "Sexist", "Homophobe", "Religion", "OtherHate")


def tweet(text: str, *votes: int) -> dict[str, Any]:
    return {
        "img_url": "http://example.org/a.jpg",
        "labels": list(votes),
        "tweet_url": "https://example.org/status/1",
        "tweet_text": text,
        "labels_str": [NAMES[vote] for vote in votes],
    }


TWEETS = {
    A: tweet("@cat_friend Coffee first https://t.co/abc1", 0, 0, 0),
    B: tweet("Rain again", 0, 1, 0),
    C: tweet("https://t.co/xyz Snow @one @two falls", 2, 0, 2),
    D: tweet("Tea\nand cake https://t.co/abc2 https://t.co/abc3", 1, 2, 3),
    E: tweet("mail me at cats@example", 5, 5, 5),
    F: tweet("Milk é ☕", 0, 4, 3),
}


def make(root: Path, tweets: dict[str, dict[str, Any]] = TWEETS, **splits: list[str]) -> Path:
    folder = root / "MMHS150K"
    for name in tweets:
        picture(folder / "img_resized" / f"{name}.jpg")
    (folder / "MMHS150K_GT.json").write_text(json.dumps(tweets))
    (folder / "splits").mkdir()
    for split, names in splits.items():
        (folder / "splits" / f"{split}_ids.txt").write_text("\n".join(names) + "\n")
    (folder / "img_txt").mkdir()
    (folder / "img_txt" / f"{B}.json").write_text(json.dumps({"img_text": "UMBRELLA \u2602"}))
    (folder / "img_txt" / f"{D}.json").write_text("")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Imported]:
    """Folder and import of an intact copy."""
    root = tmp_path_factory.mktemp("mmhs")
    folder = make(root, train=[A, C, D], val=[B], test=[E, F])
    return folder, imported("mmhs150k", root, root / "out")


def test_ids_above_2_to_53_stay_text(whole: tuple[Path, Imported]) -> None:
    folder, run = whole
    assert run.column("train", "id") == [
        "1114679353714016256",
        "1114679353714016258",
        "1063020048816660480",
    ]
    assert run.column("val", "id") == ["1114679353714016257"]
    assert run.column("test", "id") == ["1063020048816660481", "1108927368075374593"]
    assert run.column("val", "image") == [str(folder / "img_resized" / "1114679353714016257.jpg")]
    assert run.column("test", "image") == [
        str(folder / "img_resized" / "1063020048816660481.jpg"),
        str(folder / "img_resized" / "1108927368075374593.jpg"),
    ]


def test_links_and_mentions_leave_the_text_and_stay_in_raw_text(whole: tuple[Path, Imported]) -> None:
    _, run = whole
    assert run.column("train", "text") == ["Coffee first", "Snow falls", "Tea and cake"]
    assert run.column("train", "raw_text") == [
        "@cat_friend Coffee first https://t.co/abc1",
        "https://t.co/xyz Snow @one @two falls",
        "Tea\nand cake https://t.co/abc2 https://t.co/abc3",
    ]
    assert run.column("val", "text") == ["Rain again"]
    assert run.column("test", "text")[1] == "Milk é ☕"


def test_two_votes_of_three_are_hate(whole: tuple[Path, Imported]) -> None:
    _, run = whole
    assert run.column("train", "extras.labels") == [[0, 0, 0], [2, 0, 2], [1, 2, 3]]
    assert run.column("train", "label") == [0, 1, 1]
    assert run.column("test", "label") == [1, 1]


def test_one_vote_of_three_is_not_hate(whole: tuple[Path, Imported]) -> None:
    _, run = whole
    assert run.column("val", "extras.labels") == [[0, 1, 0]]
    assert run.column("val", "label") == [0]
    assert run.column("val", "extras.type") == [0]


def test_no_majority_type_is_none(whole: tuple[Path, Imported]) -> None:
    folder, run = whole
    assert run.column("train", "extras.type") == [0, 2, None]
    assert run.column("test", "extras.type") == [5, None]
    data = open_data(folder.parent / "out")
    task = data.task("type")
    assert [data.value(task, meme) for meme in data.memes("train")] == [0, 2, None]
    assert task.classes == ("not hate", "racist", "sexist", "homophobe", "religion", "other hate")


@pytest.mark.parametrize("vote", range(6))
def test_every_type(tmp_path: Path, vote: int) -> None:
    make(tmp_path, {A: tweet("Tea", vote, 0, vote), B: tweet("Rain", 0, 0, 0)}, val=[B], test=[])
    run = imported("mmhs150k", tmp_path, tmp_path / "out")
    assert run.column("train", "extras.type") == [vote]
    assert run.column("train", "label") == [0 if vote == 0 else 1]


def test_extras_keep_the_record(whole: tuple[Path, Imported]) -> None:
    _, run = whole
    assert run.rows["train"][1]["extras"] == {
        "img_url": "http://example.org/a.jpg",
        "labels": [2, 0, 2],
        "tweet_url": "https://example.org/status/1",
        "labels_str": ["Sexist", "NotHate", "Sexist"],
        "img_text": None,
        "type": 2,
    }


def test_img_txt_only_where_ocr_found_text(whole: tuple[Path, Imported]) -> None:
    _, run = whole
    assert run.column("val", "extras.img_text") == ["UMBRELLA ☂"]
    assert run.column("train", "extras.img_text") == [None, None, None]


def test_without_img_txt_there_is_no_such_extra(tmp_path: Path) -> None:
    folder = make(tmp_path, train=[A, C, D], val=[B], test=[E, F])
    for path in [*(folder / "img_txt").iterdir()]:
        path.unlink()
    (folder / "img_txt").rmdir()
    run = imported("mmhs150k", folder, tmp_path / "out")
    assert "img_text" not in run.rows["val"][0]["extras"]
    assert run.manifest["splits"] == {"test": 2, "train": 3, "val": 1}


def test_train_ids_equal_to_test_ids_are_taken_as_the_rest(tmp_path: Path) -> None:
    folder = make(tmp_path, train=[E, F], val=[B], test=[E, F])
    run = imported("mmhs150k", folder, tmp_path / "out")
    assert run.column("train", "id") == [A, C, D]
    assert run.column("test", "id") == [E, F]
    assert run.manifest["notes"] == [
        "train_ids.txt lists 2 ids of val or test, a fault of some mirrors; train is taken as what is in neither, as "
        "the authors define it"
    ]


def test_without_a_train_list_train_is_the_rest(tmp_path: Path) -> None:
    folder = make(tmp_path, val=[B], test=[E, F])
    run = imported("mmhs150k", folder, tmp_path / "out")
    assert run.column("train", "id") == [A, C, D]


def test_an_id_in_no_list_is_rejected(tmp_path: Path) -> None:
    folder = make(tmp_path, train=[A, D], val=[B], test=[E, F])
    run = imported("mmhs150k", folder, tmp_path / "out")
    assert run.column("train", "id") == [A, D]
    assert [(row["place"], row["reason"]) for row in run.rejected] == [
        (f"MMHS150K_GT.json, {C}", "its id is in none of the split files")
    ]


def test_val_and_test_that_overlap_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, train=[A, C], val=[B, E], test=[E, F])
    with pytest.raises(UserError, match=rf"val_ids\.txt and .*test_ids\.txt share 1 ids, e\.g\. {E}; get an intact"):
        imported("mmhs150k", folder, tmp_path / "out")


def test_a_missing_split_list_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path, train=[A], test=[E, F])
    with pytest.raises(UserError, match=r"MMHS150K lacks splits/val_ids\.txt; get the whole set"):
        imported("mmhs150k", folder, tmp_path / "out")


@pytest.mark.parametrize("votes", [(0, 1), (0, 1, 6), (0, -1, 1), (0, 0, 0, 0)])
def test_odd_votes_are_rejected(tmp_path: Path, votes: tuple[int, ...]) -> None:
    bad = tweet("Tea", 0, 0, 0) | {"labels": list(votes)}
    make(tmp_path, {A: bad, B: tweet("Rain", 0, 0, 0)}, train=[A], val=[B], test=[])
    run = imported("mmhs150k", tmp_path, tmp_path / "out")
    assert run.manifest["splits"] == {"val": 1}
    assert [row["reason"] for row in run.rejected] == [f"labels is {list(votes)!r}; it should be three votes of 0 to 5"]
