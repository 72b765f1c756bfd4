"""Kill -9 amid corrections over the API: each is there once or not at all, and what was answered is there."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
from servers import correct, drawn, encoded, in_process
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.cli.app import app

pytestmark = pytest.mark.slow


def test_a_killed_service_loses_nothing_and_does_nothing_twice(
    served_clip: Path, clip_bank: Path, tmp_path: Path
) -> None:
    keys, draw, picture = tmp_path / "keys.json", random.Random(6), encoded(drawn())
    key = CliRunner().invoke(app, ["serve-key", "ana", "--role", "moderator", "--keys", str(keys)]).stdout.strip()
    words = ("serve", served_clip / "head", "--bank", clip_bank, "--keys", keys)
    answered: dict[int, int] = {}  # correction → version
    number = 0
    for _ in range(3):
        with in_process(*words, log=tmp_path / "log") as (process, client):
            client.headers["X-API-Key"] = key
            versions = [entry["reason"] for entry in client.get("/v1/bank/log?limit=1000").json()["entries"]]
            assert versions[-1] == "start", "the bank opens"
            end = time.monotonic() + draw.uniform(0.3, 0.8)
            killed = False
            while not killed:
                if time.monotonic() > end:  # while the next one is on its way, at a moment of its own
                    delay = draw.uniform(0, 0.02)
                    killed = True
                    _kill_in(process.pid, delay)
                try:
                    answer = correct(client, number, picture)
                except httpx.TransportError:
                    break  # killed before its answer: asked for again after the restart
                assert answer.status_code in (200, 409), answer.text
                if answer.status_code == 409:
                    made = Bank.open(clip_bank)
                    assert answer.json()["bank_version"] == made.version
                    assert made.log[-1].reason == str(number), "it was made before the kill"
                    answered[number] = made.version
                else:
                    answered[number] = answer.json()["version"]
                number += 1
            assert process.wait(60) == -signal.SIGKILL
    assert number > 6, "there were corrections"
    bank = Bank.open(clip_bank)
    log = {entry.version: entry for entry in bank.log}
    for made, version in answered.items():
        assert log[version].reason == str(made), "what was answered is there"
    reasons = [entry.reason for entry in bank.log[1:]]
    assert len(reasons) == len(set(reasons)), "nothing twice"
    assert [int(reason) for reason in reasons] == sorted(map(int, reasons))
    assert len(reasons) - len(answered) in (0, 1), "at most the last one has no answer yet"
    left = {"meme-" + str(int(reasons[-1]) // 3)} if int(reasons[-1]) % 3 != 2 else set()
    assert {name for name in bank.ids if name.startswith("meme-")} == left


def _kill_in(pid: int, seconds: float) -> None:
    threading.Timer(seconds, os.kill, (pid, signal.SIGKILL)).start()
