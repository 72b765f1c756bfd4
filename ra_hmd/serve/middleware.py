"""What every request passes, from outside to inside: watched, let in by its key, and held to its size and time."""

import asyncio
import re
import time
import uuid
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ra_hmd.serve.keys import KeyRing
from ra_hmd.serve.observing import Metrics, log, log_request
from ra_hmd.serve.refusals import Refusal
from ra_hmd.serve.settings import Settings

CONSOLE = "/console"
OPEN = ("/health", "/ready", "/docs", "/openapi.json")
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


class Budget:
    """An amount of something, of which requests take and give back."""

    def __init__(self, limit: int, what: str) -> None:
        self.limit, self.what, self.taken = limit, what, 0

    def take(self, amount: int) -> None:
        """Raises `Refusal` where less is left."""
        if amount > self.limit:
            raise Refusal(
                413, f"The request needs {amount} {self.what} and at most {self.limit} are let in; send less."
            )
        if self.taken + amount > self.limit:
            raise Refusal(429, f"Requests that wait hold most of the {self.limit} {self.what}; ask again later.")
        self.taken += amount

    def give_back(self, amount: int) -> None:
        """What was taken."""
        self.taken -= amount


def _in_console(scope: Scope) -> bool:
    return scope["path"] == CONSOLE or scope["path"].startswith(CONSOLE + "/")


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: Refusal) -> None:
    await JSONResponse(refusal.body.model_dump(), refusal.status_code, refusal.headers)(scope, receive, send)


class Watch:
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
                strict = scope["path"].startswith("/v1/") or scope["path"] == "/metrics"
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
                    scope, receive, watched, Refusal(500, f"An error of this service; see {name} in its log.")
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
    return scope["path"] in OPEN or scope["path"].startswith(_PAGE_FILES) or _in_console(scope)


class Door:
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
                await _refuse(scope, receive, send, Refusal(401, sentence, headers={"WWW-Authenticate": "Bearer"}))
                return
            scope.setdefault("state", {}).update(key=key, key_name=key.name)
        await self.app(scope, receive, send)


def _secret(headers: Headers) -> str:
    kind, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")


class Scale:
    """Weighs a body while it comes in, whether or not its length was told, and gives a request its time.

    `deadline` in the request's state is of the event loop's clock.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.bodies = Budget(settings.max_bytes * settings.held, "bytes of bodies")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, told = self.settings.max_bytes, Headers(scope=scope).get("content-length", "0")
        if not told.isdecimal() or int(told) > limit:
            await _refuse(scope, receive, send, self._too_large())
            return
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
                raise Refusal(408, f"The body did not arrive in {self.settings.time_limit} seconds.") from None
            size = len(message.get("body", b""))
            if weight + size > limit:
                raise self._too_large()
            self.bodies.take(size)
            weight += size
            complete = not message.get("more_body", False)
            return message

        try:
            await self.app(scope, weighed, send)
        finally:
            self.bodies.give_back(weight)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"The body has more than {self.settings.max_bytes} bytes; send fewer or smaller pictures.")
