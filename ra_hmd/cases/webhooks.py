"""Delivery of webhooks: signed, retried with growing pauses, and kept in the database until they are delivered.

The signature follows the Standard Webhooks scheme: header `webhook-signature: v1,<base64>`, an HMAC-SHA256 of
`<webhook-id>.<webhook-timestamp>.<body>`, so that receivers can use any of its libraries.
"""

import base64
import hashlib
import hmac
import http.client
import logging
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from sqlalchemy import select

from ra_hmd.cases.database import Database
from ra_hmd.cases.tables import Delivery
from ra_hmd.core.errors import UserError

_log = logging.getLogger("ra_hmd.serve")
_TIMEOUT = 10.0
_PAUSES = (5, 30, 120, 600, 3600, 6 * 3600, 24 * 3600)
_IDLE_SECONDS = 1.0
_LEASE_SECONDS = 60
_BATCH = 20


def sign(secret: bytes, name: str, timestamp: int, body: str) -> str:
    """The signature of a webhook."""
    signed = f"{name}.{timestamp}.{body}".encode()
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def check_url(url: str, allowed: tuple[str, ...]) -> None:
    """Raise `UserError` unless a URL is http(s) and its host is one of the allowed ones.

    Programs name these URLs, and the server would call whatever they name.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https") or parts.username is not None:
        raise UserError(f"{url!r} is no http or https URL.")
    if host.lower() not in allowed:
        raise UserError(f"Webhooks to {host!r} are not allowed here; the operator names hosts with --webhook-host.")


class WebhookSender:
    """Sends what waits in the database, in a thread. Several processes may run one each.

    Args:
        database: The database.
        secret: Key of the signatures.
    """

    def __init__(self, database: Database, secret: bytes) -> None:
        self.database, self._secret = database, secret
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; what was not sent stays in the database."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_TIMEOUT + 1)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                busy = self.send_due() > 0
            except Exception:  # the database may be away for a while; nothing is lost meanwhile
                _log.exception("webhooks cannot be read from the database")
                busy = False
            if not busy:
                self._stop.wait(_IDLE_SECONDS)

    def send_due(self) -> int:
        """Send the webhooks that are due, and return how many were tried."""
        due = self._lease()
        for delivery in due:
            if self._stop.is_set():
                break
            self._record(delivery.id, self._post(delivery))
        return len(due)

    def _lease(self) -> list[Delivery]:
        """Take the due webhooks, so that no other process sends them meanwhile."""
        now = datetime.now(UTC)
        with self.database.write() as session:
            found = select(Delivery).where(Delivery.state == "waiting", Delivery.due <= now).order_by(Delivery.due)
            due = list(session.scalars(found.limit(_BATCH).with_for_update(skip_locked=True)))
            for delivery in due:
                delivery.due = now + timedelta(seconds=_LEASE_SECONDS)
            return due

    def _post(self, delivery: Delivery) -> str:
        """The status of the answer, or the error. Redirects are not followed."""
        parts = urlsplit(delivery.url)
        timestamp, name = int(time.time()), f"delivery-{delivery.id}"
        headers = {
            "Content-Type": "application/json",
            "webhook-id": name,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._secret, name, timestamp, delivery.body),
        }
        host = str(parts.hostname)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port, timeout=_TIMEOUT, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=_TIMEOUT)
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path, delivery.body.encode(), headers)
            return str(connection.getresponse().status)
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            connection.close()

    def _record(self, number: int, answer: str) -> None:
        with self.database.write() as session:
            delivery = session.get_one(Delivery, number)
            delivery.answer = answer
            if answer.isdecimal() and 200 <= int(answer) < 300:
                delivery.state = "sent"
                return
            delivery.attempts += 1
            if delivery.attempts > len(_PAUSES):
                delivery.state = "failed"
                _log.error("webhook %s to %s was given up: %s", number, delivery.url, answer)
            else:
                delivery.due = datetime.now(UTC) + timedelta(seconds=_PAUSES[delivery.attempts - 1])
