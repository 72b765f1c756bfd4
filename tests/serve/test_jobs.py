"""Large batches as jobs: over HTTP, beside requests, by several processes, killed, cancelled and expired."""

import csv
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import as_json, drawn, encoded, in_process, in_thread, queries

from ra_hmd.bank.bank import Bank
from ra_hmd.core.errors import UserError
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.app import create_app
from ra_hmd.serve.auth import KeyRing, make_key
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.jobs import JobStore
from ra_hmd.serve.jobs_runner import JobRunner, open_jobs
from ra_hmd.serve.jobs_settings import JobSettings
from ra_hmd.serve.limits import RequestLimits


@contextmanager
def service(
    served: Path, folder: Path, bank: Path | None = None, keys: Path | None = None, **settings: Any
) -> Iterator[tuple[httpx.Client, JobRunner]]:
    """A client of an app with jobs, and the thread that judges them."""
    batching = BatchingService(Detector.from_run(served / "head", bank or served / "bank"))
    jobs = open_jobs(JobSettings(jobs=folder, **settings), batching)
    assert jobs is not None
    ring = None if keys is None else KeyRing.open(keys)
    limits = RequestLimits(max_images=4, max_bytes=200_000)
    with in_thread(create_app(batching, keys=ring, limits=limits, jobs=jobs)) as client:
        yield client, jobs


def as_lines(memes: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(meme) + "\n" for meme in memes).encode()


