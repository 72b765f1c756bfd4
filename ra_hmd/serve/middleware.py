"""What every request passes, from outside to inside: watched, let in by its host and its key, and held to its size and
time.
"""

import asyncio
import re
import time
import uuid
import zlib
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ra_hmd.core.errors import UserError
from ra_hmd.serve.auth import KeyRing
from ra_hmd.serve.errors import APIError
from ra_hmd.serve.hosts import is_loopback, normalize_host
from ra_hmd.serve.limits import RequestLimits
from ra_hmd.serve.metrics import Metrics, log, log_request

CONSOLE = "/console"
PROBES = ("/health", "/ready")
"""Paths that need neither a key nor a known host: whoever watches a container asks it by its address."""
OPEN = (*PROBES, "/docs", "/openapi.json")
"""Paths that need no key. The page of the API and its description are the same everywhere and hold nothing of the
service; a browser that opens a page sends no key."""
_PAGE_FILES = "/static-offline-docs/"
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_STRICT = {"Cache-Control": "no-store", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
_GONE = 499
_GZIP = 16 + zlib.MAX_WBITS


class Budget:
    """An amount of something, of which requests take and give back."""

    def __init__(self, limit: int, what: str) -> None:
        self.limit, self.what, self.taken = limit, what, 0

    def take(self, amount: int) -> None:
        """Raises `APIError` where less is left."""
        if amount > self.limit:
            raise APIError(
                413, f"The request needs {amount} {self.what} and at most {self.limit} are let in; send less."
            )
        if self.taken + amount > self.limit:
            raise APIError(429, f"Requests that wait hold most of the {self.limit} {self.what}; ask again later.")
        self.taken += amount

    def give_back(self, amount: int) -> None:
        """What was taken."""
        self.taken -= amount


def path_of(scope: Scope) -> str:
    """The path of a request, without the one that the whole app lies under."""
    path, root = str(scope["path"]), scope.get("root_path", "")
    return path[len(root) :] if path == root or path.startswith(root + "/") else path


def _in_console(scope: Scope) -> bool:
    path = path_of(scope)
    return path == CONSOLE or path.startswith(CONSOLE + "/")


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: APIError) -> None:
    await JSONResponse(refusal.body.model_dump(), refusal.status_code, refusal.headers)(scope, receive, send)


