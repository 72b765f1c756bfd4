"""The contrastive training of tiny encoders: what it looks at, what it leaves, that it learns."""

import json
import random
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import AutoModel
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.synthetic.confounders import DOMAINS, make_confounders
from ra_hmd.models.clip_encoder import Encoder, EncoderSettings
from ra_hmd.models.tiny_clip import EncoderFamily, make_tiny_encoder
from ra_hmd.training.tiny_encoder import PretrainSettings, pretrain, read_lesson

pytestmark = pytest.mark.slow

SUBJECT_OF = {noun: subject for domain in DOMAINS for subject, nouns in domain.nouns.items() for noun in nouns}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "memes"
    make_confounders(folder, size=48)
    return folder


def pretrained(data: Path, output: Path, family: EncoderFamily = "clip", **changes: int) -> Path:
    return pretrain(family, data, output, PretrainSettings(**{"epochs": 1, "batch_size": 16} | changes))


def test_sentences_are_about_the_picture_and_only_training_memes_are_used(drawn: Path) -> None:
    lesson = read_lesson(drawn)
    records = {}
    for domain in DOMAINS:
        for line in (drawn / domain.name / "attributes.jsonl").read_text().splitlines():
            row = json.loads(line)
            records[row["id"]] = row
    training = {name for name, row in records.items() if row["split"] == "train"}
    assert {path.stem for path in lesson.images} == training
    rng = random.Random(0)
    seen = set()
    for row, path in enumerate(lesson.images):
        for _ in range(20):
            sentence = lesson.sentence(row, rng)
            nouns = [noun for noun in SUBJECT_OF if noun in sentence.removesuffix(".").split()]
            assert [SUBJECT_OF[noun] for noun in nouns] == [records[path.stem]["image"]["subject"]]
            seen.add(sentence)
    captions = {records[name]["text"]["wording"].format(noun=records[name]["text"]["noun"]) for name in training}
    described = {f"The picture shows the {subject}." for subject in set(lesson.subjects)}
    assert seen == captions | described


def test_labels_dev_and_test_change_nothing(drawn: Path, tmp_path: Path) -> None:
    pretrained(drawn, tmp_path / "whole")
    bare = tmp_path / "bare"
    shutil.copytree(drawn, bare)
    for domain in DOMAINS:
        for line in (bare / domain.name / "attributes.jsonl").read_text().splitlines():
            row = json.loads(line)
            if row["split"] != "train":
                (bare / domain.name / "img" / f"{row['id']}.png").unlink()
        for split in ("train", "dev", "test"):
            (bare / domain.name / f"{split}.jsonl").unlink()
    pretrained(bare, tmp_path / "again")
    pretrained(drawn, tmp_path / "other", seed=1)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again", "other")]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.parametrize("family", get_args(EncoderFamily))
def test_both_towers_of_every_family_are_trained(family: EncoderFamily, drawn: Path, tmp_path: Path) -> None:
    pretrained(drawn, tmp_path / "trained", family=family, epochs=3)
    make_tiny_encoder(family, tmp_path / "fresh")
    fresh, trained = (AutoModel.from_pretrained(tmp_path / name) for name in ("fresh", "trained"))
    before, after = fresh.state_dict(), trained.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    without_gradient = {name for name in before if name not in dict(trained.named_parameters())}  # BatchNorm's counts
    # AltCLIP's and ALIGN's text towers have a pooler of their own that their features do not pass.
    unused = {name for name in before if "text_model" in name and ("pooler" in name or "token_type" in name)}
    assert set(before) - changed - without_gradient <= unused
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        assert (tmp_path / "trained" / file).read_text() == (tmp_path / "fresh" / file).read_text()
    manifest = json.loads((tmp_path / "trained" / "ra_hmd.json").read_text())
    assert manifest["kind"] == "tiny_encoder"
    losses = [epoch["loss"] for epoch in manifest["history"]]
    assert losses[2] < losses[0]
    encoder = Encoder(EncoderSettings(path=str(tmp_path / "trained"))).load(torch.device("cpu"))
    assert torch.isfinite(encoder.text_features(["my cat", ""])).all()


def test_bad_requests_leave_nothing(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"attributes.jsonl does not exist.*make-confounders"):
        pretrained(tmp_path / "nowhere", tmp_path / "x")
    with pytest.raises(UserError, match="`batch_size` is 1, it must be at least 2"):
        pretrained(drawn, tmp_path / "x", batch_size=1)
    command = ["tiny-encoder", "--train-on", str(drawn), "--output"]
    done = CliRunner().invoke(app, [*command, str(drawn)])
    assert f"{drawn} exists and is not an empty folder" in done.output
    done = CliRunner().invoke(app, [*command, str(tmp_path / "x"), "--family", "qwen3_vl_embedding"])
    assert "an LMM embedder is not trained" in done.output
    assert list(tmp_path.iterdir()) == []
