"""Reader of Hateful Memes: layouts, ids and the fine-grained add-on, beyond the contract of `test_readers.py`."""

import json
from pathlib import Path
from typing import Any

import pytest
from meme_files import imported, jsonl, picture, records, table

from ra_hmd.core.errors import UserError
from ra_hmd.data.readers import get_reader

COFFEE = {"id": 8291, "img": "img/08291.png", "label": 0, "text": "when the coffee is finally ready"}
CAT = {"id": 42, "img": "img/00042.png", "label": 1, "text": "the cat sat on my keyboard again "}
RAIN = {"id": 57320, "img": "img/57320.png", "label": 0, "text": "rain on a café terrace"}
SNOW = {"id": 1234, "img": "img/01234.png", "label": 1, "text": "snow in the middle of may"}
TEA = {"id": 98765, "img": "img/98765.png", "label": 0, "text": "when the coffee is finally ready"}
BREAD = {"id": 7, "img": "img/00007.png", "label": 1, "text": "bread that did not rise"}
SOUP = {"id": 60013, "img": "img/60013.png", "label": 0, "text": "soup of the day, again"}
PHASE_2 = {
    "train": [COFFEE, CAT, RAIN],
    "dev_seen": [SNOW],
    "dev_unseen": [SNOW, TEA],
    "test_seen": [BREAD],
    "test_unseen": [SOUP],
}
PHASE_1 = {"train": [COFFEE, CAT, RAIN], "dev": [SNOW], "test": [BREAD, SOUP]}
CSV = """id,img,label,text,split,note
8291,img/08291.png,0,when the coffee is finally ready,train,first
42,img/00042.png,1.0,"the cat sat, again ",train,
1234,img/01234.png,1,snow in the middle of may,dev_seen,
1234,img/01234.png,1,snow in the middle of may,dev_unseen,
7,img/00007.png,,bread that did not rise,test_seen,
60013,img/60013.png,0.0,soup of the day,test_unseen,
"""

TRAIN_ROWS = [
    ("08291", "08291.png", 0, "when the coffee is finally ready", "when the coffee is finally ready"),
    ("00042", "00042.png", 1, "the cat sat on my keyboard again", "the cat sat on my keyboard again "),
    ("57320", "57320.png", 0, "rain on a café terrace", "rain on a café terrace"),
]
SNOW_ROW = ("01234", "01234.png", 1, "snow in the middle of may", "snow in the middle of may")
TEA_ROW = ("98765", "98765.png", 0, "when the coffee is finally ready", "when the coffee is finally ready")
BREAD_ROW = ("00007", "00007.png", 1, "bread that did not rise", "bread that did not rise")
SOUP_ROW = ("60013", "60013.png", 0, "soup of the day, again", "soup of the day, again")
BREAD_UNLABELLED = ("00007", "00007.png", None, "bread that did not rise", "bread that did not rise")
SOUP_UNLABELLED = ("60013", "60013.png", None, "soup of the day, again", "soup of the day, again")
LABELLED = {
    "train": TRAIN_ROWS,
    "dev_seen": [SNOW_ROW],
    "dev_unseen": [SNOW_ROW, TEA_ROW],
    "test_seen": [BREAD_ROW],
    "test_unseen": [SOUP_ROW],
}

FINE_COFFEE = {"id": 8291, "set_name": "train", "img": "img/08291.png", "text": "when the coffee is finally ready",
               "gold_hate": ["not_hateful"], "gold_pc": ["pc_empty"], "gold_attack": ["attack_empty"],
               "pc": "pc_empty", "attack": "attack_empty"}  # fmt: skip
FINE_CAT = {"id": 42, "set_name": "train", "img": "img/00042.png", "text": "the cat sat on my keyboard again ",
            "gold_hate": ["hateful"], "gold_pc": ["disability", "race"], "gold_attack": ["slurs", "mocking"],
            "pc": [["race"], ["race", "disability"]], "attack": [["mocking"], ["slurs"]]}  # fmt: skip
FINE_SNOW = {"id": 1234, "set_name": "dev_seen", "img": "img/01234.png", "text": "snow in the middle of may",
             "gold_hate": ["not_hateful"], "gold_pc": ["pc_empty"], "gold_attack": ["attack_empty"],
             "pc": "pc_empty", "attack": [["attack_empty"], ["mocking"]]}  # fmt: skip
