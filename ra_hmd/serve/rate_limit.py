"""Limits of requests per key and minute, and the header fields that state them.

The fields are those of the IETF draft draft-ietf-httpapi-ratelimit-headers: `RateLimit-Policy` and `RateLimit` have one
meaning and are structured fields (RFC 9651), while `X-RateLimit-Reset` is a date with some services and seconds with
others.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ra_hmd.serve.errors import APIError
from ra_hmd.serve.middleware import path_of

WINDOW = 60
_NAME = '"requests"'


class RateLimiter:
    """Counts the requests of each key in windows of a minute, which begin with its first request.

    Args:
        limit: Requests in a window of a key without a limit of its own; None: as many as one likes.
        clock: Seconds of a clock that never goes back.
    """

    def __init__(self, limit: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self._clock = limit, clock
        self._windows: dict[str, tuple[float, int]] = {}

    def count(self, name: str, limit: int) -> tuple[int, int]:
        """Count a request, and return how many are left in the window (-1: this one is too many) and its seconds."""
        now = self._clock()
        start, used = self._windows.get(name, (now, 0))
        if now - start >= WINDOW:
            start, used = now, 0
        left = limit - used - 1
        self._windows[name] = (start, min(used + 1, limit))
        return max(left, -1), max(math.ceil(start + WINDOW - now), 1)


class RateLimitMiddleware:
    """Refuses the requests to `/v1/` of a key that has asked too often (429), and states the limit in each answer.

    Requests without a key have one limit together.
    """

    def __init__(self, app: ASGIApp, limit: int | None) -> None:
        self.app, self.limiter = app, RateLimiter(limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not path_of(scope).startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        key: Any = scope.get("state", {}).get("key")
        limit = getattr(key, "rate_limit", None) or self.limiter.limit
        if limit is None:
            await self.app(scope, receive, send)
            return
        left, seconds = self.limiter.count("" if key is None else key.name, limit)
        fields = {
            "RateLimit-Policy": f"{_NAME};q={limit};w={WINDOW}",
            "RateLimit": f"{_NAME};r={max(left, 0)};t={seconds}",
        }
        if left < 0:
            sentence = f"The key may ask {limit} times a minute; ask again in {seconds} seconds."
            headers = {"Retry-After": str(seconds), **fields}
            await APIError(429, sentence, headers=headers, code="rate_limited").response()(scope, receive, send)
            return

        async def send_with_fields(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(fields)
            await send(message)

        await self.app(scope, receive, send_with_fields)
