"""ASGI middleware of the API, from the outermost to the innermost: root path, metrics, host, key, and body limit."""

import asyncio
import re
import time
import uuid
import zlib
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ra_hmd.core.errors import UserError
from ra_hmd.serve.auth import KeyRing
from ra_hmd.serve.errors import APIError
from ra_hmd.serve.hosts import is_loopback, normalize_host
from ra_hmd.serve.jobs_settings import JOBS, STREAMED, JobSettings
from ra_hmd.serve.limits import RequestLimits
from ra_hmd.serve.metrics import Metrics, log, log_request

CONSOLE = "/console"
PROBES = ("/health", "/ready")
"""Paths that need neither a key nor an allowed host: container health checks call them by IP address."""
OPEN_PATHS = (*PROBES, "/docs", "/openapi.json")
"""Paths that need no key. The documentation page and the OpenAPI document are the same for every service, and a browser
that opens a page sends no key."""
_DOCS_FILES = "/static-offline-docs/"
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_STRICT = {"Cache-Control": "no-store", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
_CLIENT_CLOSED = 499
_GZIP_BITS = 16 + zlib.MAX_WBITS


class Budget:
    """A shared budget, such as memory, that requests draw on.

    Args:
        limit: Amount that all requests may hold together.
        unit: Plural noun for messages.
    """

    def __init__(self, limit: int, unit: str) -> None:
        self.limit, self.unit, self.used = limit, unit, 0

    def acquire(self, amount: int) -> None:
        """Take an amount. Raises `APIError`: 413 for more than the whole budget, 429 for more than is left."""
        if amount > self.limit:
            raise APIError(
                413, f"The request needs {amount} {self.unit} and at most {self.limit} are let in; send less."
            )
        if self.used + amount > self.limit:
            raise APIError(429, f"Requests that wait hold most of the {self.limit} {self.unit}; ask again later.")
        self.used += amount

    def release(self, amount: int) -> None:
        """Return an amount that was acquired."""
        self.used -= amount


def path_of(scope: Scope) -> str:
    """Path of a request, without the root path of the app."""
    path, root = str(scope["path"]), scope.get("root_path", "")
    return path[len(root) :] if path == root or path.startswith(root + "/") else path


def _in_console(scope: Scope) -> bool:
    path = path_of(scope)
    return path == CONSOLE or path.startswith(CONSOLE + "/")


async def _respond(scope: Scope, receive: Receive, send: Send, error: APIError) -> None:
    await error.response()(scope, receive, send)


class RootPathMiddleware:
    """Serves an app below a path of a reverse proxy, whether or not the proxy strips the path.

    The inner app gets a `path` that begins with `root_path`, as ASGI specifies, so that mounted apps are found.

    Args:
        app: Inner app.
        root_path: Path prefix, without a slash at its end.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            root, path = self.root_path, scope["path"]
            inside = path == root or path.startswith(root + "/")
            raw = scope.get("raw_path") or path.encode()
            scope = {
                **scope,
                "root_path": root,
                "path": path if inside else root + path,
                "raw_path": raw if inside else root.encode() + raw,
            }
        await self.app(scope, receive, send)


class HostMiddleware:
    """Refuses requests whose Host header has no allowed name, against DNS rebinding. `PROBES` are exempt.

    Loopback addresses are always allowed: no attacker's name can be one.

    Args:
        app: Inner app.
        names: Allowed names in the form of `normalize_host`; `*` allows any, `*.example.org` every subdomain.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self.app, self.names = app, frozenset(names)
        self.endings = tuple(name[1:] for name in names if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and path_of(scope) not in PROBES and not self._is_allowed(Headers(scope=scope)):
            sentence = (
                "The service is not called by the name in this request's Host header; whoever runs it can let a name "
                "in with --allowed-host NAME."
            )
            await _respond(scope, receive, send, APIError(400, sentence, code="host_not_allowed"))
            return
        await self.app(scope, receive, send)

    def _is_allowed(self, headers: Headers) -> bool:
        if "*" in self.names:
            return True
        try:
            name = normalize_host(headers.get("host", ""))
        except UserError:
            return False
        return name in self.names or name.endswith(self.endings) or is_loopback(name)


class RequestMetrics:
    """Counts, times and logs requests, gives each an id, and sets the security headers of its response.

    Unexpected exceptions end here: their type and place are logged, and the response is 500.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        sent_id = Headers(scope=scope).get("x-request-id", "")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                strict = path_of(scope).startswith("/v1/") or path_of(scope) == "/metrics"
                for header, value in _HEADERS.items():
                    headers.setdefault(header, value)  # a page needs its own Referrer-Policy, or its forms are refused
                for header, value in ((_STRICT if strict else {}) | {"X-Request-ID": request_id}).items():
                    headers[header] = value
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = _CLIENT_CLOSED
        except Exception:
            log.exception("a request failed", extra={"fields": {"request_id": request_id}})
            if not status:
                error = APIError(500, f"An error of this service; see {request_id} in its log.")
                await _respond(scope, receive, send_with_headers, error)
        finally:
            route = _route(scope)
            self.metrics.count(_method(scope), route, status, time.perf_counter() - started)
            fields = {"request_id": request_id, "method": _method(scope), "route": route}
            log_request(started, status, fields | {"memes": state.get("memes"), "key": state.get("key_name")})


def _route(scope: Scope) -> str:
    """Route template of a request; its path may hold anything and is not logged."""
    if _in_console(scope):
        return CONSOLE
    return getattr(scope.get("route"), "path", "") or "unknown"


def _method(scope: Scope) -> str:
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return scope["method"] if scope["method"] in known else "other"


def _is_open(scope: Scope) -> bool:
    path = path_of(scope)
    return path in OPEN_PATHS or path.startswith(_DOCS_FILES) or _in_console(scope)


class AuthMiddleware:
    """API-key authentication middleware. Without keys, read requests are anonymous.

    `OPEN_PATHS` paths need no key, and the console has a login of its own.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing | None) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys is not None and not _is_open(scope):
            key = self.keys.find(_secret(Headers(scope=scope)))
            if key is None:
                sentence = "A key is needed: send it as `Authorization: Bearer KEY` or as `X-API-Key: KEY`."
                await _respond(scope, receive, send, APIError(401, sentence, headers={"WWW-Authenticate": "Bearer"}))
                return
            scope.setdefault("state", {}).update(key=key, key_name=key.name)
        await self.app(scope, receive, send)


def _secret(headers: Headers) -> str:
    kind, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")


class BodyLimit:
    """Limits the size of a body while it arrives, with or without a Content-Length, and sets the request's deadline.

    Bodies in gzip are decompressed, and their decompressed size counts. `deadline` in the request's state is a time of
    the event loop's clock.

    Args:
        app: Inner app.
        limits: Limits of bodies that are held in memory.
        jobs: Limits of jobs that go to disk while they arrive; None: there are none.
    """

    def __init__(self, app: ASGIApp, limits: RequestLimits, jobs: JobSettings | None = None) -> None:
        self.app, self.limits, self.jobs = app, limits, jobs
        self.budget = Budget(limits.max_bytes * limits.memory_factor, "bytes of bodies")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        to_disk = self.jobs is not None and _is_streamed_job(scope, headers)
        limit, time_limit = self.limits.max_bytes, self.limits.time_limit
        if self.jobs is not None and to_disk:
            limit, time_limit = self.jobs.job_max_bytes, self.jobs.job_upload_time
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            await _respond(scope, receive, send, _too_large(limit))
            return
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip", "x-gzip"):
            sentence = "The body may be compressed with gzip, or not at all."
            await _respond(scope, receive, send, APIError(415, sentence, headers={"Accept-Encoding": "gzip"}))
            return
        decode = None if coding == "identity" else _GzipDecoder()
        deadline = asyncio.get_running_loop().time() + time_limit
        scope.setdefault("state", {})["deadline"] = deadline
        received, complete = 0, False

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise APIError(408, f"The body did not arrive in {time_limit} seconds.") from None
            complete = not message.get("more_body", False)
            if decode is not None and message["type"] == "http.request":
                message = {**message, "body": decode(message.get("body", b""), limit - received + 1, complete)}
            size = len(message.get("body", b""))
            if received + size > limit:
                raise _too_large(limit)
            if not to_disk:
                self.budget.acquire(size)
            received += size
            return message

        try:
            await self.app(scope, limited, send)
        finally:
            if not to_disk:
                self.budget.release(received)


def _is_streamed_job(scope: Scope, headers: Headers) -> bool:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return scope["method"] == "POST" and path_of(scope) == JOBS and kind in STREAMED


def _too_large(limit: int) -> APIError:
    return APIError(413, f"The body has more than {limit} bytes; send fewer or smaller pictures.")


class _GzipDecoder:
    """Incremental decoder of gzip (RFC 1952), of one or several members."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP_BITS)

    def __call__(self, piece: bytes, most: int, complete: bool) -> bytes:
        """Decode a piece up to a number of bytes, because a small piece may expand a thousandfold.

        Args:
            piece: Next piece of the body.
            most: Largest number of bytes to decode.
            complete: Whether it is the last piece.

        Raises:
            APIError: 422 for a body that is not gzip, or truncated.
        """
        decoded = bytearray()
        try:
            while piece and len(decoded) < most:
                if self._member.eof:
                    self._member = zlib.decompressobj(_GZIP_BITS)
                decoded += self._member.decompress(piece, most - len(decoded))
                piece = self._member.unused_data or self._member.unconsumed_tail
        except zlib.error:
            raise APIError(422, "The body is not in gzip, as its Content-Encoding says.") from None
        if complete and len(decoded) < most and not self._member.eof:
            raise APIError(422, "The body in gzip is not whole.")
        return bytes(decoded)
