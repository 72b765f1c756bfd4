"""What was measured is what is served: the README's steps 5 to 9 in their order, and one rule while the bank grows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from json_files import read_json
from served import ra_hmd
from servers import as_json, in_process, in_thread, queries
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.cli.app import app as commands
from ra_hmd.features.store import read_features, write_features
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.app import create_app
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService

pytestmark = pytest.mark.slow

_STAGE2 = "batch_size: 32\nepochs: 2\nlr: 1.0e-3\n"


def lines_of(path: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["id"]: row for row in rows}


@pytest.fixture
def run(served_clip: Path, memes: Path, tmp_path: Path) -> Path:
    """Folder with `stage2` (refined head with a decision), `report`, `bank` (of the training rows), `memes.jsonl`."""
    stores = served_clip / "features"
    (tmp_path / "stage2.yaml").write_text(_STAGE2)
    ra_hmd("stage2", tmp_path / "stage2.yaml", f"init_head={served_clip / 'head'}", f"train={stores / 'train'}",
           f"dev={stores / 'dev'}", f"output_dir={tmp_path / 'stage2'}")  # fmt: skip
    ra_hmd("evaluate", "--checkpoint", tmp_path / "stage2", "--bank", stores / "train", "--dev", stores / "dev",
           "--queries", stores / "test", "--final", "--output", tmp_path / "report",
           "--criterion", "f1", "--bootstrap-samples", "100")  # fmt: skip
    ra_hmd("bank", "create", tmp_path / "bank", "--checkpoint", tmp_path / "stage2", "--features", stores / "train",
           "--reason", "training split", "--author", "tests")  # fmt: skip
    rows = [{"id": one.id, "image": str(one.image), "text": one.text} for one in queries(memes, "test")]
    (tmp_path / "memes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def reported(run: Path) -> tuple[dict[str, dict[str, Any]], dict[str, int], float]:
    """Of the report: predictions by id, the RKC's verdicts that follow from them, its threshold."""
    predictions = lines_of(run / "report" / "predictions.jsonl")
    decided = read_json(run / "report" / "ra_hmd.json").decisions.test.rkc
    assert decided.chosen
    (threshold,) = decided.thresholds
    assert threshold != 0, "else this test could not tell the chosen threshold from the official one"
    verdicts = {name: int(row["rkc_score"] >= threshold) for name, row in predictions.items()}
    right = np.mean([verdicts[name] == row["label"] for name, row in predictions.items()])
    assert read_json(run / "report" / "metrics.json").test.rkc.accuracy.value == pytest.approx(right)
    return predictions, verdicts, threshold


def test_the_readme_s_order(run: Path, served_clip: Path, memes: Path) -> None:
    predictions, verdicts, threshold = reported(run)
    head, bank, test = run / "stage2", run / "bank", served_clip / "features" / "test"
    fit = read_json(head / "decision.json").heads.rkc.calibration

    ra_hmd("predict", "--checkpoint", head, "--queries", test, "--head", "rkc", "--bank", bank,
           "--output", run / "stores.jsonl")  # fmt: skip
    ra_hmd("predict", "--checkpoint", head, "--bank", bank, "--input", run / "memes.jsonl",
           "--output", run / "files.jsonl")  # fmt: skip
    ra_hmd("bank", "search", bank, "--checkpoint", head, "--queries", served_clip / "features" / "dev",
           "--output", run / "search.json")  # fmt: skip
    assert read_json(run / "search.json").thresholds == [threshold]
    by_store, by_file = lines_of(run / "stores.jsonl"), lines_of(run / "files.jsonl")
    service = BatchingService(Detector.from_run(head, bank))
    with in_thread(create_app(service, BankService.open(service))) as client:
        asked = queries(memes, "test")
        by_api = {}
        for first in range(0, len(asked), 8):
            body = {"memes": [as_json(one) for one in asked[first : first + 8]]}
            answer = client.post("/v1/classify", json=body).raise_for_status().json()
            by_api |= {one["id"]: one for one in answer["results"]}
    assert len(verdicts) == len(asked)
    for name, row in predictions.items():
        assert by_store[name]["verdict"] == by_file[name]["verdict"] == by_api[name]["verdict"] == verdicts[name]
        assert by_api[name]["threshold"] == by_file[name]["threshold"] == threshold
        assert by_store[name]["score"] == pytest.approx(row["rkc_score"], abs=1e-5)
        if fit.kind == "platt":
            stated = 1 / (1 + np.exp(-(fit.slope[0] * row["rkc_score"] + fit.intercept[0])))
            for answer in (by_store[name]["probability"], by_file[name]["probabilities"]["rkc"],
                           by_api[name]["probabilities"]["rkc"]):  # fmt: skip
                assert answer == pytest.approx(stated, abs=1e-4)


