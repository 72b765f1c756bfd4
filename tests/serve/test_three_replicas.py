"""Three `ra-hmd serve` processes on one bank, under load, while it is corrected and one of them is killed."""

import itertools
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import as_json, correct, drawn, encoded, in_process, queries
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.cli.app import app
from ra_hmd.data.meme import Meme
from ra_hmd.inference.detector import Detector

pytestmark = pytest.mark.slow
CORRECTIONS, KILLED_AT = 10, 5


class Reader(threading.Thread):
    """Asks one replica for the verdicts on the same memes again and again, and keeps what it answers."""

    def __init__(self, client: httpx.Client, memes: list[Meme]) -> None:
        super().__init__(daemon=True)
        self.client, self.body = client, {"memes": [as_json(one) for one in memes]}
        self.answers: list[tuple[float, list[dict[str, Any]]]] = []
        self.lost = 0
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.05):
            sent = time.monotonic()
            try:
                said = self.client.post("/v1/classify", json=self.body)
            except httpx.TransportError:
                self.lost += 1
                return
            assert said.status_code == 200, said.text
            self.answers.append((sent, said.json()["results"]))

    @property
    def versions(self) -> list[int]:
        """The one version of each answer."""
        found = []
        for _, results in self.answers:
            (version,) = {one["version"]["bank"]["version"] for one in results}
            found.append(version)
        return found


def follow(clients: list[httpx.Client], version: int, since: float) -> float:
    """Seconds until all replicas say, without being asked for anything else, that a version votes."""
    while any(client.get("/ready").json()["bank"]["version"] < version for client in clients):
        assert time.monotonic() - since < 60
        time.sleep(0.02)
    return time.monotonic() - since


def test_three_replicas_under_load(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> None:
    keys, picture = tmp_path / "keys.json", encoded(drawn())
    key = CliRunner().invoke(app, ["serve-key", "ana", "--role", "moderator", "--keys", str(keys)]).stdout.strip()
    words = ("serve", served_clip / "head", "--bank", clip_bank, "--keys", keys)
    asked = queries(memes)[:3]
    answered: dict[int, int] = {}  # correction → version
    made: list[tuple[float, int]] = []  # when a correction was answered, and its version
    seconds: list[float] = []
    with ExitStack() as stack, ThreadPoolExecutor(3) as threads:
        contexts = [in_process(*words, log=tmp_path / f"log-{number}") for number in range(3)]
        replicas = list(threads.map(stack.enter_context, contexts))
        clients = [client for _, client in replicas]
        for client in clients:
            client.headers["X-API-Key"] = key
        readers = [Reader(client, asked) for client in clients]
        for reader in readers:
            reader.start()
        end = time.monotonic() + 60
        while not all(reader.answers for reader in readers):  # each by the version before the corrections
            assert time.monotonic() < end
            time.sleep(0.01)
        alive = list(clients)
        for number in range(CORRECTIONS):
            process, client = replicas[number % 3]
            if client not in alive:
                client = alive[number % 2]
            if number == KILLED_AT:  # while the correction is on its way, which the next replica is then asked for
                threading.Timer(0.005, os.kill, (process.pid, signal.SIGKILL)).start()
            try:
                answer = correct(client, number, picture)
            except httpx.TransportError:
                assert number == KILLED_AT
                answer = correct(alive[0], number, picture)
            if number == KILLED_AT:
                assert process.wait(60) == -signal.SIGKILL
                alive.remove(client)
            assert answer.status_code in (200, 409), answer.text
            body = answer.json()
            answered[number] = body["version"] if answer.status_code == 200 else body["bank_version"]
            made.append((time.monotonic(), answered[number]))
            seconds.append(follow(alive, answered[number], made[-1][0]))
        time.sleep(0.5)
        for reader in readers:
            reader.stop.set()
            reader.join(60)
        log = alive[0].get("/v1/bank/log").json()
    assert len(alive) == 2
    check_answers(readers, made)
    assert max(seconds) < 2, f"seconds until the last replica followed: {seconds}"
    entries = {entry["version"]: entry["reason"] for entry in log["entries"]}
    assert [entries[answered[number]] for number in range(CORRECTIONS)] == [str(n) for n in range(CORRECTIONS)]
    shown = CliRunner().invoke(app, ["bank", "log", str(clip_bank)]).output
    bank = Bank.open(clip_bank)
    assert bank.version == 1 + CORRECTIONS
    assert shown.count(" ana") == CORRECTIONS, shown
    check_verdicts(readers, Detector.from_run(served_clip / "head", clip_bank), asked)


def check_answers(readers: list[Reader], made: list[tuple[float, int]]) -> None:
    """No answer mixes versions, goes back behind an earlier one, or misses a correction that was answered before."""
    assert sum(reader.lost for reader in readers) == 1, "only what the killed one was asked"
    seen: dict[tuple[str, int], dict[str, Any]] = {}
    for reader in readers:
        versions = reader.versions
        assert len(versions) > 3
        assert all(one <= other for one, other in itertools.pairwise(versions))
        for (sent, results), version in zip(reader.answers, versions, strict=True):
            assert version >= max((number for when, number in made if when < sent), default=1)
            for one in results:
                other = seen.setdefault((one["id"], version), one)
                assert one["scores"]["rkc"] == pytest.approx(other["scores"]["rkc"], abs=1e-5)
                assert [row["id"] for row in one["neighbours"]] == [row["id"] for row in other["neighbours"]]
    assert {version for _, version in seen} >= {1, 1 + CORRECTIONS}


def check_verdicts(readers: list[Reader], detector: Detector, asked: list[Meme]) -> None:
    """What was answered last is what a process that was not there says."""
    for one, verdict in zip(readers[0].answers[-1][1], detector(asked), strict=True):
        assert one["scores"]["rkc"] == pytest.approx(verdict.scores["rkc"], abs=1e-4)
        assert [row["id"] for row in one["neighbours"]] == [row["id"] for row in verdict.neighbours]
