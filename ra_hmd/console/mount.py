"""Mounts the page in the app of the API, and closes it against other sites: nothing is loaded from, or sent to, any."""

import asyncio
import atexit
import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ra_hmd.console.controller import Console
from ra_hmd.console.users import SESSION_COOKIE, new_session
from ra_hmd.serve.middleware import CONSOLE, path_of

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_STREAMS = re.compile(r"/gradio_api/(heartbeat/|queue/data)")
_POLL_SECONDS = 0.5
# Gradio's page loads fonts and a script from Google and Cloudflare, and links to its makers' site.
_EXTERNAL = re.compile(
    rb"""<link\b[^>]*\bhref="https?://[^>]*>|<script\b[^>]*\bsrc="https?://[^>]*>\s*</script>|"""
    rb"""<meta\b[^>]*\bcontent="https?://[^>]*>|<link rel="manifest"[^>]*>""",
    re.DOTALL,
)
# Gradio's routes that the page does not need: states on disk, fetched URLs, monitoring, API descriptions.
_UNUSED_ROUTES = re.compile(
    r"/(gradio_api/)?(deep_link|monitoring|proxy=|dev/|openapi\.json|info|call/|api/|run/|component_server|stream)"
)


class ConsoleMiddleware:
    """Refuses cross-origin requests to the page, and removes external resources from its HTML.

    Gradio by itself accepts requests that another site makes with the user's cookie, or, on loopback, without one.

    Args:
        app: Inner app.
        path: Path of the page.
    """

    def __init__(self, app: ASGIApp, path: str = CONSOLE) -> None:
        self.app, self.path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope) if scope["type"] == "http" else ""
        if scope["type"] != "http" or not (path == self.path or path.startswith(self.path + "/")):
            await self.app(scope, receive, send)
            return
        if _UNUSED_ROUTES.match(path.removeprefix(self.path)):
            await PlainTextResponse("This is no part of the console.", 404)(scope, receive, send)
            return
        if _is_cross_origin(scope):
            message = "Another site asked this; only the console's own page may. A proxy must pass the Host header on."
            await PlainTextResponse(message, 403)(scope, receive, send)
            return
        start: Message | None = None
        page = b""
        cookies = cookie_parser(Headers(scope=scope).get("cookie", ""))
        attributes = f"Path={scope.get('root_path', '')}{self.path}; HttpOnly; SameSite=Strict"

        async def send_clean(message: Message) -> None:
            nonlocal start, page
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                if headers.get("content-type", "").startswith("text/html"):
                    if SESSION_COOKIE not in cookies:
                        headers.append("Set-Cookie", f"{SESSION_COOKIE}={new_session()}; {attributes}")
                    start = message
                    return
            elif start is not None and message["type"] == "http.response.body":
                page += message.get("body", b"")
                if message.get("more_body"):
                    return
                page = _EXTERNAL.sub(b"", page)
                MutableHeaders(scope=start)["content-length"] = str(len(page))
                await send(start)
                message = {"type": "http.response.body", "body": page}
            await send(message)

        if _STREAMS.match(path.removeprefix(self.path)):
            await _until_shutdown(self.app, scope, receive, send_clean)
        else:
            await self.app(scope, receive, send_clean)


def _is_cross_origin(scope: Scope) -> bool:
    """Whether a page of another origin, also of another port, sent the request. Following a link to the page is not."""
    headers = Headers(scope=scope)
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in ("same-origin", "none"):  # no script can set this header
        return False
    if site is not None and not (scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"):
        return True
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()


async def _until_shutdown(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run a stream to an open page, which would never end by itself, until the server shuts down."""
    started, state = False, scope["app"].state  # read now: Gradio's own app takes its place in the scope

    async def send_noted(message: Message) -> None:
        nonlocal started
        started = True
        await send(message)

    streaming = asyncio.ensure_future(app(scope, receive, send_noted))
    try:
        while not streaming.done() and not getattr(state, "ending", False):
            await asyncio.wait([streaming], timeout=_POLL_SECONDS)
        if streaming.done():
            streaming.result()
            return
    finally:
        streaming.cancel()
    await asyncio.wait([streaming])
    if started:
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def mount(app: FastAPI, console: Console, path: str = CONSOLE) -> FastAPI:
    """Add the moderators' page to an app of `create_app`, before it is served.

    Uploads are stored in a private folder until they are read, at once; the folder is deleted at shutdown. The review
    queue is scored until shutdown.
    """
    folder = _private_folder()
    import gradio

    from ra_hmd.console.page import TITLE, build_page

    page = build_page(console)
    with contextlib.redirect_stdout(io.StringIO()):  # Gradio prints what it mounts
        gradio.mount_gradio_app(
            app,
            page,
            path,
            server_name="127.0.0.1",
            root_path=app.state.root_path + path,
            show_api=False,
            auth=console.authenticator.check if console.authenticator.locked else None,
            auth_message=f"{TITLE}: your name, and as password your key (ra-hmd serve-key).",
            show_error=False,
            max_file_size=console.limits.max_bytes,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
        )
    app.user_middleware.insert(1, Middleware(ConsoleMiddleware, path=path))  # inside `UnderPath`, outside all else
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(started: FastAPI) -> AsyncIterator[Any]:
        console.queue.start()
        try:
            async with inner(started) as state:
                yield state
                await run_sync(console.queue.close)
        finally:
            for left in folder.iterdir():
                shutil.rmtree(left, ignore_errors=True)

    app.router.lifespan_context = lifespan
    return app


@cache
def _private_folder() -> Path:
    """Create the folder of uploads, for this process and this user alone. Gradio reads its path at each upload."""
    folder = tempfile.mkdtemp(prefix="ra-hmd-console-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder
    return Path(folder)
