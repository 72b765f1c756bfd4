"""`ra-hmd data check`: a whole, sound copy gives no finding; every planted defect is found, and nothing beside it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from data_copies import hateful_memes
from engines import BIN, run
from meme_files import imported, picture, table
from PIL import Image
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.checks import fix, scan
from ra_hmd.data.checks.check import check_data
from ra_hmd.data.checks.findings import similar_images
from ra_hmd.data.checks.scan import image_facts
from ra_hmd.data.meme_dataset import MemeData, open_data, write_split
from ra_hmd.models.caption_budget import excess_tokens
from ra_hmd.models.meme_model import load_encoder
from ra_hmd.models.tokenization import InputSettings

COUNTS = {"Training": (258, 187), "Validation": (91, 58), "Testing": (91, 58)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of MultiOFF with the published counts, imported into `memes`."""
    root = tmp_path_factory.mktemp("whole")
    number = 0
    for split, (negative, positive) in COUNTS.items():
        rows = ["image_name,sentence,label"]
        for label in ["Non-offensiv"] * negative + ["offensive"] * positive:
            number += 1
            picture(root / "images" / f"n{number}.png")
            rows.append(f'n{number}.png,"the weather report number {number} ",{label}')
        table(root / f"{split}_meme_dataset.csv", "\n".join(rows) + "\n", crlf=True)
    imported("multioff", root, root / "memes")
    return root


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> "Copy":
    """A copy of the whole copy, to be damaged."""
    shutil.copytree(whole, tmp_path / "whole")
    folder = tmp_path / "whole" / "memes"
    for path in folder.glob("*.jsonl"):
        path.write_text(path.read_text().replace(str(whole), str(tmp_path / "whole")))
    for split in ("train", "val", "test"):
        write_split(folder, split, list(open_data(folder).memes(split)))
    return Copy(folder)


