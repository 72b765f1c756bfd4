"""Servers for tests: over real sockets, in a thread of this process or in a process of their own."""

import base64
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from PIL import Image

from ra_hmd.data.images import known_formats
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes


@contextmanager
def in_thread(app: Any, **headers: str) -> Iterator[httpx.Client]:
    """A client of an app that is served at a free port."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=20)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(60)


@contextmanager
def answered_by(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a plain HTTP server whose requests a handler answers."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that hung up is part of the play."""

    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def in_process(
    *words: str | Path, log: Path, cwd: Path | None = None, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`ra-hmd WORDS --port 0` and a client of it; it is killed at the end, if it still runs."""
    command = [sys.executable, "-m", "ra_hmd", *map(str, words), "--port", "0"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **environment}
    with log.open("w") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=settings, cwd=cwd)
        try:
            address = next((line for line in server.stdout or () if line.startswith("http://")), "").strip()
            assert address, f"it did not start:\n{log.read_text()}"
            with httpx.Client(base_url=address, timeout=60) as client:
                yield server, client
        finally:
            server.kill()
            server.wait(60)
            assert server.stdout is not None
            server.stdout.close()


def queries(memes: Path, split: str = "dev") -> list[Meme]:
    """The synthetic memes of a split."""
    return [Meme(meme.id, meme.image, meme.text) for meme in read_memes(memes / "a" / f"{split}.jsonl")]


def as_json(query: Meme, **more: Any) -> dict[str, Any]:
    """A meme as JSON for the API."""
    assert isinstance(query.image, Path)
    return {"id": query.id, "image": encoded(query.image.read_bytes()), "text": query.text, **more}


def encoded(data: bytes) -> str:
    """Encode in base64."""
    return base64.b64encode(data).decode()


def drawn(
    size: tuple[int, int] = (64, 64), colour: Any = "red", mode: str = "RGB", style: str = "PNG", **how: Any
) -> bytes:
    """The file of an image with a rectangle on it."""
    known_formats()  # registers HEIF
    image = Image.new(mode, size, colour)
    image.paste(Image.new(mode, (size[0] // 2, size[1] // 3), 0 if mode in ("L", "P") else None), (0, 0))
    file = BytesIO()
    image.save(file, style, **how)
    return file.getvalue()


def correct(client: httpx.Client, number: int, picture: str) -> httpx.Response:
    """The correction of that number: the first adds a meme, the next labels it anew, the next takes it out, …"""
    name, step = f"meme-{number // 3}", number % 3
    if step == 0:
        meme = {"id": name, "image": picture, "text": f"cake {number}", "label": 0}
        return client.post("/v1/bank/add", json={"memes": [meme], "reason": str(number)})
    if step == 1:
        return client.post("/v1/bank/relabel", json={"labels": {name: 1}, "reason": str(number)})
    return client.post("/v1/bank/remove", json={"ids": [name], "reason": str(number)})
