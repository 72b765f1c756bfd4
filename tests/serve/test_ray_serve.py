"""`ra-hmd console --replicas 2`: API and desk by two processes, at one address of this machine, through Ray Serve."""

import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from servers import as_json, drawn, encoded, in_process, queries
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.cli.app import app


@pytest.mark.slow
def test_two_replicas_answer_at_one_address(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = CliRunner().invoke(app, ["serve-key", "ana", "--role", "moderator", "--keys", str(keys)]).stdout.strip()
    words = ("console", served_clip / "head", "--bank", clip_bank, "--keys", keys, "--replicas", "2")
    with in_process(*words, log=tmp_path / "log") as (process, client):
        client.base_url = str(client.base_url).removesuffix("/").removesuffix("/console")
        assert client.get("/v1/bank").status_code == 401
        client.headers["X-API-Key"] = key
        started = set()
        end = time.monotonic() + 60
        while len(started) < 2 and time.monotonic() < end:  # Ray Serve chooses a replica for each request
            started.add(re.findall(r"(?m)^process_start_time_seconds (\S+)$", client.get("/metrics").text)[0])
        assert len(started) == 2, "both replicas answer"
        meme = {"id": "new", "image": encoded(drawn()), "text": "a cake", "label": 1}
        statuses = [client.post("/v1/bank/add", json={"memes": [meme], "reason": "new"}).status_code for _ in range(3)]
        assert statuses == [200, 409, 409]
        for query in queries(memes)[:6]:
            said = client.post("/v1/classify", json={"memes": [as_json(query)]}, headers={"X-Request-ID": "mine"})
            assert said.json()["results"][0]["version"]["bank"]["version"] == 2
            assert said.headers.get_list("x-request-id") == ["mine"]
        form = client.post("/v1/classify", files={"images": ("a.png", drawn())}, data={"texts": "a cake"})
        assert form.json()["results"][0]["identical"]["id"] == "new"
        assert client.post("/v1/classify", content=b"x" * (33 << 20)).status_code == 413
        assert client.get("/v1/bank", headers={"Host": "evil.example"}).status_code == 400
        assert client.post("/console/login", data={"name": "ana", "key": key}).status_code == 303
        sent = client.post("/v1/cases", json={"cases": [as_json(query) for query in queries(memes)[:3]]})
        assert sent.status_code == 201
        shown = [re.findall(r'data-case="(\w+)"', client.get("/console/review").text) for _ in range(12)]
        assert shown == shown[:1] * 12, "whichever replica answers, the person and the case are the same"
        assert listening(process.pid) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert Bank.open(clip_bank).version == 2


def listening(pid: int) -> set[str]:
    """Addresses at which a process and those that it started listen."""
    found = set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        for one in process.net_connections(kind="inet"):
            if one.status == psutil.CONN_LISTEN:
                found.add(one.laddr.ip)
    return found


def test_what_cannot_be_replicated_is_refused_at_once(served_clip: Path) -> None:
    def said(*words: str) -> str:
        done = CliRunner().invoke(app, [words[0], str(served_clip / "head"), *words[1:]])
        assert done.exit_code == 2
        return " ".join(done.output.split())

    assert "cannot share a SQLite file" in said("console", "--replicas", "2", "--ray-address", "auto")
    assert "one replica needs no Ray" in said("serve", "--ray-address", "auto")
