"""A corrected meme that comes again is answered by its label: over the API, at the desk, in files."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from servers import as_json, in_thread, queries

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.embed_features import embed_store
from ra_hmd.cases.database import Database
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.store import CaseStore
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.desk.class_names import ClassNames
from ra_hmd.desk.texts import Texts
from ra_hmd.desk.verdict_view import VerdictWords
from ra_hmd.evaluation.evaluate import evaluate
from ra_hmd.inference.batch import predict_files
from ra_hmd.inference.batch_features import predict_features
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.app import create_app
from ra_hmd.serve.auth import KeyRing, make_key
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService, ServedVerdict, wait_for_all
from ra_hmd.serve.case_service import CaseService, Intake, margin


def test_over_the_api(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "keys.json", "mo", "moderator")
    service = BatchingService(Detector.from_run(served_clip / "head", clip_bank))
    app = create_app(service, BankService(service), keys=KeyRing.open(tmp_path / "keys.json"))
    meme, other = queries(memes)[:2]
    with in_thread(app, Authorization=f"Bearer {key}") as client:

        def judged(query: Meme, **fields: Any) -> dict[str, Any]:
            answer = client.post("/v1/classify", json={"memes": [as_json(query, id=None) | fields]})
            return answer.json()["results"][0]

        def change(action: str, **body: Any) -> httpx.Response:
            return client.post(f"/v1/bank/{action}", json={"reason": "seen", **body})

        before = judged(meme)
        assert before["identical"] is None
        label = 1 - before["verdict"]
        row = as_json(meme, id="row", label=label)
        shown = change_effect(client, [row])
        assert [(flip["from"], flip["to"]) for flip in shown["flips"]][:1] == [(before["verdict"], label)]
        assert change("add", memes=[row]).status_code == 200
        after = judged(meme)
        assert (after["verdict"], after["identical"]["id"], after["identical"]["label"]) == (label, "row", label)
        assert after["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-6)
        assert judged(meme, id="row")["verdict"] == label, "its own id takes its vote, not its answer"
        assert judged(meme, text=f" {meme.text} ")["identical"]["id"] == "row"
        assert judged(meme, text=f"{meme.text} and more")["identical"] is None
        assert judged(other)["identical"] is None

        opposite = as_json(meme, id="opposite", label=1 - label)
        refused = change("add", memes=[opposite])
        assert (refused.status_code, refused.json()["bank_version"]) == (409, 2)
        assert "'row'" in refused.json()["detail"]
        assert client.post("/v1/bank/effect", json={"add": [opposite]}).status_code == 409
        assert judged(meme)["verdict"] == label
        assert change("add", memes=[opposite], relabel_identical=True).status_code == 200
        assert judged(meme)["verdict"] == 1 - label
        assert change("relabel", labels={"row": label}).status_code == 409
        assert change("relabel", labels={"row": label}, relabel_identical=True).status_code == 200
        assert judged(meme)["verdict"] == label


def change_effect(client: httpx.Client, add: list[dict[str, Any]]) -> dict[str, Any]:
    return client.post("/v1/bank/effect", json={"add": add}).json()


def test_at_the_desk(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> None:
    with BatchingService(Detector.from_run(served_clip / "head", clip_bank)) as service:
        store = CaseStore(Database(tmp_path / "cases.sqlite"))
        cases = CaseService(service, store, CasePictures(tmp_path / "pictures"), BankService(service))
        name, label = Bank.open(clip_bank).ids[3], int(Bank.open(clip_bank).labels[3])
        known = next(meme for meme in read_memes(memes / "a" / "train.jsonl") if meme.id == name)

        def judge(name: str) -> ServedVerdict:
            (served,) = wait_for_all(service.submit([Meme(name, known.image.read_bytes(), known.text)]), 60)
            return served

        served = judge("one")
        assert served.verdict.identical is None, "the bank was made of examples"
        ((case_id, _),) = cases.add([served], [Intake()], "feed")
        cases.decide(case_id, "ana", cases.decision(case_id, 1 - label, "wrong"))
        again = judge("two")
        assert again.verdict.verdict == 1 - label
        assert again.verdict.identical["id"] == known.id
        assert margin(again.verdict, service) == 1
        shown = VerdictWords(ClassNames(service.detector.problem), Texts("en")).view(again.to_dict(), {})
        assert "A person labelled this very meme" in shown.reason
    bank = Bank.open(clip_bank)
    assert (bank.version, len(bank), bank.row(3)["label"]) == (2, len(Bank.open(served_clip / "bank")), 1 - label)


def test_in_files_and_not_in_evaluation(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> None:
    """The dev memes are put into the bank under other ids: `predict` answers them so, `evaluate` lets them vote."""
    head, dev = served_clip / "head", served_clip / "features" / "dev"
    found = embed_store(head, dev)
    rows = found.rows()
    flipped = 1 - rows.labels
    with Bank.open(clip_bank) as bank:
        new = type(rows)([f"again-{name}" for name in rows.ids], flipped, rows.sources, rows.notes, rows.times,
                         rows.image_hashes, rows.contents, np.arange(len(rows)) < 5)  # fmt: skip
        bank.add(new, found.embeddings.embedding, author="ana", reason="five are decided")
    predict_features(head, dev, tmp_path / "store.jsonl", head="rkc", bank=clip_bank)
    lines = [json.loads(line) for line in (tmp_path / "store.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in lines[:5]] == flipped[:5].tolist()
    assert [(line["identical"] or {}).get("id") for line in lines] == new.ids[:5] + [None] * (len(lines) - 5)
    predict_files(Detector.from_run(head, clip_bank), memes / "a" / "dev.jsonl", tmp_path / "file.jsonl", show=False)
    judged = [json.loads(line) for line in (tmp_path / "file.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in judged] == [line["verdict"] for line in lines]
    assert [line["identical"] for line in judged[:5]] == [line["identical"] for line in lines[:5]]
    evaluate(head, clip_bank, [dev], tmp_path / "report", bootstrap_samples=0)
    scores = [json.loads(line)["rkc_score"] for line in (tmp_path / "report" / "predictions.jsonl").open()]
    assert scores == pytest.approx([line["score"] for line in lines])
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    right = np.mean([(score >= 0) == label for score, label in zip(scores, found.embeddings.labels, strict=True)])
    assert str(round(float(right), 6))[:6] in json.dumps(metrics)
