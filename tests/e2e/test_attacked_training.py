"""Attacked memes are ordinary data: Stage 1 trains on them beside the clean ones, and a bank takes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk
from engines import train
from served import ra_hmd

from ra_hmd.attacks.pairing import clean_id
from ra_hmd.bank.bank import Bank
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.inference.detector import Detector

VARIANTS = ("homoglyphs-2", "zero_width-2")


@pytest.fixture(scope="module")
def attacked(memes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacked") / "train"
    ra_hmd("attack", memes / "a", "--output", folder, "--splits", "train", "--attacks", "homoglyphs", "--attacks",
           "zero_width", "--severities", "2", "--channels", "field")  # fmt: skip
    return folder


@pytest.mark.slow
def test_stage_1_trains_on_clean_and_attacked_memes(
    attacked: Path, memes: Path, stage1_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    places = {"clean": memes / "a"} | {name: attacked / name for name in VARIANTS}
    for name, place in places.items():
        ra_hmd("data", "to-sharegpt", place, "--output", data, "--splits", "train", "--name", name)
    config = stage1_config(tmp_path / "run", dataset=",".join(places), dataset_dir=str(data), eval_dataset=None,
                           tokenized_path=str(tmp_path / "tokens"), max_samples=6)  # fmt: skip
    train(config, tmp_path)
    ids = load_from_disk(str(tmp_path / "tokens"))["train"]["sample_id"]
    assert len(ids) == len(set(ids)) == 6 * len(places)
    assert len({clean_id(name) for name in ids}) == 6


def test_a_bank_takes_attacked_memes_beside_the_clean_ones(
    attacked: Path, memes: Path, served_clip: Path, clip_bank: Path, tmp_path: Path
) -> None:
    head, before = served_clip / "head", len(Bank.open(clip_bank))
    clean = read_memes(memes / "a" / "train.jsonl")[:8]
    ra_hmd("encode", "--encoder", served_clip / "clip", "--data", attacked / VARIANTS[0], "--split", "train", "--limit",
           "8", "--workers", "0", "--output", tmp_path / "features")  # fmt: skip
    ra_hmd("bank", "add", clip_bank, "--checkpoint", head, "--features", tmp_path / "features", "--reason", "attacked")
    bank = Bank.open(clip_bank)
    added = [bank.row(row) for row in range(before, len(bank))]
    assert [clean_id(row["id"]) for row in added] == [meme.id for meme in clean]
    assert [row["label"] for row in added] == [meme.label for meme in clean]
    attacks = read_memes(attacked / VARIANTS[0] / "train.jsonl")[:8]
    nearest = [verdict.neighbours for verdict in Detector.from_run(head, clip_bank)(
        [Meme(f"new-{meme.id}", meme.image, meme.text) for meme in attacks])]  # fmt: skip
    assert all(meme.id in [one["id"] for one in near or []][:2] for meme, near in zip(attacks, nearest, strict=True))
