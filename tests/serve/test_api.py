"""The API over real sockets: answers equal the detector's, keys and roles hold, what is too much is refused."""

import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import as_json, drawn, encoded, in_thread, queries
from starlette.formparsers import MultiPartParser

from ra_hmd.bank.bank import Bank
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.app import create_app
from ra_hmd.serve.auth import KeyRing, make_key
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.limits import BatchingSettings, RequestLimits


@pytest.fixture(scope="module")
def open_api(served_clip: Path) -> Iterator[tuple[httpx.Client, BatchingService]]:
    """An app without keys and without an example bank."""
    service = BatchingService(Detector.from_run(served_clip / "head", served_clip / "bank"))
    with in_thread(create_app(service, hosts=["127.0.0.1", "localhost"])) as client:
        yield client, service
    assert not service.ready, "the app closes its service"


def locked(
    served_clip: Path, bank: Path, folder: Path, batching: BatchingSettings | None = None, **limits: Any
) -> tuple[Any, dict[str, str], BatchingService]:
    """An app with an example bank and keys, the keys of a reader and of a moderator, and its service."""
    keys = {role: make_key(folder / "keys.json", f"the {role}", role) for role in ("reader", "moderator")}
    service = BatchingService(Detector.from_run(served_clip / "head", bank), batching)
    bank_service = BankService.open(service, served_clip / "features" / "dev")
    app = create_app(service, bank_service, keys=KeyRing.open(folder / "keys.json"), limits=RequestLimits(**limits))
    return app, keys, service


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ---------------------------------------------------------------------------------------------------- memes


def test_answers_are_the_detectors(
    open_api: tuple[httpx.Client, BatchingService], served_clip: Path, memes: Path
) -> None:
    client, service = open_api
    asked = queries(memes)[:6]
    expected = Detector.from_run(served_clip / "head", served_clip / "bank")(asked)
    as_body = client.post("/v1/classify", json={"memes": [as_json(query) for query in asked]})
    files = [("images", (f"../{query.id}\x01.png", query.image.read_bytes())) for query in asked]
    names = {"texts": [query.text for query in asked], "ids": [query.id for query in asked]}
    as_form = client.post("/v1/classify", files=files, data=names)
    for answer in (as_body, as_form):
        assert answer.status_code == 200, answer.text
        for one, result in zip(expected, answer.json()["results"], strict=True):
            assert result["id"] == one.id
            assert result["text"] == one.text
            assert result["scores"] == pytest.approx(one.scores, abs=1e-4)
            assert result["probabilities"] == pytest.approx(one.probabilities, abs=1e-4)
            assert result["verdicts"] == one.verdicts
            assert (result["verdict"], result["head"], result["threshold"]) == (one.verdict, one.head, one.threshold)
            assert [row["id"] for row in result["neighbours"]] == [row["id"] for row in one.neighbours or []]
            version = service.detector.version
            bank = version["bank"] | {"place": Path(version["bank"]["place"]).name}
            assert result["version"] == version | {"run": Path(version["run"]).name, "bank": bank}


def test_a_bad_meme_fails_alone_and_a_single_one_with_its_request(
    open_api: tuple[httpx.Client, BatchingService],
) -> None:
    client, _ = open_api
    good, bad = {"image": encoded(drawn()), "text": "a cake"}, {"id": "b", "image": encoded(b"words"), "text": "x"}
    results = client.post("/v1/classify", json={"memes": [good, bad, good]}).json()["results"]
    assert [sorted(one) for one in results][1] == ["error", "id"]
    assert "meme 'b'" in results[1]["error"]
    assert "PNG" in results[1]["error"]
    assert results[0]["scores"] == results[2]["scores"]
    assert len({one["id"] for one in results}) == 3, "each gets a name of its own"
    alone = client.post("/v1/classify", json={"memes": [bad]})
    assert alone.status_code == 422
    assert "meme 'b'" in alone.json()["detail"]


