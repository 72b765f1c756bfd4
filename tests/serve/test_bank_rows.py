"""`/v1/bank/rows`, one row with its history, and `/v1/bank/diff`."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from servers import as_json, in_thread, queries

from ra_hmd.inference.detector import Detector
from ra_hmd.serve.app import create_app
from ra_hmd.serve.auth import KeyRing, make_key
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService


@pytest.fixture
def client(served_clip: Path, clip_bank: Path, tmp_path: Path) -> Iterator[httpx.Client]:
    key = make_key(tmp_path / "keys.json", "ana", "moderator")
    service = BatchingService(Detector.from_run(served_clip / "head", clip_bank))
    app = create_app(service, BankService.open(service), keys=KeyRing.open(tmp_path / "keys.json"))
    with in_thread(app, **{"X-API-Key": key}) as one:
        yield one


def test_a_program_reads_what_a_moderator_changed(client: httpx.Client, memes: Path) -> None:
    name = "team/ä cake?"  # as any id, with characters of addresses
    meme = as_json(queries(memes)[0]) | {"id": name, "label": 0, "note": "a joke"}
    assert client.post("/v1/bank/add", json={"memes": [meme], "reason": "new"}).status_code == 200
    assert client.post("/v1/bank/relabel", json={"labels": {name: 1}, "reason": "no joke"}).status_code == 200

    first, second = (client.get("/v1/bank/rows", params={"limit": 2, "offset": offset}).json() for offset in (0, 2))
    assert (first["version"], len(first["rows"])) == (3, 2)
    assert not {row["id"] for row in first["rows"]} & {row["id"] for row in second["rows"]}
    newest = client.get("/v1/bank/rows", params={"limit": 1}).json()["rows"][0]
    assert (newest["id"], newest["label"]) == (name, 1)
    assert client.get("/v1/bank/rows", params={"version": 1}).json()["count"] == first["count"] - 1
    for wanted in ({"words": "JOKE"}, {"source": "api"}):
        assert [row["id"] for row in client.get("/v1/bank/rows", params=wanted).json()["rows"]] == [name]

    row = client.get("/v1/bank/rows/team%2F%C3%A4%20cake%3F").json()
    assert row["row"] == newest
    said = [(one["operation"], one["label_after"], one["author"], one["reason"]) for one in row["changes"]]
    assert said == [("added", 0, "ana", "new"), ("relabelled", 1, "ana", "no joke")]

    diff = client.get("/v1/bank/diff", params={"from": 1}).json()
    assert (diff["first"], diff["last"], diff["count"], diff["kinds"]["added"]) == (1, 3, 1, 1)
    (line,) = client.get("/v1/bank/diff", params={"from": 2, "to": 3}).json()["rows"]
    assert (line["id"], line["kind"], line["label_before"], line["label_after"]) == (name, "relabelled", 0, 1)
    assert client.get("/v1/bank/diff", params={"from": 2, "to": 3, "offset": 1}).json()["rows"] == []


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("rows?version=7", 404, "not_in_bank"),
        ("rows/nobody", 404, "not_in_bank"),
        ("diff?from=1&to=9", 404, "not_in_bank"),
        ("diff", 422, "invalid_request"),
        ("rows?limit=0", 422, "invalid_request"),
        ("rows?label=-1", 422, "invalid_request"),
    ],
)
def test_what_is_not_there_is_said(client: httpx.Client, path: str, status: int, code: str) -> None:
    answer = client.get(f"/v1/bank/{path}")
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_without_a_bank_there_are_no_rows(served_clip: Path) -> None:
    with in_thread(create_app(BatchingService(Detector.from_run(served_clip / "head")))) as client:
        for path in ("rows", "rows/a", "diff?from=1"):
            assert client.get(f"/v1/bank/{path}").json()["code"] == "no_bank"
