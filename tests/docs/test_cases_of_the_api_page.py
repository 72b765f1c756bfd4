"""Cases of docs/api.md and docs/howto: their requests, and the lines with which a receiver verifies webhooks."""

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from documented import blocks, expanded
from servers import answered_by, drawn, in_thread

from ra_hmd.cases.policy import CasePolicy
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.app import create_app
from ra_hmd.serve.auth import KeyRing, make_key
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.case_opening import open_cases
from ra_hmd.serve.case_settings import CaseSettings

PAGE = ("docs/api.md",)
WEBHOOKS = ("docs/howto/webhooks.md",)
HOOK = "https://hooks.example.org"


class Receiver:
    """A program that is told of decisions: headers and body of what came."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.came = threading.Semaphore(0)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), body))
                receiver.came.release()
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.handler = Handler


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the page's reader."""
    (tmp_path / "cat.png").write_bytes(drawn())
    (tmp_path / "cake.jpg").write_bytes(drawn(colour="blue", style="JPEG"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def served(served_clip: Path, clip_bank: Path, folder: Path) -> Iterator[tuple[str, str, Receiver, str]]:
    """Address of an API with cases, the key of a moderator, a receiver of webhooks and its address."""
    key = make_key("keys.json", "ana", "moderator")
    settings = CaseSettings(cases="cases.sqlite", webhook_hosts=["127.0.0.1"], webhook_secret=Path("webhook.secret"))
    service = BatchingService(Detector.from_run(served_clip / "head", clip_bank))
    bank = BankService.open(service)
    cases = open_cases(settings, CasePolicy(), service, bank)
    receiver = Receiver()
    app = create_app(service, bank, keys=KeyRing.open("keys.json"), cases=cases)
    with answered_by(receiver.handler) as hook, in_thread(app) as client:
        yield str(client.base_url).rstrip("/"), key, receiver, hook


def audited(folder: Path, address: str, key: str) -> list[dict[str, Any]]:
    """The audit log as the page asks for it: the first request's lines; the second one writes a file."""
    (block,) = (one for one in blocks("bash", PAGE) if "/v1/audit" in one.text)
    first, second = expanded(block.text.replace("http://127.0.0.1:8000", address), folder, {"KEY": key})
    done = [subprocess.run([*words, "--silent", "--fail-with-body"], capture_output=True, check=True)
            for words in (first, second)]  # fmt: skip
    return [json.loads(line) for line in done[0].stdout.decode().splitlines()]


def asked(
    containing: str, folder: Path, address: str, hook: str, pages: tuple[str, ...] = PAGE, **variables: str
) -> list[Any]:
    """The answers to the requests of the one block that contains some words."""
    (block,) = (one for one in blocks("bash", pages) if containing in one.text)
    text = block.text.replace("http://127.0.0.1:8000", address).replace(HOOK, hook)
    answers = []
    for words in expanded(text, folder, variables):
        more = [] if "X-API-Key" in str(words) else ["-H", f"X-API-Key: {variables['KEY']}"]
        done = subprocess.run([*words, *more, "--silent", "--fail-with-body"], capture_output=True, check=False)
        assert done.returncode == 0, f"{words}\n{done.stdout.decode()}"
        answers.append(json.loads(done.stdout))
    return answers


def test_cases_in_and_decisions_out(served: tuple[str, str, Receiver, str], folder: Path) -> None:
    address, key, receiver, hook = served
    sent = asked("/v1/cases -F", folder, address, hook, KEY=key)
    (cat,), (cake,) = (answer["results"] for answer in sent[:2])
    assert (cat["new"], cat["queue"], cake["queue"]) == (True, "main", "appeals")
    assert [case["case"] for case in sent[2]["cases"]] == [cat["case"]]
    (again,) = asked("/v1/cases -F", folder, address, hook, KEY=key)[0]["results"]
    assert (again["new"], again["case"]) == (False, cat["case"])
    case, decided, appealed = asked("/v1/cases/$CASE", folder, address, hook, KEY=key, CASE=cat["case"])
    assert (case["context"], case["state"]) == ("Posted in a group about cats.", "waiting")
    assert (decided["state"], decided["label"], appealed["state"]) == ("decided", 0, "waiting")

    (shown,) = blocks("python", WEBHOOKS)
    receive: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(shown.text, receive)
    for _ in range(2):
        assert receiver.came.acquire(timeout=30)
    bodies = [receive["decision"](*one) for one in receiver.got]
    assert [(one["case"], one["state"], one["label"]) for one in bodies] == [
        (cat["case"], "decided", 0), (cat["case"], "waiting", None),
    ]  # fmt: skip
    headers, body = receiver.got[0]
    with pytest.raises(ValueError, match="not sent by the service"):
        receive["decision"](headers, body.replace(b'"label": 0', b'"label": 1'))
    with pytest.raises(ValueError, match="not sent by the service"):  # the time is signed, too
        receive["decision"](headers | {"webhook-timestamp": "1"}, body)

    lines = audited(folder, address, key)
    kinds = [line["kind"] for line in lines if line["case"] == cat["case"] and line["kind"] != "row changed"]
    assert kinds == ["case added", "decided", "appealed"]
    assert (folder / "audit.csv").read_text().startswith("time,")


def test_requests_of_the_how_to_pages(served: tuple[str, str, Receiver, str], folder: Path) -> None:
    address, key, _, hook = served
    (sent,) = asked("/v1/cases", folder, address, hook, WEBHOOKS, KEY=key)
    (again,) = asked("/v1/cases", folder, address, hook, WEBHOOKS, KEY=key)
    assert [one["results"][0]["new"] for one in (sent, again)] == [True, False]
    (two,) = asked("opinions_needed", folder, address, hook, ("docs/howto/two-people-decide.md",), KEY=key)
    name = two["results"][0]["case"]
    words = ["curl", f"{address}/v1/cases/{name}", "-H", f"X-API-Key: {key}", "--silent", "--fail-with-body"]
    case = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    assert case["opinions_needed"] == 2