class Copy:
    """Plants defects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, split: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"{split}.jsonl").read_text().splitlines()]

    def edit(self, split: str, change: Callable[[list[dict[str, Any]]], None], *, parquet: bool = True) -> None:
        rows = self.rows(split)
        change(rows)
        (self.folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if parquet:
            write_split(self.folder, split, list(open_data(self.folder).memes(split)))

    def image(self, name: str) -> Path:
        return self.folder.parent / "images" / name

    def found(self, config: Path | None = None, model: str | None = None, **options: Any) -> dict[str, dict[str, Any]]:
        excess = None if config is None else excess_tokens(config, model)
        report = check_data(self.folder, excess=excess, config=config, **options)
        return {finding["kind"]: finding for finding in report.findings}


@pytest.mark.renders
def test_a_whole_copy_gives_no_finding(whole: Path) -> None:
    report = check_data(whole / "memes")
    assert report.findings == []
    assert report.rows == {"test": 149, "train": 445, "val": 149}
    assert report.classes["hate"]["train"] == {"not offensive": 258, "offensive": 187}
    page = (whole / "memes" / "check" / "report.md").read_text()
    assert "Nothing was found." in page
    assert "| train | 445 | 445 |" in page
    for name in ("classes.png", "sizes.png"):
        with Image.open(whole / "memes" / "check" / name) as figure:
            figure.verify()


def damage(copy: Copy) -> None:
    """Plant one defect of every kind that shows in a row or an image."""
    copy.image("n1.png").unlink()
    data = copy.image("n2.png").read_bytes()
    copy.image("n2.png").write_bytes(data[: len(data) // 2])
    copy.image("n3.png").write_text("not a picture")
    picture(copy.image("n4.png"), "JPEG")
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    frames[0].save(copy.image("n5.gif"), save_all=True, append_images=frames[1:])
    Image.new("1", (8000, 6300)).save(copy.image("n6.png"))
    shutil.copy(copy.image("n600.png"), copy.image("n7.png"))
    shutil.copy(copy.image("n601.png"), copy.image("n8.png"))
    shutil.copy(copy.image("n10.png"), copy.image("n9.png"))

    def edit(rows: list[dict[str, Any]]) -> None:
        by_id = {row["id"]: row for row in rows}
        by_id["n5.png"]["image"] = str(copy.image("n5.gif"))
        by_id["n8.png"]["text"] = "the weather report number 601"
        by_id["n9.png"]["text"] = by_id["n10.png"]["text"]
        by_id["n9.png"]["label"] = 1
        by_id["n11.png"]["text"] = "rain <image> and <|im_end|> sun"
        by_id["n12.png"]["text"] = ""
        by_id["n13.png"]["label"] = None
        by_id["n14.png"]["id"] = "n602.png"
        rows.append(dict(by_id["n20.png"]))
        rows.append(by_id["n21.png"] | {"text": "another text"})

    copy.edit("train", edit)
    with (copy.folder / "train.jsonl").open("a") as file:
        file.write('{"id": "broken"\n')

    def edit_val(rows: list[dict[str, Any]]) -> None:
        rows.pop()
        rows[0]["image"] = str(copy.image("n15.png"))

    copy.edit("val", edit_val)
    (copy.folder / "rejected.jsonl").write_text(
        json.dumps({"split": "test", "place": "x.csv, line 3", "id": "n0.png", "reason": "image missing: n0.png"})
        + "\n"
    )


EXPECTED = {
    "missing_image": ["train: n1.png"],
    "corrupt_image": ["train: n2.png", "train: n3.png"],
    "wrong_suffix": ["train: n4.png"],
    "animated_image": ["train: n5.png"],
    "huge_image": ["train: n6.png"],
    "image_across_splits": ["test: n601.png and train: n8.png"],
    "image_across_splits_other_caption": ["train: n15.png and val: n446.png", "test: n600.png and train: n7.png"],
    "repeated_image": ["train: n9.png and train: n10.png"],
    "caption_across_splits": ["test: n601.png and train: n8.png"],
    "contradicting_label": ["train: n9.png and train: n10.png"],
    "special_string": ["train: n11.png: <image>"],
    "empty_caption": ["train: n12.png"],
    "unlabelled": ["train: 1 of 448 rows"],
    "id_across_splits": ["test: n602.png and train: n602.png"],
    "image_of_two_memes": ["train: n15.png and val: n446.png"],
    "duplicate_row": ["train: n20.png"],
    "duplicate_id": ["train: n21.png"],
    "unreadable_row": ["train.jsonl, line 448"],
    "parquet_differs": ["train.parquet"],
    "rows": ["train: 448 rows, expected 445", "val: 148 rows, expected 149"],
    "classes": ["train, hate: (258, 188), expected (258, 187)", "val, hate: (91, 57), expected (91, 58)"],
    "rejected_row": ["test: n0.png: image missing"],
}


@pytest.mark.renders
def test_every_planted_defect_is_found_and_nothing_else(copy: Copy) -> None:
    damage(copy)
    found = copy.found()
    assert sorted(found) == sorted(EXPECTED)
    for kind, beginnings in EXPECTED.items():
        assert found[kind]["count"] == len(beginnings), kind
        for example, beginning in zip(sorted(found[kind]["examples"]), sorted(beginnings), strict=True):
            assert example.startswith(beginning), kind
    page = (copy.folder / "check" / "report.md").read_text()
    for kind in EXPECTED:
        assert f": {kind} (" in page


def test_severities_decide_the_exit_code(copy: Copy) -> None:
    command = ["data", "check", str(copy.folder), "--workers", "1"]
    assert run([str(BIN / "ra-hmd"), *command], copy.folder).returncode == 0

    def check(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
        return done.exit_code, done.output

    copy.edit("val", lambda rows: rows.pop())
    code, printed = check(*command)
    assert (code, "warning  rows: 1" in printed) == (0, True)
    assert check(*command, "--strict")[0] == 1
    copy.image("n1.png").unlink()
    code, printed = check(*command)
    assert (code, "error    missing_image: 1" in printed) == (1, True)
    assert check(*command[:-3], "nowhere")[0] == 2


def test_fix_takes_out_what_nothing_can_use_and_lists_it(copy: Copy) -> None:
    damage(copy)
    images = {path: path.read_bytes() for path in copy.image("").iterdir()}
    report = check_data(copy.folder, fix=True)
    assert len(report.fixed) == 6
    left = {finding["kind"] for finding in report.findings}
    assert left.isdisjoint({"missing_image", "corrupt_image", "unreadable_row", "duplicate_row", "parquet_differs"})
    assert {"duplicate_id", "contradicting_label", "image_across_splits", "huge_image"} <= left
    rejected = [json.loads(line) for line in (copy.folder / "rejected.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rejected] == ["n0.png", "n1.png", "n2.png", "n3.png", "n20.png", None]
    assert json.loads(rejected[1]["line"])["text"] == "the weather report number 1"
    assert rejected[5]["line"] == '{"id": "broken"'
    assert len(copy.rows("train")) == 443
    assert json.loads((copy.folder / "dataset.json").read_text())["splits"]["train"] == 443
    assert pq.read_table(copy.folder / "train.parquet")["id"].to_pylist() == [row["id"] for row in copy.rows("train")]
    assert {path: path.read_bytes() for path in copy.image("").iterdir()} == images
    assert check_data(copy.folder, fix=True).fixed == []


def test_fix_of_a_sound_copy_changes_nothing(copy: Copy) -> None:
    before = {path: path.read_bytes() for path in copy.folder.iterdir() if path.is_file()}
    assert check_data(copy.folder, fix=True).fixed == []
    assert {path: path.read_bytes() for path in copy.folder.iterdir() if path.is_file()} == before


def test_fix_needs_an_import(memes: Path, tmp_path: Path) -> None:
    shutil.copytree(memes / "a", tmp_path / "a")
    assert check_data(tmp_path / "a").rows["train"] > 0
    with pytest.raises(UserError, match="was not made by `ra-hmd data import`"):
        check_data(tmp_path / "a", fix=True)


def test_a_parquet_file_that_differs_is_found_and_written_anew(copy: Copy) -> None:
    assert copy.found() == {}
    copy.edit("val", lambda rows: rows[5].update(text="changed by hand"), parquet=False)
    assert copy.found()["parquet_differs"]["examples"] == ["val.parquet"]
    report = check_data(copy.folder, fix=True)
    assert report.findings == []
    assert pq.read_table(copy.folder / "val.parquet")["text"].to_pylist()[5] == "changed by hand"


def test_workers_and_cache_change_nothing(copy: Copy) -> None:
    damage(copy)
    alone = check_data(copy.folder).findings
    assert check_data(copy.folder).findings == alone
    shutil.rmtree(copy.folder / "check")
    assert check_data(copy.folder, workers=2).findings == alone


def test_a_stopped_check_continues(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_CHUNK", 100)
    opened: list[str] = []

    def stop_after(limit: int) -> Callable[[str], Any]:
        def facts(path: str) -> Any:
            opened.append(path)
            if len(opened) > limit:
                raise KeyboardInterrupt
            return image_facts(path)

        return facts

    monkeypatch.setattr(scan, "image_facts", stop_after(250))
    with pytest.raises(KeyboardInterrupt):
        check_data(copy.folder)
    opened.clear()
    monkeypatch.setattr(scan, "image_facts", stop_after(10**6))
    assert check_data(copy.folder).findings == []
    assert len(opened) == 743 - 149 - 100


def test_a_changed_image_is_looked_at_again(copy: Copy) -> None:
    assert copy.found() == {}
    data = copy.image("n50.png").read_bytes()
    copy.image("n50.png").write_bytes(data[:-30])
    assert copy.found()["corrupt_image"]["examples"][0].startswith("train: n50.png")


def test_captions_over_the_budget_of_a_config(copy: Copy, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    long = "coffee " * 60
    copy.edit("train", lambda rows: rows[3].update(text=long.strip()))
    config = {"model_name_or_path": "not/there", "template": "qwen2_vl", "cutoff_len": 128, "learning_rate": 1e-4}
    path = tmp_path / "stage1.yaml"
    path.write_text(yaml.safe_dump(config))
    found = copy.found(config=path, model=str(tiny("qwen2_vl")))
    assert found["over_budget"]["examples"][0].startswith("train: n4.png, ")
    assert found["over_budget"]["count"] == 1
    path.write_text(yaml.safe_dump(config | {"cutoff_len": 1024}))
    assert copy.found(config=path, model=str(tiny("qwen2_vl"))) == {}
    with pytest.raises(UserError, match="cannot be loaded"):
        copy.found(config=path)
    path.write_text("stage: sft\n")
    with pytest.raises(UserError, match="has no `model_name_or_path` and `template`"):
        copy.found(config=path)


def test_the_budget_is_the_one_of_training(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "stage1.yaml"
    path.write_text(
        yaml.safe_dump({"model_name_or_path": str(tiny("qwen2_vl")), "template": "qwen2_vl", "cutoff_len": 96})
    )
    excess = excess_tokens(path)
    encoder, _ = load_encoder(str(tiny("qwen2_vl")), InputSettings(template="qwen2_vl", cutoff_len=96))
    for caption in ("", "tea", "rain <image> again", 'a "quoted" word', "x" * 40, "é 日本 " * 9):
        for size in ((48, 40), (300, 90), (5, 700), (2000, 1500)):
            assert excess(caption, *size) == encoder.count(caption, Image.new("RGB", size, "red")) - 80


def test_memes_shared_by_design_are_no_leak_and_hide_none(tmp_path: Path) -> None:
    root = hateful_memes(tmp_path / "fb")
    rows = (root / "dev_seen.jsonl").read_text().splitlines()
    (root / "dev_unseen.jsonl").write_text("\n".join(rows[:2]))
    leaked = json.loads(rows[0])
    shutil.copy(root / leaked["img"], root / "img" / "00001.png")
    train = [json.loads(row) for row in (root / "train.jsonl").read_text().splitlines()]
    train[0]["text"] = leaked["text"]
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, train)))
    imported("hateful_memes", root, tmp_path / "memes")
    found = {finding["kind"]: finding for finding in check_data(tmp_path / "memes").findings}
    assert found["shared_by_design"]["count"] == 2
    assert "id_across_splits" not in found
    assert found["image_across_splits"]["examples"] == ["dev_seen: 00101 and train: 00001"]
    assert found["caption_across_splits"]["count"] == 1


@pytest.mark.parametrize(("suffix", "kind", "found"), [
    (".jpe", "JPEG", ""), (".JPG", "JPEG", ""), (".png", "PNG", ""), (".webp", "WEBP", ""), (".bmp", "BMP", ""),
    (".png", "JPEG", "JPEG"), (".jpg", "WEBP", "WEBP"), ("", "PNG", "PNG"),
])  # fmt: skip
def test_suffix_against_content(suffix: str, kind: str, found: str, tmp_path: Path) -> None:
    assert image_facts(str(picture(tmp_path / f"x{suffix}", kind))).kind == found


def test_the_hash_survives_another_size_and_format(tmp_path: Path) -> None:
    image = Image.open(picture(tmp_path / "tiles.png")).resize((6, 5)).resize((480, 400), Image.Resampling.BICUBIC)
    image.save(tmp_path / "x.png")
    image.save(tmp_path / "x.jpg", quality=70)
    image.resize((240, 200)).save(tmp_path / "small.webp")
    image.convert("P").save(tmp_path / "palette.gif")
    hashes = [image_facts(str(tmp_path / name)).hash for name in ("x.png", "x.jpg", "small.webp", "palette.gif")]
    assert all((hashes[0] ^ other).bit_count() <= 4 for other in hashes)
    another = image_facts(str(picture(tmp_path / "y.png", size=(480, 400)))).hash
    assert (hashes[0] ^ another).bit_count() > 10


def never(row: int, other: int) -> bool:
    return row == other == -1


def test_similar_hashes_are_those_within_four_bits() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 300, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, k, replace=False)) for k in [0, 1, 2, 4, 5, 6] * 50]
    hashes = np.concatenate([base, base ^ np.array(flips, np.uint64)])
    splits = np.array([0] * 300 + [1] * 300, np.uint8)
    naive = {(a, b) for a in range(300) for b in range(300, 600) if int(hashes[a] ^ hashes[b]).bit_count() <= 4}
    captions = np.array([1] * 300 + [1, 2] * 150, np.uint64)
    found = list(similar_images(hashes, captions, splits, never))
    assert {(min(pair), max(pair)) for *pair, _ in found} == naive
    assert len(naive) == len(found) == 200
    assert all(same == (captions[one] == captions[other]) for one, other, same in found)
    assert list(similar_images(hashes[:0], captions[:0], splits[:0], never)) == []


def test_hostile_files_end_as_findings(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "svg.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    bomb = Image.new("1", (20000, 10000))
    bomb.save(tmp_path / "bomb.png")
    assert image_facts(str(tmp_path / "empty.png")).problem
    assert image_facts(str(tmp_path / "svg.png")).problem
    assert image_facts(str(tmp_path / "bomb.png")).problem == "huge"
    assert image_facts("/nowhere/\0").problem == "missing"
    assert image_facts(str(tmp_path)).problem == "missing"
    os.mkfifo(tmp_path / "pipe.png")
    assert image_facts(str(tmp_path / "pipe.png")).problem == "missing"


def test_a_leak_behind_a_confounder_is_found() -> None:
    """Train has a picture with two captions' worth of rows; the same caption comes back in val."""
    hashes = np.array([7, 7, 7, 2**40 - 1], np.uint64)
    captions, splits = np.array([1, 2, 1, 3], np.uint64), np.array([0, 1, 1, 0], np.uint8)
    assert [(min(pair), max(pair), same) for *pair, same in similar_images(hashes, captions, splits, never)] == [
        (0, 2, True)
    ]


