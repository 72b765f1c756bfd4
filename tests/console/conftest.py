"""A console over a real socket, and a browser that looks at it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromium import browser
from gradio_calls import ConsoleServer
from servers import in_thread

from ra_hmd.console.controller import Console
from ra_hmd.console.mount import mount
from ra_hmd.console.settings import ConsoleSettings
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.meme_lookup import MemeLookup
from ra_hmd.serve.app import create_app
from ra_hmd.serve.auth import KeyRing
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService

__all__ = ["browser"]


@pytest.fixture
def console(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> ConsoleServer:
    """`with console(keys=…, detector options…) as client`: API and page on a copy of the bank, at a free port."""

    @contextmanager
    def serve(
        keys: KeyRing | None = None,
        queue: Path | None = memes / "a" / "dev.jsonl",
        run: Path = served_clip / "head",
        bank: Path = clip_bank,
        root_path: str = "",
        **how: Any,
    ) -> Iterator[httpx.Client]:
        service = BatchingService(Detector.from_run(run, bank, **how))
        bank_service = BankService.open(service, run.parent / "features" / "dev")
        settings = ConsoleSettings(author="ana", queue=queue, reviews=tmp_path / "reviews.jsonl")
        lookup = MemeLookup.open([memes / "a"])
        app = create_app(service, bank_service, keys=keys, root_path=root_path)
        with in_thread(
            mount(app, Console(service, bank_service, None, keys, lookup=lookup, settings=settings))
        ) as client:
            yield client

    return serve


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where pictures of the page go."""
    folder = Path(os.environ.get("RA_HMD_SCREENSHOTS", tmp_path / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