class RootPathMiddleware:
    """Lets an app lie under a path of a proxy, whether or not the proxy takes the path off: in the scope of the inner
    app `path` begins with `root_path`, as ASGI has it, so that what is mounted in the app is found.

    Args:
        app: The app.
        root_path: The path, without a slash at its end.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            root, path = self.root_path, scope["path"]
            inside = path == root or path.startswith(root + "/")
            raw = scope.get("raw_path") or path.encode()
            scope = scope | {
                "root_path": root,
                "path": path if inside else root + path,
                "raw_path": raw if inside else root.encode() + raw,
            }
        await self.app(scope, receive, send)


class HostMiddleware:
    """Lets in requests whose Host header has a known name; those of `PROBES` under any.

    A page in a browser could otherwise ask under a name of its own that it lets point here (DNS rebinding). An address
    in the loopback network can be no such name, and is always known.

    Args:
        app: The app.
        names: The names, as `normalize_host` gives them; `*` is any, `*.example.org` every name below that one.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self.app, self.names = app, frozenset(names)
        self.endings = tuple(name[1:] for name in names if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and path_of(scope) not in PROBES and not self._knows(Headers(scope=scope)):
            sentence = (
                "The service is not called by the name in this request's Host header; whoever runs it can let a name "
                "in with --allowed-host NAME."
            )
            await _refuse(scope, receive, send, APIError(400, sentence))
            return
        await self.app(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        if "*" in self.names:
            return True
        try:
            name = normalize_host(headers.get("host", ""))
        except UserError:
            return False
        return name in self.names or name.endswith(self.endings) or is_loopback(name)


class RequestMetrics:
    """Counts, times and logs requests, names them, and sets the headers that browsers heed.

    An exception that nobody foresaw ends here: its kind and place are logged, and the answer is 500.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        asked = Headers(scope=scope).get("x-request-id", "")
        name = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                strict = path_of(scope).startswith("/v1/") or path_of(scope) == "/metrics"
                for header, value in (_HEADERS | (_STRICT if strict else {}) | {"X-Request-ID": name}).items():
                    headers[header] = value
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            status = _GONE
        except Exception:
            log.exception("a request failed", extra={"fields": {"request_id": name}})
            if not status:
                await _refuse(
                    scope, receive, watched, APIError(500, f"An error of this service; see {name} in its log.")
                )
        finally:
            route = _route(scope)
            self.metrics.count(_method(scope), route, status, time.perf_counter() - started)
            fields = {"request_id": name, "method": _method(scope), "route": route}
            log_request(started, status, fields | {"memes": state.get("memes"), "key": state.get("key_name")})


def _route(scope: Scope) -> str:
    """The template of the path: a path itself may hold anything."""
    if _in_console(scope):
        return CONSOLE
    return getattr(scope.get("route"), "path", "") or "unknown"


def _method(scope: Scope) -> str:
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return scope["method"] if scope["method"] in known else "other"


def _is_open(scope: Scope) -> bool:
    path = path_of(scope)
    return path in OPEN or path.startswith(_PAGE_FILES) or _in_console(scope)


class AuthMiddleware:
    """Lets in who has a key. Without keys everyone is let in, to ask. What is `OPEN` is so to all, and the console asks
    for the key itself.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing | None) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys is not None and not _is_open(scope):
            key = self.keys.find(_secret(Headers(scope=scope)))
            if key is None:
                sentence = "A key is needed: send it as `Authorization: Bearer KEY` or as `X-API-Key: KEY`."
                await _refuse(scope, receive, send, APIError(401, sentence, headers={"WWW-Authenticate": "Bearer"}))
                return
            scope.setdefault("state", {}).update(key=key, key_name=key.name)
        await self.app(scope, receive, send)


def _secret(headers: Headers) -> str:
    kind, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")


class BodyLimit:
    """Weighs a body while it comes in, whether or not its length was told, and gives a request its time. A body that is
    compressed with gzip is unpacked, and weighs what it holds.

    `deadline` in the request's state is of the event loop's clock.
    """

    def __init__(self, app: ASGIApp, settings: RequestLimits) -> None:
        self.app, self.settings = app, settings
        self.bodies = Budget(settings.max_bytes * settings.memory_factor, "bytes of bodies")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit, length = self.settings.max_bytes, headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            await _refuse(scope, receive, send, self._too_large())
            return
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip", "x-gzip"):
            sentence = "The body may be compressed with gzip, or not at all."
            await _refuse(scope, receive, send, APIError(415, sentence, headers={"Accept-Encoding": "gzip"}))
            return
        unpack = None if coding == "identity" else _GzipDecoder()
        deadline = asyncio.get_running_loop().time() + self.settings.time_limit
        scope.setdefault("state", {})["deadline"] = deadline
        weight, complete = 0, False

        async def weighed() -> Message:
            nonlocal weight, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise APIError(408, f"The body did not arrive in {self.settings.time_limit} seconds.") from None
            complete = not message.get("more_body", False)
            if unpack is not None and message["type"] == "http.request":
                message = {**message, "body": unpack(message.get("body", b""), limit - weight + 1, complete)}
            size = len(message.get("body", b""))
            if weight + size > limit:
                raise self._too_large()
            self.bodies.take(size)
            weight += size
            return message

        try:
            await self.app(scope, weighed, send)
        finally:
            self.bodies.give_back(weight)

    def _too_large(self) -> APIError:
        return APIError(413, f"The body has more than {self.settings.max_bytes} bytes; send fewer or smaller pictures.")


class _GzipDecoder:
    """A body in gzip that comes in pieces; of one or several members (RFC 1952)."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP)

    def __call__(self, piece: bytes, most: int, complete: bool) -> bytes:
        """What a piece holds, at most so many bytes of it: a small piece may hold a thousand times its size.

        Args:
            piece: The next part of the body.
            most: Bytes that are wanted of it.
            complete: Whether it is the last.

        Raises:
            Refusal: 422 for what is not gzip, or not whole.
        """
        found = bytearray()
        try:
            while piece and len(found) < most:
                if self._member.eof:
                    self._member = zlib.decompressobj(_GZIP)
                found += self._member.decompress(piece, most - len(found))
                piece = self._member.unused_data or self._member.unconsumed_tail
        except zlib.error:
            raise APIError(422, "The body is not in gzip, as its Content-Encoding says.") from None
        if complete and len(found) < most and not self._member.eof:
            raise APIError(422, "The body in gzip is not whole.")
        return bytes(found)
