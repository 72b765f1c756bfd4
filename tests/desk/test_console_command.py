"""`ra-hmd console` as a process: it prints its address, serves desk and API, keeps cases, and ends well."""

import re
import signal
import time
from pathlib import Path

import httpx
import pytest
from servers import in_process
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.cli.app import app

pytestmark = pytest.mark.slow


def on_screen(client: httpx.Client) -> tuple[str, int]:
    """The case that the review page shows, once there is one, and the label that its verdict is not."""
    end = time.monotonic() + 60
    while not (found := re.search(r'data-case="(\w+)".*data-label="(\d)"', client.get("/console/review").text)):
        assert time.monotonic() < end, "no case came"
        time.sleep(0.1)
    return found[1], 1 - int(found[2])


def test_decisions_outlive_a_kill_and_the_command_ends_well(
    served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path
) -> None:
    words = ("console", served_clip / "head", "--bank", clip_bank, "--queue", memes / "a" / "dev.jsonl", "--memes",
             memes / "a", "--author", "ana", "--root-path", "/memes")  # fmt: skip
    with in_process(*words, log=tmp_path / "log") as (server, client):
        assert str(client.base_url).rstrip("/").endswith("/memes/console")
        client.base_url = str(client.base_url).removesuffix("/").removesuffix("/memes/console")  # a proxy took it off
        assert client.get("/health").status_code == 200
        case, other = on_screen(client)
        form = {"label": str(other), "reason": "The verdict is wrong"}
        done = client.post(f"/console/cases/{case}/decide", data=form)
        assert (done.status_code, done.headers["location"]) == (303, "/memes/console/review")
        server.kill()
        server.wait(30)
    assert clip_bank.with_name("bank.cases.sqlite").is_file(), "it lies beside the bank"
    with in_process(*words, log=tmp_path / "log2") as (server, client):
        client.base_url = str(client.base_url).removesuffix("/").removesuffix("/memes/console")
        assert on_screen(client)[0] != case
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0, (tmp_path / "log2").read_text()
    logs = (tmp_path / "log").read_text() + (tmp_path / "log2").read_text()
    assert "Traceback" not in logs
    bank = Bank.open(clip_bank)
    assert (bank.version, bank.row(bank.ids.index(case))["label"]) == (2, other)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "there are no keys"),
        (["--queue", "nowhere.jsonl"], "--queue nowhere.jsonl does not exist"),
        (["--class-name", "rude"], "2 different names are needed"),
        (["--memes", "nowhere"], "nowhere does not exist"),
        (["--reviews", "nowhere.jsonl"], "new ones are kept in"),
        (["--webhook-host", "desk.example.org"], "give --webhook-secret FILE"),
        (["--suggestions", "nowhere.jsonl"], "--suggestions nowhere.jsonl does not exist"),
    ],
)
def test_what_does_not_fit_is_said_before_the_start(
    served_clip: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    cases = ["--cases", str(tmp_path / "cases.sqlite")]
    done = CliRunner().invoke(app, ["console", str(served_clip / "head"), "--port", "0", *cases, *words])
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.output.split())
