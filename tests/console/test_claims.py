"""Claims of the review queue: one session holds a meme, whichever process shows it, for a while and past a reload."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gradio_calls import ConsoleServer, GradioPage

from ra_hmd.console.claims import Claims
from ra_hmd.console.users import SESSION_COOKIE
from ra_hmd.core.errors import UserError
from ra_hmd.serve.database import Database

CLAIMING = """
import sys
from ra_hmd.console.claims import Claims
from ra_hmd.serve.database import Database
claims = Claims(Database(sys.argv[1]), "queue.jsonl")
print("ready", flush=True)
sys.stdin.readline()
print(*[name for name in map(str, range(60)) if claims.claim(name, sys.argv[2])])
"""


def test_of_several_processes_one_gets_a_meme(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", CLAIMING, str(tmp_path / "claims.sqlite"), holder],
                         env=os.environ | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         text=True)
        for holder in ("ana", "bo", "cy")
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    got = [process.communicate(timeout=120)[0].split() for process in processes]
    assert sorted([name for part in got for name in part], key=int) == list(map(str, range(60)))
    claims = Claims(Database(tmp_path / "claims.sqlite"), "queue.jsonl")
    assert sorted(claims.held_by("ana")) == sorted(got[0])
    assert claims.held_by_others("ana") == {*got[1], *got[2]}


def test_a_claim_expires_is_renewed_and_is_given_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("ra_hmd.console.claims.time.time", lambda: now)
    database, name = Database(tmp_path / "claims.sqlite"), "m" * 3000
    claims, other_queue = Claims(database, "a.jsonl", seconds=10), Claims(database, "b.jsonl", seconds=10)
    assert claims.claim(name, "ana")
    assert not claims.claim(name, "bo")
    assert other_queue.claim(name, "bo"), "another queue may have memes of the same names"
    now = 1009.0
    assert claims.claim(name, "ana")
    now = 1018.0
    assert claims.held_by("ana") == [name]
    assert claims.held_by_others("bo") == {name}
    now = 1020.0
    assert claims.held_by("ana") == []
    assert claims.held_by_others("bo") == set()
    assert not claims.release(name, "ana")
    assert claims.claim(name, "bo")
    assert not claims.claim(name, "ana")
    assert [claims.release(name, "bo"), claims.release(name, "bo")] == [True, False]
    assert claims.claim(name, "ana")


def test_a_database_that_cannot_be_used_is_named_without_its_password(tmp_path: Path) -> None:
    for url in ("nosuch://ana:secret@localhost/x", f"sqlite:///{tmp_path}/none/x.sqlite", "a://b://c"):
        with pytest.raises(UserError) as told:
            Database(url)
        assert "secret" not in str(told.value)
    (tmp_path / "poem.sqlite").write_text("a poem\n" * 100)
    with pytest.raises(UserError, match=r"poem\.sqlite cannot be used"):
        Database(tmp_path / "poem.sqlite")


def test_two_consoles_show_one_meme_to_one_person_also_after_a_reload(console: ConsoleServer, tmp_path: Path) -> None:
    def shown(page: GradioPage) -> str:
        while not (card := page.press("review-next"))["review-card"]:
            pass
        (picture,) = re.findall("data:image/jpeg;base64,[^\"']+", card["review-picture"])
        return picture

    with console() as first, console() as second:
        given = first.get("/console/").headers["set-cookie"]
        assert given.startswith(f"{SESSION_COOKIE}=")
        assert all(word in given for word in ("HttpOnly", "SameSite=Strict", "Path=/console"))
        assert "set-cookie" not in first.get("/console/").headers
        mine, others = shown(GradioPage(first)), shown(GradioPage(second))
        assert mine != others, "two people at two consoles"
        assert shown(GradioPage(first)) == mine, "the page was loaded again"
        second.cookies = first.cookies
        assert shown(page := GradioPage(second)) == mine, "by a proxy that sends the browser to the other console"
        assert "Agreed" in page.press("review-agree")["review-said"]
        assert shown(GradioPage(first)) != mine
    assert len((tmp_path / "reviews.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "reviews.sqlite").exists()
