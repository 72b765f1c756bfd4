"""Faults of the service itself, and what clients hear of the machine that it runs on."""

import gc
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from servers import as_json, drawn, encoded, in_thread, queries
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.cli.app import app as cli
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.types import PreparedMeme
from ra_hmd.serve.app import create_app
from ra_hmd.serve.auth import KeyRing, make_key
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.errors import public_name
from ra_hmd.serve.limits import BatchingSettings
from ra_hmd.serve.metrics import JsonFormatter


def test_no_answer_tells_where_things_lie(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> None:
    service = BatchingService(Detector.from_run(served_clip / "head", clip_bank))
    key = make_key(tmp_path / "keys.json", "ana", "moderator")
    app = create_app(service, BankService(service), keys=KeyRing.open(tmp_path / "keys.json"))
    name, meme = Bank.open(clip_bank).ids[0], queries(memes)[0]
    with in_thread(app, **{"X-API-Key": key}) as client:
        asked = [
            ("classify", {"memes": [as_json(meme)]}, 200),
            ("bank/search", {"meme": as_json(meme)}, 200),
            ("bank/effect", {"remove": ["nobody"]}, 422),
            ("bank/effect", {"rollback": 7}, 422),
            ("bank/effect", {"add": [as_json(meme) | {"label": [1, 0]}]}, 422),
            ("bank/add", {"memes": [{"id": name, "image": encoded(drawn()), "text": "x", "label": 1}]}, 409),
            ("bank/remove", {"ids": ["nobody"]}, 404),
            ("bank/relabel", {"labels": {name: 7}}, 422),
            ("bank/rollback", {"version": 7}, 404),
            ("bank/rollback", {"version": 1}, 409),
        ]
        for action, body, status in asked:
            changes = action.startswith("bank/") and action not in ("bank/search", "bank/effect")
            extra = {"reason": "x"} if changes else {}
            answer = client.post(f"/v1/{action}", json=body | extra)
            assert answer.status_code == status, answer.text
            assert str(tmp_path.parent.parent) not in answer.text, answer.text
        info = client.get("/v1/bank")
        assert info.json()["bank"] == "bank"
        assert str(tmp_path.parent.parent) not in info.text, info.text
    assert public_name("http://user@milvus.internal:19530#memes") == "memes"


def test_a_bank_that_cannot_be_read_is_no_fault_of_a_meme(served_clip: Path, clip_bank: Path, memes: Path) -> None:
    service = BatchingService(Detector.from_run(served_clip / "head", clip_bank))
    (version,) = clip_bank.rglob("*1.parquet")
    broken = version.with_name(version.name.replace("1.", "2."))
    with in_thread(create_app(service, BankService(service))) as client:
        body = {"memes": [as_json(one) for one in queries(memes)[:3]]}
        broken.write_bytes(b"words")
        for answer in (client.post("/v1/classify", json=body), client.get("/v1/bank")):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), answer.text
        assert client.get("/ready").status_code == 200, "the worker lives"
        broken.unlink()
        assert client.post("/v1/classify", json=body).status_code == 200


def test_nobody_moves_the_bank_under_a_batch(served_clip: Path, clip_bank: Path, memes: Path) -> None:
    with BatchingService(Detector.from_run(served_clip / "head", clip_bank)) as service, ThreadPoolExecutor(5) as pool:
        bank_service = BankService(service)
        name = bank_service.bank.ids[0]
        query = replace(queries(memes)[0], id=name)
        with service.exclusive():  # as the judging thread has it between search and evidence
            Bank.open(clip_bank).remove([name], author="bo", reason="a double")
            calls = [pool.submit(call) for call in (
                bank_service.info, bank_service.log, bank_service.version, lambda: bank_service.labels_of(query)
            )]  # fmt: skip
            time.sleep(0.3)
            assert bank_service.bank.version == 1
            assert not any(one.done() for one in calls)
        info, log, version, labels = [one.result(30) for one in calls]
        assert (info["version"], len(log), version, labels) == (2, 2, 2, {})


def test_cancelled_memes_are_let_go_while_the_model_is_busy(served_clip: Path, memes: Path) -> None:
    def held() -> int:
        gc.collect()
        return sum(type(one) is PreparedMeme for one in gc.get_objects())  # isinstance would ask dead weak references

    asked = queries(memes)[:6]
    with BatchingService(Detector.from_run(served_clip / "head"), BatchingSettings(max_queue=6)) as service:
        before = held()
        with service.exclusive():
            for _ in range(3):
                waiting = service.submit(asked)
                end = time.monotonic() + 20
                while held() < before + 6:
                    assert time.monotonic() < end, "they were not prepared"
                for future in waiting:
                    future.cancel()
                time.sleep(0.05)
                assert held() <= before + 1
        (answer,) = service.submit(asked[:1])
        assert answer.result(30).verdict.id == asked[0].id


def test_a_batch_that_can_never_wait_here_is_too_large(served_clip: Path) -> None:
    service = BatchingService(Detector.from_run(served_clip / "head"), BatchingSettings(max_queue=2))
    meme = {"image": encoded(drawn()), "text": "a cake"}
    with in_thread(create_app(service)) as client:
        assert client.post("/v1/classify", json={"memes": [meme] * 2}).status_code == 200
        answer = client.post("/v1/classify", json={"memes": [meme] * 3})
        assert (answer.status_code, "at most 2" in answer.json()["detail"]) == (413, True)


def test_memes_in_preparation_are_answered_at_the_end(served_clip: Path, memes: Path) -> None:
    detector, begun = Detector.from_run(served_clip / "head"), threading.Event()
    prepare = detector.prepare

    def slowly(query: object) -> PreparedMeme:
        begun.set()
        time.sleep(0.1)
        return prepare(query)  # type: ignore[arg-type]

    detector.prepare = slowly  # type: ignore[method-assign, assignment]
    service = BatchingService(detector, BatchingSettings(prepare_threads=1))
    futures = service.submit(queries(memes)[:5])
    begun.wait(10)
    service.close()
    assert [future.result(0).verdict.id for future in futures] == [query.id for query in queries(memes)[:5]]


def test_a_log_line_has_no_words_of_an_exception() -> None:
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "Future exception was never retrieved\nfuture: %s",
                               (ValueError("zebracake"),), None)  # fmt: skip
    handler.emit(record)
    assert json.loads(stream.getvalue())["event"] == "Future exception was never retrieved"
    assert "zebracake" not in stream.getvalue()


def test_a_host_that_is_not_known_is_told(served_clip: Path, tmp_path: Path) -> None:
    make_key(tmp_path / "keys.json", "ana", "reader")
    words = ["serve", str(served_clip / "head"), "--keys", str(tmp_path / "keys.json"), "--host", "cakes.invalid"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert "Unknown error" not in done.stderr
    assert "cakes.invalid" in done.stderr


@pytest.mark.parametrize("text", ["Moderator", "", "owner"])
def test_roles_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    make_key(tmp_path / "keys.json", "ana", "moderator")
    file = tmp_path / "keys.json"
    file.write_text(file.read_text().replace("moderator", text))
    with pytest.raises(Exception, match="role"):
        KeyRing.open(file)
