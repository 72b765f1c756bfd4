"""HTTP client of several servers that give the same answers: bounded concurrency, failover, bounded answers.

Nothing is sent to a host that the user has not named: redirects are not followed, and proxies of the environment are
not used.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ra_hmd.core.errors import UserError
from ra_hmd.data.text import well_formed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

_TRIES = 4
"""Tries of a request for each server."""
_CONNECT = 5.0
"""Most seconds until a connection stands."""
_BACK_OFF = 0.5
_LONGEST = 15.0
"""Seconds until a server that failed is asked again: doubled at each failure from the first number to the second."""
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)
_KEY_REFUSED = (401, 403)


@dataclass
class Server:
    """A server and its state.

    Attributes:
        url: Its base URL.
        client: Connections to it.
        notes: What `greet` found out about it.
        busy: Requests under way.
        failures: Failures since the last answer.
        again: Time from which it may be asked.
        greeted: Whether `greet` passed since the last failure.
    """

    url: str
    client: "httpx.Client"
    notes: dict[str, Any] = field(default_factory=dict)
    busy: int = 0
    failures: int = 0
    again: float = 0.0
    greeted: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Failed(Exception):
    """A request that another server, or the same one later, may answer."""


class Fleet:
    """Servers that are asked in turn; thread-safe. A request goes to the server with the fewest under way.

    Args:
        urls: Base URLs.
        key: API key, sent to these servers only; None: none.
        timeout: Seconds until a request counts as failed.
        concurrency: Most requests under way at each server.
        most_bytes: Longest answer.
        greet: Called with a server before it is asked for the first time, and for the first time after a failure. It
            raises `UserError` for a server that must not be used.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        key: str | None,
        timeout: float,
        concurrency: int,
        most_bytes: int,
        greet: Callable[[Server], None],
    ) -> None:
        import httpx

        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.servers = [
            Server(
                url,
                httpx.Client(
                    base_url=url,
                    headers=headers,
                    timeout=httpx.Timeout(timeout, connect=min(_CONNECT, timeout)),
                    limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
                    follow_redirects=False,
                    trust_env=False,
                ),
            )
            for url in urls
        ]
        self.concurrency, self._greet = concurrency, greet
        self._key, self._timeout, self._most_bytes = key, timeout, most_bytes
        self._free = threading.Condition()

    def greet_all(self) -> None:
        """Greet every server that answers now.

        Raises:
            UserError: none answers, or one must not be used.
        """
        reasons = {}
        for server in self.servers:
            try:
                self._welcome(server)
            except Failed as error:
                self._failed(server)
                reasons[server.url] = str(error)
        if len(reasons) == len(self.servers):
            raise _silent(reasons)

    def ask(self, path: str, body: Callable[[Server], dict[str, Any]]) -> tuple[Server, Any]:
        """Post a request, and post it again where a server fails.

        Args:
            path: Path after the base URL.
            body: Makes the JSON body for a server.

        Returns:
            The server that answered, and its JSON.

        Raises:
            UserError: a server refuses the request, or no server answers it.
        """
        reasons: dict[str, str] = {}
        for _ in range(_TRIES * len(self.servers)):
            with self._turn() as server:
                try:
                    self._welcome(server)
                    answer = self.send(server, "POST", path, body(server))
                except Failed as error:
                    self._failed(server)
                    reasons[server.url] = str(error)
                    continue
                server.failures = 0
                return server, answer
        raise _silent(reasons)

    def send(self, server: Server, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send one request to one server; return the JSON of its answer.

        Raises:
            Failed: no answer, or one that says that the server is at fault or busy.
            UserError: the server refuses the request, sends it elsewhere, or answers with something else than JSON.
        """
        import httpx

        try:
            with server.client.stream(method, path, json=body) as response:
                status, content = response.status_code, self._bounded(server, response)
                target = response.headers.get("location")
        except httpx.TimeoutException as error:
            raise Failed(f"no answer within {self._timeout:g} seconds") from error
        except httpx.RequestError as error:
            raise Failed(self._clean(str(error)) or type(error).__name__) from error
        if 300 <= status < 400:
            raise UserError(
                f"{server.url} redirects {path} to {target!r}, and no meme is sent where you did not name the host; "
                "give that URL to --engine-url if it is right."
            )
        if status in _KEY_REFUSED:
            raise UserError(f"{server.url} refuses the API key (HTTP {status}); set VLLM_API_KEY to the server's key.")
        if status in _TRY_AGAIN:
            raise Failed(f"HTTP {status}: {self._message(content)}")
        if status != 200:
            raise UserError(f"{server.url} refuses {path} (HTTP {status}): {self._message(content)}")
        try:
            return json.loads(content)
        except ValueError as error:
            raise UserError(
                f"{server.url} answers {path} with something else than JSON; is it a vLLM server?"
            ) from error

    def close(self) -> None:
        """Close all connections."""
        for server in self.servers:
            server.client.close()

    def _bounded(self, server: Server, response: "httpx.Response") -> bytes:
        content = bytearray()
        for part in response.iter_bytes():
            content += part
            if len(content) > self._most_bytes:
                raise UserError(
                    f"{server.url} answers with more than {self._most_bytes} bytes, which no hidden state of this "
                    "model has; is it the right server?"
                )
        return bytes(content)

    def _message(self, content: bytes) -> str:
        """What vLLM says of an error: `{"error": {"message": …}}`, or in older versions `{"message": …}`."""
        try:
            body = json.loads(content)
            error = body.get("error", body)
            text = error.get("message", "") if isinstance(error, dict) else str(error)
        except (ValueError, AttributeError):
            text = content[:400].decode(errors="replace")
        return self._clean(str(text)) or "no reason is given"

    def _clean(self, text: str) -> str:
        text = " ".join(well_formed(text).split())
        return (text.replace(self._key, "…") if self._key else text)[:400]

    @contextmanager
    def _turn(self) -> "Iterator[Server]":
        """A server that may be asked, the least busy one; waits for one."""
        with self._free:
            while True:
                now = time.monotonic()
                able = [one for one in self.servers if one.again <= now and one.busy < self.concurrency]
                if able:
                    break
                self._free.wait(min((one.again - now for one in self.servers if one.again > now), default=None))
            server = min(able, key=lambda one: one.busy)
            server.busy += 1
        try:
            yield server
        finally:
            with self._free:
                server.busy -= 1
                self._free.notify()

    def _welcome(self, server: Server) -> None:
        with server.lock:
            if not server.greeted:
                self._greet(server)
                server.greeted = True

    def _failed(self, server: Server) -> None:
        with self._free:
            server.greeted, now = False, time.monotonic()
            if server.again <= now:  # requests that were under way together fail together
                server.failures += 1
                server.again = now + min(_BACK_OFF * 2 ** (server.failures - 1), _LONGEST)


def _silent(reasons: dict[str, str]) -> UserError:
    listed = "".join(f"\n  {url}: {reason}" for url, reason in reasons.items())
    return UserError(
        f"No vLLM server answers:{listed}\nStart them (docs/cluster.md), or use --backend transformers. What is "
        "written already is kept: the same command goes on from there."
    )
