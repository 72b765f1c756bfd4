"""The page in a web application, alone with its own address: nothing is loaded from, or told to, anybody else."""

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
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ra_hmd.console.controller import Console
from ra_hmd.serve.middleware import CONSOLE, path_of

if TYPE_CHECKING:
    pass

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_STREAMS = re.compile(r"/gradio_api/(heartbeat/|queue/data)")
_LOOK_SECONDS = 0.5
# Gradio's page asks Google and Cloudflare for fonts and a script, and names its makers' site.
_FOREIGN = re.compile(
    rb"""<link\b[^>]*\bhref="https?://[^>]*>|<script\b[^>]*\bsrc="https?://[^>]*>\s*</script>|"""
    rb"""<meta\b[^>]*\bcontent="https?://[^>]*>|<link rel="manifest"[^>]*>""",
    re.DOTALL,
)
# What of Gradio's is no part of this page: states written to disk, addresses fetched, figures of use, descriptions.
_CLOSED = re.compile(
    r"/(gradio_api/)?(deep_link|monitoring|proxy=|dev/|openapi\.json|info|call/|api/|run/|component_server|stream)"
)


class ConsoleMiddleware:
    """Lets in only what the page itself asks, and lets out no foreign address: Gradio would take any other site's word,
    with the cookie of whoever is logged in, or on loopback without.

    Args:
        app: The application.
        path: Of the page.
    """

    def __init__(self, app: ASGIApp, path: str = CONSOLE) -> None:
        self.app, self.path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope) if scope["type"] == "http" else ""
        if scope["type"] != "http" or not (path == self.path or path.startswith(self.path + "/")):
            await self.app(scope, receive, send)
            return
        if _CLOSED.match(path.removeprefix(self.path)):
            await PlainTextResponse("This is no part of the console.", 404)(scope, receive, send)
            return
        if _is_foreign(scope):
            said = "Another site asked this; only the console's own page may. A proxy must pass the Host header on."
            await PlainTextResponse(said, 403)(scope, receive, send)
            return
        start: Message | None = None
        page = b""

        async def cleaned(message: Message) -> None:
            nonlocal start, page
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                if headers.get("content-type", "").startswith("text/html"):
                    start = message
                    return
            elif start is not None and message["type"] == "http.response.body":
                page += message.get("body", b"")
                if message.get("more_body"):
                    return
                page = _FOREIGN.sub(b"", page)
                MutableHeaders(scope=start)["content-length"] = str(len(page))
                await send(start)
                message = {"type": "http.response.body", "body": page}
            await send(message)

        if _STREAMS.match(path.removeprefix(self.path)):
            await _until_the_end(self.app, scope, receive, cleaned)
        else:
            await self.app(scope, receive, cleaned)


def _is_foreign(scope: Scope) -> bool:
    """Whether a page of another origin asks, be it another port of this machine. A link to the page is none of that."""
    headers = Headers(scope=scope)
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in ("same-origin", "none"):  # no script can set this header
        return False
    if site is not None and not (scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"):
        return True
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()


async def _until_the_end(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """A stream to an open page, which would never end by itself: it is ended when the server is."""
    started, state = False, scope["app"].state  # of ours; Gradio's own takes its place in the scope

    async def noted(message: Message) -> None:
        nonlocal started
        started = True
        await send(message)

    streaming = asyncio.ensure_future(app(scope, receive, noted))
    try:
        while not streaming.done() and not getattr(state, "ending", False):
            await asyncio.wait([streaming], timeout=_LOOK_SECONDS)
        if streaming.done():
            streaming.result()
            return
    finally:
        streaming.cancel()
    await asyncio.wait([streaming])
    if started:
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def mount(app: FastAPI, console: Console, path: str = CONSOLE) -> FastAPI:
    """Add the moderators' page to an application of `create_app`, before it is served.

    Uploads lie in a folder of their own that nobody else may read, until they are read, at once; the folder is deleted
    at the end. The queue is judged until the application is shut down.
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
            max_file_size=console.settings.max_bytes,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
        )
    app.user_middleware.insert(1, Middleware(ConsoleMiddleware, path=path))  # inside `UnderPath`, outside all else
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(started: FastAPI) -> AsyncIterator[object]:
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
    """Where Gradio keeps uploads: for this process and this user alone. Gradio asks the environment at each upload."""
    folder = tempfile.mkdtemp(prefix="ra-hmd-console-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder
    return Path(folder)
