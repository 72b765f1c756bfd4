"""Damaged, merged and incomplete copies of data sets: what an import accepts, rejects and refuses."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_copies import TEXTS, hateful_memes, mami, mmhs150k
from meme_files import Imported, imported, jsonl, picture, table
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.checks.check import check_data
from ra_hmd.data.checks.findings import similar_images
from ra_hmd.data.import_dataset import ImportOptions
from ra_hmd.data.rows import csv_rows
from ra_hmd.data.sharegpt_export import write_sharegpt


def two_folders(root: Path, *, missing: tuple[str, ...] = ()) -> Path:
    """train.csv and val.csv name the same 60 files, of folders of their own."""
    for split in ("train", "val"):
        rows = [f"{split}{i},{i}.png,{TEXTS[i % 4]},{i % 2}" for i in range(60)]
        table(root / f"{split}.csv", "id,image,text,label\n" + "\n".join(rows) + "\n")
        for i in range(60):
            if f"{split}/{i}.png" not in missing:
                picture(root / split / f"{i}.png")
    return root


def test_one_missing_image_does_not_send_a_split_to_another_folder(tmp_path: Path) -> None:
    data = imported("generic", two_folders(tmp_path / "mine", missing=("val/3.png",)), tmp_path / "out")
    assert len(data.rows["val"]) == 59
    assert {Path(row["image"]).parent.name for row in data.rows["val"]} == {"val"}
    assert [row["id"] for row in data.rejected] == ["val3"]


def test_a_split_without_its_folder_gets_no_images(tmp_path: Path) -> None:
    root = two_folders(tmp_path / "mine")
    shutil.rmtree(root / "val")
    data = imported("generic", root, tmp_path / "out")
    assert list(data.rows) == ["train"]
    assert len(data.rejected) == 60
    assert "no images for val.csv (looked for 0.png): all its rows are rejected" in data.manifest["notes"]


def test_a_split_with_part_of_its_own_images_gets_these(tmp_path: Path) -> None:
    gone = tuple(f"val/{i}.png" for i in range(40))
    data = imported("generic", two_folders(tmp_path / "mine", missing=gone), tmp_path / "out")
    assert {Path(row["image"]).parent.name for row in data.rows["val"]} == {"val"}
    assert (len(data.rows["val"]), len(data.rejected)) == (20, 40)


def test_split_names_in_another_case_than_their_folders(tmp_path: Path) -> None:
    rows = [f"{s}{i},{i}.png,{TEXTS[i]},{i % 2},{s}" for s in ("Train", "Test") for i in range(4)]
    for split in ("Train", "Test"):
        for i in range(4):
            picture(tmp_path / "mine" / split / f"{i}.png")
    table(tmp_path / "mine" / "all.csv", "id,image,text,label,split\n" + "\n".join(rows) + "\n")
    data = imported("generic", tmp_path / "mine", tmp_path / "out")
    assert {Path(row["image"]).parent.name for row in data.rows["Test"]} == {"Test"}


def test_a_folder_that_came_later_is_taken_in(tmp_path: Path) -> None:
    root = two_folders(tmp_path / "mine")
    (root / "val").rename(tmp_path / "later")
    assert "val" not in imported("generic", root, tmp_path / "out").rows
    (tmp_path / "later").rename(root / "val")
    assert len(imported("generic", root, tmp_path / "out").rows["val"]) == 60


def test_the_same_command_leaves_a_mended_import_alone(tmp_path: Path) -> None:
    root = hateful_memes(tmp_path / "fb")
    (root / "img" / "00002.png").unlink()
    imported("hateful_memes", root, tmp_path / "out")
    (root / "img" / "00003.png").unlink()
    check_data(tmp_path / "out", fix=True)
    assert len(imported("hateful_memes", root, tmp_path / "out").rows["train"]) == 2


def test_a_folder_that_the_user_names_is_trusted(tmp_path: Path) -> None:
    root = two_folders(tmp_path / "mine")
    data = imported("generic", root, tmp_path / "out", images=root / "train")
    assert {Path(row["image"]).parent.name for row in data.rows["val"]} == {"train"}


def test_splits_of_one_table_may_have_folders_of_their_own(tmp_path: Path) -> None:
    rows = []
    for split in ("train", "test"):
        for i in range(60):
            picture(tmp_path / "mine" / split / f"{i}.png")
            rows.append(f"{split}{i},{i}.png,{TEXTS[i % 4]},{i % 2},{split}")
    table(tmp_path / "mine" / "all.csv", "id,image,text,label,split\n" + "\n".join(rows) + "\n")
    data = imported("generic", tmp_path / "mine", tmp_path / "out")
    for split in ("train", "test"):
        assert len(data.rows[split]) == 60
        assert {Path(row["image"]).parent.name for row in data.rows[split]} == {split}


def test_all_images_in_one_folder_serve_all_splits(tmp_path: Path) -> None:
    root = mami(tmp_path / "mami")
    for path in [*root.glob("TRAINING/*.jpg"), *root.glob("test/*.jpg")]:
        (root / "All").mkdir(exist_ok=True)
        path.rename(root / "All" / path.name)
    data = imported("mami", root, tmp_path / "out")
    assert {split: len(rows) for split, rows in data.rows.items()} == {"train": 4, "test": 2}


def test_images_that_came_later_are_taken_in(tmp_path: Path) -> None:
    root = hateful_memes(tmp_path / "fb")
    (root / "img" / "00002.png").rename(tmp_path / "later.png")
    assert len(imported("hateful_memes", root, tmp_path / "out").rows["train"]) == 3
    (tmp_path / "later.png").rename(root / "img" / "00002.png")
    data = imported("hateful_memes", root, tmp_path / "out")
    assert (len(data.rows["train"]), data.rejected) == (4, [])


def test_another_image_folder_is_another_import(tmp_path: Path) -> None:
    root = hateful_memes(tmp_path / "fb")
    imported("hateful_memes", root, tmp_path / "out")
    shutil.copytree(root / "img", tmp_path / "other")
    with pytest.raises(UserError, match="holds another import"):
        imported("hateful_memes", root, tmp_path / "out", images=tmp_path / "other")


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_quote_that_is_not_closed_costs_no_row(delimiter: str, tmp_path: Path) -> None:
    lines = ["id,image,text", '1,a.png,"never closed', "2,b.png,tea", "3,c.png,milk"]
    path = table(tmp_path / "x.csv", "\n".join(line.replace(",", delimiter) for line in lines) + "\n")
    rows = list(csv_rows(path, delimiter))
    assert [row.values["text"] for row in rows] == ['"never closed', "tea", "milk"]
    assert [row.place for row in rows] == ["x.csv, line 2", "x.csv, line 3", "x.csv, line 4"]


def test_a_quote_that_another_row_closes_swallows_nothing(tmp_path: Path) -> None:
    lines = ["id\timage\ttext", '1\ta.png\t"open', "2\tb.png\ttea", '3\tc.png\tclosed"', "4\td.png\tx"]
    rows = csv_rows(table(tmp_path / "x.tsv", "\n".join(lines) + "\n"), "\t")
    assert [row.values["text"] for row in rows] == ['"open', "tea", 'closed"', "x"]


def test_quotes_inside_a_line_are_whole(tmp_path: Path) -> None:
    lines = ["id\ttext", '1\t"HELLO" SHE SAID', '2\t"all of it"', '3\ta "word" inside', '4\t"two ""words"""', '5\t"end']
    rows = csv_rows(table(tmp_path / "x.tsv", "\n".join(lines)), "\t")
    expected = ['"HELLO" SHE SAID', "all of it", 'a "word" inside', 'two "words"', '"end']
    assert [row.values["text"] for row in rows] == expected