FINE_OTHER = FINE_SNOW | {"id": 71, "img": "img/00071.png", "text": "a row that the data set does not have"}
FINE_TEST = {"id": 7, "set_name": "test_seen", "img": "img/00007.png", "text": "bread that did not rise"}


def unlabelled(splits: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Test splits without labels."""
    return {
        split: [{key: row[key] for key in row if key != "label"} for row in rows] if split.startswith("test") else rows
        for split, rows in splits.items()
    }


def with_string_ids(splits: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {split: [row | {"id": row["img"][4:9]} for row in rows] for split, rows in splits.items()}


def write(folder: Path, splits: dict[str, list[dict[str, Any]]], **how: bool) -> Path:
    for split, rows in splits.items():
        jsonl(folder / f"{split}.jsonl", rows, **how)
    return folder


def pictures(folder: Path) -> Path:
    for name in ("08291", "00042", "57320", "01234", "98765", "00007", "60013"):
        picture(folder / f"{name}.png")
    return folder


def fine_grained(folder: Path) -> Path:
    jsonl(folder / "train.json", [FINE_COFFEE, FINE_CAT], end=False)
    jsonl(folder / "dev_seen.json", [FINE_SNOW, FINE_OTHER])
    jsonl(folder / "dev_unseen.json", [FINE_SNOW, FINE_OTHER])
    jsonl(folder / "test.jsonl", [FINE_TEST])
    return folder


def test_phase_2_as_downloaded(tmp_path: Path) -> None:
    root = write(tmp_path / "hateful_memes", unlabelled(PHASE_2), escape=True, end=False)
    images = pictures(root / "img")
    content = (root / "train.jsonl").read_bytes()
    assert content.startswith(b'{"id":8291,"img":"img\\/08291.png","label":0,')
    assert not content.endswith(b"\n")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert records(got, images) == {**LABELLED, "test_seen": [BREAD_UNLABELLED], "test_unseen": [SOUP_UNLABELLED]}
    assert got.manifest["layout"] == "phase 2, integer ids"
    assert got.manifest["variant"] == "phase 2"
    assert got.manifest["splits"] == {"dev_seen": 1, "dev_unseen": 2, "test_seen": 1, "test_unseen": 1, "train": 3}
    assert got.manifest["notes"] == [
        "test_seen: 1 of 1 memes have no label",
        "test_unseen: 1 of 1 memes have no label",
    ]
    assert got.column("train", "extras") == [{}, {}, {}]
    assert got.rejected == []


def test_phase_2_with_string_ids(tmp_path: Path) -> None:
    root = write(tmp_path, with_string_ids(PHASE_2))
    images = pictures(root / "img")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert records(got, images) == LABELLED
    assert got.manifest["layout"] == "phase 2, string ids"
    assert got.manifest["notes"] == []


def test_kaggle_mirror_is_phase_1_and_says_so(tmp_path: Path) -> None:
    images = pictures(write(tmp_path / "in" / "data", unlabelled(PHASE_1)) / "img")
    got = imported("hateful_memes", tmp_path / "in", tmp_path / "out")
    assert records(got, images) == {
        "train": TRAIN_ROWS,
        "dev": [SNOW_ROW],
        "test": [BREAD_UNLABELLED, SOUP_UNLABELLED],
    }
    assert got.manifest["variant"] == "phase 1"
    assert got.manifest["layout"] == "phase 1, integer ids"
    assert got.manifest["notes"] == [
        "phase 1 (as on Kaggle): phase 2 corrected labels, so results are not comparable",
        "test: 2 of 2 memes have no label",
    ]


def test_phase_1_files_beside_phase_2_are_not_read(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {**PHASE_2, "dev": [COFFEE], "test": [COFFEE]})
    pictures(root / "img")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert list(got.rows) == ["dev_seen", "dev_unseen", "test_seen", "test_unseen", "train"]
    assert got.manifest["notes"] == ["not read: dev.jsonl, test.jsonl, which belong to phase 1"]


def test_mmf_folders(tmp_path: Path) -> None:
    defaults = tmp_path / "mmf/data/datasets/hateful_memes/defaults"
    write(defaults / "annotations", PHASE_2)
    images = pictures(defaults / "images" / "img")
    got = imported("hateful_memes", tmp_path / "mmf", tmp_path / "out")
    assert records(got, images) == LABELLED
    assert got.manifest["layout"] == "phase 2, integer ids, in MMF's folders"


CSV_ROWS = {
    "train": [
        ("08291", "08291.png", 0, "when the coffee is finally ready", "when the coffee is finally ready"),
        ("00042", "00042.png", 1, "the cat sat, again", "the cat sat, again "),
    ],
    "dev_seen": [SNOW_ROW],
    "dev_unseen": [SNOW_ROW],
    "test_seen": [BREAD_UNLABELLED],
    "test_unseen": [("60013", "60013.png", 0, "soup of the day", "soup of the day")],
}


def test_hateclipper_table_with_split_column(tmp_path: Path) -> None:
    root = tmp_path / "hateclipper"
    table(root / "data/hateful_memes/hateful_memes_expanded.csv", CSV)
    images = pictures(root / "data/hateful_memes/img")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert records(got, images) == CSV_ROWS
    assert got.column("train", "extras") == [{"note": "first"}, {"note": ""}]
    assert got.manifest["layout"] == "one table with a split column (hateful_memes_expanded.csv)"
    assert got.manifest["variant"] == "phase 2"


@pytest.mark.parametrize("name", ["info.csv", "hmc_info.csv"])
def test_issues_table_under_either_name(tmp_path: Path, name: str) -> None:
    root = tmp_path / "resources/datasets/hmc"
    table(root / "labels" / name, CSV, bom=True, crlf=True)
    images = pictures(root / "img")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert records(got, images) == CSV_ROWS
    assert got.manifest["layout"] == f"one table with a split column ({name})"


def test_table_row_of_unknown_split_is_rejected(tmp_path: Path) -> None:
    table(tmp_path / "in" / "info.csv", "id,img,label,text,split\n7,img/00007.png,0,bread,train\n8,img/8.png,0,x,val\n")
    pictures(tmp_path / "in" / "img")
    got = imported("hateful_memes", tmp_path / "in", tmp_path / "out")
    assert got.column("train", "id") == ["00007"]
    assert [row["place"] for row in got.rejected] == ["info.csv, line 3"]
    assert got.rejected[0]["reason"].startswith("split is 'val'; known are train, dev_seen,")


def test_rgcl_folders(tmp_path: Path) -> None:
    write(
        tmp_path / "data/gt/FB",
        {split: rows for split, rows in with_string_ids(PHASE_2).items() if "dev_un" not in split},
    )
    images = pictures(tmp_path / "data/image/FB/All")
    pictures(tmp_path / "data/image/Other/All")
    got = imported("hateful_memes", tmp_path / "data", tmp_path / "out")
    assert records(got, images) == {split: rows for split, rows in LABELLED.items() if split != "dev_unseen"}
    assert got.manifest["layout"] == "phase 2, string ids, in RGCL's folders"


def test_integer_ids_are_padded_to_five_digits(tmp_path: Path) -> None:
    rows = [row | {"label": 0} for row in (BREAD, CAT, SNOW, COFFEE, SOUP)]
    root = write(tmp_path / "in", {"train": [*rows, {"id": 0, "img": "img/00000.png", "label": 0, "text": "fog"}]})
    picture(pictures(root / "img") / "00000.png")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert got.column("train", "id") == ["00007", "00042", "01234", "08291", "60013", "00000"]


def test_string_and_integer_ids_give_the_same_records(tmp_path: Path) -> None:
    images = pictures(tmp_path / "img")
    pairs = {"integer": PHASE_2, "string": with_string_ids(PHASE_2)}
    got = [
        imported("hateful_memes", write(tmp_path / name, splits), tmp_path / f"out-{name}", images=images).rows
        for name, splits in pairs.items()
    ]
    assert got[0] == got[1]


def test_image_is_found_by_img_not_by_id(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {"train": [CAT | {"img": "img/57320.png"}]})
    images = pictures(root / "img")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert got.column("train", "id") == ["00042"]
    assert got.column("train", "image") == [str(images / "57320.png")]


def test_dev_seen_and_dev_unseen_may_share_ids(tmp_path: Path) -> None:
    root = write(tmp_path / "in", PHASE_2)
    pictures(root / "img")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert got.column("dev_seen", "id") == ["01234"]
    assert got.column("dev_unseen", "id") == ["01234", "98765"]
    assert got.rejected == []
    assert get_reader("hateful_memes").shared == {("dev_seen", "dev_unseen"): 400}


def test_id_twice_in_one_split_is_rejected(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {"train": [CAT, COFFEE, CAT | {"id": "00042"}]})
    pictures(root / "img")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert got.column("train", "id") == ["00042", "08291"]
    assert got.rejected == [
        {"split": "train", "place": "train.jsonl, line 3", "id": "00042", "reason": "id came before in its split"}
    ]


@pytest.mark.parametrize("label", [2, "yes", True, [1]])
def test_label_that_is_not_0_or_1_is_rejected(tmp_path: Path, label: object) -> None:
    root = write(tmp_path / "in", {"train": [COFFEE, CAT | {"label": label}]})
    pictures(root / "img")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert got.column("train", "id") == ["08291"]
    assert [row["reason"] for row in got.rejected] == [f"label is {label!r}; it should be 0 or 1"]


def test_json_lines_with_crlf_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    lines = [b"\xef\xbb\xbf" + json.dumps(COFFEE).encode(), b"", json.dumps(CAT).encode(), b"   ", b"{broken"]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train.jsonl").write_bytes(b"\r\n".join(lines))
    images = pictures(tmp_path / "in" / "img")
    got = imported("hateful_memes", tmp_path / "in", tmp_path / "out")
    assert records(got, images) == {"train": TRAIN_ROWS[:2]}
    assert [row["place"] for row in got.rejected] == ["train.jsonl, line 5"]
    assert got.manifest["reasons"] == {"not valid JSON": 1}


def test_row_without_text_is_rejected_by_name(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {"train": [COFFEE, {"id": 42, "img": "img/00042.png", "label": 1}]})
    pictures(root / "img")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert [row["reason"] for row in got.rejected] == ["field 'text' is missing; this row has id, img, label"]


FINE_EXTRAS = [
    {"fine_grained": FINE_COFFEE, "target": [], "attack": []},
    {"fine_grained": FINE_CAT, "target": [1, 4], "attack": [3, 5]},
    {},
]


@pytest.mark.parametrize("place", ["in/fine_grained_hateful_memes/data/annotations", "in", "elsewhere/annotations"])
def test_fine_grained_labels_from_the_add_on(tmp_path: Path, place: str) -> None:
    root = write(tmp_path / "in", with_string_ids(PHASE_2))
    images = pictures(root / "img")
    fine_grained(tmp_path / place)
    add_on = {"add_on": tmp_path / "elsewhere"} if place.startswith("elsewhere") else {}
    got = imported("hateful_memes", root, tmp_path / "out", **add_on)
    assert records(got, images) == LABELLED
    assert got.column("train", "extras") == FINE_EXTRAS
    assert got.column("dev_seen", "extras") == [{"fine_grained": FINE_SNOW, "target": [], "attack": []}]
    assert got.column("dev_unseen", "extras") == [{"fine_grained": FINE_SNOW, "target": [], "attack": []}, {}]
    assert got.column("test_seen", "extras") == [{}]
    assert got.manifest["notes"] == []
    assert got.manifest["layout"] == "phase 2, string ids"


def test_fine_grained_json_is_json_lines(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {"train": [CAT, COFFEE]})
    pictures(root / "img")
    path = jsonl(root / "fine" / "train.json", [FINE_COFFEE, FINE_CAT])
    assert path.read_text().startswith('{"id": 8291,')
    got = imported("hateful_memes", root, tmp_path / "out")
    assert got.column("train", "extras.target") == [[1, 4], []]


def test_fine_grained_labels_for_a_table(tmp_path: Path) -> None:
    table(tmp_path / "in" / "info.csv", CSV)
    pictures(tmp_path / "in" / "img")
    got = imported("hateful_memes", tmp_path / "in", tmp_path / "out", add_on=fine_grained(tmp_path / "add-on"))
    assert got.column("train", "extras.attack") == [[], [3, 5]]


def test_pc_and_attack_may_be_string_or_list(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {"train": [COFFEE, CAT], "dev_seen": [SNOW]})
    pictures(root / "img")
    fine_grained(root / "fine")
    got = imported("hateful_memes", root, tmp_path / "out")
    fine = got.column("train", "extras.fine_grained") + got.column("dev_seen", "extras.fine_grained")
    assert [row["pc"] for row in fine] == ["pc_empty", [["race"], ["race", "disability"]], "pc_empty"]
    assert [row["attack"] for row in fine] == [
        "attack_empty",
        [["mocking"], ["slurs"]],
        [["attack_empty"], ["mocking"]],
    ]


def test_fine_grained_row_without_id_is_passed_over(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {"train": [CAT]})
    pictures(root / "img")
    jsonl(root / "fine" / "train.json", [{"set_name": "train", "gold_hate": ["hateful"]}, FINE_CAT])
    got = imported("hateful_memes", root, tmp_path / "out")
    assert got.column("train", "extras.target") == [[1, 4]]


def test_gold_hate_does_not_change_the_label(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {"dev_seen": [SNOW]})
    pictures(root / "img")
    fine_grained(root / "fine")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert got.column("dev_seen", "label") == [1]
    assert got.column("dev_seen", "extras.fine_grained")[0]["gold_hate"] == ["not_hateful"]


def test_fine_grained_test_without_labels_adds_nothing(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {"train": [COFFEE], "test_seen": [BREAD]})
    pictures(root / "img")
    jsonl(root / "fine" / "test.jsonl", [FINE_TEST])
    got = imported("hateful_memes", root, tmp_path / "out")
    assert got.column("test_seen", "extras") == [{}]
    assert list(got.rows) == ["test_seen", "train"]


def test_fine_grained_test_file_beside_train_does_not_make_it_phase_1(tmp_path: Path) -> None:
    root = fine_grained(write(tmp_path / "in", {"train": [COFFEE, CAT, RAIN]}))
    images = pictures(root / "img")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert records(got, images) == {"train": TRAIN_ROWS}
    assert (got.manifest["variant"], got.manifest["notes"]) == ("phase 2", [])


def test_fine_grained_files_alone_are_not_the_data_set(tmp_path: Path) -> None:
    fine_grained(tmp_path / "in")
    pictures(tmp_path / "in" / "img")
    with pytest.raises(UserError, match=r"No files of Hateful Memes below .*Annotation files there: .*train\.json"):
        imported("hateful_memes", tmp_path / "in", tmp_path / "out")


def test_phase_2_wins_over_phase_1_below_the_same_root(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a-kaggle", PHASE_1 | {"train": [SOUP]})
    images = pictures(write(tmp_path / "in" / "b-challenge", PHASE_2) / "img")
    got = imported("hateful_memes", tmp_path / "in", tmp_path / "out")
    assert records(got, images) == LABELLED
    assert got.manifest["notes"] == [
        f"also there and not read: phase 1, integer ids in {tmp_path / 'in/a-kaggle'}",
    ]


def test_files_with_other_image_names_are_not_taken(tmp_path: Path) -> None:
    jsonl(tmp_path / "in/MAMI/train.jsonl", [{"id": "1", "img": "1.jpg", "label": 0, "text": "coffee"}])
    with pytest.raises(UserError, match="No files of Hateful Memes below .*Annotation files there: MAMI/train.jsonl"):
        imported("hateful_memes", tmp_path / "in", tmp_path / "out")


def test_images_given_apart(tmp_path: Path) -> None:
    root = write(tmp_path / "annotations", PHASE_2)
    picture(root / "img" / "08291.png")
    images = pictures(tmp_path / "pictures" / "img")
    got = imported("hateful_memes", root, tmp_path / "out", images=tmp_path / "pictures")
    assert records(got, images) == LABELLED


def test_images_are_judged_by_content_not_by_suffix(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {"train": [COFFEE, CAT, RAIN]})
    picture(root / "img" / "08291.png", "JPEG")
    (root / "img" / "00042.png").write_text("no picture")
    (root / "img" / "57320.png").write_bytes(b"")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert got.column("train", "id") == ["08291"]
    assert [row["id"] for row in got.rejected] == ["00042", "57320"]
    assert got.manifest["reasons"] == {"not an image": 2}


def test_archive_of_images_is_named(tmp_path: Path) -> None:
    write(tmp_path / "in", PHASE_2)
    (tmp_path / "in" / "img.tar.gz").write_bytes(b"packed")
    with pytest.raises(UserError, match=r"No images of Hateful Memes .*Unpack img\.tar\.gz\. .*--images"):
        imported("hateful_memes", tmp_path / "in", tmp_path / "out")