def test_one_rule_for_all_commands_when_the_bank_has_grown_and_it_is_told(
    run: Path, served_clip: Path, memes: Path
) -> None:
    *_, threshold = reported(run)
    head, bank, stores = run / "stage2", run / "bank", served_clip / "features"
    with Bank.open(bank) as opened:
        opened.remove(opened.ids[:1], author="ana", reason="a double")
    note = "chosen with version 1 of the bank, which is at 2"
    for words in (
        ["evaluate", "--bank", bank, "--queries", stores / "test", "--final", "--output", run / "again"],
        ["bank", "search", bank, "--queries", stores / "dev", "--output", run / "search.json"],
        ["bank", "effect", bank, "--queries", stores / "dev", "--remove", Bank.open(bank).ids[0]],
        ["predict", "--bank", bank, "--queries", stores / "test", "--head", "rkc", "--output", run / "v.jsonl"],
        ["predict", "--bank", bank, "--input", run / "memes.jsonl", "--output", run / "files.jsonl"],
    ):
        done = CliRunner().invoke(commands, [*map(str, words), "--checkpoint", str(head)])
        assert done.exit_code == 0, done.output
        assert note in " ".join(done.stderr.split()), words
    assert read_json(run / "again" / "ra_hmd.json").decisions.test.rkc.thresholds == [threshold]
    assert read_json(run / "search.json").thresholds == [threshold]
    assert read_json(run / "v.jsonl.manifest.json").rule.thresholds == [threshold]
    assert {row["threshold"] for row in lines_of(run / "files.jsonl").values()} == {threshold}
    log = run / "serve.log"
    with in_process("serve", head, "--bank", bank, log=log) as (_, client):
        (answer,) = client.post("/v1/classify", json={"memes": [as_json(queries(memes)[0])]}).json()["results"]
    assert answer["threshold"] == threshold
    assert note in log.read_text()


def test_another_bank_takes_the_threshold_away_and_serve_says_so(run: Path, served_clip: Path) -> None:
    stores = served_clip / "features"
    features = read_features(stores / "train")
    ra_hmd("bank", "create", run / "half", "--checkpoint", run / "stage2", "--features", stores / "dev",
           "--reason", "another split", "--author", "tests")  # fmt: skip
    replaced = features.select(np.arange(len(features)))
    replaced.hidden[: len(features) // 2] = replaced.hidden[len(features) // 2 :][: len(features) // 2]
    stated = features.manifest
    write_features(run / "replaced", replaced, stated.fingerprint, encoder=stated.encoder and stated.encoder.to_json())
    ra_hmd("bank", "create", run / "same-ids", "--checkpoint", run / "stage2", "--features", run / "replaced",
           "--reason", "same ids and labels", "--author", "tests")  # fmt: skip
    for other in ("half", "same-ids"):
        detector = Detector.from_run(run / "stage2", run / other)
        assert not detector.scorer.rule("rkc").chosen
        assert "chosen with another bank" in detector.scorer.describe_rule("rkc")
    detector = Detector.from_run(run / "stage2", stores / "train")
    assert detector.scorer.rule("rkc").chosen
