"""One meme set by every way: command line, API, desk, and extraction with evaluation; the same scores."""

import json
import shutil
from pathlib import Path

import pytest
from served import ra_hmd
from servers import as_json, in_thread, queries

from ra_hmd.cases.database import Database
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.store import CaseStore
from ra_hmd.evaluation.evaluate import evaluate
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.app import create_app
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService, wait_for_all
from ra_hmd.serve.case_service import CaseService, Intake

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "run", "heads"),
    [
        ("clip", "head", ("lrc", "rkc", "krr")),
        ("lmm", "run", ("lmh", "lrc", "rkc", "krr")),
        ("experts", "run", ("lmh", "lrc", "rkc", "krr")),
    ],
)
def test_one_score(
    kind: str, run: str, heads: tuple[str, ...], memes: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(f"served_{kind}")
    bank = Path(shutil.copytree(folder / "bank", tmp_path / "bank"))
    checkpoint = Path(shutil.copytree(folder / run, tmp_path / "checkpoint"))  # `evaluate` records the test set in it
    evaluate(checkpoint, folder / "features" / "train", [folder / "features" / "test"], tmp_path / "evaluation",
             bootstrap_samples=0, final=True)  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    expected = {line["id"]: {head: line[f"{head}_score"] for head in heads} for line in lines}

    rows = queries(memes, "test")
    (tmp_path / "memes.jsonl").write_text(
        "".join(json.dumps({"id": one.id, "image": str(one.image), "text": one.text}) + "\n" for one in rows)
    )
    ra_hmd("predict", "--checkpoint", checkpoint, "--bank", bank, "--input", tmp_path / "memes.jsonl",
           "--output", tmp_path / "verdicts.jsonl")  # fmt: skip
    predicted = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    by_command = {line["id"]: line["scores"] for line in predicted}

    service = BatchingService(Detector.from_run(checkpoint, bank))
    bank_service = BankService.open(service, folder / "features" / "dev")
    cases = CaseService(service, CaseStore(Database(tmp_path / "cases.sqlite")), CasePictures(tmp_path / "pictures"))
    by_api, at_the_desk = {}, {}
    with in_thread(create_app(service, bank_service, cases=cases)) as client:
        for one in rows:
            answer = client.post("/v1/classify", json={"memes": [as_json(one)]}).raise_for_status().json()
            by_api[one.id] = answer["results"][0]["scores"]
            ((case_id, _),) = cases.add(wait_for_all(service.submit([one]), 60), [Intake()], "feed")
            at_the_desk[one.id] = cases.store.get(case_id).verdict["scores"]

    assert len(expected) == len(rows)
    for way in (by_command, by_api, at_the_desk):
        assert set(way) == set(expected)
        for name, scores in way.items():
            assert scores == pytest.approx(expected[name], abs=1e-4), name
