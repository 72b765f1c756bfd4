"""The encoder track by its commands: encode, Hate-CLIPper and RGCL on the features, LR and KNN, CSV. And it learns.

Training of the encoder, and probes of one modality, use the drawn memes of domain A, where the label needs both.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import ROOT
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.data.synthetic.confounders import make_confounders
from ra_hmd.features.store import read_features
from ra_hmd.models.head import load_head

pytestmark = pytest.mark.slow

FUSIONS = ("align", "cross", "concat")
SPLITS = ("train", "dev", "test")


def ra_hmd(*words: str | Path) -> None:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, f"{words}\n{done.output}\n{done.exception!r}"


def encode(encoder: Path, memes: Path, output: Path) -> dict[str, Path]:
    """Stores of domain A, by split."""
    stores = {split: output / split for split in SPLITS}
    for split, store in stores.items():
        common = ["--encoder", encoder, "--data", memes / "a", "--split", split, "--output", store]
        ra_hmd("encode", *common, "--workers", "0")
    return stores


def train_heads(stores: dict[str, Path], output: Path, *changes: str) -> dict[str, Path]:
    """Hate-CLIPper with each fusion, and RGCL, by the shipped files."""
    commands = {kind: ("train-head", f"hateclipper/confounders_{kind}.yaml") for kind in FUSIONS}
    commands["rgcl"] = ("stage2", "rgcl/confounders.yaml")
    heads = {name: output / name for name in commands}
    for name, (command, file) in commands.items():
        places = [f"train={stores['train']}", f"dev={stores['dev']}", f"output_dir={heads[name]}"]
        ra_hmd(command, ROOT / "configs" / file, *places, *changes)
    return heads


def evaluated(head: Path, stores: dict[str, Path], output: Path) -> dict[str, float]:
    """AUROC on the test split, LR and KNN."""
    asked = ["--checkpoint", head, "--bank", stores["train"], "--queries", stores["test"], "--final"]
    ra_hmd("evaluate", *asked, "--bootstrap-samples", "100", "--output", output)
    metrics = json.loads((output / "metrics.json").read_text())["test"]
    return {name: metrics[name]["auroc"]["value"] for name in ("lrc", "rkc")}


def predicted(head: Path, kind: str, stores: dict[str, Path], output: Path) -> list[dict[str, str]]:
    """Rows of the CSV."""
    bank = ["--bank", stores["train"]] if kind == "rkc" else []
    common = ["--checkpoint", head, "--queries", stores["test"], "--head", kind, *bank]
    ra_hmd("predict", *common, "--format", "hateclipper-csv", "--output", output)
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("family", ["clip", "altclip", "align", "siglip"])
def test_untrained_encoder_of_each_family_goes_all_the_way(family: str, memes: Path, tmp_path: Path) -> None:
    ra_hmd("tiny-encoder", "--family", family, "--output", tmp_path / "encoder")
    stores = encode(tmp_path / "encoder", memes, tmp_path / "features")
    heads = train_heads(stores, tmp_path / "heads", "epochs=1")
    test = read_features(stores["test"])
    probabilities = {}
    for name, head in heads.items():
        areas = evaluated(head, stores, tmp_path / "reports" / name)
        for kind, area in areas.items():
            rows = predicted(head, kind, stores, tmp_path / f"{name}-{kind}.csv")
            assert list(rows[0]) == ["id", "prob_hate", "pred_label"]
            assert [row["id"] for row in rows] == test.ids
            probability = np.array([float(row["prob_hate"]) for row in rows])
            assert roc_auc_score(test.labels, probability) == pytest.approx(area, abs=1e-6)
            verdicts = (probability >= 0.5).astype(int)
            assert [int(row["pred_label"]) for row in rows] == verdicts.tolist()
            probabilities[name, kind] = probability
        with torch.inference_mode():
            logits = load_head(head)(torch.from_numpy(test.hidden)).logits[:, 0]
        np.testing.assert_allclose(probabilities[name, "lrc"], torch.sigmoid(logits).numpy(), atol=1e-5)
    for first in heads:
        for other in heads:
            same = np.array_equal(probabilities[first, "lrc"], probabilities[other, "lrc"])
            assert same == (first == other), f"{first} and {other}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores of domain A by a CLIP that was trained on the memes of the demo."""
    folder = tmp_path_factory.mktemp("trained")
    make_confounders(folder / "memes")
    ra_hmd("tiny-encoder", "--train-on", folder / "memes", "--epochs", "2", "--output", folder / "encoder")
    return encode(folder / "encoder", folder / "memes", folder / "features")


def test_trained_encoder_needs_both_modalities_and_has_them(trained: dict[str, Path], tmp_path: Path) -> None:
    for modality in ("image", "text"):
        probe = tmp_path / modality
        options = ["--modality", modality, "--c", "1", "--standardise", "--output", probe]
        ra_hmd("linear-probe", "--train", trained["train"], *options)
        areas = evaluated(probe, trained, tmp_path / "reports" / modality)
        assert max(areas.values()) <= 0.6, f"{modality}: {areas}"
    for name, head in train_heads(trained, tmp_path / "heads").items():
        areas = evaluated(head, trained, tmp_path / "reports" / name)
        # RGCL keeps the epoch whose vote is best on dev, so that nothing holds its logistic regression up.
        asked = {"align": ("lrc", "rkc"), "cross": ("lrc", "rkc"), "rgcl": ("rkc",), "concat": ()}[name]
        assert all(areas[kind] >= 0.9 for kind in asked), f"{name}: {areas}"
