"""Readers of Harm-C and Harm-P: layouts, versions and labels, beyond the contract of `test_readers.py`."""

from pathlib import Path
from typing import Any

import pytest
from meme_files import Imported, imported, jsonl, picture, records

from ra_hmd.core.errors import UserError
from ra_hmd.data.import_dataset import ImportOptions


def meme(name: str, labels: list[str], text: str) -> dict[str, Any]:
    return {"id": name, "image": f"{name}.png", "labels": labels, "text": text}


C_ROWS = {
    "train": [
        meme("covid_memes_0", ["somewhat harmful", "organization"], "MONDAY\nAGAIN\n"),
        meme("covid_memes_12", ["not harmful"], "Coffee first\n"),
        meme("covid_memes_7", ["very harmful", "society", "individual"], "A cat\n in a box\n"),
    ],
    "val": [meme("covid_memes_3", ["not harmful"], "Sunny, 25 °C\n")],
    "test": [meme("covid_memes_1041", ["somewhat harmful"], "Tea?\n")],
}
P_ROWS = {
    "train": [
        meme("memes_326", ["", "individual", "community"], "Soup of the day"),
        meme("memes_1", ["not harmful", "organization"], "rain\nand more rain"),
        meme("memes_4000", ["very harmful", "community"], "bread\n"),
    ],
    "val": [meme("memes_2", ["somewhat harmful"], "two\ncats\n")],
    "test": [meme("memes_3", ["not harmful"], "Snow\n")],
}

# id, image, label, text, raw text
C_RECORDS = {
    "train": [
        ("covid_memes_0", "covid_memes_0.png", 1, "MONDAY AGAIN", "MONDAY\nAGAIN\n"),
        ("covid_memes_12", "covid_memes_12.png", 0, "Coffee first", "Coffee first\n"),
        ("covid_memes_7", "covid_memes_7.png", 1, "A cat in a box", "A cat\n in a box\n"),
    ],
    "val": [("covid_memes_3", "covid_memes_3.png", 0, "Sunny, 25 °C", "Sunny, 25 °C\n")],
    "test": [("covid_memes_1041", "covid_memes_1041.png", 1, "Tea?", "Tea?\n")],
}
P_RECORDS = {
    "train": [
        ("memes_326", "memes_326.png", 1, "Soup of the day", "Soup of the day"),
        ("memes_1", "memes_1.png", 0, "rain and more rain", "rain\nand more rain"),
        ("memes_4000", "memes_4000.png", 1, "bread", "bread\n"),
    ],
    "val": [("memes_2", "memes_2.png", 1, "two cats", "two\ncats\n")],
    "test": [("memes_3", "memes_3.png", 0, "Snow", "Snow\n")],
}
C_EXTRAS = [
    {"labels": ["somewhat harmful", "organization"], "intensity": 1, "target": [1]},
    {"labels": ["not harmful"], "intensity": 0, "target": []},
    {"labels": ["very harmful", "society", "individual"], "intensity": 2, "target": [0, 3]},
]
P_EXTRAS = [
    {"labels": ["", "individual", "community"], "intensity": None, "target": [0, 2]},
    {"labels": ["not harmful", "organization"], "intensity": 0, "target": [1]},
    {"labels": ["very harmful", "community"], "intensity": 2, "target": [2]},
]


def write(folder: Path, splits: dict[str, list[dict[str, Any]]], suffix: str = "", *, crlf: bool = False) -> Path:
    for split, rows in splits.items():
        jsonl(folder / f"{split}{suffix}.jsonl", rows, crlf=crlf)
    return folder