def repeated(memes: Path, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Memes, and many with the same pictures under ids of their own."""
    sent = [as_json(query) for query in queries(memes)]
    return sent, [{**sent[number % len(sent)], "id": f"meme-{number}"} for number in range(count)]


def send(client: httpx.Client, memes: list[dict[str, Any]], **headers: str) -> dict[str, Any]:
    """Send a job as JSON Lines."""
    answer = client.post("/v1/jobs", content=as_lines(memes), headers={"Content-Type": "application/jsonl", **headers})
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['id']}"
    return dict(answer.json())


def finished(client: httpx.Client, job: str, **headers: str) -> dict[str, Any]:
    """Wait until a job is done or has failed."""
    return _until(lambda: _finished(client.get(f"/v1/jobs/{job}", headers=headers).json()))


def _finished(state: dict[str, Any]) -> dict[str, Any] | None:
    return state if state["finished"] is not None else None


def _until(found: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
    return value


def result(client: httpx.Client, job: str, **headers: str) -> list[dict[str, Any]]:
    answer = client.get(f"/v1/jobs/{job}/result", headers=headers)
    assert answer.headers["Content-Type"] == "application/jsonl"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_job_gives_what_classify_gives_in_every_form(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    sent = [as_json(query) for query in queries(memes)[:10]]
    table = StringIO(newline="")
    writer = csv.DictWriter(table, ["id", "image", "text"])
    writer.writeheader()
    writer.writerows(sent)
    with service(served_clip, tmp_path / "jobs") as (client, _):
        answers = [client.post("/v1/classify", json={"memes": sent[start : start + 4]}) for start in range(0, 10, 4)]
        expected = [one for answer in answers for one in answer.json()["results"]]
        bodies: list[dict[str, Any]] = [
            {"json": {"memes": sent}},
            {"content": as_lines(sent), "headers": {"Content-Type": "application/x-ndjson; charset=utf-8"}},
            {"content": table.getvalue().encode(), "headers": {"Content-Type": "text/csv"}},
        ]
        for body in bodies:
            job = client.post("/v1/jobs", **body).json()
            assert (job["status"], job["memes"], job["owner"]) == ("waiting", 10, None)
            state = finished(client, job["id"])
            assert (state["status"], state["judged"], state["rejected"], state["bank_versions"]) == ("done", 10, 0, [1])
            got = result(client, job["id"])
            assert [one["id"] for one in got] == [one["id"] for one in sent]
            for one, other in zip(got, expected, strict=True):
                assert one.keys() == other.keys()
                assert one["version"] == other["version"]
                assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)
            folder = tmp_path / "jobs" / job["id"]
            _until(lambda folder=folder: sorted(path.name for path in folder.iterdir()) == ["job.json", "result.jsonl"])
        assert len(client.get("/v1/jobs").json()["jobs"]) == 3
        metrics = client.get("/metrics").text
        assert 'ra_hmd_jobs{status="done"} 3.0' in metrics
        assert "ra_hmd_job_memes_total 30.0" in metrics
        assert "ra_hmd_jobs_runner 1.0" in metrics


def test_a_bad_meme_is_its_own_result_and_a_bad_body_no_job(served_clip: Path, tmp_path: Path) -> None:
    good = {"id": "good", "image": encoded(drawn()), "text": "a cake"}
    broken = drawn()[:-40]
    memes = [
        good,
        {"id": "words", "image": encoded(b"no picture"), "text": "a"},
        {"id": "long", "image": encoded(drawn()), "text": "a" * 5000},
        {"id": "cut", "image": encoded(broken), "text": "a cake"},
        good,
    ]
    with service(served_clip, tmp_path / "jobs", job_max_memes=6, job_max_bytes=50_000) as (client, _):
        job = send(client, memes)["id"]
        state = finished(client, job)
        assert (state["judged"], state["rejected"]) == (2, 3)
        got = result(client, job)
        assert [one["id"] for one in got] == ["good", "words", "long", "cut", "good"]
        assert "error" not in got[0]
        assert got[0]["scores"] == got[4]["scores"]
        assert "cannot be opened" in got[1]["error"]
        assert "5000 characters" in got[2]["error"]
        assert "cannot be decoded" in got[3]["error"]
        assert str(tmp_path) not in got[3]["error"]

        lines = {"Content-Type": "application/jsonl"}
        for body, headers, status, said in (
            (as_lines([good]) + b"{\n", lines, 422, "body.jsonl, line 2"),
            (as_lines([good, {"id": "a", "img": "x"}]), lines, 422, "body.jsonl, line 2: image"),
            (b"", lines, 422, "has no memes"),
            (as_lines([good] * 7), lines, 413, "6 memes"),
            (b" " * 50_001, lines, 413, "50000 bytes"),
            (b"id,text\n1,2\n", {"Content-Type": "text/csv"}, 422, "image"),
            (b"x", {"Content-Type": "text/plain"}, 415, "text/csv"),
        ):
            answer = client.post("/v1/jobs", content=body, headers=headers)
            assert (answer.status_code, said in answer.text) == (status, True), answer.text
        assert [one["id"] for one in client.get("/v1/jobs").json()["jobs"]] == [job]
        assert not list((tmp_path / "jobs").glob(".upload-*"))


def test_a_reader_sees_its_own_jobs_and_a_moderator_all(served_clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    roles = (("ana", "moderator"), ("bo", "reader"), ("cy", "reader"))
    ana, bo, cy = ({"X-API-Key": make_key(path, name, role)} for name, role in roles)
    with service(served_clip, tmp_path / "jobs", keys=path) as (client, _):
        job = send(client, [{"image": encoded(drawn()), "text": "tea"}], **bo)
        assert job["owner"] == "bo"
        finished(client, job["id"], **bo)
        for headers, sees in ((ana, True), (bo, True), (cy, False)):
            assert [one["id"] for one in client.get("/v1/jobs", headers=headers).json()["jobs"]] == [job["id"]] * sees
            for place in ("", "/result"):
                answer = client.get(f"/v1/jobs/{job['id']}{place}", headers=headers)
                assert answer.status_code == (200 if sees else 404)
        assert client.get("/v1/jobs").status_code == 401
        assert client.delete(f"/v1/jobs/{job['id']}", headers=cy).status_code == 404
        assert client.delete(f"/v1/jobs/{job['id']}", headers=ana).status_code == 204
        assert client.get(f"/v1/jobs/{job['id']}", headers=bo).status_code == 404
        assert client.get("/v1/jobs/..%2f..%2fkeys.json", headers=ana).status_code == 404


def test_a_job_waits_for_requests_and_not_for_ever(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    batching = BatchingService(Detector.from_run(served_clip / "head", served_clip / "bank"))
    with batching.exclusive():  # a request is accepted, and the model is not free for it
        (answer,) = batching.submit(queries(memes)[:1])
        began, entered = time.monotonic(), []

        def work(patience: float) -> None:
            with batching.when_idle(patience):
                entered.append((time.monotonic() - began, answer.done()))

        threads = [threading.Thread(target=work, args=(patience,)) for patience in (60, 0)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert not entered
    for thread in threads:
        thread.join(30)
    batching.close()
    assert [done for _, done in sorted(entered)][-1], "patient work came after the answer, without its 60 seconds"
    assert max(seconds for seconds, _ in entered) < 30


def test_cancelled_in_the_middle_and_the_next_one_goes_on(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    sent, many = repeated(memes, 400)
    with service(served_clip, tmp_path / "jobs", job_max_waiting=2) as (client, _):
        first, second = send(client, many)["id"], send(client, sent)["id"]
        full = client.post("/v1/jobs", json={"memes": sent[:1]})
        assert (full.status_code, "Retry-After" in full.headers) == (429, True)
        state = _until(lambda: _running(client.get(f"/v1/jobs/{first}").json()))
        assert state["seconds_left"] > 0
        assert client.get(f"/v1/jobs/{first}/result").status_code == 409
        assert client.delete(f"/v1/jobs/{first}").status_code == 204
        assert client.get(f"/v1/jobs/{first}").status_code == 404
        assert finished(client, second)["judged"] == len(sent)
    names = [path.name for path in (tmp_path / "jobs").iterdir()]
    assert sorted(names) == [".runner", second]


def _running(state: dict[str, Any]) -> dict[str, Any] | None:
    return state if state["judged"] and state["status"] == "running" else None


def test_two_services_share_a_folder_and_a_bank_may_change(
    served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path
) -> None:
    _, many = repeated(memes, 300)
    folder = tmp_path / "jobs"
    with service(served_clip, folder, clip_bank) as (other, second):
        _until(lambda: second.active)
        with service(served_clip, folder, clip_bank) as (client, first):
            job = send(client, many)["id"]
            _until(lambda: _running(client.get(f"/v1/jobs/{job}").json()))
            assert not first.active, "one of them judges"
            Bank.open(clip_bank).remove([Bank.open(clip_bank).ids[0]], author="ana", reason="seen")
            second.close()  # as at its end; the lock goes to the other one
            state = finished(client, job)
            assert first.active
            assert (state["judged"], state["bank_versions"]) == (300, [1, 2])
            got = result(other, job)
            assert [one["id"] for one in got] == [one["id"] for one in many]
            assert {one["version"]["bank"]["version"] for one in got} == {1, 2}


def test_what_expires_is_removed(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs", 1)
    names = []
    for _ in range(3):
        with store.new() as upload:
            (upload.work / "pictures").mkdir(parents=True)
            upload.result.touch()
            names.append(store.publish(upload, 1, None).id)
    jobs = [store.find(name) for name in names]
    assert all(jobs)
    early = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    for job, changes in zip(
        jobs, ({"sent": early}, {"finished": early}, {"finished": datetime.now(UTC).isoformat()}), strict=True
    ):
        assert job is not None
        job.update(**changes)
    store.sweep()
    states = store.states()
    assert [state.id for state in states] == [names[0], names[2]]
    assert states[0].status == "failed"
    assert "1 hours" in states[0].error
    assert not list((tmp_path / "jobs").glob("*/work")), "pictures of ended jobs are removed"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="give a folder"):
        JobStore(tmp_path / "file", 1)


@pytest.mark.slow
def test_a_killed_service_goes_on_with_its_job(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    _, many = repeated(memes, 400)
    words = ("serve", served_clip / "head", "--bank", served_clip / "bank", "--jobs", tmp_path / "jobs")
    with in_process(*words, log=tmp_path / "log") as (process, client):
        job = send(client, many)["id"]
        _until(lambda: _running(client.get(f"/v1/jobs/{job}").json()))
        os.kill(process.pid, signal.SIGKILL)
    parts = tmp_path / "jobs" / job / "work" / "parts"
    kept = {path.name: path.stat().st_ino for path in parts.glob("chunk-*.jsonl")}
    assert 0 < len(kept) < 6
    with in_process(*words, log=tmp_path / "log") as (process, client):
        _until((parts / f"chunk-{len(kept) + 1:07d}.jsonl").exists)
        now = {path.name: path.stat().st_ino for path in parts.glob("chunk-*.jsonl")}
        assert now.items() >= kept.items(), "finished chunks are kept"
        state = finished(client, job)
        assert (state["status"], state["judged"]) == ("done", 400)
        got = result(client, job)
        assert [one["id"] for one in got] == [one["id"] for one in many]
