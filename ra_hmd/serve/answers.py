"""Middleware for answers: compression, and pages of other origins that may read them."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ra_hmd.serve.errors import APIError

_SMALLEST = 1024
_SENT = ["Authorization", "Content-Encoding", "Content-Type", "Idempotency-Key", "X-API-Key", "X-Request-ID"]
_READ = ["RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-ID"]


class GzipAnswers(GZipMiddleware):
    """Compresses answers of at least 1 KiB for clients that accept gzip, but neither parts of files nor
    pictures."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, minimum_size=_SMALLEST, compresslevel=5)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        as_it_is = scope["type"] == "http" and (scope["path"].endswith("/picture") or "range" in Headers(scope=scope))
        await (self.app if as_it_is else super().__call__)(scope, receive, send)


class Origins(CORSMiddleware):
    """Lets pages of some origins ask with a key and read the answers (CORS). Cookies are not let in.

    Args:
        app: Inner app.
        origins: Origins such as `https://desk.example.org`; `*` is any.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=_SENT,
            expose_headers=_READ,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer the question of a browser whether a page may ask."""
        answer = super().preflight_response(request_headers)
        if answer.status_code != 400:
            return answer
        sentence = "Pages of this origin, or with this method or header, may not ask; see --allowed-origin."
        return APIError(400, sentence, code="origin_not_allowed").response()
