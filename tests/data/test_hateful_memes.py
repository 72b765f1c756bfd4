"""Hateful Memes from every layout that people have it in, on invented copies."""

import json
from pathlib import Path
from typing import Any

import pytest
from meme_files import imported, jsonl, picture, records, table

from ra_hmd.core.errors import UserError
from ra_hmd.data.import_dataset import ImportOptions
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


def sharegpt(name: str, caption: str, answer: int, **more: Any) -> dict[str, Any]:
    words = ("No. It is not a hateful meme.", "Yes. It is a hateful meme.")[answer]
    question = f'<image> This is an image with: "{caption}" written on it. Is it hateful?'
    return {
        "id": name,
        "messages": [{"content": question, "role": "user"}, {"content": words, "role": "assistant"}],
        "images": [f"./data/image/FB/All/{name}.png"],
        **more,
    }


def sharegpt_files(folder: Path) -> Path:
    """The training file with labels, the dev file without."""
    files = {
        "train": [sharegpt("08291", 'a "good" coffee', 0, label=0), sharegpt("00042", "the cat", 1, label=1)],
        "dev_seen": [sharegpt("01234", "snow in may", 1)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in files.items():
        (folder / f"sharegpt_FB_{split}_instructblip.json").write_text(json.dumps(rows, indent=4))
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


@pytest.mark.parametrize("folder", ["data", "hateful_memes/data", "."])
@pytest.mark.parametrize("splits", [PHASE_2, PHASE_1], ids=["phase 2", "phase 1"])
def test_root_may_be_the_folder_above_data(
    tmp_path: Path, folder: str, splits: dict[str, list[dict[str, Any]]]
) -> None:
    images = pictures(write(tmp_path / "in" / folder, splits) / "img")
    got = imported("hateful_memes", tmp_path / "in", tmp_path / "out")
    assert records(got, images)["train"] == TRAIN_ROWS


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


@pytest.mark.parametrize("root", [".", "data"])
def test_sharegpt_files_with_paths_from_the_repository_root(tmp_path: Path, root: str) -> None:
    sharegpt_files(tmp_path / "in/data/gt/FB")
    images = pictures(tmp_path / "in/data/image/FB/All")
    (tmp_path / "in/data/gt/FB/sharegpt_FB_train_pc_choice.json").write_text(
        json.dumps([sharegpt("57320", "rain", 0) | {"label": 4}])
    )
    got = imported("hateful_memes", tmp_path / "in" / root, tmp_path / "out")
    assert records(got, images) == {
        "train": [
            ("08291", "08291.png", 0, 'a "good" coffee', 'a "good" coffee'),
            ("00042", "00042.png", 1, "the cat", "the cat"),
        ],
        "dev_seen": [("01234", "01234.png", 1, "snow in may", "snow in may")],
    }
    assert got.manifest["layout"] == "RA-HMD ShareGPT files"
    assert got.manifest["variant"] == ""


def test_sharegpt_files_beside_the_annotations_are_not_read(tmp_path: Path) -> None:
    folder = sharegpt_files(write(tmp_path / "in/data/gt/FB", with_string_ids(PHASE_2)))
    pictures(tmp_path / "in/data/image/FB/All")
    got = imported("hateful_memes", tmp_path / "in", tmp_path / "out")
    assert got.column("train", "id") == ["08291", "00042", "57320"]
    assert got.manifest["notes"] == [f"also there and not read: RA-HMD ShareGPT files in {folder}"]


def test_sharegpt_names_of_the_official_files() -> None:
    official = get_reader("hateful_memes").sharegpt
    assert {split: official[split] for split in ("train", "dev_seen", "test_seen")} == {
        "train": ("hatefulmemes", "gt/FB/sharegpt_FB_train_instructblip.json"),
        "dev_seen": ("hatefulmemes_dev", "gt/FB/sharegpt_FB_dev_seen_instructblip.json"),
        "test_seen": ("hatefulmemes_test", "gt/FB/sharegpt_FB_test_seen_instructblip.json"),
    }


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


def test_repeated_captions_are_kept(tmp_path: Path) -> None:
    splits = {"train": [COFFEE, CAT | {"text": COFFEE["text"]}], "dev_seen": [TEA], "test_seen": [BREAD, SOUP]}
    root = write(tmp_path / "in", splits)
    pictures(root / "img")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert got.column("train", "text") == ["when the coffee is finally ready"] * 2
    assert got.column("dev_seen", "text") == ["when the coffee is finally ready"]
    assert got.rejected == []


def test_unlabelled_test_has_no_label(tmp_path: Path) -> None:
    root = write(tmp_path / "in", unlabelled(PHASE_2))
    pictures(root / "img")
    got = imported("hateful_memes", root, tmp_path / "out")
    assert got.column("test_seen", "label") == [None]
    assert got.column("test_unseen", "label") == [None]
    assert got.column("dev_unseen", "label") == [1, 0]


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


@pytest.mark.parametrize(("policy", "text"), [("single_line", "the cat"), ("strip", "the cat"), ("raw", " the cat ")])
def test_outer_blanks_stay_in_raw_text(tmp_path: Path, policy: Any, text: str) -> None:
    root = write(tmp_path / "in", {"train": [CAT | {"text": " the cat "}]})
    pictures(root / "img")
    got = imported("hateful_memes", root, tmp_path / "out", options=ImportOptions(text=policy))
    assert (got.column("train", "text"), got.column("train", "raw_text")) == ([text], [" the cat "])


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


def test_fine_classes_in_the_order_of_their_indices() -> None:
    _, target, attack = get_reader("hateful_memes").tasks
    assert (target.name, target.multi_label, attack.name, attack.multi_label) == ("target", True, "attack", True)
    assert target.classes == ("religion", "race", "sex", "nationality", "disability")
    assert attack.classes == (
        "dehumanizing", "inferiority", "inciting_violence", "mocking", "contempt", "slurs", "exclusion",
    )  # fmt: skip


def test_two_copies_of_one_layout_are_an_error_that_lists_both(tmp_path: Path) -> None:
    for name in ("one", "two"):
        pictures(write(tmp_path / "in" / name, PHASE_2) / "img")
    with pytest.raises(
        UserError, match=r"Hateful Memes \(phase 2, integer ids\) lies below .* more than once"
    ) as caught:
        imported("hateful_memes", tmp_path / "in", tmp_path / "out")
    assert str(caught.value).splitlines()[1:] == [f"  - {tmp_path / 'in/one'}", f"  - {tmp_path / 'in/two'}"]


def test_a_copy_under_a_second_name_is_one_copy(tmp_path: Path) -> None:
    images = pictures(write(tmp_path / "in" / "data", PHASE_2) / "img")
    (tmp_path / "in" / "latest").symlink_to(tmp_path / "in" / "data", target_is_directory=True)
    got = imported("hateful_memes", tmp_path / "in", tmp_path / "out")
    assert records(got, images) == LABELLED


def test_phase_2_wins_over_phase_1_below_the_same_root(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a-kaggle", PHASE_1 | {"train": [SOUP]})
    images = pictures(write(tmp_path / "in" / "b-challenge", PHASE_2) / "img")
    got = imported("hateful_memes", tmp_path / "in", tmp_path / "out")
    assert records(got, images) == LABELLED
    assert got.manifest["notes"] == [
        f"also there and not read: phase 1, integer ids in {tmp_path / 'in/a-kaggle'}",
    ]


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("HarMeme/train.jsonl", {"id": "covid_memes_0", "image": "covid_memes_0.png", "labels": [], "text": "coffee"}),
        ("Propaganda/train.jsonl", {"id": "1", "image": "1_image.png", "labels": [], "text": "coffee"}),
        ("MAMI/train.jsonl", {"id": "1", "img": "1.jpg", "label": 0, "text": "coffee"}),
    ],
)
def test_root_of_another_data_set(tmp_path: Path, file: str, row: dict[str, Any]) -> None:
    jsonl(tmp_path / "in" / file, [row])
    with pytest.raises(UserError, match=f"No files of Hateful Memes below .*Annotation files there: {file}"):
        imported("hateful_memes", tmp_path / "in", tmp_path / "out")


def test_images_given_apart(tmp_path: Path) -> None:
    root = write(tmp_path / "annotations", PHASE_2)
    picture(root / "img" / "08291.png")
    images = pictures(tmp_path / "pictures" / "img")
    got = imported("hateful_memes", root, tmp_path / "out", images=tmp_path / "pictures")
    assert records(got, images) == LABELLED


@pytest.mark.parametrize("relative", [True, False])
def test_image_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    images = pictures(write(tmp_path / "in", {"train": [COFFEE]}) / "img")
    monkeypatch.chdir(tmp_path)
    got = imported("hateful_memes", Path("in") if relative else tmp_path / "in", tmp_path / "out")
    assert got.column("train", "image") == [str(images / "08291.png")]


def test_missing_images_are_rejected_and_counted(tmp_path: Path) -> None:
    fog = {"id": 31415, "img": "img/31415.png", "label": 0, "text": "fog"}
    root = write(tmp_path / "in", {**PHASE_2, "dev_seen": [SNOW, fog]})
    images = pictures(root / "img")
    picture(images / "31415.png")
    (images / "00042.png").unlink()
    (images / "01234.png").unlink()
    got = imported("hateful_memes", root, tmp_path / "out")
    assert got.manifest["splits"] == {"dev_seen": 1, "dev_unseen": 1, "test_seen": 1, "test_unseen": 1, "train": 2}
    assert got.manifest["rejected"] == {"dev_seen": 1, "dev_unseen": 1, "train": 1}
    assert got.manifest["reasons"] == {"image missing": 3}
    assert got.rejected[0] == {
        "split": "train",
        "place": "train.jsonl, line 2",
        "id": "00042",
        "reason": f"image missing: {images / '00042.png'}",
    }
    assert [(row["split"], row["id"]) for row in got.rejected[1:]] == [("dev_seen", "01234"), ("dev_unseen", "01234")]


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


def test_val_fraction_is_refused_because_there_is_a_dev_split(tmp_path: Path) -> None:
    pictures(write(tmp_path / "in", PHASE_2) / "img")
    with pytest.raises(UserError, match="--val-fraction: this data has a dev split of its own, .dev_seen."):
        imported("hateful_memes", tmp_path / "in", tmp_path / "out", options=ImportOptions(val_fraction=0.1))


@pytest.mark.parametrize(
    ("variant", "split", "rows", "hate"),
    [
        ("phase 2", "train", 8500, (5481, 3019)),
        ("phase 2", "dev_seen", 500, (253, 247)),
        ("phase 2", "dev_unseen", 540, (340, 200)),
        ("phase 2", "test_seen", 1000, (510, 490)),
        ("phase 2", "test_unseen", 2000, (1250, 750)),
        ("phase 1", "train", 8500, None),
        ("phase 1", "dev", 500, (250, 250)),
        ("phase 1", "test", 1000, None),
    ],
)
def test_expected_counts(variant: str, split: str, rows: int, hate: tuple[int, int] | None) -> None:
    expected = get_reader("hateful_memes").expected[variant][split]
    assert (expected.rows, expected.tasks.get("hate")) == (rows, hate)


def test_expected_splits() -> None:
    expected = get_reader("hateful_memes").expected
    assert {variant: list(splits) for variant, splits in expected.items()} == {
        "phase 2": ["train", "dev_seen", "dev_unseen", "test_seen", "test_unseen"],
        "phase 1": ["train", "dev", "test"],
    }
    assert sum(split.rows for split in expected["phase 2"].values()) - 400 == 12140