def pictures(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    for row in (row for rows in splits.values() for row in rows):
        picture(folder / row["image"])
    return folder


def momenta(root: Path) -> Path:
    """The authors' repository with both data sets and their further files, beside the images."""
    write(root / "HarMeme_V1/Annotations/Harm-C", C_ROWS, crlf=True)
    write(root / "HarMeme_V1/Annotations/Harm-P", P_ROWS, "_v1")
    for name in ("HarMeme_COVID_GCVwBB_3544.json", "HarMeme_USPOL_GCVwBB_3552.json"):
        (root / "HarMeme_V1/MetaInfo").mkdir(exist_ok=True)
        (root / "HarMeme_V1/MetaInfo" / name).write_text('{"covid_memes_0.png": {"web": ["calendar"]}}')
    pictures(root / "HarMeme_Images/harmeme_images_covid_19", C_ROWS)
    pictures(root / "HarMeme_Images/harmeme_images_us_pol", P_ROWS)
    return root


def v0(root: Path) -> Path:
    """The older release, whose data sets lie in folders of the same names."""
    for topic, rows in (("Covid19", C_ROWS), ("USPolitics", P_ROWS)):
        write(root / f"HarMeme_V0/HarMeme_V0_DataFiles_{topic}/datasets/memes/defaults/annotations", rows)
    pictures(root / "HarMeme_Images/harmeme_images_covid_19", C_ROWS)
    pictures(root / "HarMeme_Images/harmeme_images_us_pol", P_ROWS)
    return root


def test_harm_c_v1(tmp_path: Path) -> None:
    root = momenta(tmp_path / "MOMENTA")
    got = imported("harm_c", root, tmp_path / "out")
    assert records(got, root / "HarMeme_Images/harmeme_images_covid_19") == C_RECORDS
    assert got.column("train", "extras") == C_EXTRAS
    assert got.column("val", "extras") == [{"labels": ["not harmful"], "intensity": 0, "target": []}]
    assert got.column("test", "extras") == [{"labels": ["somewhat harmful"], "intensity": 1, "target": []}]
    assert got.manifest["layout"] == "V1 annotations"
    assert got.manifest["variant"] == "V1"
    assert got.manifest["splits"] == {"test": 1, "train": 3, "val": 1}
    assert got.manifest["notes"] == []
    assert got.rejected == []


def test_harm_p_v1(tmp_path: Path) -> None:
    root = momenta(tmp_path / "MOMENTA")
    got = imported("harm_p", root, tmp_path / "out")
    assert records(got, root / "HarMeme_Images/harmeme_images_us_pol") == P_RECORDS
    assert got.column("train", "extras") == P_EXTRAS
    assert got.column("val", "extras") == [{"labels": ["somewhat harmful"], "intensity": 1, "target": []}]
    assert got.column("test", "extras") == [{"labels": ["not harmful"], "intensity": 0, "target": []}]
    assert got.manifest["layout"] == "V1 annotations"
    assert got.manifest["variant"] == "V1"
    assert got.manifest["splits"] == {"test": 1, "train": 3, "val": 1}
    assert got.manifest["notes"] == []
    assert got.rejected == []


def test_harm_c_v0_is_accepted_and_named(tmp_path: Path) -> None:
    root = v0(tmp_path / "in")
    got = imported("harm_c", root, tmp_path / "out")
    assert records(got, root / "HarMeme_Images/harmeme_images_covid_19") == C_RECORDS
    assert got.column("train", "extras") == C_EXTRAS
    assert got.manifest["layout"] == "V0 folders"
    assert got.manifest["notes"] == ["V0 folders: Harm-C is expected to be the same as in V1"]


@pytest.mark.parametrize(
    "below", ["", "HarMeme_V0", "HarMeme_V0/HarMeme_V0_DataFiles_USPolitics/datasets/memes/defaults/annotations"]
)
def test_harm_p_v0_is_refused_by_its_folder(tmp_path: Path, below: str) -> None:
    root = v0(tmp_path / "in")
    with pytest.raises(UserError, match=r"is Harm-P V0 \(its folder says so\).* contains duplicates.*use V1") as caught:
        imported("harm_p", root / below, tmp_path / "out", images=root)
    assert "HarMeme_V0_DataFiles_USPolitics" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["data/gt/HarmP", "datasets/memes/defaults/annotations", "politics"])
