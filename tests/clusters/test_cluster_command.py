"""`ra-hmd cluster`: from memes or from a store; the report shows pictures when asked only."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from chromium import browser
from once import SharedFolders
from PIL import Image
from served import ra_hmd
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.clusters.guidance_members import Data, choose_members, open_members
from ra_hmd.clusters.guidance_settings import MemberSettings
from ra_hmd.clusters.members import Members, montage
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import ClustersManifest, read_manifest
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.store import read_features
from ra_hmd.models.cluster_assignment import Clusters
from ra_hmd.models.tiny_clip import make_tiny_encoder

__all__ = ["browser"]
CLUSTERS = ("--clusters", "4", "--stability-seeds", "2", "--workers", "0")


@pytest.fixture(scope="module")
def made(memes: Path, once: SharedFolders) -> Path:
    """Folder with a tiny CLIP in `clip`, a store in `train`, and clusters straight from memes in `clusters`."""

    def make(folder: Path) -> None:
        make_tiny_encoder("clip", folder / "clip")
        where = ("--data", memes / "a", "--encoder", folder / "clip", "--workers", "0")
        ra_hmd("encode", *where, "--split", "train", "--output", folder / "train")
        ra_hmd("cluster", *where, *CLUSTERS, "--output", folder / "clusters")

    return once("clusters-of-memes", make)


def refused(*words: str | Path) -> str:
    done = CliRunner().invoke(app, ["cluster", *map(str, words)])
    assert done.exit_code == 2, f"{done.output}\n{done.exception!r}"
    return " ".join(done.stderr.split())


def write_train(folder: Path, memes: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write the training split of domain A with changed lines."""
    lines = [json.loads(line) for line in (memes / "a" / "train.jsonl").read_text().splitlines()]
    (folder / "train.jsonl").write_text("".join(json.dumps(change(line)) + "\n" for line in lines))


