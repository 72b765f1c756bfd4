"""Two desks in processes of their own share the cases of one PostgreSQL database; one of them is killed."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from meme_files import jsonl
from postgres_server import new_database, postgres_server
from servers import in_process, queries

from ra_hmd.bank.bank import Bank
from ra_hmd.cases.database import Database
from ra_hmd.cases.history import events
from ra_hmd.serve.auth import make_key

pytestmark = pytest.mark.slow
MEMES = 10


@pytest.fixture
def url() -> Iterator[str]:
    """An empty database of PostgreSQL."""
    with postgres_server() as server:
        yield new_database(server)


def shown(client: httpx.Client, seconds: float = 0.0) -> re.Match[str] | None:
    """The case on the screen and its verdict; waits so long for one."""
    end = time.monotonic() + seconds
    while True:
        page = client.get("/console/review").raise_for_status().text
        if (found := re.search(r'data-case="(\w+)".*data-label="(\d)"', page)) or time.monotonic() >= end:
            return found
        time.sleep(0.1)


def decide(client: httpx.Client, case: str, label: int) -> None:
    form = {"label": str(label), "reason": "The verdict is wrong"}
    assert client.post(f"/console/cases/{case}/decide", data=form).status_code == 303


def test_two_desks_one_log_in_each_case_once(
    url: str, served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path
) -> None:
    rows = [{"id": one.id, "image": str(one.image), "text": one.text} for one in queries(memes)[:MEMES]]
    ring, queue = tmp_path / "keys.json", tmp_path / "reported.jsonl"
    keys = {name: make_key(ring, name, "moderator") for name in ("ana", "ben")}
    jsonl(queue, rows)
    words = ("console", served_clip / "head", "--bank", clip_bank, "--cases", url, "--case-pictures",
             tmp_path / "pictures", "--keys", ring, "--queue", queue)  # fmt: skip
    with (
        in_process(*words, log=tmp_path / "one") as (server, first),
        in_process(*words, log=tmp_path / "two") as (_, second),
    ):
        for client in (first, second):
            client.base_url = str(client.base_url).removesuffix("/").removesuffix("/console")
        for client, name in ((first, "ana"), (second, "ben")):
            assert client.post("/console/login", data={"name": name, "key": keys[name]}).status_code == 303
        mine = shown(first, 60)
        assert mine is not None
        theirs = shown(second, 30)
        assert theirs is not None
        assert mine[1] != theirs[1]
        decide(first, mine[1], 1 - int(mine[2]))
        server.kill()
        server.wait(30)
        away = dict(first.cookies)
        with httpx.Client(base_url=second.base_url, cookies=away, timeout=60) as ana:  # her log-in holds at the other
            while (found := shown(ana, 2)) is not None:
                decide(ana, found[1], int(found[2]))
        decide(second, theirs[1], int(theirs[2]))
        assert shown(second) is None
    log = list(events(Database(url)))
    added = [one.case_id for one in log if one.kind == "case added"]
    decided = Counter(one.case_id for one in log if one.kind == "decided")
    assert len(added) == MEMES
    assert decided == Counter(added)
    bank = Bank.open(clip_bank)
    assert (bank.version, bank.row(bank.ids.index(mine[1]))["label"]) == (2, 1 - int(mine[2]))
