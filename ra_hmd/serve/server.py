"""From options to a server that answers: the detector, its service, the app around it, and uvicorn."""

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ra_hmd.bank.backends.base import is_bank
from ra_hmd.core.choices import DType
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.retrieval.voting import Voting
from ra_hmd.serve.hosts import is_loopback, normalize_host, normalize_root_path
from ra_hmd.serve.limits import RequestLimits

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ra_hmd.inference.detector import Detector
    from ra_hmd.inference.explainer import Explainer
    from ra_hmd.inference.meme_lookup import MemeLookup
    from ra_hmd.serve.batching import BatchingSettings

_log = logging.getLogger("ra_hmd.serve")
_NEEDED = ("fastapi", "fastapi_offline", "uvicorn", "python_multipart", "prometheus_client")
KEEP_ALIVE_SECONDS = 620
"""How long a connection stays open between two requests. A proxy that keeps connections for longer than the service
behind it sends a request into one that is just being closed, and its client gets 502. nginx and the load balancers of
AWS keep them for 60 seconds, Traefik for 90, Caddy for 120, Azure for 240, and Google Cloud for 600.
"""


@dataclass(frozen=True)
class ServerSettings:
    """What is served, to whom. Fields of the detector are those of `Detector.from_run`.

    Attributes:
        host: Address to listen at; another than loopback needs keys.
        port: 0: a free one.
        keys: File of keys.
        allowed_hosts: Names by which the service may be called, beside its own address and those of the loopback
            network.
        root_path: Path under which a proxy shows the service.
        limits: Of the queue; None: the usual ones.
        settings: Of the API.
        reference: Feature store on which effects of changes are shown.
        policy: Text file with the operator's rules, for rationales.
        neighbours: How many of the nearest examples a question for a rationale shows.
        memes: Data of the bank's memes.
        max_new_tokens: Longest rationale.

    Raises:
        UserError: open to others without keys; a host or a path that is none.
    """

    run: Path
    bank: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    allowed_hosts: list[str] = field(default_factory=list)
    root_path: str = ""
    head: Head | None = None
    thresholds: Literal["stored", "official"] = "stored"
    voting: Voting | None = None
    abstain: float = 0.0
    backbone: str | None = None
    base_model: str | None = None
    dtype: DType | None = None
    limits: "BatchingSettings | None" = None
    settings: RequestLimits = field(default_factory=RequestLimits)
    reference: Path | None = None
    policy: Path | None = None
    neighbours: int = 0
    memes: list[Path] = field(default_factory=list)
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        check_installed()
        if self.keys is None and not is_loopback(self.host):
            raise UserError(
                f"--host {self.host} lets others in, and there are no keys: make one with `ra-hmd serve-key NAME "
                "--role moderator --keys FILE` and give --keys FILE, or leave --host out."
            )
        _ = self.hosts
        object.__setattr__(self, "root_path", normalize_root_path(self.root_path))

    @property
    def hosts(self) -> list[str]:
        """Host headers that are let in, beside those of the loopback network: without `allowed_hosts` any, unless the
        service listens on a loopback address, where a page in a browser could ask it under a name of its own (DNS
        rebinding).
        """
        if not self.allowed_hosts and not is_loopback(self.host):
            return ["*"]
        return [normalize_host(name) for name in (*self.allowed_hosts, self.host, "localhost")]


Mount = Callable[..., "FastAPI"]
"""Puts further pages into an app: `mount(app, service, desk, explainer, keys, settings, gallery)`."""


def build_app(serving: ServerSettings, mount: Mount | None = None) -> "FastAPI":
    """Open all that is served, and put it into an app; the app closes it at its end.

    Raises:
        UserError: folders and files that are missing or do not belong together.
    """
    from ra_hmd.inference.detector import Detector
    from ra_hmd.inference.meme_lookup import open_meme_lookup
    from ra_hmd.serve.app import create_app
    from ra_hmd.serve.auth import KeyRing
    from ra_hmd.serve.bank_service import BankService
    from ra_hmd.serve.batching import BatchingService

    keys = None if serving.keys is None else KeyRing.open(serving.keys)
    detector = Detector.from_run(
        serving.run,
        serving.bank,
        backbone=serving.backbone,
        base_model=serving.base_model,
        head=serving.head,
        voting=serving.voting,
        thresholds=serving.thresholds,
        abstain=serving.abstain,
        dtype=serving.dtype,
    )
    gallery = open_meme_lookup(serving.memes, detector.model)
    for note in gallery.notes:
        _log.warning(note)
    explainer = _explainer(detector, serving, gallery)
    service = BatchingService(detector, serving.limits)
    try:
        changeable = serving.bank is not None and is_bank(serving.bank)
        if serving.reference is not None and not changeable:
            raise UserError("--reference shows what changes of an example bank would do; give one with --bank.")
        bank_service = BankService.open(service, serving.reference) if changeable else None
        app = create_app(service, bank_service, explainer, keys, serving.settings, serving.hosts, serving.root_path)
        return app if mount is None else mount(app, service, bank_service, explainer, keys, serving.settings, gallery)
    except BaseException:
        service.close()
        raise


def _explainer(detector: "Detector", serving: ServerSettings, gallery: "MemeLookup") -> "Explainer | None":
    from ra_hmd.inference.explainer import Explainer, read_operator_text
    from ra_hmd.models.checkpoint import MemeModel

    asked = serving.policy is not None or serving.neighbours > 0
    if not asked and not isinstance(detector.model, MemeModel):
        return None
    return Explainer.of(
        detector,
        engine="transformers",  # of the model that is loaded; vLLM would load it once more
        lookup=gallery if serving.memes else None,
        neighbours=serving.neighbours,
        policy=read_operator_text(serving.policy),
        max_new_tokens=serving.max_new_tokens,
    )


def serve(serving: ServerSettings, mount: Mount | None = None, announce: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or SIGINT; then what was accepted is finished, and the process ends with code 0.

    Args:
        serving: What, and to whom.
        mount: Puts further pages into the app.
        announce: Is told the address when requests are answered.

    Raises:
        UserError: see `build_app`; an address that cannot be listened at.
    """
    import uvicorn

    from ra_hmd.serve.metrics import configure_logging

    with _listen(serving.host, serving.port) as listening:
        app = build_app(serving, mount)
        configure_logging(sys.stderr)
        scorer = app.state.context.service.detector.scorer
        for head in ("lrc", *(["rkc"] if scorer.reference_set is not None else [])):
            _log.info(scorer.told(head))
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(int(serving.settings.time_limit), 1),
        )

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                announce(_address(listening) + serving.root_path)

            def handle_exit(self, sig: int, frame: Any) -> None:
                app.state.ending = True  # for streams of a page, which would go on until nobody looks at it
                super().handle_exit(sig, frame)

        with _quiet_end():
            Server(config).run([listening])


@contextlib.contextmanager
def _quiet_end() -> Any:
    """Uvicorn, when it has ended well, sends itself the signal that ended it, for handlers that were there before."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        plain = isinstance(error, OSError) and (error.errno or 0) > 0  # a name that is not known has a negative number
        words = os.strerror(error.errno) if plain else getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--host {host} --port {port}: {words}; choose another, `--port 0` takes a free one."
        ) from error


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_installed() -> None:
    """Raise `UserError` unless what serving needs is installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"Serving needs the extra `serve` ({', '.join(missing)} missing): pip install 'ra-hmd[serve]'.")
