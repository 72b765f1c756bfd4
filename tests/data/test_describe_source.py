"""What a manifest says of the memes that something was made from."""

import json
from pathlib import Path

import pytest
from data_copies import multioff
from meme_files import imported

from ra_hmd.data.resolve import describe_source


def test_an_imported_data_set_is_called_by_its_reader(tmp_path: Path) -> None:
    imported("multioff", multioff(tmp_path / "raw"), tmp_path / "any name")
    described = describe_source(str(tmp_path / "any name"), "dev")
    assert described["dataset"] == "multioff"
    assert described["split"] == "dev"
    assert described["place"] == str(tmp_path / "any name")
    assert describe_source(str(tmp_path / "any name"), "dev", described["task"]) == described
    assert describe_source(str(tmp_path / "any name"), "dev", "other")["task"] == "other"


@pytest.mark.parametrize(
    ("data", "split", "dataset", "ours"),
    [
        ("hatefulmemes", "train", "hateful_memes", "train"),
        ("hatefulmemes", "test", "hateful_memes", "test_seen"),
        ("hatefulmemes", "dev_unseen", "hateful_memes", "dev_unseen"),
        ("harmc", "dev", "harm_c", "val"),
        ("harmc", "train", "harm_c", "train"),
        ("confounders_a", "test", "confounders_a", "test"),
    ],
)
def test_a_training_file_s_name_tells_data_set_and_split(tmp_path, monkeypatch, data, split, dataset, ours) -> None:
    monkeypatch.chdir(tmp_path)
    described = describe_source(data, split)
    assert (described["dataset"], described["split"]) == (dataset, ours)


def test_other_folders_and_files_are_called_by_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "mine.v1"
    folder.mkdir()
    for name in ("train.jsonl", "week.jsonl"):
        (folder / name).write_text(json.dumps({"id": "1"}) + "\n")
    assert describe_source(str(folder), "train")["dataset"] == "mine.v1"
    assert describe_source(str(folder / "train.jsonl"), "train")["dataset"] == "mine.v1"
    assert describe_source(str(folder / "week.jsonl"), "train")["dataset"] == "week"
    assert describe_source(str(folder), "train")["task"] is None
