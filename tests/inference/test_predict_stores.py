"""Verdicts as files: against a plain recomputation and against `evaluate`, for every kind of problem and every head."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from json_files import read_json
from scipy.special import expit, softmax
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.artifacts import sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.evaluation.evaluate import evaluate
from ra_hmd.evaluation.request import OperatingPointSettings
from ra_hmd.features.store import Features, read_features, write_features
from ra_hmd.features.test_lock import final_records
from ra_hmd.inference.batch_features import predict_features
from ra_hmd.inference.writers import HATECLIPPER_COLUMNS
from ra_hmd.models.fusion import FusionConfig
from ra_hmd.models.head import HeadConfig, MemeHead, load_head, save_head
from ra_hmd.retrieval.embeddings import hidden_tensor, run_head
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.scorer import Scorer

WIDTH = (4, 3)
FINGERPRINT = {"encoder": "e" * 64, "features": "pooled"}


def features(rows: int, seed: int, prefix: str, classes: int = 1, *, lmh: bool = False) -> Features:
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, sum(WIDTH))).astype(np.float32)
    if classes == 1:
        labels = (hidden[:, 0] + hidden[:, 4] + 0.5 * rng.normal(size=rows) > 0).astype(np.int64)
    else:
        labels = (hidden[:, :classes] > 0.3).astype(np.int64)
    scores = rng.random((rows, 1)).astype(np.float32) if lmh else None
    return Features([f"{prefix}{row}" for row in range(rows)], labels, hidden, modalities=WIDTH, lmh_score=scores)


def unlabelled(some: Features) -> Features:
    return replace(some, labels=np.full(len(some), UNLABELLED, dtype=np.int64))


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A fused head, a bank, a dev split, and memes without labels."""
    config = HeadConfig(
        input_dim=sum(WIDTH),
        num_layers=2,
        proj_dim=8,
        fusion=FusionConfig(image_dim=WIDTH[0], text_dim=WIDTH[1], kind="align", map_dim=6),
        embedding="linear",
    )
    torch.manual_seed(0)
    head = MemeHead(config).eval()
    with torch.no_grad():  # half of the memes on either side
        head.output.bias -= head(torch.from_numpy(features(200, 3, "x").hidden)).logits.median()
    save_head(tmp_path / "head", config, head.state_dict())
    for name, rows, seed in (("bank", 50, 0), ("dev", 40, 1), ("asked", 30, 2)):
        write_features(tmp_path / name, features(rows, seed, name, lmh=True), FINGERPRINT, split=name)
    plain = unlabelled(read_features(tmp_path / "asked"))
    write_features(tmp_path / "new", plain, FINGERPRINT, split="asked")
    return tmp_path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_csv_of_the_logistic_head_is_that_of_a_plain_computation(lab):
    done = predict_features(
        lab / "head", lab / "new", lab / "out.csv", head="lrc", style="hateclipper-csv", device="cpu"
    )
    asked = read_features(lab / "new")
    _, logits = run_head(load_head(lab / "head"), hidden_tensor(asked))
    expected = expit(logits[:, 0].double().numpy())
    text = (lab / "out.csv").read_bytes()
    assert text.startswith(b"id,prob_hate,pred_label\n")
    rows = read_csv(lab / "out.csv")
    assert tuple(rows[0]) == HATECLIPPER_COLUMNS
    assert [row["id"] for row in rows] == asked.ids
    assert [float(row["prob_hate"]) for row in rows] == pytest.approx(expected, abs=1e-12)
    assert [int(row["pred_label"]) for row in rows] == (expected >= 0.5).astype(int).tolist()
    assert {row["pred_label"] for row in rows} == {"0", "1"}
    manifest = read_json(lab / "out.csv.manifest.json")
    assert manifest.kind == "predictions"
    assert manifest.output_sha256 == sha256_file(lab / "out.csv")
    assert manifest.verdicts == {value: [row["pred_label"] for row in rows].count(value) for value in ("0", "1")}
    assert manifest.rule == {"thresholds": [0.5], "calibration": "none", "chosen": False}
    assert done["notes"] == ["The threshold is the official one, and scores are taken for probabilities as they are."]
    assert final_records(lab / "head") == []


def test_the_vote_and_its_neighbours_are_those_of_evaluate(lab):
    predict_features(
        lab / "head", lab / "new", lab / "out.jsonl", head="rkc", bank=lab / "bank", voting=Voting(7), device="cpu"
    )
    evaluate(lab / "head", lab / "bank", [lab / "asked"], lab / "report", topk=7, bootstrap_samples=0, final=True,
             device="cpu")  # fmt: skip
    lines = read_lines(lab / "out.jsonl")
    known = read_lines(lab / "report/predictions.jsonl")
    assert [line["id"] for line in lines] == [row["id"] for row in known]
    assert [line["score"] for line in lines] == [row["rkc_score"] for row in known]
    for line, evidence in zip(lines, read_json_list(lab / "report/evidence.json"), strict=False):
        assert line["neighbours"] == evidence["neighbours"]
        assert line["verdict"] == evidence["rkc_class"]
    for line in lines:
        assert sum(row["vote"] for row in line["neighbours"]) == pytest.approx(line["score"], abs=1e-12)
        assert line["probability"] == pytest.approx(expit(line["score"]))
        assert line["verdict"] == int(line["score"] >= 0)
        assert len(line["neighbours"]) == 7


