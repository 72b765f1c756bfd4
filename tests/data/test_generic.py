"""Reader of user-supplied data: columns, label maps and ShareGPT files, beyond the contract of `test_readers.py`."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from meme_files import Imported, imported, jsonl, picture, table

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.readers import get_reader

ROWS = [
    {"id": "00001", "image": "img/a.png", "text": "Coffee first", "label": 0, "source": "kitchen"},
    {"id": "00002", "image": "img/b.jpg", "text": "Rain again", "label": 1, "source": "garden"},
    {"id": "00003", "image": "img/c.webp", "text": "Cats sleep", "label": 1, "source": "sofa"},
]
LINES = """\
00001{d}img/a.png{d}Coffee first{d}0{d}kitchen
00002{d}img/b.jpg{d}Rain again{d}1{d}garden
00003{d}img/c.webp{d}Cats sleep{d}1{d}sofa
"""


def write_jsonl(root: Path) -> Path:
    return jsonl(root / "train.jsonl", ROWS)


def write_csv(root: Path) -> Path:
    return table(root / "train.csv", ("id{d}image{d}text{d}label{d}source\n" + LINES).format(d=","))


def write_tsv(root: Path) -> Path:
    return table(root / "train.tsv", ("id{d}image{d}text{d}label{d}source\n" + LINES).format(d="\t"))


def write_parquet(root: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), root / "train.parquet")
    return root / "train.parquet"


def with_pictures(root: Path, *names: str) -> Path:
    for name in names or ("img/a.png", "img/b.jpg", "img/c.webp"):
        picture(root / name)
    return root


def reasons(run: Imported) -> list[str]:
    return [row["reason"] for row in run.rejected]


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_tsv, write_parquet])
def test_every_kind_of_file_alone_and_in_its_folder(
    tmp_path: Path, write: Callable[[Path], Path], single: bool
) -> None:
    root = with_pictures(tmp_path / "data")
    file = write(root)
    run = imported("generic", file if single else root, tmp_path / "out")
    assert run.manifest["layout"] == "files with columns"
    assert run.manifest["splits"] == {"train": 3}
    assert run.rows["train"] == [
        {key: row[key] for key in ("id", "text", "label")}
        | {"image": str(root / str(row["image"])), "raw_text": row["text"], "split": "train"}
        | {"extras": {"source": row["source"]}}
        for row in ROWS
    ]
    assert run.rejected == []


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_table_with_semicolons_is_read(tmp_path: Path, mark: str) -> None:
    """As spreadsheets write it where the comma is the decimal sign."""
    root = with_pictures(tmp_path / "data")
    text = mark + ("id{d}image{d}text{d}label{d}source\n" + LINES).format(d=";").replace("Rain again", "Rain, again")
    table(root / "train.csv", text)
    run = imported("generic", root, tmp_path / "out")
    assert run.column("train", "id") == ["00001", "00002", "00003"]
    assert run.column("train", "text") == ["Coffee first", "Rain, again", "Cats sleep"]
    assert run.column("train", "label") == [0, 1, 1]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_composed_otherwise_on_disk_are_found(tmp_path: Path, form: str) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    root = with_pictures(tmp_path / "data", unicodedata.normalize(other, "img/caf\u00e9.png"), "img/b.jpg")
    rows = [ROWS[0] | {"image": unicodedata.normalize(form, "img/caf\u00e9.png")}, ROWS[1]]
    jsonl(root / "train.jsonl", rows)
    run = imported("generic", root, tmp_path / "out")
    assert run.rejected == []
    assert all(Path(image).is_file() for image in run.column("train", "image"))
    memes = read_memes(root / "train.jsonl")
    assert [str(meme.image) for meme in memes] == run.column("train", "image")


def test_a_single_file_is_read_without_its_neighbours(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    file = write_csv(root)
    jsonl(root / "test.jsonl", ROWS[:1])
    run = imported("generic", file, tmp_path / "out")
    assert run.manifest["splits"] == {"train": 3}


def test_one_file_per_split(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    jsonl(root / "train.jsonl", ROWS[:1])
    table(root / "dev_seen.csv", "id,image,text\n2,img/b.jpg,Rain\n")
    table(root / "my_test.tsv", "id\timage\ttext\n3\timg/c.webp\tCats\n")
    run = imported("generic", root, tmp_path / "out")
    assert run.manifest["splits"] == {"dev_seen": 1, "test": 1, "train": 1}
    assert run.column("dev_seen", "image") == [str(root / "img/b.jpg")]
    assert run.column("test", "id") == ["3"]


def test_files_below_folders_are_not_read(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    write_csv(root)
    jsonl(root / "old" / "test.jsonl", ROWS)
    run = imported("generic", root, tmp_path / "out")
    assert run.manifest["splits"] == {"train": 3}


def test_split_column(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    table(root / "all.csv", "image,text,split\nimg/a.png,Tea,train\nimg/b.jpg,Rain,test\nimg/c.webp,Cats,train\n")
    run = imported("generic", root, tmp_path / "out")
    assert run.column("train", "text") == ["Tea", "Cats"]
    assert run.column("test", "text") == ["Rain"]
    assert run.rows["test"][0]["extras"] == {}


def test_mapped_split_column(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    table(root / "all.csv", "image,text,part\nimg/a.png,Tea,train\nimg/b.jpg,Rain,val\n")
    run = imported("generic", root, tmp_path / "out", columns={"split": "part"})
    assert run.manifest["splits"] == {"train": 1, "val": 1}


@pytest.mark.parametrize("value", ["../train", "a/b", "", ".hidden", "my split"])
def test_split_value_that_is_no_file_name(tmp_path: Path, value: str) -> None:
    root = with_pictures(tmp_path / "data")
    table(root / "all.csv", f"image,text,split\nimg/a.png,Tea,train\nimg/b.jpg,Rain,{value}\n")
    run = imported("generic", root, tmp_path / "out")
    assert run.manifest["splits"] == {"train": 1}
    assert reasons(run) == [
        f"split is {value!r}; a split becomes a file name: letters, digits, '-', '_' and '.'",
    ]


def test_column_map(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    table(root / "train.csv", "nr,file,caption,class,mood\n7,img/a.png,Tea,1,calm\n8,img/b.jpg,Rain,0,grey\n")
    columns = {"id": "nr", "image": "file", "text": "caption", "label": "class"}
    run = imported("generic", root, tmp_path / "out", columns=columns)
    assert run.column("train", "id") == ["7", "8"]
    assert run.column("train", "text") == ["Tea", "Rain"]
    assert run.column("train", "label") == [1, 0]
    assert run.column("train", "image") == [str(root / "img/a.png"), str(root / "img/b.jpg")]
    assert run.column("train", "extras") == [{"mood": "calm"}, {"mood": "grey"}]
    assert run.manifest["options"]["columns"] == columns


def test_image_pattern(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data", "pictures/00007.png", "pictures/7.png")
    jsonl(root / "train.jsonl", [{"id": "00007", "text": "Tea"}, {"id": 7, "text": "Rain"}])
    run = imported("generic", root, tmp_path / "out", columns={"image": "{id}.png"})
    assert run.column("train", "id") == ["00007", "7"]
    assert run.column("train", "image") == [str(root / "pictures/00007.png"), str(root / "pictures/7.png")]


def test_image_pattern_of_two_columns(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data", "one/5.jpg", "two/5.jpg")
    table(root / "train.csv", "part,nr,text\none,5,Tea\ntwo,5,Rain\n")
    run = imported("generic", root, tmp_path / "out", columns={"image": "{part}/{nr}.jpg"})
    assert run.column("train", "id") == ["one/5.jpg", "two/5.jpg"]
    assert run.column("train", "image") == [str(root / "one/5.jpg"), str(root / "two/5.jpg")]
    assert run.column("train", "extras") == [{"part": "one", "nr": "5"}, {"part": "two", "nr": "5"}]


def test_tamil_troll_memes_columns_of_rgcl(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data", "image/31.jpg")
    jsonl(root / "train.jsonl", [{"image_id": 31, "label": 1, "text": "தேநீர்"}])
    columns = {"id": "image_id", "image": "{image_id}.jpg"}
    run = imported("generic", root, tmp_path / "out", columns=columns)
    assert run.rows["train"] == [
        {
            "id": "31",
            "image": str(root / "image/31.jpg"),
            "text": "தேநீர்",
            "raw_text": "தேநீர்",
            "label": 1,
            "split": "train",
            "extras": {},
        }
    ]


def test_img_stands_for_image(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    jsonl(root / "train.jsonl", [{"id": 1, "img": "img/a.png", "text": "Tea"}])
    run = imported("generic", root, tmp_path / "out")
    assert run.column("train", "image") == [str(root / "img/a.png")]
    assert run.column("train", "extras") == [{}]


def test_without_ids_the_image_is_the_id(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    table(root / "train.csv", "image,text\nimg/a.png,Tea\nimg/b.jpg,Rain\n")
    run = imported("generic", root, tmp_path / "out")
    assert run.column("train", "id") == ["img/a.png", "img/b.jpg"]


def test_absolute_image_paths(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "data", picture(tmp_path / "elsewhere" / "a.png")
    jsonl(root / "train.jsonl", [{"id": "1", "image": str(elsewhere), "text": "Tea"}])
    run = imported("generic", root, tmp_path / "out")
    assert run.column("train", "image") == [str(tmp_path / "elsewhere" / "a.png")]


@pytest.mark.parametrize(("value", "label"), [("0", 0), ("1", 1), ("2", 2), ("1.0", 1), (1.0, 1), (True, 1), (3, 3)])
def test_labels_are_class_indices(tmp_path: Path, value: Any, label: int) -> None:
    root = with_pictures(tmp_path / "data")
    jsonl(root / "train.jsonl", [{"image": "img/a.png", "text": "Tea", "label": value}])
    assert imported("generic", root, tmp_path / "out").column("train", "label") == [label]


@pytest.mark.parametrize("value", ["", None])
def test_no_label_is_none(tmp_path: Path, value: str | None) -> None:
    root = with_pictures(tmp_path / "data")
    jsonl(root / "train.jsonl", [{"image": "img/a.png", "text": "Tea", "label": value}])
    run = imported("generic", root, tmp_path / "out", labels={"cat": 0})
    assert run.column("train", "label") == [None]


@pytest.mark.parametrize("value", ["maybe", "0.5", "-1", "nan", "1,0"])
def test_label_that_is_no_class_index(tmp_path: Path, value: str) -> None:
    root = with_pictures(tmp_path / "data")
    table(root / "train.csv", f'image,text,label\nimg/a.png,Tea,1\nimg/b.jpg,Rain,"{value}"\n')
    run = imported("generic", root, tmp_path / "out")
    assert run.column("train", "label") == [1]
    assert reasons(run) == [f"label {value!r} is no class index; say what it means, e.g. --labels {value}=1"]


def test_label_map(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    table(root / "train.csv", "image,text,label\nimg/a.png,Tea,dog\nimg/b.jpg,Rain,cat\nimg/c.webp,Fog,bird\n")
    run = imported("generic", root, tmp_path / "out", labels={"cat": 0, "dog": 1})
    assert run.column("train", "label") == [1, 0]
    assert reasons(run) == ["label 'bird' is not in --labels cat, dog"]


def test_label_map_may_swap_numbers(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    write_jsonl(root)
    run = imported("generic", root, tmp_path / "out", labels={"0": 1, "1": 0})
    assert run.column("train", "label") == [1, 0, 0]


def test_missing_column_names_the_columns_that_are_there(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    table(root / "train.csv", "id,file,caption\n1,img/a.png,Tea\n")
    message = (
        r"train\.csv has no column image and no column text; it has id, file, caption\. "
        r"Say which is which: --columns id=… image=… text=… label=…"
    )
    with pytest.raises(UserError, match=message):
        imported("generic", root, tmp_path / "out")


@pytest.mark.parametrize(
    ("columns", "missing"),
    [
        ({"label": "class"}, "class"),
        ({"image": "{nr}.png"}, r"\{nr\}\.png"),
        ({"id": "nr"}, "nr"),
        ({"split": "part"}, "part"),
    ],
)
def test_mapped_column_that_is_not_there(tmp_path: Path, columns: dict[str, str], missing: str) -> None:
    root = with_pictures(tmp_path / "data")
    write_csv(root)
    with pytest.raises(UserError, match=rf"has no column {missing}; it has id, image, text, label, source\. "):
        imported("generic", root, tmp_path / "out", columns=columns)


def test_a_file_without_the_columns_is_left_out_with_a_note(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    write_csv(root)
    table(root / "weather.csv", "day,rain\n1,2\n")
    run = imported("generic", root, tmp_path / "out")
    assert run.manifest["splits"] == {"train": 3}
    assert run.manifest["notes"] == ["not read: weather.csv has no column image, text"]


def test_unknown_key_in_columns() -> None:
    with pytest.raises(UserError, match=r"--columns caption, mood: our fields are id, image, text, label, split\."):
        get_reader("generic", columns={"mood": "a", "caption": "b", "text": "c"})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"columns": {"text": "caption"}}, "--columns"),
        ({"labels": {"cat": 1}}, "--labels"),
        ({"columns": {"text": "caption"}, "labels": {"cat": 1}}, "--columns and --labels"),
    ],
)
def test_options_are_refused_by_readers_other_than_generic(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=rf"^{named}: only for 'generic' data; memotion has columns of its own"):
        get_reader("memotion", **options)


def test_empty_options_are_no_options() -> None:
    assert get_reader("memotion", columns=None, labels={}).name == "memotion"


def test_empty_image_or_text_is_rejected(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    rows = [
        {"image": "img/a.png", "text": ""},
        {"image": "", "text": "Tea"},
        {"image": None, "text": "Tea"},
        {"image": "img/b.jpg", "text": None},
        {"image": "img/c.webp"},
    ]
    jsonl(root / "train.jsonl", rows)
    run = imported("generic", root, tmp_path / "out")
    assert run.column("train", "text") == [""]
    assert reasons(run) == [
        "its image is '', a text is needed",
        "its image is None, a text is needed",
        "its text is None, a text is needed",
        "field 'text' is missing; this row has image",
    ]


def test_ids_above_2_to_53_stay_exact(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data", "img/1114679353714016257.png", "img/1114679353714016259.png")
    pq.write_table(pa.table({"id": [1114679353714016257], "text": ["Tea"]}), root / "train.parquet")
    jsonl(root / "test.jsonl", [{"id": 1114679353714016259, "text": "Rain"}])
    run = imported("generic", root, tmp_path / "out", columns={"image": "{id}.png"})
    assert run.column("train", "id") == ["1114679353714016257"]
    assert run.column("test", "id") == ["1114679353714016259"]
    assert run.column("test", "image") == [str(root / "img/1114679353714016259.png")]


def test_json_lines_named_json_are_not_taken(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "data")
    jsonl(root / "train.json", ROWS)
    with pytest.raises(UserError, match=r"No files of your own data .*Annotation files there: train\.json"):
        imported("generic", root, tmp_path / "out")
    with pytest.raises(UserError, match="No files of your own data"):
        imported("generic", root / "train.json", tmp_path / "out")


def test_a_folder_of_pictures_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Annotation files there: none\."):
        imported("generic", with_pictures(tmp_path / "data"), tmp_path / "out")


def conversation(caption: str, answer: str, image: str | list[str], **more: Any) -> dict[str, Any]:
    question = f'<image> This is an image with: "{caption}" written on it. Is it hateful?'
    messages = [{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}]
    return {**more, "messages": messages, "images": image}


NO, YES = "No. It is not a hateful meme.", "Yes. It is a hateful meme."
IMAGE = "./data/image/PrideMM/All/{}"


def sharegpt(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=4), encoding="utf-8")
    return path


def release(root: Path) -> Path:
    """Files and folders of the RA-HMD release below `root`; returns the folder of the ShareGPT files."""
    with_pictures(root / "data/image/PrideMM/All", "img_0.png", "img_1.png", "img_2.png")
    folder = root / "data/gt/PrideMM"
    sharegpt(
        folder / "sharegpt_PrideMM_train_instructblip.json",
        conversation("Coffee first", NO, [IMAGE.format("img_0.png")], id="img_0", label=0),
        conversation('Cats say "no" ☕', YES, [IMAGE.format("img_1.png")], id="img_1", label=1),
    )
    sharegpt(
        folder / "sharegpt_PrideMM_val_instructblip.json",
        conversation("Rain again", YES, [IMAGE.format("img_2.png")], id="img_2", label=1),
    )
    return folder


@pytest.mark.parametrize("below", [".", "data/image/PrideMM/All"])
def test_sharegpt_files_of_the_release(tmp_path: Path, below: str) -> None:
    folder = release(tmp_path)
    run = imported("generic", folder, tmp_path / "out", images=tmp_path / below)
    pictures = tmp_path / "data/image/PrideMM/All"
    assert run.manifest["layout"] == "RA-HMD ShareGPT files"
    assert run.manifest["splits"] == {"train": 2, "val": 1}
    assert run.column("train", "id") == ["img_0", "img_1"]
    assert run.column("train", "label") == [0, 1]
    assert run.column("train", "text") == ["Coffee first", 'Cats say "no" ☕']
    assert run.column("train", "image") == [str(pictures / "img_0.png"), str(pictures / "img_1.png")]
    assert run.rows["val"] == [
        {
            "id": "img_2",
            "image": str(pictures / "img_2.png"),
            "text": "Rain again",
            "raw_text": "Rain again",
            "label": 1,
            "split": "val",
            "extras": {},
        }
    ]


def test_one_sharegpt_file(tmp_path: Path) -> None:
    file = release(tmp_path) / "sharegpt_PrideMM_val_instructblip.json"
    run = imported("generic", file, tmp_path / "out", images=tmp_path)
    assert run.manifest["splits"] == {"val": 1}
    assert run.column("val", "image") == [str(tmp_path / "data/image/PrideMM/All/img_2.png")]


def test_sharegpt_file_beside_its_data_folder(tmp_path: Path) -> None:
    release(tmp_path)
    sharegpt(tmp_path / "test.json", conversation("Tea", NO, [IMAGE.format("img_1.png")], id="7", label=0))
    run = imported("generic", tmp_path, tmp_path / "out")
    assert run.manifest["splits"] == {"test": 1}
    assert run.column("test", "image") == [str(tmp_path / "data/image/PrideMM/All/img_1.png")]


def test_sharegpt_without_label_takes_it_from_the_answer(tmp_path: Path) -> None:
    with_pictures(tmp_path / "data", "a.png", "b.png", "c.png")
    sharegpt(
        tmp_path / "data/train.json",
        conversation("Tea", YES, ["a.png"], id="1"),
        conversation("Rain", NO, ["b.png"], id="2"),
        conversation("Fog", "support", ["c.png"], id="3"),
    )
    run = imported("generic", tmp_path / "data", tmp_path / "out")
    assert run.column("train", "label") == [1, 0]
    assert reasons(run) == ["answer 'support' begins with neither 'No' or 'Yes'"]


def test_sharegpt_without_id_takes_the_image_path(tmp_path: Path) -> None:
    folder = release(tmp_path)
    sharegpt(
        folder / "sharegpt_PrideMM_train_instructblip.json",
        conversation("Tea", NO, [IMAGE.format("img_0.png")], label=0),
        conversation("Rain", YES, [IMAGE.format("img_1.png")]),
    )
    run = imported("generic", folder, tmp_path / "out", images=tmp_path)
    assert run.column("train", "id") == ["data/image/PrideMM/All/img_0.png", "data/image/PrideMM/All/img_1.png"]
    assert run.column("train", "label") == [0, 1]


def test_sharegpt_images_as_a_string(tmp_path: Path) -> None:
    folder = release(tmp_path)
    sharegpt(
        folder / "sharegpt_PrideMM_train_instructblip.json",
        conversation("Tea", NO, IMAGE.format("img_0.png"), id="img_0", label=0),
    )
    run = imported("generic", folder, tmp_path / "out", images=tmp_path)
    assert run.column("train", "image") == [str(tmp_path / "data/image/PrideMM/All/img_0.png")]


def test_sharegpt_numeric_id_becomes_text(tmp_path: Path) -> None:
    with_pictures(tmp_path / "data", "a.png")
    sharegpt(tmp_path / "data/train.json", conversation("Tea", NO, ["a.png"], id=1114679353714016257, label=0))
    run = imported("generic", tmp_path / "data", tmp_path / "out")
    assert run.column("train", "id") == ["1114679353714016257"]


def test_sharegpt_with_another_question_is_rejected(tmp_path: Path) -> None:
    with_pictures(tmp_path / "data", "a.png", "b.png")
    other = conversation("Tea", "benign", ["a.png"], id="1", label=0)
    other["messages"][0]["content"] = "<image> What is the weather?"
    sharegpt(tmp_path / "data/train.json", other, conversation("Rain", NO, ["b.png"], id="2", label=0))
    run = imported("generic", tmp_path / "data", tmp_path / "out")
    assert run.column("train", "id") == ["2"]
    assert len(run.rejected) == 1
    assert reasons(run)[0].startswith("its question was not made by the prompt")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("sharegpt_FB_dev_seen_instructblip", "dev_seen"),
        ("sharegpt_FB_test_seen_instructblip", "test_seen"),
        ("sharegpt_Harmeme_val_instructblip", "val"),
        ("sharegpt_MultiOFF_dev_instructblip", "dev"),
        ("sharegpt_MAMI_test_instructblip", "test"),
        ("memes", "memes"),
    ],
)
def test_split_of_a_sharegpt_file_is_in_its_name(tmp_path: Path, name: str, split: str) -> None:
    with_pictures(tmp_path / "data", "a.png")
    sharegpt(tmp_path / "data" / f"{name}.json", conversation("Tea", NO, ["a.png"], id="1", label=0))
    assert imported("generic", tmp_path / "data", tmp_path / "out").manifest["splits"] == {split: 1}


def test_dataset_info_beside_sharegpt_files_is_not_read(tmp_path: Path) -> None:
    folder = release(tmp_path)
    entry = {"file_name": "gt/x.json", "formatting": "sharegpt", "columns": {"messages": "messages"}}
    (folder / "dataset_info.json").write_text(json.dumps({"pridemm": entry}))
    run = imported("generic", folder, tmp_path / "out", images=tmp_path)
    assert run.manifest["splits"] == {"train": 2, "val": 1}