def test_harm_p_v0_is_refused_by_its_3020_train_rows(tmp_path: Path, folder: str) -> None:
    train = [meme(f"memes_{number}", ["not harmful"], "coffee") for number in range(3020)]
    write(tmp_path / "in" / folder, {**P_ROWS, "train": train})
    pictures(tmp_path / "in" / "images", P_ROWS)
    with pytest.raises(UserError, match=r"is Harm-P V0 \(train\.jsonl has 3020 rows, V1 has 2938\)"):
        imported("harm_p", tmp_path / "in", tmp_path / "out")


def test_harm_p_of_2938_rows_in_neutral_folders_is_v1(tmp_path: Path) -> None:
    train = [meme(f"memes_{number}", ["not harmful"], "coffee") for number in range(2938)]
    write(tmp_path / "in", {"train": train})
    picture(tmp_path / "in/images/memes_2937.png")
    picture(tmp_path / "in/images/memes_0.png")
    got = imported("harm_p", tmp_path / "in", tmp_path / "out")
    assert got.column("train", "id") == ["memes_0", "memes_2937"]
    assert got.manifest["variant"] == "V1"
    assert got.manifest["rejected"] == {"train": 2936}
    assert got.manifest["reasons"] == {"image missing": 2936}


def test_harm_p_v1_is_read_where_v0_lies_beside_it(tmp_path: Path) -> None:
    root = v0(momenta(tmp_path / "MOMENTA"))
    got = imported("harm_p", root, tmp_path / "out")
    assert records(got, root / "HarMeme_Images/harmeme_images_us_pol") == P_RECORDS
    assert got.manifest["layout"] == "V1 annotations"
    old = root / "HarMeme_V0/HarMeme_V0_DataFiles_USPolitics/datasets/memes/defaults/annotations"
    assert got.manifest["notes"] == [f"also there and not read: Harm-P V0 (its folder says so) in {old}"]


def test_harm_c_v1_is_read_where_v0_lies_beside_it(tmp_path: Path) -> None:
    root = v0(momenta(tmp_path / "MOMENTA"))
    got = imported("harm_c", root, tmp_path / "out")
    assert records(got, root / "HarMeme_Images/harmeme_images_covid_19") == C_RECORDS
    assert got.manifest["layout"] == "V1 annotations"
    old = root / "HarMeme_V0/HarMeme_V0_DataFiles_Covid19/datasets/memes/defaults/annotations"
    assert got.manifest["notes"] == [f"also there and not read: V0 folders in {old}"]


def test_harm_c_in_mmf_folders(tmp_path: Path) -> None:
    defaults = tmp_path / "in/data/datasets/memes/defaults"
    write(defaults / "annotations", C_ROWS, crlf=True)
    images = pictures(defaults / "images", C_ROWS)
    got = imported("harm_c", tmp_path / "in", tmp_path / "out")
    assert records(got, images) == C_RECORDS
    assert got.column("train", "extras") == C_EXTRAS
    assert got.manifest["layout"] == "MMF's folders"
    assert got.manifest["notes"] == []


@pytest.mark.parametrize(
    ("name", "folder", "expected"), [("harm_c", "HarMeme", C_RECORDS), ("harm_p", "HarmP", P_RECORDS)]
)
def test_rgcl_folders(tmp_path: Path, name: str, folder: str, expected: dict[str, list[tuple[Any, ...]]]) -> None:
    for own, rows in (("HarMeme", C_ROWS), ("HarmP", P_ROWS)):
        write(tmp_path / "in/data/gt" / own, rows)
        pictures(tmp_path / "in/data/image" / own / "All", rows)
    got = imported(name, tmp_path / "in", tmp_path / "out")
    assert records(got, tmp_path / "in/data/image" / folder / "All") == expected
    assert got.manifest["layout"] == "RGCL's folders"
    assert got.manifest["variant"] == "V1"


