"""`ra-hmd console` as a process: it prints its address, serves page and API, and ends well."""

import signal
from pathlib import Path

import pytest
from gradio_calls import GradioPage
from servers import drawn, in_process
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.cli.app import app
from ra_hmd.serve.auth import make_key

pytestmark = pytest.mark.slow


def test_the_command_serves_page_and_api(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> None:
    words = ("console", served_clip / "head", "--bank", clip_bank, "--queue", memes / "a" / "dev.jsonl", "--memes",
             memes / "a", "--author", "ana", "--root-path", "/memes")  # fmt: skip
    with in_process(*words, log=tmp_path / "log", TMPDIR=str(tmp_path)) as (server, client):
        assert str(client.base_url).rstrip("/").endswith("/memes/console")
        client.base_url = str(client.base_url).removesuffix("/").removesuffix("/memes/console")  # a proxy took it off
        assert client.get("/health").status_code == 200
        page = GradioPage(client)
        assert page.config["root"] == f"{client.base_url}".rstrip("/") + "/memes/console"
        page.press("check-upload", "upload", check_upload=page.upload(drawn()))
        assert "Verdict" in page.press("check-judge", check_caption="a marker-cake")["check-card"]
        page.press("check-correct")
        assert list(tmp_path.glob("ra-hmd-console-*"))
        with client.stream("GET", f"/console/gradio_api/heartbeat/{page.session}") as open_page:
            assert open_page.status_code == 200
            server.send_signal(signal.SIGTERM)
            assert server.wait(15) == 0, (tmp_path / "log").read_text()
    assert not list(tmp_path.glob("ra-hmd-console-*")), "nothing of it stays"
    assert "marker-cake" not in (tmp_path / "log").read_text()
    assert Bank.open(clip_bank).version == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "there are no keys"),
        (["--queue", "nowhere.jsonl"], "--queue nowhere.jsonl does not exist"),
        (["--class-name", "rude"], "2 different names are needed"),
        (["--memes", "nowhere"], "nowhere does not exist"),
    ],
)
def test_what_does_not_fit_is_said_before_the_start(served_clip: Path, words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["console", str(served_clip / "head"), "--port", "0", *words])
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.output.split())


def test_a_key_of_another_name_opens_nothing(tmp_path: Path) -> None:
    from ra_hmd.console.users import Authenticator
    from ra_hmd.serve.auth import KeyRing

    secret = make_key(tmp_path / "keys.json", "ana", "moderator")
    make_key(tmp_path / "keys.json", "bo", "reader")
    authenticator = Authenticator("login", KeyRing.open(tmp_path / "keys.json"))
    assert authenticator.check("ana", f" {secret} ")
    assert not authenticator.check("bo", secret)
    assert not authenticator.check("ana", "")
    assert not Authenticator("login").check("ana", secret)
