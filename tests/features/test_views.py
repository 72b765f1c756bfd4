"""Further views of memes: what an extraction with them holds, and which are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from json_files import read_json
from once import SharedFolders
from served import ra_hmd
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.features.store import STORE_MANIFEST, Features, read_features
from ra_hmd.models.encoders import joint_vectors
from ra_hmd.models.tiny_clip import make_tiny_encoder


def extract(run: Path, memes: Path, output: Path, *more: str | Path) -> Features:
    ra_hmd("extract", "--checkpoint", run, "--data", memes / "a", "--split", "dev", "--workers", "0", "--limit", "12",
           "--output", output, *more)  # fmt: skip
    return read_features(output)


def encode(encoder: Path, memes: Path, output: Path, *more: str | Path) -> Features:
    ra_hmd("encode", "--encoder", encoder, "--data", memes / "a", "--split", "dev", "--workers", "0", "--limit", "12",
           "--output", output, *more)  # fmt: skip
    return read_features(output)


def refused(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 2, f"{done.output}\n{done.exception!r}"
    return done.output


@pytest.fixture(scope="module")
def encoders(once: SharedFolders) -> Path:
    """Folder with two tiny encoders, `clip` and `siglip2`."""

    def make(folder: Path) -> None:
        for family in ("clip", "siglip2"):
            make_tiny_encoder(family, folder / family)

    return once("view-encoders", make)


@pytest.fixture(scope="module")
def viewed(stage1_run: Path, memes: Path, encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("viewed") / "dev"
    extract(
        stage1_run, memes, folder, "--views", "untuned", "--views", f"clip={encoders / 'clip'}", "--shard-size", "5"
    )
    return folder


def test_untuned_is_the_base_models_own_extraction(stage1_run: Path, memes: Path, viewed: Path, tmp_path: Path) -> None:
    base = extract(stage1_run, memes, tmp_path / "base", "--backbone-only")
    found = read_features(viewed)
    assert np.abs(found.views["untuned"] - base.hidden).max() <= 1e-5
    assert np.abs(found.hidden - base.hidden).max() > 1e-2, "the adapter is on again for the next batch"
    assert found.manifest.views["untuned"].fingerprint | {"data": None} == base.manifest.fingerprint | {"data": None}


def test_views_change_nothing_else(stage1_run: Path, memes: Path, viewed: Path, tmp_path: Path) -> None:
    plain, found = extract(stage1_run, memes, tmp_path / "plain", "--shard-size", "5"), read_features(viewed)
    for name in ("hidden", "embedding", "lrc_logit", "lmh_score"):
        assert np.array_equal(getattr(plain, name), getattr(found, name)), name
    assert plain.manifest.fingerprint == found.manifest.fingerprint


def test_an_encoders_view_is_its_features_side_by_side(
    memes: Path, encoders: Path, viewed: Path, tmp_path: Path
) -> None:
    own = encode(encoders / "clip", memes, tmp_path / "own")
    parts = np.split(own.hidden, [own.modalities[0]], axis=1)
    found = read_features(viewed)
    assert np.abs(found.views["clip"] - joint_vectors(*parts)).max() <= 1e-5
    stated = found.manifest.views["clip"]
    assert stated.encoder.path == str(encoders / "clip")
    assert stated.width == own.hidden.shape[1]


def test_the_manifest_has_the_cost_of_each_view(viewed: Path) -> None:
    stated = read_json(viewed / STORE_MANIFEST)
    assert all(view.seconds > 0 for view in stated.views.values())
    assert stated.seconds > 0


def test_a_store_is_described_with_its_views(viewed: Path, stage1_run: Path) -> None:
    said = CliRunner().invoke(app, ["features", "info", str(viewed)], env={"COLUMNS": "200"}).output
    assert "12" in said
    assert "64 values by the LMM" in said
    stated = json.loads(CliRunner().invoke(app, ["features", "info", str(viewed), "--json"]).output)
    assert stated == read_json(viewed / STORE_MANIFEST)
    assert "is not a feature store" in refused("features", "info", stage1_run)


def test_a_stopped_extraction_continues_with_the_same_views_alone(
    stage1_run: Path, memes: Path, encoders: Path, viewed: Path, tmp_path: Path
) -> None:
    views = ["--views", "untuned", "--views", f"clip={encoders / 'clip'}", "--shard-size", "5"]
    whole = extract(stage1_run, memes, tmp_path / "f", *views)
    (tmp_path / "f" / "part-00001.parquet").unlink()
    common = ["extract", "--checkpoint", stage1_run, "--data", memes / "a", "--split", "dev", "--workers", "0",
              "--limit", "12", "--output", tmp_path / "f", "--shard-size", "5"]  # fmt: skip
    assert "views.clip" in refused(*common, "--views", "untuned")
    assert "views.clip" in refused(*common, "--views", "untuned", "--views", f"clip={encoders / 'siglip2'}")
    assert "views.untuned" in refused(*common)
    again = extract(stage1_run, memes, tmp_path / "f", *views)
    assert again.ids == whole.ids
    for name in ("untuned", "clip"):
        assert np.array_equal(again.views[name], whole.views[name]), name


def test_encoders_of_encode_have_views_too(memes: Path, encoders: Path, tmp_path: Path) -> None:
    plain = encode(encoders / "siglip2", memes, tmp_path / "plain")
    clip = encode(encoders / "clip", memes, tmp_path / "clip")
    found = encode(encoders / "siglip2", memes, tmp_path / "f", "--views", f"c.1={encoders / 'clip'}")
    assert found.modalities == plain.modalities
    assert np.abs(found.hidden - plain.hidden).max() <= 1e-5
    parts = np.split(clip.hidden, [clip.modalities[0]], axis=1)
    assert np.abs(found.views["c.1"] - joint_vectors(*parts)).max() <= 1e-5


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (["other"], "other: give untuned, or NAME=ENCODER"),
        (["hidden=CLIP"], "'hidden' cannot be the name"),
        (["a/b=CLIP"], "'a/b' cannot be the name"),
        (["a=CLIP", "a=CLIP"], "there is a view 'a' already"),
        (["untuned"], "of an LMM with its adapter switched off"),
        (["a=nowhere/there"], "nowhere/there"),
    ],
)
def test_views_that_cannot_be_made_are_refused(
    memes: Path, encoders: Path, tmp_path: Path, views: list[str], message: str
) -> None:
    options = [word for view in views for word in ("--views", view.replace("CLIP", str(encoders / "clip")))]
    said = refused("encode", "--encoder", encoders / "clip", "--data", memes / "a", "--split", "dev",
                   "--output", tmp_path / "f", *options)  # fmt: skip
    assert message in said


def test_a_model_without_adapter_has_no_untuned_view(stage1_run: Path, memes: Path, tmp_path: Path) -> None:
    said = refused("extract", "--checkpoint", stage1_run, "--backbone-only", "--data", memes / "a", "--split", "dev",
                   "--output", tmp_path / "f", "--views", "untuned")  # fmt: skip
    assert "no adapter that could be left aside" in said
    assert not (tmp_path / "f").exists()


def test_untuned_leaves_the_experts_aside_and_keeps_the_prompt(
    served_experts: Path, memes: Path, tmp_path: Path
) -> None:
    found = extract(served_experts / "run", memes, tmp_path / "f", "--views", "untuned")
    base = extract(served_experts / "run", memes, tmp_path / "base", "--backbone-only")
    assert np.abs(found.views["untuned"] - base.hidden).max() <= 1e-5
    assert np.abs(found.hidden - base.hidden).max() > 1e-2