def one(tmp_path: Path, name: str, row: dict[str, Any], *, policy: Any = "single_line", crlf: bool = False) -> Imported:
    """Import a train file of a good row and this one."""
    stem = "covid_memes" if name == "harm_c" else "memes"
    rows = {"train": [meme(f"{stem}_9", ["not harmful"], "coffee"), row]}
    pictures(write(tmp_path / "in", rows, crlf=crlf) / "images", rows)
    return imported(name, tmp_path / "in", tmp_path / "out", options=ImportOptions(text=policy))


def test_empty_intensity_is_harmful_and_of_no_grade(tmp_path: Path) -> None:
    got = one(tmp_path, "harm_p", meme("memes_326", ["", "society"], "coffee"))
    assert got.column("train", "id") == ["memes_9", "memes_326"]
    assert got.column("train", "label") == [0, 1]
    assert got.column("train", "extras.intensity") == [0, None]
    assert got.column("train", "extras.target") == [[], [3]]


@pytest.mark.parametrize("name", ["harm_c", "harm_p"])
def test_not_harmful_with_targets_is_negative(tmp_path: Path, name: str) -> None:
    stem = "covid_memes" if name == "harm_c" else "memes"
    got = one(tmp_path, name, meme(f"{stem}_5", ["not harmful", "individual", "society"], "coffee"))
    assert got.column("train", "label") == [0, 0]
    assert got.column("train", "extras.intensity") == [0, 0]
    assert got.column("train", "extras.target") == [[], [0, 3]]


@pytest.mark.parametrize(
    ("intensity", "label", "grade"), [("not harmful", 0, 0), ("somewhat harmful", 1, 1), ("very harmful", 1, 2)]
)
def test_intensity_is_compared_as_a_whole(tmp_path: Path, intensity: str, label: int, grade: int) -> None:
    got = one(tmp_path, "harm_c", meme("covid_memes_5", [intensity], "coffee"))
    assert got.column("train", "label")[1] == label
    assert got.column("train", "extras.intensity")[1] == grade


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["harmful"], "intensity is 'harmful'; known are not harmful, somewhat harmful, very harmful"),
        (["very harmful", "weather"], "targets ['weather'] are not among individual, organization, community, society"),
        ([], "labels is []; it should begin with one of not harmful, somewhat harmful, very harmful"),
        ([1], "labels is [1]; it should begin with one of not harmful, somewhat harmful, very harmful"),
    ],
)
def test_unknown_labels_are_rejected(tmp_path: Path, labels: list[Any], reason: str) -> None:
    got = one(tmp_path, "harm_c", meme("covid_memes_5", labels, "coffee"))
    assert got.column("train", "id") == ["covid_memes_9"]
    assert got.rejected == [{"split": "train", "place": "train.jsonl, line 2", "id": None, "reason": reason}]


def test_harm_c_and_harm_p_are_told_apart_by_their_images(tmp_path: Path) -> None:
    write(tmp_path / "c", C_ROWS)
    write(tmp_path / "p", P_ROWS)
    with pytest.raises(
        UserError, match=r"No files of Harm-P \(HarMeme, US politics\) below .*test\.jsonl, train\.jsonl"
    ):
        imported("harm_p", tmp_path / "c", tmp_path / "out")
    with pytest.raises(UserError, match=r"No files of Harm-C \(HarMeme, COVID-19\) below .*test\.jsonl, train\.jsonl"):
        imported("harm_c", tmp_path / "p", tmp_path / "out")


@pytest.mark.parametrize("name", ["harm_c", "harm_p"])
def test_files_without_labels_are_not_taken(tmp_path: Path, name: str) -> None:
    row = {"id": "memes_1", "image": "memes_1.png", "label": 0, "text": "coffee"}
    jsonl(tmp_path / "in" / "train.jsonl", [row])
    with pytest.raises(UserError, match=r"No files of Harm-[CP] .*Annotation files there: train\.jsonl"):
        imported(name, tmp_path / "in", tmp_path / "out")
