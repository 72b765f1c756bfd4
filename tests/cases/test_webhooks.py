"""Webhooks: signed, retried, and sent once by several processes."""

import base64
import hashlib
import hmac
import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlalchemy import select, update

from ra_hmd.cases.alert_rules import AlertRules
from ra_hmd.cases.alerts import Alerts
from ra_hmd.cases.database import Database
from ra_hmd.cases.store import CaseStore, Decision, NewCase
from ra_hmd.cases.tables import Delivery
from ra_hmd.cases.webhooks import WebhookSender, check_url
from ra_hmd.core.errors import UserError

SECRET = b"a key that both know"


@pytest.fixture
def receiver():
    """A server that answers with the statuses in `answers`, then with 204, and keeps what it got."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.got.append((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            status = self.server.answers.pop(0) if self.server.answers else 204
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.answers = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def store(tmp_path) -> CaseStore:
    return CaseStore(Database(tmp_path / "cases.sqlite"))


def decide(store: CaseStore, url: str) -> str:
    new = NewCase(meme_id="m", picture="p", picture_digest="d", callback=url)
    case_id = store.add([new])[0][0]
    store.finish(store.begin(case_id, "ann", Decision("label", 1)).id)
    return case_id


def state(store: CaseStore) -> tuple[str, int, str]:
    with store.database.read() as session:
        delivery = session.scalars(select(Delivery)).one()
        return delivery.state, delivery.attempts, delivery.answer


def make_due(store: CaseStore) -> None:
    with store.database.write() as session:
        session.execute(update(Delivery).values(due=datetime.now(UTC) - timedelta(seconds=1)))


def test_a_decision_is_posted_with_its_signature(store, receiver):
    case_id = decide(store, f"http://127.0.0.1:{receiver.server_port}/hook?a=b")
    sender = WebhookSender(store.database, SECRET)
    assert sender.send_due() == 1
    ((headers, body),) = receiver.got
    assert json.loads(body) == {"case": case_id, "id": "m", "state": "decided", "label": 1}
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert state(store) == ("sent", 0, "204")
    assert sender.send_due() == 0


def test_an_alert_is_a_signed_webhook(store, receiver):
    store.add([NewCase(meme_id="m", picture="p", picture_digest="d")])
    url = f"http://127.0.0.1:{receiver.server_port}/alerts"
    assert Alerts(store.database, AlertRules(alert_waiting=0), url).check() == ["waiting"]
    assert WebhookSender(store.database, SECRET).send_due() == 1
    ((headers, body),) = receiver.got
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert json.loads(body)["text"] == "Cases that wait: 1, more than 0."


@pytest.mark.parametrize("answer", [500, 302])
def test_a_refused_webhook_is_sent_again_later(store, receiver, answer):
    receiver.answers = [answer]
    decide(store, f"http://127.0.0.1:{receiver.server_port}/")
    sender = WebhookSender(store.database, SECRET)
    sender.send_due()
    assert state(store) == ("waiting", 1, str(answer))
    assert sender.send_due() == 0
    make_due(store)
    sender.send_due()
    assert state(store)[0] == "sent"
    assert len(receiver.got) == 2


def test_a_webhook_that_nobody_takes_is_given_up(store, receiver):
    receiver.answers = [500] * 20
    decide(store, f"http://127.0.0.1:{receiver.server_port}/")
    sender = WebhookSender(store.database, SECRET)
    for _ in range(8):
        make_due(store)
        sender.send_due()
    assert state(store)[:2] == ("failed", 8)


def test_a_thread_sends_and_an_unreachable_host_is_no_end(store, receiver):
    decide(store, "http://127.0.0.1:1/")
    decide(store, f"http://127.0.0.1:{receiver.server_port}/")
    arrived = threading.Event()
    receiver.got = _Notifying(arrived)
    sender = WebhookSender(store.database, SECRET)
    sender.start()
    assert arrived.wait(30)
    sender.close()


class _Notifying(list):
    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self.event = event

    def append(self, value) -> None:
        super().append(value)
        self.event.set()


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "http://", "http://user@good.test/", "http://other.test", "http://[", "x"]
)
def test_only_allowed_hosts_are_called(url):
    with pytest.raises(UserError):
        check_url(url, ("good.test",))


def test_an_allowed_host_passes():
    check_url("https://GOOD.test:8443/hook", ("good.test",))
