"""The synthetic memes: layout, determinism, confounders in place, nothing to learn from one modality."""

import filecmp
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ra_hmd.core.artifacts import new_folder
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.synthetic.confounders import (
    DOMAINS,
    SPLITS,
    caption_corpus,
    descriptions,
    make_confounders,
    unimodal_oracle,
)
from ra_hmd.data.synthetic.pictograms import SIDE, STRIP

SIZE = 240
ROWS = {"train": 240, "dev": 40, "test": 60}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("memes") / "data"
    counts = make_confounders(output, size=SIZE, seed=3)
    assert counts == {
        **{f"confounders_{d}{s}": n for d in "ab" for s, n in zip(("", "_dev", "_test"), ROWS.values(), strict=True)},
        "confounders_captions": 2 * SIZE,
    }
    return output


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_layout(folder: Path) -> None:
    ids = set()
    for domain in "ab":
        for split in SPLITS:
            rows = rows_of(folder / domain / f"{split}.jsonl")
            assert len(rows) == ROWS[split]
            assert all(list(row) == ["id", "img", "label", "text"] for row in rows)
            assert Counter(row["label"] for row in rows) == {0: ROWS[split] / 2, 1: ROWS[split] / 2}
            ids |= {row["id"] for row in rows}
            for row in rows:
                with Image.open(folder / domain / row["img"]) as image:
                    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (SIDE, SIDE))
        assert len(list((folder / domain / "img").iterdir())) == sum(ROWS.values())
    assert len(ids) == 2 * sum(ROWS.values())


def test_sharegpt_files_say_the_same_as_the_jsonl_files(folder: Path) -> None:
    info = json.loads((folder / "dataset_info.json").read_text())
    for domain in "ab":
        for split in SPLITS:
            name = f"confounders_{domain}" + ("" if split == "train" else f"_{split}")
            memes = read_memes(folder / info[name]["file_name"], media_dir=folder)
            expected = read_memes(folder / domain / f"{split}.jsonl")
            assert [(m.id, m.image, m.text, m.label) for m in memes] == [
                (m.id, m.image, m.text, m.label) for m in expected
            ]
    assert set(info) == {path.stem for path in folder.glob("confounders_*.json")}


def test_descriptions_are_true_and_carry_no_label(folder: Path) -> None:
    text = (folder / "confounders_captions.json").read_text()
    assert not any(word in text for word in ("label", "Yes", "No.", "hateful"))
    shown = {row["id"]: row for domain in "ab" for row in rows_of(folder / domain / "attributes.jsonl")}
    for record in json.loads(text):
        meme = shown[record["id"].removesuffix("-description")]
        answer = record["messages"][1]["content"]
        assert meme["split"] == "train"
        caption = meme["text"]["wording"].format(noun=meme["text"]["noun"])
        assert answer in descriptions(meme["image"]["subject"], meme["image"]["body"], meme["text"]["topic"], caption)
        assert f'"{caption}"' in record["messages"][0]["content"]
        assert (folder / record["images"][0]).is_file()


def test_every_positive_has_both_confounders_in_its_split(folder: Path) -> None:
    for domain in "ab":
        attributes = {row["id"]: row for row in rows_of(folder / domain / "attributes.jsonl")}
        for split in SPLITS:
            memes = rows_of(folder / domain / f"{split}.jsonl")
            picture = {m["id"]: json.dumps(attributes[m["id"]]["image"]) for m in memes}
            negatives = [m for m in memes if m["label"] == 0]
            for meme in (m for m in memes if m["label"] == 1):
                group = attributes[meme["id"]]["group"]
                mates = [m for m in negatives if attributes[m["id"]]["group"] == group]
                assert sum(m["text"] == meme["text"] for m in mates) == 1
                assert sum(picture[m["id"]] == picture[meme["id"]] for m in mates) == 1


def test_label_is_whether_the_caption_is_about_what_is_shown(folder: Path) -> None:
    for domain in DOMAINS:
        attributes = {row["id"]: row for row in rows_of(folder / domain.name / "attributes.jsonl")}
        for split in SPLITS:
            for meme in rows_of(folder / domain.name / f"{split}.jsonl"):
                image, text = attributes[meme["id"]]["image"], attributes[meme["id"]]["text"]
                assert meme["label"] == (image["subject"] == text["topic"])
                assert meme["text"] == text["wording"].format(noun=text["noun"])
                assert text["noun"] in domain.nouns[text["topic"]]


def test_confounders_of_a_picture_differ_only_where_the_caption_is(folder: Path) -> None:
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in rows_of(folder / "a" / "attributes.jsonl"):
        key = (row["group"], row["image"]["subject"])
        groups.setdefault(key, []).append((row["id"], row["image"]["caption_place"]))
    for (first, place), (second, _) in groups.values():
        pixels = [np.asarray(Image.open(folder / "a" / "img" / f"{name}.png")) for name in (first, second)]
        free = slice(STRIP, None) if place == "top" else slice(None, SIDE - STRIP)
        assert np.array_equal(pixels[0][free], pixels[1][free])
        assert not np.array_equal(pixels[0], pixels[1])


def test_splits_share_no_picture_and_domains_nothing(folder: Path) -> None:
    for domain in "ab":
        seen: dict[str, set[str]] = {split: set() for split in SPLITS}
        for row in rows_of(folder / domain / "attributes.jsonl"):
            seen[row["split"]].add(json.dumps(row["image"]))
        assert {split: len(pictures) for split, pictures in seen.items()} == {s: n / 2 for s, n in ROWS.items()}
        assert len(set.union(*seen.values())) == sum(ROWS.values()) / 2
    subjects = [{subject for pair in domain.pairs for subject in pair} for domain in DOMAINS]
    assert all(subjects)
    assert not subjects[0] & subjects[1]
    captions = [{row["text"] for split in SPLITS for row in rows_of(folder / d / f"{split}.jsonl")} for d in "ab"]
    assert not captions[0] & captions[1]
    assert captions[0] | captions[1] <= set(caption_corpus())
    for name in ("bodies", "backgrounds"):
        assert not set(getattr(DOMAINS[0], name).values()) & set(getattr(DOMAINS[1], name).values())


def test_one_modality_says_nothing(folder: Path) -> None:
    for domain in "ab":
        oracle = unimodal_oracle(folder / domain)
        assert set(oracle) == {"image", "text"}
        assert all(0.45 <= value <= 0.55 for value in oracle.values())


def test_deterministic_to_the_byte_in_another_process(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ra_hmd.data.synthetic.confounders import make_confounders; "
        f"make_confounders(Path(sys.argv[1]), size={SIZE}, seed=3)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True, env=environment)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    again = sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file())
    assert files == again
    same, differ, errors = filecmp.cmpfiles(folder, tmp_path / "again", files, shallow=False)
    assert (len(same), differ, errors) == (len(files), [], [])


def test_another_seed_draws_other_memes(folder: Path, tmp_path: Path) -> None:
    make_confounders(tmp_path / "other", size=SIZE, seed=4)
    for name in ("a/train.jsonl", "b/test.jsonl"):
        assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_bad_requests_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exists and is not an empty folder"):
        make_confounders(folder, size=8)
    with pytest.raises(UserError, match=r"--size 3"):
        make_confounders(tmp_path / "small", size=3)
    with pytest.raises(UserError, match=r"attributes\.jsonl"):
        unimodal_oracle(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_complete_or_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as temporary:  # noqa: PT012 - the failure is inside
        (temporary / "half").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as temporary:
        (temporary / "whole").touch()
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["whole"]