def test_pictures_of_one_colour_are_not_compared(tmp_path: Path) -> None:
    rows = []
    for split, colour in (("train", "red"), ("train", "green"), ("val", "blue")):
        Image.new("RGB", (30, 30), colour).save(tmp_path / f"{colour}.png")
        rows.append(f"{colour}.png,{colour},{len(rows) % 2},{split}")
    table(tmp_path / "mine" / "all.csv", "image,text,label,split\n" + "\n".join(rows) + "\n")
    for path in tmp_path.glob("*.png"):
        path.rename(tmp_path / "mine" / path.name)
    imported("generic", tmp_path / "mine", tmp_path / "out")
    assert check_data(tmp_path / "out").findings == []


def test_labels_beyond_the_classes_and_a_lost_parquet_file_are_errors(copy: Copy) -> None:
    copy.edit("val", lambda rows: rows[0].update(label=5), parquet=False)
    (copy.folder / "test.parquet").unlink()
    (copy.folder / "train.parquet").write_bytes(b"torn")
    found = copy.found()
    assert found["unknown_class"]["examples"] == ["val: n446.png: hate 5"]
    assert found["parquet_differs"]["examples"] == ["test.parquet", "train.parquet", "val.parquet"]
    check_data(copy.folder, fix=True)
    assert "parquet_differs" not in copy.found()