def test_many_at_once_each_get_their_own(
    open_api: tuple[httpx.Client, BatchingService], served_clip: Path, memes: Path
) -> None:
    client, service = open_api
    asked = queries(memes)
    expected = {one.id: one.scores for one in Detector.from_run(served_clip / "head", served_clip / "bank")(asked)}
    before = service.statistics.batches
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: client.post("/v1/classify", json={"memes": [as_json(one)]}), asked * 3))
    for query, answer in zip(asked * 3, answers, strict=True):
        (result,) = answer.json()["results"]
        assert result["id"] == query.id
        assert result["scores"] == pytest.approx(expected[query.id], abs=1e-4)
    assert service.statistics.batches - before < len(answers), "they share forward passes"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"memes": []}, 422, "at least 1"),
        ({"memes": [{"text": "x"}]}, 422, "memes.0.image"),
        ({"memes": [{"image": "http://example.org/a.png"}]}, 422, "not fetched"),
        ({"memes": [{"image": "§§"}]}, 422, "base64"),
        ({"memes": [{"image": "", "text": "x"}]}, 422, "opened"),
        ({"memes": [{"image": "aGk=", "txt": "x"}]}, 422, "memes.0.txt"),
        ({"memes": [{"image": "aGk=", "id": "a\nb"}]}, 422, "memes.0.id"),
        ({"memes": [{"image": "aGk="}] * 33}, 413, "33 memes"),
        ({"memes": [{"image": encoded(drawn()), "text": "x" * 4097}]}, 422, "4097 characters"),
    ],
)
def test_what_does_not_fit_is_told(
    open_api: tuple[httpx.Client, BatchingService], body: dict[str, Any], status: int, words: str
) -> None:
    answer = open_api[0].post("/v1/classify", json=body)
    assert answer.status_code == status
    assert words in answer.text
    assert "§§" not in answer.text


def test_forms_that_do_not_fit(open_api: tuple[httpx.Client, BatchingService]) -> None:
    client, _ = open_api
    files = [("images", drawn()), ("images", drawn())]
    for data, words in (
        ({"texts": ["only one"]}, "1 are given for 2"),
        ({"policy": ["x"]}, "no field"),
        ({"ids": ["a", "b\n"]}, "pattern"),
    ):
        answer = client.post("/v1/classify", files=files, data=data)
        assert (answer.status_code, words in answer.text) == (422, True), answer.text
    assert client.post("/v1/classify", files=[("images", drawn())] * 33).status_code == 413
    assert client.post("/v1/classify", data={"texts": "x"}).status_code == 415
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/v1/classify", content=b"--x\r\nnonsense", headers=kind).status_code == 422
    assert client.post("/v1/classify", content=b"", headers={"Content-Type": "multipart/form-data"}).status_code == 422