def read_json_list(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["asked"]


def test_what_dev_decided_is_used_and_does_not_depend_on_other_memes(lab):
    """Also where some of the memes are those of dev: a verdict is about one meme."""
    dev = features(40, 1, "dev", lmh=True)
    logits = run_head(load_head(lab / "head"), hidden_tensor(dev))[1][:, 0].numpy()
    noisy = logits + 0.5 * logits.std() * np.random.default_rng(0).normal(size=40)
    shutil.rmtree(lab / "dev")  # a head that is worse than chance on dev would not be calibrated
    write_features(lab / "dev", replace(dev, labels=(noisy > 0).astype(np.int64)), FINGERPRINT, split="dev")
    evaluate(lab / "head", lab / "bank", [lab / "asked"], lab / "report", bootstrap_samples=0, final=True,
             operating_point=OperatingPointSettings(dev=lab / "dev"), device="cpu")  # fmt: skip
    decided = read_json(lab / "head/decision.json").heads
    for head, bank in (("lrc", None), ("rkc", lab / "bank"), ("lmh", None)):
        predict_features(lab / "head", lab / "new", lab / "out.jsonl", head=head, bank=bank, device="cpu")
        lines, rule = read_lines(lab / "out.jsonl"), read_json(lab / "out.jsonl.manifest.json").rule
        assert rule == {"thresholds": decided[head].thresholds, "calibration": decided[head].calibration.kind,
                        "chosen": True}  # fmt: skip
        assert [line["verdict"] for line in lines] == [int(row["score"] >= rule["thresholds"][0]) for row in lines]
    temperature = decided.lrc.calibration.temperature
    predict_features(lab / "head", lab / "new", lab / "out.jsonl", head="lrc", device="cpu")
    _, logits = run_head(load_head(lab / "head"), hidden_tensor(read_features(lab / "new")))
    expected = expit(logits[:, 0].double().numpy() / temperature)
    lines = read_lines(lab / "out.jsonl")
    assert [line["probability"] for line in lines] == pytest.approx(expected, abs=1e-9)
    dev, new = read_features(lab / "dev"), read_features(lab / "new")
    both = Features([*new.ids, *dev.ids], np.concatenate([new.labels, dev.labels]),
                    np.concatenate([new.hidden, dev.hidden]), modalities=WIDTH)  # fmt: skip
    write_features(lab / "both", both, FINGERPRINT, split="asked")
    predict_features(lab / "head", lab / "both", lab / "both.jsonl", head="lrc", device="cpu")
    together = read_lines(lab / "both.jsonl")[: len(lines)]
    assert [line["verdict"] for line in together] == [line["verdict"] for line in lines]
    assert [line["probability"] for line in together] == pytest.approx([line["probability"] for line in lines])
    predict_features(lab / "head", lab / "new", lab / "out.jsonl", head="lrc", thresholds="official", device="cpu")
    assert read_json(lab / "out.jsonl.manifest.json").rule["chosen"] is False


def test_another_vote_than_that_of_dev_has_the_official_threshold_and_says_so(lab):
    evaluate(lab / "head", lab / "bank", [lab / "asked"], lab / "report", bootstrap_samples=0, final=True,
             operating_point=OperatingPointSettings(dev=lab / "dev"), device="cpu")  # fmt: skip
    done = predict_features(
        lab / "head", lab / "new", lab / "out.jsonl", head="rkc", bank=lab / "bank", voting=Voting(3), device="cpu"
    )
    assert done["rule"] == {"thresholds": [0.0], "calibration": "none", "chosen": False}
    assert "chosen with another vote" in done["notes"][0]


def test_order_and_company_of_the_memes_do_not_matter(lab):
    scorer = Scorer.open(lab / "head", lab / "bank", device="cpu")
    new = read_features(lab / "new")
    order = np.random.default_rng(0).permutation(len(new))[:11]
    whole, part = scorer("new", new), scorer("new", new.select(order))
    for head in ("lmh", "lrc", "rkc"):
        assert part.scores[head] == pytest.approx(whole.scores[head][order], abs=1e-6)


def test_a_meme_of_the_bank_does_not_vote_for_itself(lab):
    done = predict_features(lab / "head", lab / "bank", lab / "out.jsonl", head="rkc", bank=lab / "bank", device="cpu")
    assert "50 memes are in the bank too; none votes for itself." in done["notes"]
    assert all(line["id"] not in {row["id"] for row in line["neighbours"]} for line in read_lines(lab / "out.jsonl"))


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_several_classes(tmp_path, kind):
    config = HeadConfig(input_dim=sum(WIDTH), num_layers=2, proj_dim=8, output_dim=3, problem_type=kind)
    save_head(tmp_path / "head", config, MemeHead(config).state_dict())
    bank = features(40, 0, "bank", classes=3)
    if kind == "single_label":
        bank = replace(bank, labels=np.arange(40) % 3)
    write_features(tmp_path / "bank", bank, FINGERPRINT)
    write_features(tmp_path / "new", unlabelled(features(20, 1, "new")), FINGERPRINT)
    predict_features(tmp_path / "head", tmp_path / "new", tmp_path / "lrc.jsonl", head="lrc", device="cpu")
    _, logits = run_head(load_head(tmp_path / "head"), hidden_tensor(read_features(tmp_path / "new")))
    logits = logits.double().numpy()
    expected = softmax(logits, axis=1) if kind == "single_label" else expit(logits)
    verdicts = expected.argmax(axis=1) if kind == "single_label" else (expected >= 0.5).astype(int)
    lines = read_lines(tmp_path / "lrc.jsonl")
    assert np.array([line["probability"] for line in lines]) == pytest.approx(expected, abs=1e-9)
    assert [line["verdict"] for line in lines] == verdicts.tolist()
    predict_features(tmp_path / "head", tmp_path / "new", tmp_path / "rkc.jsonl", head="rkc", bank=tmp_path / "bank",
            device="cpu")  # fmt: skip
    for line in read_lines(tmp_path / "rkc.jsonl"):
        votes = np.sum([row["vote"] for row in line["neighbours"]], axis=0)
        assert votes == pytest.approx(np.array(line["score"]), abs=1e-9)
    with pytest.raises(UserError, match=rf"decides `{kind}` of 3 classes. Use `--format jsonl`"):
        predict_features(tmp_path / "head", tmp_path / "new", tmp_path / "x.csv", style="hateclipper-csv")
    assert not (tmp_path / "x.csv").exists()


def test_an_abstention_has_no_verdict_and_no_place_in_the_csv(lab):
    ask = {"head": "rkc", "bank": lab / "bank", "voting": Voting(5, min_similarity=0.97), "device": "cpu"}
    done = predict_features(lab / "head", lab / "new", lab / "out.jsonl", **ask)
    lines = read_lines(lab / "out.jsonl")
    silent = [line for line in lines if line["verdict"] is None]
    assert 0 < len(silent) < len(lines)
    assert done["verdicts"]["abstained"] == len(silent)
    for line in lines:
        near = any(row["similarity"] >= 0.97 for row in line["neighbours"])
        assert (line["verdict"] is None) == (not near)
    with pytest.raises(UserError, match=rf"abstains on {len(silent)} memes, the first is '{silent[0]['id']}'"):
        predict_features(lab / "head", lab / "new", lab / "out.csv", style="hateclipper-csv", **ask)
    assert not (lab / "out.csv").exists()


def test_bad_input_is_refused_before_anything_is_written(lab):
    head, new, out = lab / "head", lab / "new", lab / "out.jsonl"
    write_features(lab / "other", features(9, 5, "o"), FINGERPRINT | {"encoder": "f" * 64})
    write_features(lab / "wide", Features(["a"], np.zeros(1, np.int64), np.zeros((1, 9), np.float32)), FINGERPRINT)
    broken = features(5, 5, "o")
    broken.hidden[2, 1] = np.nan
    write_features(lab / "broken", broken, FINGERPRINT)
    write_features(lab / "mute", features(5, 5, "o"), FINGERPRINT)
    write_features(lab / "unlabelled", unlabelled(features(5, 5, "o")), FINGERPRINT)
    for asked, said in (
        ({"head": "rkc"}, "`--head rkc` needs `--bank`"),
        ({"bank": lab / "bank"}, "`--bank` is for `--head rkc` and `--head krr` alone"),
        ({"head": "svm"}, "head 'svm' is unknown; choose one of lmh, lrc, rkc"),
        ({"style": "xml"}, "format 'xml' is unknown; choose one of jsonl, hateclipper-csv"),
        ({"queries": lab / "other", "head": "rkc", "bank": lab / "bank"}, "not made alike"),
        ({"queries": lab / "wide"}, "takes 4 image and 3 text features, .* has one vector of 9"),
        ({"queries": lab / "broken"}, "not finite, the first is 'o2'"),
        ({"queries": lab / "mute", "head": "lmh"}, "mute: `--head lmh` has no scores. LMH is left out"),
        ({"head": "rkc", "bank": lab / "unlabelled"}, "5 of 5 rows have no label"),
        ({"checkpoint": lab / "bank"}, "has no trained head"),
        ({"output": lab}, "is a folder; give a file"),
    ):
        with pytest.raises(UserError, match=said):
            predict_features(**{"checkpoint": head, "queries": new, "output": out, "device": "cpu"} | asked)
    assert not out.exists()


def test_the_command(lab):
    words = ["predict", "--checkpoint", lab / "head", "--queries", lab / "new", "--bank", lab / "bank", "--head", "rkc"]
    words += ["--format", "hateclipper-csv", "--output", lab / "out.csv"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert "out.csv: 30 memes" in done.output
    assert "The threshold is the official one" in done.output
    assert len(read_csv(lab / "out.csv")) == 30
    short = CliRunner().invoke(app, [str(word) for word in words if word not in ("--bank", lab / "bank")])
    assert short.exit_code == 2
    assert "needs `--bank`" in short.output