def test_pictures_that_models_see_otherwise_than_they_are_stored_are_named(copy: Copy) -> None:
    strokes = np.zeros((40, 40), np.uint8)
    strokes[10:30, 5:35:6] = 255
    for name, alpha in (("n1.png", strokes), ("n200.png", np.ascontiguousarray(strokes.T))):
        image = Image.new("RGB", (40, 40))  # black throughout: what they show is in the alpha channel
        image.putalpha(Image.fromarray(alpha))
        image.save(copy.image(name))
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40).save(copy.image("n3.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((40, 30), 90).save(copy.image("n4.png"), exif=exif)

    def one_caption(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["id"] in ("n1.png", "n200.png"):
                row["text"] = "one caption for both"
        rows[0]["label"], rows[199]["label"] = 0, 1

    copy.edit("train", one_caption)
    found = copy.found()
    path = str(copy.folder.parent / "images")
    assert found["transparent_image"]["examples"] == [
        f"train: n1.png: {path}/n1.png", f"train: n200.png: {path}/n200.png"
    ]  # fmt: skip
    assert found["deep_image"]["examples"] == [f"train: n3.png: {path}/n3.png (mode I;16)"]
    assert found["turned_image"]["examples"] == [f"train: n4.png: {path}/n4.png"]
    assert "contradicting_label" not in found
    assert "repeated_image" not in found


def test_a_fix_that_was_stopped_is_finished_and_listed(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    copy.image("n1.png").unlink()
    copy.image("n446.png").unlink()
    rewrite = fix._rewrite

    def stop_at_val(data: MemeData, split: str, bad: Any) -> int:
        if split == "val":
            raise KeyboardInterrupt
        return rewrite(data, split, bad)

    monkeypatch.setattr(fix, "_rewrite", stop_at_val)
    with pytest.raises(KeyboardInterrupt):
        check_data(copy.folder, fix=True)
    monkeypatch.setattr(fix, "_rewrite", rewrite)
    report = check_data(copy.folder, fix=True)
    assert [text.split(" moved")[0] for text in report.fixed] == [
        "train.jsonl, row 1 (n1.png)",
        "val.jsonl, row 1 (n446.png)",
    ]
    manifest = json.loads((copy.folder / "dataset.json").read_text())
    assert manifest["splits"] == {"test": 149, "train": 444, "val": 148}
    rejected = [json.loads(line)["id"] for line in (copy.folder / "rejected.jsonl").read_text().splitlines()]
    assert rejected == ["n1.png", "n446.png"]