def test_a_caption_over_several_lines_is_whole(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", 'id,image,text\n1,a.png,"one, two\n\nthree ""four"""\n')
    (row,) = csv_rows(path)
    assert row.values["text"] == 'one, two\n\nthree "four"'


def test_dots_in_the_root_are_resolved_as_the_file_system_does(tmp_path: Path) -> None:
    hateful_memes(tmp_path / "real" / "fb")
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "fb" / "img")
    data = imported("hateful_memes", tmp_path / "link" / "..", tmp_path / "out")
    assert data.manifest["root"] == str(tmp_path / "real" / "fb")
    assert all(".." not in row["image"] for row in data.rows["train"])
    assert imported("hateful_memes", tmp_path / "real" / "fb" / ".." / "fb", tmp_path / "out").rejected == []


def test_backslashes_in_image_fields(tmp_path: Path) -> None:
    root = hateful_memes(tmp_path / "fb")
    path = root / "train.jsonl"
    path.write_text(path.read_text().replace("img\\/", "img\\\\"))
    assert len(imported("hateful_memes", root, tmp_path / "out").rows["train"]) == 4


def test_columns_with_the_names_of_tasks_do_not_become_task_labels(tmp_path: Path) -> None:
    picture(tmp_path / "fb" / "img" / "00001.png")
    table(tmp_path / "fb" / "info.csv", "id,img,text,label,split,attack\n1,img/00001.png,tea,0,train,mocking\n")
    data = imported("hateful_memes", tmp_path / "fb", tmp_path / "out")
    assert data.column("train", "extras") == [{"attack_in_file": "mocking"}]


def test_an_odd_add_on_costs_no_record(tmp_path: Path) -> None:
    root = hateful_memes(tmp_path / "fb")
    row = {"id": 1, "gold_hate": ["hateful"], "gold_pc": ["planet"], "gold_attack": ["mocking"]}
    jsonl(tmp_path / "fine" / "train.json", [row, row])
    data = imported("hateful_memes", root, tmp_path / "out", add_on=tmp_path / "fine")
    extras = data.column("train", "extras")[0]
    assert (extras["target"], extras["attack"]) == (None, [3])


def test_id_lists_that_lie_there_twice_must_agree(tmp_path: Path) -> None:
    root = mmhs150k(tmp_path / "mmhs")
    shutil.copytree(root / "splits", root / "splits_backup")
    assert len(imported("mmhs150k", root, tmp_path / "out").rows["test"]) == 3
    (root / "splits_backup" / "test_ids.txt").write_text("1\n")
    with pytest.raises(UserError, match="there is more than one such file"):
        imported("mmhs150k", root, tmp_path / "two")


@pytest.mark.parametrize("value", ["null", "NaN"])
@pytest.mark.parametrize("field", ["id", "text"])
def test_nothing_is_not_the_text_none_or_nan(field: str, value: str, tmp_path: Path) -> None:
    picture(tmp_path / "mine" / "a.png")
    row = {"id": '"a"', "image": '"a.png"', "text": '"tea"', "label": "0"} | {field: value}
    other = '{"id": "b", "image": "a.png", "text": "milk", "label": 1}'
    text = "{" + ", ".join(f'"{key}": {item}' for key, item in row.items()) + "}\n" + other
    (tmp_path / "mine" / "train.jsonl").write_text(text)
    data = imported("generic", tmp_path / "mine", tmp_path / "out")
    assert data.column("train", "id") == ["b"]
    assert f"its {field} is {'None' if value == 'null' else 'nan'}" in data.rejected[0]["reason"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "closed").mkdir(parents=True)
    scan = os.scandir

    def refuse(path: str | Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"closed cannot be read \(Permission denied\)"):
        imported("pridemm", tmp_path / "mine", tmp_path / "out")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "PrideMM.csv").write_bytes(b"name,hate\xff\n")
    with pytest.raises(UserError, match=r"No files of PrideMM .*\n  - .*PrideMM\.csv is not UTF-8"):
        imported("pridemm", tmp_path / "mine", tmp_path / "out")


def test_what_the_system_says_of_a_file_is_a_sentence(tmp_path: Path) -> None:
    hateful_memes(tmp_path / "fb")
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["data", "import", "hateful_memes", str(tmp_path / "fb"), "--output",
                                    str(tmp_path / "file"), "--workers", "1"])  # fmt: skip
    assert done.exit_code == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_split_column_is_told_before_a_thousand_files_are_open(tmp_path: Path) -> None:
    picture(tmp_path / "mine" / "a.png")
    rows = [f"m{i},a.png,tea,0,s{i}" for i in range(100)]
    table(tmp_path / "mine" / "all.csv", "id,image,text,label,split\n" + "\n".join(rows) + "\n")
    with pytest.raises(UserError, match="More than 64 splits"):
        imported("generic", tmp_path / "mine", tmp_path / "out")


def test_val_fraction_that_draws_nothing_is_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "mine" / "a.png")
    table(tmp_path / "mine" / "all.csv", "id,image,text,label\nm,a.png,tea,0\n")
    with pytest.raises(UserError, match="no row of a split named 'train' was drawn; there are all"):
        imported("generic", tmp_path / "mine", tmp_path / "out", options=ImportOptions(val_fraction=0.5))


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "mine" / "a.png")
    for suffix in ("csv", "tsv"):
        table(
            tmp_path / "mine" / f"train.{suffix}", "id,image,text\nm,a.png,tea\n".replace(",", ",\t"[suffix == "tsv"])
        )
    with pytest.raises(UserError, match=r"train\.csv and train\.tsv would be one split"):
        imported("generic", tmp_path / "mine", tmp_path / "out")


def test_labels_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    root = mami(tmp_path / "mami")
    with (root / "test_labels.txt").open("a") as file:
        file.write("15001.jpg\t0\t0\t0\t0\t0\n")
    with pytest.raises(UserError, match=r"line 3: other labels for '15001\.jpg' than before"):
        imported("mami", root, tmp_path / "out")


def test_labels_that_join_to_no_row_are_told(tmp_path: Path) -> None:
    root = mami(tmp_path / "mami")
    table(root / "test_labels.txt", "15001\t1\t0\t0\t0\t0\n")
    assert "test: 2 of 2 memes have no label" in imported("mami", root, tmp_path / "out").manifest["notes"]


def test_a_repeated_picture_within_a_split_is_information(tmp_path: Path) -> None:
    root = hateful_memes(tmp_path / "fb")
    shutil.copy(root / "img" / "00001.png", root / "img" / "00004.png")
    imported("hateful_memes", root, tmp_path / "out")
    found = {finding["kind"]: finding for finding in check_data(tmp_path / "out").findings}
    assert found["repeated_image"]["examples"] == ["train: 00001 and train: 00004"]
    assert found["repeated_image"]["severity"] == "info"


def test_a_leak_among_many_twins_is_found() -> None:
    captions = np.array([*range(1, 201), 7], np.uint64)
    splits = np.array([0] * 200 + [1], np.uint8)
    found = list(similar_images(np.full(201, 12345, np.uint64), captions, splits, lambda *_: False))
    assert found == [(6, 200, True)]


def test_training_files_of_other_data_are_not_overwritten(tmp_path: Path) -> None:
    for name in ("one", "two"):
        picture(tmp_path / name / "a.png")
        table(tmp_path / name / "train.csv", f"id,image,text,label\n{name},a.png,tea,0\n")
        imported("generic", tmp_path / name, tmp_path / f"{name}_out")
    write_sharegpt(tmp_path / "one_out", tmp_path / "lf")
    write_sharegpt(tmp_path / "one_out", tmp_path / "lf", prompt='<image> "{text}"?')
    with pytest.raises(UserError, match="was written from .*one_out"):
        write_sharegpt(tmp_path / "two_out", tmp_path / "lf")
    write_sharegpt(tmp_path / "two_out", tmp_path / "lf", name="two")
    origins = json.loads((tmp_path / "lf" / "sharegpt_origins.json").read_text())
    assert [(file, one["source"].rsplit("/", 1)[1], one["prompt"][:9]) for file, one in origins.items()] == [
        ("gt/generic/sharegpt_generic_train_instructblip.json", "one_out", '<image> "'),
        ("gt/two/sharegpt_two_train_instructblip.json", "two_out", "<image> T"),
    ]
    (tmp_path / "release" / "gt" / "generic").mkdir(parents=True)
    (tmp_path / "release" / "gt" / "generic" / "sharegpt_generic_train_instructblip.json").write_text("[]")
    with pytest.raises(UserError, match="is not from here"):
        write_sharegpt(tmp_path / "one_out", tmp_path / "release")
    for name in ("../evil", "/evil", ""):
        with pytest.raises(UserError, match="it becomes a file name"):
            write_sharegpt(tmp_path / "one_out", tmp_path / "lf", name=name)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--labels", "no/none=0", "yes=1"],
        ["--labels", "yes=1", "no/none=0"],
        ["--labels=yes=1", "no/none=0"],
        ["--labels", "yes=1", "--labels", "no/none=0"],
    ],
)
def test_options_that_take_several_values(arguments: list[str], tmp_path: Path) -> None:
    picture(tmp_path / "mine" / "a.png")
    table(tmp_path / "mine" / "train.csv", "id,image,text,label\na,a.png,tea,no/none\nb,a.png,milk,yes\n")
    command = ["data", "import", "generic", str(tmp_path / "mine"), *arguments, "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert Imported(tmp_path / "out").column("train", "label") == [0, 1]
