"""Features of an LMM embedder: one vector per meme goes through every command that needs no more than one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from once import SharedFolders
from served import ra_hmd
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.cluster_assignment import Clusters
from ra_hmd.models.encoder_files import EncoderSettings
from ra_hmd.models.encoders import open_encoder, unit_vectors

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(memes: Path, once: SharedFolders) -> Path:
    """Folder with a tiny embedder, its features of domain A, and two heads on them."""

    def make(folder: Path) -> None:
        ra_hmd("tiny-encoder", "--family", "qwen3_vl_embedding", "--output", folder / "embedder")
        for split in ("train", "dev", "test"):
            ra_hmd("encode", "--encoder", folder / "embedder", "--data", memes / "a", "--split", split, "--workers",
                   "0", "--max-pixels", "16384", "--output", folder / "features" / split)  # fmt: skip
        train, dev = (folder / "features" / split for split in ("train", "dev"))
        ra_hmd("linear-probe", "--train", train, "--dev", dev, "--output", folder / "probe")
        (folder / "head.yaml").write_text("proj_dim: 16\nnum_layers: 2\nepochs: 2\nlr: 1.0e-2\n")
        ra_hmd("stage2", folder / "head.yaml", f"train={train}", f"dev={dev}", f"output_dir={folder / 'head'}")

    return once("embedder", make)


def refused(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


def stored(place: Path, split: str = "train") -> Features:
    return read_features(place / "features" / split)


def test_a_store_has_one_vector_of_length_1_and_says_how_it_was_made(place: Path, memes: Path) -> None:
    features = stored(place)
    assert features.modalities is None
    assert np.abs(np.linalg.norm(features.hidden, axis=1) - 1).max() < 1e-5
    stated = features.manifest.encoder
    assert stated is not None
    assert (stated.embedder, stated.max_pixels) == ("qwen3-vl-embedding", 16384)
    assert stated.instruction == "Represent the user's input."
    encoder = open_encoder(EncoderSettings(**stated.to_json())).load(CPU)
    assert {key: value for key, value in features.manifest.fingerprint.items() if key != "data"} == json.loads(
        json.dumps(encoder.fingerprint())
    )
    meme = read_memes(memes / "a" / "train.jsonl", split="train")[3]
    alone = unit_vectors(encoder.columns(encoder.collate([encoder.encode(meme.caption, meme.load_image())])))
    assert np.abs(alone[0] - features.hidden[3]).max() < 1e-5


@pytest.mark.parametrize("head", ["probe", "head"])
def test_live_memes_get_the_scores_of_the_store(place: Path, memes: Path, tmp_path: Path, head: str) -> None:
    def scores(name: str, *source: str | Path) -> dict[str, Any]:
        bank = ("--bank", place / "features" / "train", "--head", "rkc")
        ra_hmd("predict", "--checkpoint", place / head, *source, *bank, "--output", tmp_path / name)
        lines = (tmp_path / name).read_text().splitlines()
        return {row["id"]: (row["score"], row["neighbours"][0]["id"]) for row in map(json.loads, lines)}

    live = scores("live.jsonl", "--input", memes / "a" / "test.jsonl")
    of_store = scores("store.jsonl", "--queries", place / "features" / "test")
    assert live.keys() == of_store.keys()
    assert [live[name][1] for name in live] == [of_store[name][1] for name in live]
    assert max(abs(live[name][0] - of_store[name][0]) for name in live) < 1e-5


def test_evaluate_and_banks_take_it(place: Path, tmp_path: Path) -> None:
    train, dev = (place / "features" / split for split in ("train", "dev"))
    ra_hmd("bank", "create", tmp_path / "bank", "--checkpoint", place / "head", "--features", train, "--reason",
           "start", "--author", "tests")  # fmt: skip
    ra_hmd("evaluate", "--checkpoint", place / "head", "--bank", tmp_path / "bank", "--queries", dev,
           "--bootstrap-samples", "100", "--output", tmp_path / "report")  # fmt: skip
    assert (tmp_path / "report" / "report.md").is_file()


def test_clusters_of_its_vectors_assign_live_memes(place: Path, memes: Path, tmp_path: Path) -> None:
    ra_hmd("cluster", "--features", place / "features" / "train", "--clusters", "3", "--output", tmp_path / "clusters")
    clusters = Clusters.open(tmp_path / "clusters")
    assert clusters.manifest.modalities == (128,)
    expected = clusters.assign(stored(place).hidden).cluster.tolist()
    assert len(set(expected)) == 3
    assert "128 of image and caption together" in (tmp_path / "clusters" / "report.html").read_text()
    assigner = clusters.load(CPU)
    some = read_memes(memes / "a" / "train.jsonl", split="train")[:12]
    assert assigner.prepare(some) == expected[:12]
    assert assigner(some[0].caption, some[0].load_image()) == expected[0]


def test_what_needs_two_vectors_names_the_remedy(place: Path, tmp_path: Path) -> None:
    train = place / "features" / "train"
    out = ("--output", tmp_path / "out")
    assert "leave --modality out" in refused("linear-probe", "--train", train, "--modality", "image", *out)
    assert "give an encoder of the families clip" in refused("zero-shot", "--encoder", place / "embedder", *out)
    (tmp_path / "fused.yaml").write_text("fusion: align\n")
    told = refused("train-head", tmp_path / "fused.yaml", f"train={train}", f"output_dir={tmp_path / 'out'}")
    assert "with an encoder of two vectors" in told


def test_another_instruction_is_not_mixed_in(place: Path, memes: Path) -> None:
    told = refused("encode", "--encoder", place / "embedder", "--data", memes / "a", "--split", "train", "--max-pixels",
                   "16384", "--instruction", "Find the joke.", "--output", place / "features" / "train")  # fmt: skip
    assert "encoder.prompt" in told