def test_a_large_upload_never_becomes_a_temporary_file(
    open_api: tuple[httpx.Client, BatchingService], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tripwire(*_: Any, **__: Any) -> None:
        raise AssertionError("a temporary file was opened")

    monkeypatch.setattr(tempfile, "TemporaryFile", tripwire)
    with tempfile.SpooledTemporaryFile(max_size=10) as spool, pytest.raises(AssertionError):
        spool.write(b"x" * 11)  # the tripwire is where a spooled upload would step
    picture = drawn((1000, 1000), style="BMP")
    assert len(picture) > 2 * MultiPartParser.spool_max_size
    assert open_api[0].post("/v1/classify", files={"images": picture}, data={"texts": "x"}).status_code == 200


def test_headers_of_answers(open_api: tuple[httpx.Client, BatchingService]) -> None:
    client, _ = open_api
    answer = client.get("/v1/bank", headers={"X-Request-ID": "mine-7"})
    assert answer.headers["x-request-id"] == "mine-7"
    assert client.get("/v1/bank", headers={"X-Request-ID": "a b"}).headers["x-request-id"] != "a b"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in client.get("/health", headers={"Origin": "http://x.org"}).headers
    assert client.get("/openapi.json", headers={"Host": "rebound.example.org"}).status_code == 400
    assert "no such route" in client.get("/nothing").json()["detail"]
    page = client.get("/docs").text
    assert "https://" not in page.replace("https://fastapi", ""), "the page loads nothing from elsewhere"


def test_without_a_bank_or_words_it_says_so(open_api: tuple[httpx.Client, BatchingService]) -> None:
    client, _ = open_api
    assert client.get("/v1/bank").status_code == 404
    answer = client.post("/v1/explain", json={"meme": {"image": encoded(drawn()), "text": "a cake"}})
    assert (answer.status_code, "generates no text" in answer.text) == (404, True)
    answer = client.post("/v1/bank/remove", json={"ids": ["a"], "reason": "x"})
    assert answer.status_code == 403
    assert "serve-key" in answer.json()["detail"]


# ---------------------------------------------------------------------------------------------------- keys and the bank


def test_keys_and_roles(served_clip: Path, clip_bank: Path, tmp_path: Path) -> None:
    app, keys, _ = locked(served_clip, clip_bank, tmp_path)
    reader, moderator = bearer(keys["reader"]), bearer(keys["moderator"])
    meme = {"memes": [{"image": encoded(drawn()), "text": "a cake"}]}
    change = {"ids": [Bank.open(clip_bank).ids[0]], "reason": "a double"}
    with in_thread(app) as client:
        page_file = "/static-offline-docs/swagger-ui.css"
        for path in ("/health", "/ready", "/docs", "/openapi.json", page_file):
            assert client.get(path).status_code == 200
        assert page_file in client.get("/docs").text
        for path in ("/metrics", "/v1/bank", "/nothing", "/docs/../metrics", "/static-offline-docs"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        for headers in (bearer("wrong"), {"Authorization": keys["reader"]}, {"X-API-Key": ""}, bearer("ü" * 5)):
            raw = {name.encode(): value.encode() for name, value in headers.items()}
            assert client.post("/v1/classify", json=meme, headers=raw).status_code == 401
        assert client.post("/v1/classify", json=meme, headers=reader).status_code == 200
        assert client.post("/v1/classify", json=meme, headers={"X-API-Key": keys["reader"]}).status_code == 200
        refused = client.post("/v1/bank/remove", json=change, headers=reader)
        assert (refused.status_code, "moderator" in refused.json()["detail"]) == (403, True)
        assert client.get("/v1/bank", headers=reader).json()["version"] == 1
        assert client.post("/v1/bank/remove", json=change, headers=moderator).json()["author"] == "the moderator"
        assert client.get("/v1/bank", headers=reader).json()["version"] == 2


def test_a_correction_over_the_api(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> None:
    app, keys, service = locked(served_clip, clip_bank, tmp_path)
    meme = queries(memes)[0]
    with in_thread(app, **bearer(keys["moderator"])) as client:

        def post(action: str, **body: Any) -> httpx.Response:
            return client.post(f"/v1/bank/{action}", json=body)

        asked = {"memes": [as_json(meme)]}
        (before,) = client.post("/v1/classify", json=asked).json()["results"]
        twin = as_json(meme, id="twin", label=1 - before["verdicts"]["rkc"], note="seen by a person")
        recent = service.recent.ids
        found = post("search", meme=as_json(meme), k=3).json()
        assert [row["id"] for row in found["neighbours"]] == [row["id"] for row in before["neighbours"][:3]]
        assert service.recent.ids == recent, "a search leaves nothing behind"
        shown = post("effect", add=[twin]).json()
        assert shown["version"] == 1
        assert shown["paired"]["labelled"] > 0
        assert client.get("/v1/bank").json()["version"] == 1, "looking changes nothing"

        made = post("add", memes=[twin], reason="wrong verdict")
        assert (made.status_code, made.json()["version"], made.json()["author"]) == (200, 2, "the moderator")
        again = post("add", memes=[twin], reason="wrong verdict")
        assert (again.status_code, again.json()["bank_version"]) == (409, 2)
        (after,) = client.post("/v1/classify", json=asked).json()["results"]
        assert after["version"]["bank"]["version"] == 2
        assert after["neighbours"][0]["id"] == "twin"
        assert (after["neighbours"][0]["source"], after["neighbours"][0]["note"]) == ("api", "seen by a person")

        assert post("relabel", labels={"twin": before["verdicts"]["rkc"]}, reason="after all").json()["version"] == 3
        assert post("relabel", labels={"twin": before["verdicts"]["rkc"]}, reason="after all").status_code == 409
        assert post("remove", ids=["twin"], reason="a trial").json()["version"] == 4
        assert post("remove", ids=["twin"], reason="a trial").status_code == 409
        assert post("remove", ids=["never"], reason="a trial").status_code == 404
        assert post("relabel", labels={"never": 1}, reason="a trial").status_code == 404
        assert post("relabel", labels={"a00000": 7}, reason="a trial").status_code in (404, 422)
        assert post("rollback", version=4, reason="x").status_code == 409
        assert post("rollback", version=9, reason="x").status_code == 404
        assert post("effect", rollback=2).json()["flips"] is not None
        assert post("effect").status_code == 422
        assert post("remove", ids=["twin"], reason="  ").status_code == 422
        bad = {**twin, "id": "bad", "image": encoded(b"words")}
        assert post("add", memes=[bad], reason="x").status_code == 422
        assert post("add", memes=[twin, twin], reason="x").status_code == 422
        assert post("rollback", version=1, reason="a trial").status_code == 409, "version 4 holds what version 1 held"
        log = client.get("/v1/bank/log", params={"limit": 2}).json()
        assert [entry["action"] for entry in log["entries"]] == ["remove", "relabel"]
        older = client.get("/v1/bank/log", params={"before": 3}).json()["entries"]
        assert [entry["version"] for entry in older] == [2, 1]
        (last,) = client.post("/v1/classify", json=asked).json()["results"]
    assert last["scores"] == pytest.approx(before["scores"], abs=1e-6)
    assert [line.action for line in Bank.open(clip_bank).log] == ["create", "add", "relabel", "remove"]


# ---------------------------------------------------------------------------------------------------- too much


def test_a_full_queue_a_late_answer_and_the_end(served_clip: Path, clip_bank: Path, tmp_path: Path) -> None:
    app, keys, service = locked(
        served_clip, clip_bank, tmp_path, batching=BatchingSettings(max_queue=2), time_limit=1.5, max_concurrent=1
    )
    headers = bearer(keys["moderator"])
    meme = {"image": encoded(drawn()), "text": "a cake"}
    with in_thread(app, **headers) as client, ThreadPoolExecutor(4) as pool:
        client.post("/v1/classify", json={"memes": [meme]})
        judged = service.statistics.memes
        with service.exclusive():  # nothing is judged now
            late = pool.submit(client.post, "/v1/classify", json={"memes": [meme, meme]})
            change = pool.submit(client.post, "/v1/bank/remove", json={"ids": ["a00000"], "reason": "x"})
            _until(lambda: service.pending == 2 and app.state.context.bank_limit.active == 1)
            full = client.post("/v1/classify", json={"memes": [meme]})
            assert (full.status_code, full.headers["retry-after"]) == (429, "1")
            busy = client.get("/v1/bank")
            assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
            assert client.get("/health").status_code == 200
            assert client.get("/ready").json()["waiting"] == 2
            assert late.result().status_code == 504
            assert change.result().status_code == 504
            assert "nothing was done" in change.result().json()["detail"]
        _until(lambda: service.pending == 0)
        assert service.statistics.memes == judged, "memes that came too late cost no forward pass"
        assert client.get("/v1/bank").json()["version"] == 1
        figures = client.get("/metrics").text
        assert "ra_hmd_refused_memes_total 1.0" in figures
        assert 'ra_hmd_requests_total{method="POST",route="/v1/classify",status="504"} 1.0' in figures
        closing = threading.Thread(target=service.close)
        closing.start()
        closing.join(30)
        assert client.post("/v1/classify", json={"memes": [meme]}).status_code == 503
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200


def test_pictures_and_bodies_are_weighed_together(served_clip: Path, clip_bank: Path, tmp_path: Path) -> None:
    app, keys, service = locked(
        served_clip, clip_bank, tmp_path, max_bytes=20_000, max_pixels=10_000, memory_factor=1, time_limit=20
    )
    with in_thread(app, **bearer(keys["reader"])) as client, ThreadPoolExecutor(2) as pool:
        meme = {"image": encoded(drawn((90, 90))), "text": "a cake"}
        with service.exclusive():
            first = pool.submit(client.post, "/v1/classify", json={"memes": [meme]})
            _until(lambda: service.pending == 1)
            second = client.post("/v1/classify", json={"memes": [meme]})
            assert (second.status_code, "pixels" in second.json()["detail"]) == (429, True)
        assert first.result().status_code == 200
        assert client.post("/v1/classify", json={"memes": [meme, meme]}).status_code == 413
        assert client.post("/v1/classify", json={"memes": [meme]}).status_code == 200
        large = {"image": encoded(drawn((101, 100))), "text": "a cake"}
        assert client.post("/v1/classify", json={"memes": [large]}).status_code == 422
        body = b'{"memes": [' + b" " * 20_000 + b"]}"
        kind = {"Content-Type": "application/json"}
        assert client.post("/v1/classify", content=body, headers=kind).status_code == 413
        chunks = (body[start : start + 1000] for start in range(0, len(body), 1000))
        assert client.post("/v1/classify", content=chunks, headers=kind).status_code == 413, "of unknown length"
        assert client.post("/v1/classify", json={"memes": [meme]}).status_code == 200
        assert app.state.context.pixel_budget.used == 0


def test_a_change_gets_its_turn_under_load(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> None:
    app, keys, service = locked(served_clip, clip_bank, tmp_path, batching=BatchingSettings(max_batch=1))
    body = {"memes": [as_json(query) for query in queries(memes)[:8]]}
    done = threading.Event()
    with in_thread(app, **bearer(keys["moderator"])) as client, ThreadPoolExecutor(4) as pool:

        def load() -> set[int]:
            seen = set()
            while not done.is_set():
                seen.add(client.post("/v1/classify", json=body).status_code)
            return seen

        busy = [pool.submit(load) for _ in range(3)]
        try:
            _until(lambda: service.pending > 8)
            start = time.monotonic()
            for name in Bank.open(clip_bank).ids[:4]:
                answer = client.post("/v1/bank/remove", json={"ids": [name], "reason": "x"})
                assert answer.status_code == 200, answer.text
            assert time.monotonic() - start < 30
        finally:
            done.set()
        assert set.union(*(one.result() for one in busy)) == {200}


def _until(holds: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)