def test_memes_and_a_store_of_them_give_the_same_clusters(made: Path, tmp_path: Path) -> None:
    ra_hmd("cluster", "--features", made / "train", *CLUSTERS, "--output", tmp_path / "out")
    straight, by_store = Clusters.open(made / "clusters"), Clusters.open(tmp_path / "out")
    assert straight.digest == by_store.digest
    assert (straight.manifest.store, by_store.manifest.store) == ("features", str(made / "train"))
    assert by_store.manifest.source is not None
    for name in ("assignments.parquet", "montages/cluster-0.png"):
        assert (made / "clusters" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_assigned_again_each_training_meme_is_in_the_cluster_of_the_file(made: Path, memes: Path) -> None:
    found = pq.read_table(made / "clusters" / "assignments.parquet").to_pydict()
    some = read_memes(memes / "a" / "train.jsonl", split="train")
    clear = np.array(found["margin"]) > 1e-3  # else rounding may decide
    assert clear.mean() > 0.9
    ids = np.array(Clusters.open(made / "clusters").load(torch.device("cpu")).prepare(some))
    assert found["id"] == [meme.id for meme in some]
    assert np.array_equal(ids[clear], np.array(found["cluster"])[clear])


@pytest.mark.renders
def test_a_command_that_is_started_again_continues_and_changes_nothing(made: Path, memes: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "clusters", tmp_path / "out")
    for name in ("clusters.json", "report.html"):
        (tmp_path / "out" / name).unlink()
    before = (tmp_path / "out" / "features" / "part-00000.parquet").stat().st_mtime_ns
    ra_hmd("cluster", "--data", memes / "a", "--encoder", made / "clip", *CLUSTERS, "--output", tmp_path / "out")
    assert (tmp_path / "out" / "features" / "part-00000.parquet").stat().st_mtime_ns == before
    for path in (made / "clusters").glob("*.*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("split", ["test", "dev"])
def test_other_splits_are_refused_before_anything_is_written(
    made: Path, memes: Path, tmp_path: Path, split: str
) -> None:
    said = refused("--data", memes / "a", "--split", split, "--encoder", made / "clip", "--output", tmp_path / "out")
    assert "training split alone" in said
    assert f"split '{split}'" in said
    file = memes / "a" / "test.jsonl"
    assert "test.jsonl" in refused("--data", file, "--encoder", made / "clip", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "Neither is given"),
        (("--features", "train", "--encoder", "clip"), "Both are given"),
        (("--encoder", "clip"), "--encoder needs --data"),
        (("--features", "train", "--limit", "3", "--revision", "r"), "--limit, --revision: with --features"),
        (("--features", "nothing"), "nothing is not a feature store"),
        (("--features", "train", "--split", "b_train"), "--split b_train"),
        (("--features", "train", "--data", "nothing"), "nothing is neither a file nor a folder"),
        (("--features", "train", "--clusters", "97"), "--clusters 97: the 96 memes"),
        (("--features", "train", "--unknown-quantile", "1.5"), "unknown_quantile"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(made)
    assert said in refused(*given, "--output", tmp_path / "out")
    assert not (tmp_path / "out" / "clusters.json").exists()


def test_unlabelled_memes_are_clustered(made: Path, memes: Path, tmp_path: Path) -> None:
    write_train(tmp_path, memes, lambda line: line | {"label": None})
    where = ("--media-dir", memes / "a", "--encoder", made / "clip")
    ra_hmd("cluster", "--data", tmp_path, *where, *CLUSTERS, "--output", tmp_path / "out")
    found = read_manifest(tmp_path / "out" / "clusters.json", ClustersManifest)
    assert found.labels == {"unlabelled": found.sizes}
    assert Clusters.open(tmp_path / "out").digest == Clusters.open(made / "clusters").digest


# --- the report -------------------------------------------------------------------------------------------------------


def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


def test_the_report_has_sizes_classes_and_members(made: Path) -> None:
    text, stated = page(made / "clusters"), Clusters.open(made / "clusters").manifest
    assert stated.stability is not None
    for number, size in enumerate(stated.sizes):
        assert f"Cluster {number}: {size} memes" in text
        assert f'src="montages/cluster-{number}.png"' in text
        with Image.open(made / "clusters" / "montages" / f"cluster-{number}.png") as sheet:
            assert sheet.size[0] > 160
    assert "class 0" in text
    assert f"mean {stated.stability.mean:.3f}" in text


def test_what_captions_hold_is_text(made: Path, memes: Path, tmp_path: Path) -> None:
    harm = "<script>alert(1)</script> & \ud800"
    write_train(tmp_path, memes, lambda line: line | {"text": harm, "id": f"<b>{line['id']}"})
    where = ("--media-dir", memes / "a", "--encoder", made / "clip")
    ra_hmd("cluster", "--data", tmp_path, *where, *CLUSTERS, "--output", tmp_path / "out")
    assert "<script" not in page(tmp_path / "out")
    assert "<b>" not in page(tmp_path / "out")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; \ufffd" in page(tmp_path / "out")


def test_images_that_are_gone_or_others_are_left_out(made: Path, tmp_path: Path) -> None:
    store = shutil.copytree(made / "train", tmp_path / "train")
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["source"]["place"] = str(tmp_path / "gone")
    (store / "manifest.json").write_text(json.dumps(manifest))
    done = CliRunner().invoke(app, ["cluster", "--features", str(store), *CLUSTERS, "--output", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert "give their place as --data" in done.stderr
    assert "The images were not found" in page(tmp_path / "out")
    assert '<img src="montages' not in page(tmp_path / "out")


def test_another_image_under_the_same_id_is_not_shown(made: Path, tmp_path: Path) -> None:
    features = read_features(made / "train")
    other = {name: Meme(name, Image.new("RGB", (9, 9)), "other") for name in features.ids}
    assert montage(features, Members([0, 1, 2], 3), other) is None


def test_pictures_are_blurred_and_captions_hidden_until_asked(made: Path, browser: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    view = browser.new_page()
    view.goto((made / "clusters" / "report.html").as_uri())
    picture, captions, box = ".hidden img >> nth=1", ".hidden ol >> nth=1", "#show-1"

    def seen() -> tuple[bool, bool]:
        blurred = view.eval_on_selector(picture, "image => getComputedStyle(image).filter").startswith("blur")
        return not blurred, view.is_visible(captions)

    assert seen() == (False, False)
    assert axe.run(view).violations_count == 0
    view.check(box)
    assert seen() == (True, True)
    assert not view.is_visible(".hidden ol >> nth=0"), "only what was asked for"
    assert axe.run(view).violations_count == 0
    view.uncheck(box)
    assert seen() == (False, False)


def test_a_teacher_is_shown_the_memes_of_the_folder_that_was_clustered(made: Path, memes: Path) -> None:
    clusters = Clusters.open(made / "clusters")
    chosen = choose_members(made / "clusters", clusters.count, MemberSettings())
    found, data = open_members(clusters, Data(str(memes / "a")), chosen)
    assert {name for members in chosen for name in members} == set(found)
    assert data.split == "train"
    assert open_members(clusters, Data(), chosen)[0].keys() == found.keys(), "the place that the clusters state"
    with pytest.raises(UserError, match="another image or caption|is not there"):
        open_members(clusters, Data(str(memes / "b")), chosen)
