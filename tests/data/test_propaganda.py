"""Reader of propaganda memes: 22 techniques, any number per meme, beyond the contract of `test_readers.py`."""

from pathlib import Path
from typing import Any

import pytest
from meme_files import Imported, imported, jsonl, picture

from ra_hmd.data.meme_dataset import open_data
from ra_hmd.data.readers import READERS

COMPOSED, DECOMPOSED = "Thought-terminating clich\u00e9", "Thought-terminating cliche\u0301"


def row(name: str, image: str, text: str, *labels: str) -> dict[str, Any]:
    return {"id": name, "labels": list(labels), "text": text, "image": image}


ROWS = {
    "train": [
        row("117_batch_2", "117_image_batch_2.png", "COFFEE\nFIRST\n\nALWAYS\n", "Smears", "Loaded Language"),
        row("125", "125_image.png", "Rain again", "Whataboutism"),
        row("9", "9_image.png", "Cats"),
        row("7_batch_1", "7_image_batch_1.png", "Tea", COMPOSED, "Appeal to authority"),
    ],
    "val": [row("125_batch_1", "125_image_batch_1.png", "Snow", DECOMPOSED)],
    "test": [
        row(
            "300",
            "300_image.png",
            "Milk",
            "Transfer",
            "Slogans",
            "Smears",
            "Doubt",
            "Repetition",
            "Bandwagon",
            "Flag-waving",
            "Name calling/Labeling",
        )
    ],
}


def make(root: Path) -> Path:
    """The MMF folders below `root`; returns `defaults`."""
    folder = root / "data/datasets/propaganda/defaults"
    for split, rows in ROWS.items():
        jsonl(folder / "annotations" / f"{split}.jsonl", rows)
        for values in rows:
            picture(folder / "images" / values["image"], "PNG" if values["id"] == "9" else "JPEG")
    return folder


@pytest.fixture(scope="module")
def mmf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Imported]:
    """`defaults` and the import of a copy in MMF folders."""
    root = tmp_path_factory.mktemp("propaganda")
    return make(root), imported("propaganda", root, root / "out")


def test_image_name_is_not_derived_from_the_id(mmf: tuple[Path, Imported]) -> None:
    folder, run = mmf
    assert run.column("train", "image") == [
        str(folder / "images/117_image_batch_2.png"),
        str(folder / "images/125_image.png"),
        str(folder / "images/9_image.png"),
        str(folder / "images/7_image_batch_1.png"),
    ]
    assert run.column("val", "image") == [str(folder / "images/125_image_batch_1.png")]
    assert run.column("test", "image") == [str(folder / "images/300_image.png")]


def test_techniques_are_sorted_indices_and_names_stay(mmf: tuple[Path, Imported]) -> None:
    _, run = mmf
    assert run.column("train", "extras.techniques") == [[10, 18], [21], [], [0, 19]]
    assert run.column("train", "extras.labels")[:2] == [["Smears", "Loaded Language"], ["Whataboutism"]]
    assert run.rows["train"][0]["extras"].keys() == {"labels", "techniques"}


def test_eight_labels_in_one_row(mmf: tuple[Path, Imported]) -> None:
    _, run = mmf
    assert run.column("test", "extras.techniques") == [[3, 6, 8, 12, 16, 17, 18, 20]]


def test_empty_label_list(mmf: tuple[Path, Imported]) -> None:
    folder, run = mmf
    assert run.rows["train"][2]["extras"] == {"labels": [], "techniques": []}
    data = open_data(folder.parents[3] / "out")
    cats = list(data.memes("train"))[2]
    assert data.value(data.task(None), cats) == []
    assert [data.value(task, cats) for task in data.reader.tasks[1:]] == [0] * 22


def test_composed_and_decomposed_e_acute(mmf: tuple[Path, Imported]) -> None:
    _, run = mmf
    assert len(COMPOSED) + 1 == len(DECOMPOSED)
    assert run.rows["train"][3]["extras"] == {"labels": [COMPOSED, "Appeal to authority"], "techniques": [0, 19]}
    assert run.rows["val"][0]["extras"] == {"labels": [DECOMPOSED], "techniques": [19]}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("smears", [1, 0, 0, 0]),
        ("loaded_language", [1, 0, 0, 0]),
        ("whataboutism", [0, 1, 0, 0]),
        ("thought_terminating_cliche", [0, 0, 0, 1]),
        ("appeal_to_authority", [0, 0, 0, 1]),
        ("appeal_to_fear_prejudice", [0, 0, 0, 0]),
    ],
)
def test_each_technique_is_a_binary_task(mmf: tuple[Path, Imported], name: str, values: list[int]) -> None:
    data = open_data(mmf[0].parents[3] / "out")
    task = data.task(name)
    assert [data.value(task, meme) for meme in data.memes("train")] == values


def test_22_techniques_with_names_of_their_own() -> None:
    first, *single = READERS["propaganda"].tasks
    assert first.multi_label
    assert len(first.classes) == 22
    assert [first.classes[index] for index in (0, 10, 12, 18, 19, 21)] == [
        "Appeal to authority",
        "Loaded Language",
        "Name calling/Labeling",
        "Smears",
        "Thought-terminating cliché",
        "Whataboutism",
    ]
    assert len({task.name for task in single}) == 22
    assert [task.member_of for task in single] == [("techniques", index) for index in range(22)]


def test_an_unknown_technique_is_rejected(tmp_path: Path) -> None:
    folder = make(tmp_path)
    rows = [row("125", "125_image.png", "Rain", "Smears"), row("9", "9_image.png", "Cats", "Purring")]
    jsonl(folder / "annotations/train.jsonl", rows)
    run = imported("propaganda", folder, tmp_path / "out")
    assert run.column("train", "id") == ["125"]
    assert run.rejected == [
        {
            "split": "train",
            "place": "train.jsonl, line 2",
            "id": None,
            "reason": "technique 'Purring' is none of the 22",
        }
    ]


def test_a_row_without_labels_is_rejected(tmp_path: Path) -> None:
    folder = make(tmp_path)
    jsonl(folder / "annotations/val.jsonl", [{"id": "9", "text": "Cats", "image": "9_image.png"}])
    run = imported("propaganda", folder, tmp_path / "out")
    assert run.manifest["splits"] == {"test": 1, "train": 4}
    assert [line["reason"] for line in run.rejected] == ["field 'labels' is missing; this row has id, text, image"]


def test_the_same_repeated_label_counts_once(tmp_path: Path) -> None:
    folder = make(tmp_path)
    jsonl(folder / "annotations/val.jsonl", [row("9", "9_image.png", "Cats", "Smears", " smears", "Doubt")])
    run = imported("propaganda", folder, tmp_path / "out")
    assert run.column("val", "extras.techniques") == [[6, 18]]
