"""`ra-hmd serve` and `ra-hmd serve-key` as they are started in earnest, rationales included, and how they end."""

import json
import signal
import stat
import threading
import time
from pathlib import Path

import httpx
import pytest
from servers import as_json, drawn, encoded, in_process, queries
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.auth import KeyRing
from ra_hmd.serve.hosts import is_loopback
from ra_hmd.serve.options import AddressOptions

pytestmark = pytest.mark.slow


def run(*words: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


def test_keys_are_shown_once_and_kept_as_hashes(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    code, out, _ = run("serve-key", "ana", "--role", "moderator", "--keys", file)
    secret = out.strip()
    assert code == 0
    assert len(secret) > 40
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    code, out, _ = run("serve-key", "bo", "--keys", file)
    ring = KeyRing.open(file)
    assert [(key.name, key.role) for key in ring.keys] == [("ana", "moderator"), ("bo", "reader")]
    found = ring.find(secret)
    assert found is not None
    assert found.name == "ana"
    assert ring.find(secret[:-1]) is None
    assert ring.find(ring.keys[0].sha256) is None
    assert run("serve-key", "ana", "--keys", file)[0] == 2
    assert run("serve-key", "a\nb", "--keys", file)[0] == 2
    assert run("serve-key", "cy", "--role", "owner", "--keys", file)[0] == 2
    assert run("serve-key", "ana", "--keys", file, "--remove")[0] == 0
    assert run("serve-key", "ana", "--keys", file, "--remove")[0] == 2
    assert [key.name for key in KeyRing.open(file).keys] == ["bo"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_cannot_be_served_is_told_before_a_model_is_loaded(served_clip: Path, tmp_path: Path) -> None:
    head = served_clip / "head"
    code, _, error = run("serve", head, "--host", "0.0.0.0")
    assert code == 2
    assert "--keys" in error
    assert run("serve", head, "--keys", tmp_path / "none.json")[0] == 2
    (tmp_path / "other.json").write_text("{}")
    assert "no file of keys" in run("serve", head, "--keys", tmp_path / "other.json")[2]
    assert "max_batch" in run("serve", head, "--max-batch", "0")[2]
    assert "time_limit" in run("serve", head, "--time-limit", "0")[2]
    _, _, error = run("serve", head, "--dtype", "int4")
    assert "dtype" in error
    assert "'int4'" in error
    assert "--reference" in run("serve", head, "--reference", served_clip / "features" / "dev", "--port", "0")[2]
    (tmp_path / "policy.txt").write_text("Cats are fine.")
    _, _, error = run("serve", head, "--policy", tmp_path / "policy.txt", "--port", "0")
    assert "encoder" in error
    assert "203.0.113.9" in run("serve", head, "--host", "203.0.113.9", "--keys", _keys(tmp_path))[2]
    asked: list[tuple[str, list[str]]] = [("127.0.0.1", []), ("0.0.0.0", []), ("0.0.0.0", ["memes.example.org"])]
    keys = tmp_path / "keys.json"
    names = [AddressOptions(host=host, allowed_hosts=allowed, keys=keys).host_names for host, allowed in asked]
    assert "*" not in names[0]
    assert names[1] == ["*"]
    assert "*" not in names[2]
    assert "memes.example.org" in names[2]
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def _keys(folder: Path) -> Path:
    assert run("serve-key", "ana", "--keys", folder / "keys.json")[0] == 0
    return folder / "keys.json"


def test_verdicts_rationales_and_a_graceful_end(served_lmm: Path, memes: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.txt").write_text("Cats are fine, zebracakes are not.")
    asked = queries(memes)[:6]
    expected = Detector.from_run(served_lmm / "run", served_lmm / "bank")(asked)
    words = ("serve", served_lmm / "run", "--bank", served_lmm / "bank", "--policy", tmp_path / "policy.txt",
             "--max-new-tokens", "8", "--max-batch", "1")  # fmt: skip
    with in_process(*words, log=tmp_path / "log") as (process, client):
        body = {"memes": [as_json(query) for query in asked]}
        answer = client.post("/v1/classify", json=body)
        for one, result in zip(expected, answer.json()["results"], strict=True):
            assert set(result["scores"]) == {"lmh", "lrc", "rkc", "krr"}
            assert result["scores"] == pytest.approx(one.scores, abs=1e-4)
            assert result["verdicts"] == one.verdicts
        meme = as_json(asked[0])
        explained = client.post("/v1/explain", json={"meme": meme}).json()
        assert explained["result"]["scores"] == pytest.approx(expected[0].scores, abs=1e-4)
        assert explained["explanation"]["generated"] is True
        assert "zebracakes" in explained["explanation"]["prompt"]
        assert client.post("/v1/explain", json={"meme": meme, "policy": "all is fine"}).status_code == 422
        bad = {"image": encoded(drawn()[:60]), "text": "a cake"}
        assert client.post("/v1/explain", json={"meme": bad}).status_code == 422

        answers: list[httpx.Response] = []
        address = client.base_url.join("/v1/classify")
        sending = [
            threading.Thread(target=lambda: answers.append(httpx.post(address, json=body, timeout=60)))
            for _ in range(6)
        ]
        for thread in sending:
            thread.start()
        end = time.monotonic() + 20
        while client.get("/ready").json()["waiting"] < 12:
            assert time.monotonic() < end, "it did not come to that"
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        for thread in sending:
            thread.join(60)
        assert process.wait(60) == 0
        assert [answer.status_code for answer in answers] == [200] * 6, "what was accepted is answered"
        assert all(len(answer.json()["results"]) == 6 for answer in answers)
    log = (tmp_path / "log").read_text()
    assert "zebracakes" not in log
    lines = [json.loads(line) for line in log.splitlines() if '"event": "request"' in line]
    assert sum(line["status"] == 200 and line["memes"] == 6 for line in lines) == 7
