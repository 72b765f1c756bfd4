"""`ra-hmd data import generic NAME`: data sets that `datasets.load_dataset` loads."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pictures
from typer.testing import CliRunner, Result

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.hub_dataset import fetch_dataset
from ra_hmd.data.meme_dataset import open_data

COLUMNS = ("--columns", "image=picture", "text=caption", "label=class")


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def picture(colour: int, kind: str) -> bytes:
    file = io.BytesIO()
    Pictures.new("RGB", (32, 24), (colour, 90, 40)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder as the hub has it: Parquet files of two splits, whose images are bytes, one of them missing."""
    features = Features({"picture": Image(), "caption": Value("string"), "class": ClassLabel(names=["kind", "unkind"])})
    folder = tmp_path / "published"
    (folder / "data").mkdir(parents=True)
    for split, rows in {"train": 6, "validation": 3}.items():
        images: list[Any] = [{"bytes": picture(40 * n, "JPEG"), "path": f"{n}.jpg"} for n in range(rows)]
        images[-1] = None if split == "train" else images[-1]
        values = {
            "picture": images,
            "caption": [f"{split} {n}" for n in range(rows)],
            "class": [n % 2 for n in range(rows)],
        }
        Dataset.from_dict(values, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def import_generic(root: str | Path, output: Path, *words: str) -> Result:
    return CliRunner().invoke(
        app, ["data", "import", "generic", str(root), "--output", str(output), "--workers", "1", *words]
    )


def test_rows_and_images_become_an_import(published: Path, tmp_path: Path) -> None:
    folder = fetch_dataset(str(published), tmp_path / "fetched")
    done = import_generic(
        folder, tmp_path / "ours", "--columns", "image=picture", "text=caption", "label=class", "--json"
    )
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["splits"] == {"train": 5, "validation": 3}
    assert sum(said["rejected"].values()) == 1  # the one without an image
    memes = list(open_data(tmp_path / "ours").memes("validation"))
    assert [(meme.text, meme.label) for meme in memes] == [
        ("validation 0", 0),
        ("validation 1", 1),
        ("validation 2", 0),
    ]
    assert [Path(meme.image).read_bytes() for meme in memes] == [picture(40 * n, "JPEG") for n in range(3)]


def test_the_command_loads_what_is_not_here_by_name(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ra_hmd.data.hub_dataset._load", lambda name, *_: _loaded(name, published))
    for _ in range(2):  # the second finds it loaded, and imported
        done = import_generic("ana/memes", tmp_path / "ours", *COLUMNS)
        assert done.exit_code == 0, done.output
        monkeypatch.setattr("ra_hmd.data.hub_dataset._load", lambda *_: pytest.fail("loaded again"))
    assert json.loads((tmp_path / "ours_download" / "download.json").read_text())["name"] == "ana/memes"


def _loaded(name: str, published: Path) -> Any:
    from datasets import load_dataset

    assert name == "ana/memes"
    return load_dataset(str(published))


def test_an_interrupted_load_leaves_nothing(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ra_hmd.data.hub_dataset._write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fetch_dataset(str(published), tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_data_set_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.jsonl").write_text('{"caption": "a"}\n')
    with pytest.raises(UserError, match="split train, has no column of images; it has caption"):
        fetch_dataset(str(tmp_path / "texts"), tmp_path / "fetched")


def test_a_name_that_is_nowhere_is_told_with_what_may_be_given(tmp_path: Path) -> None:
    done = import_generic("nobody/nothing", tmp_path / "ours")
    assert done.exit_code == 2
    assert "nobody/nothing is neither here nor a data set" in done.output
    assert not (tmp_path / "ours").exists()


def test_a_revision_of_a_folder_is_refused(published: Path, tmp_path: Path) -> None:
    done = import_generic(published, tmp_path / "ours", "--revision", "main")
    assert done.exit_code == 2
    assert "--subset and --revision are for names on the hub" in done.output
