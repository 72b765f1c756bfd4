"""`fold_captions` of detector, extraction and runs: disguised captions score as plain ones, and stores say so."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import ra_hmd

from llamafactory_ext.arguments import ClassifierFinetuningArguments
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.compatibility import check_same_origin, store_fingerprint
from ra_hmd.features.store import read_features
from ra_hmd.inference.defences import Defences
from ra_hmd.inference.detector import Detector
from ra_hmd.models.checkpoint import open_run

_DISGUISE = str.maketrans({"a": "а", "e": "е\u200b", "o": "ο", "c": "с", "p": "р"})


def disguised(memes: list[Meme]) -> list[Meme]:
    changed = [replace(meme, text=(meme.text or "").translate(_DISGUISE)) for meme in memes]
    assert all(one.text != other.text for one, other in zip(changed, memes, strict=True))
    return changed


@pytest.fixture
def some(memes: Path) -> list[Meme]:
    return [Meme(meme.id, meme.image, meme.text) for meme in read_memes(memes / "a" / "dev.jsonl")[:4]]


def scores(detector: Detector, memes: list[Meme]) -> list[dict[str, float]]:
    return [verdict.scores for verdict in detector(memes)]


def test_disguised_captions_score_as_plain_ones(
    served_clip: Path, some: list[Meme], caplog: pytest.LogCaptureFixture
) -> None:
    head, bank = served_clip / "head", served_clip / "features" / "train"
    plain = scores(Detector.from_run(head, bank), some)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        folding = Detector.from_run(head, bank, defences=Defences(fold_captions=True))
    assert "were folded" in caplog.text
    assert scores(folding, some) == plain
    verdicts = folding(disguised(some))
    assert [verdict.scores for verdict in verdicts] == [pytest.approx(one, abs=1e-5) for one in plain]
    assert [verdict.text for verdict in verdicts] == [meme.text for meme in disguised(some)]
    assert scores(Detector.from_run(head, bank), disguised(some)) != plain


def test_an_lmm_folds_as_its_run_says(served_lmm: Path, some: list[Meme], tmp_path: Path) -> None:
    run = Path(shutil.copytree(served_lmm / "run", tmp_path / "run"))
    plain = scores(Detector.from_run(run), some)
    assert scores(Detector.from_run(run, defences=Defences(fold_captions=True)), disguised(some)) == plain
    assert scores(Detector.from_run(run), disguised(some)) != plain
    assert "fold_captions" not in open_run(run).settings.to_dict()
    manifest = json.loads((run / "ra_hmd.json").read_text())
    manifest["inputs"]["fold_captions"] = True
    (run / "ra_hmd.json").write_text(json.dumps(manifest))
    assert open_run(run).fingerprint()["inputs.fold_captions"] is True
    assert scores(Detector.from_run(run), disguised(some)) == plain


def test_a_store_states_folding_and_its_head_folds(
    served_clip: Path, memes: Path, some: list[Meme], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attacked = tmp_path / "attacked.jsonl"
    rows = [meme.to_row() for meme in disguised(read_memes(memes / "a" / "train.jsonl"))]
    attacked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ra_hmd("encode", "--encoder", served_clip / "clip", "--data", attacked, "--workers", "0", "--fold-captions",
           "--output", tmp_path / "train")  # fmt: skip
    folded, plain = read_features(tmp_path / "train"), read_features(served_clip / "features" / "train")
    assert np.abs(folded.hidden - plain.hidden).max() < 1e-5
    assert folded.texts != plain.texts
    assert folded.manifest.encoder is not None
    assert folded.manifest.encoder.fold_captions
    assert store_fingerprint(folded)["encoder.fold_captions"] is True
    assert "fold" not in json.dumps(plain.manifest.to_json())
    with caplog.at_level(logging.WARNING):
        check_same_origin({"one": store_fingerprint(folded), "other": store_fingerprint(plain)})
    assert "The captions of one were folded, those of other were not" in caplog.text
    (tmp_path / "head.yaml").write_text("fusion: align\nmap_dim: 8\nproj_dim: 8\nnum_layers: 2\nepochs: 1\n")
    stores = [f"train={tmp_path}/train", f"dev={served_clip}/features/dev"]
    ra_hmd("train-head", tmp_path / "head.yaml", *stores, f"output_dir={tmp_path / 'head'}")
    detector = Detector.from_run(tmp_path / "head")
    for one, other in zip(scores(detector, some), scores(detector, disguised(some)), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_head_on_folded_features_of_an_lmm_folds(
    served_lmm: Path, memes: Path, some: list[Meme], tmp_path: Path
) -> None:
    ra_hmd("extract", "--checkpoint", served_lmm / "run", "--data", memes / "a", "--split", "train", "--limit", "24",
           "--workers", "0", "--fold-captions", "--output", tmp_path / "train")  # fmt: skip
    assert store_fingerprint(read_features(tmp_path / "train"))["inputs.fold_captions"] is True
    (tmp_path / "stage2.yaml").write_text(f"init_head: {served_lmm}/run\nepochs: 1\nlr: 1.0e-3\n")
    ra_hmd("stage2", tmp_path / "stage2.yaml", f"train={tmp_path}/train", f"output_dir={tmp_path / 'head'}")
    detector = Detector.from_run(tmp_path / "head")
    for one, other in zip(scores(detector, some), scores(detector, disguised(some)), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_predict_records_folding(served_clip: Path, some: list[Meme], tmp_path: Path) -> None:
    given = tmp_path / "memes.jsonl"
    given.write_text(
        "".join(json.dumps({"id": m.id, "image": str(m.path), "text": m.text}) + "\n" for m in disguised(some))
    )
    for name, options in (("plain", []), ("folded", ["--fold-captions"])):
        output = tmp_path / f"{name}.jsonl"
        ra_hmd("predict", "--checkpoint", served_clip / "head", "--input", given, "--output", output, *options)
    read = {name: (tmp_path / f"{name}.jsonl").read_text() for name in ("plain", "folded")}
    assert read["plain"] != read["folded"]
    manifests = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    assert sum('"fold_captions": true' in text for text in manifests.values()) == 1


@pytest.mark.slow
def test_stage_1_trains_on_folded_captions(
    stage1_config: Callable[..., dict[str, Any]], memes: Path, tmp_path: Path
) -> None:
    from engines import train

    assert ClassifierFinetuningArguments(stage="sft-classifier").fold_captions is False
    train(stage1_config(tmp_path / "run", fold_captions=True, max_samples=8), tmp_path)
    assert open_run(tmp_path / "run").settings.fold_captions
