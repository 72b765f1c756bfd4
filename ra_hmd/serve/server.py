"""From settings to a running server: the detector, its services, the app around them, and uvicorn."""

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from ra_hmd.bank.backends.base import is_bank
from ra_hmd.core.choices import DType
from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.retrieval.voting import Voting
from ra_hmd.serve.hosts import is_loopback, normalize_host, normalize_root_path
from ra_hmd.serve.limits import BatchingSettings, RequestLimits

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ra_hmd.inference.detector import Detector
    from ra_hmd.inference.explainer import Explainer
    from ra_hmd.inference.meme_lookup import MemeLookup

_log = logging.getLogger("ra_hmd.serve")
_PACKAGES = ("fastapi", "fastapi_offline", "uvicorn", "python_multipart", "prometheus_client")
KEEP_ALIVE_SECONDS = 620
"""How long an idle connection stays open. It must be longer than in the proxy in front, which otherwise sends a request
into a connection that is just being closed, and its client gets 502. nginx and the load balancers of AWS keep
connections for 60 seconds, Traefik for 90, Caddy for 120, Azure for 240, and Google Cloud for 600.
"""


class ServerSettings(Settings):
    """Settings of a server: its detector, its address, who may use it, and its limits.

    Raises:
        UserError: values out of range; an address that others can reach, without keys; an invalid host or root path.
    """

    TITLE = "server"

    run: Path = Field(description="Folder with the head whose verdicts are served.")
    bank: str | None = Field(default=None, description="Labelled memes that vote: a feature store, or an example bank.")
    head: Head | None = Field(default=None, description="Deciding head; by default the RKC with a bank, else the LRC.")
    thresholds: Literal["stored", "official"] = Field(
        default="stored", description="Thresholds: stored beside the head, or official."
    )
    voting: Voting | None = Field(default=None, description="The vote of the neighbours; by default the official one.")
    abstain: float = Field(default=0.0, ge=0, lt=0.5, description="Abstain this near to the threshold's probability.")
    backbone: str | None = Field(default=None, description="Stage 1 run or encoder of the head, if moved.")
    base_model: str | None = Field(default=None, description="Folder or name of the base model, if moved.")
    dtype: DType | None = Field(default=None, description="Data type of the model's computation.")
    host: str = Field(default="127.0.0.1", description="Address to listen on; another than loopback needs keys.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    keys: Path | None = Field(default=None, description="File of API keys.")
    allowed_hosts: list[str] = Field(
        default_factory=list, description="Host names beside the address and the loopback addresses."
    )
    root_path: str = Field(default="", description="Path prefix of a reverse proxy.")
    batching: BatchingSettings = Field(default=BatchingSettings(), description="Sizes of the queue and of batches.")
    limits: RequestLimits = Field(default=RequestLimits(), description="Limits of requests.")
    reference: Path | None = Field(default=None, description="Feature store to measure the impact of changes on.")
    policy: Path | None = Field(default=None, description="Text file with the operator's policy, for rationales.")
    neighbours: int = Field(default=0, ge=0, description="Number of nearest examples in the question for a rationale.")
    memes: list[Path] = Field(default_factory=list, description="Data of the bank's memes, for captions and images.")
    max_new_tokens: int = Field(default=256, ge=1, description="Longest rationale in tokens.")

    @field_validator("root_path")
    @classmethod
    def _normalized(cls, value: str) -> str:
        return normalize_root_path(value)

    def _problems(self) -> Iterator[str]:
        if self.keys is None and not is_loopback(self.host):
            yield (
                f"--host {self.host} lets others in, and there are no keys: make one with `ra-hmd serve-key NAME "
                "--role moderator --keys FILE` and give --keys FILE, or leave --host out."
            )
        try:
            _ = self.hosts
        except UserError as error:
            yield str(error)

    @property
    def hosts(self) -> list[str]:
        """Allowed Host headers, beside the loopback addresses.

        Without `allowed_hosts` all are allowed, unless the service listens on a loopback address, where a page in a
        browser could reach it under a name of its own (DNS rebinding).
        """
        if not self.allowed_hosts and not is_loopback(self.host):
            return ["*"]
        return [normalize_host(name) for name in (*self.allowed_hosts, self.host, "localhost")]


Mount = Callable[["FastAPI", "MemeLookup"], "FastAPI"]
"""Adds pages to an app of `create_app`, given the images and captions of the bank's memes."""


def build_app(settings: ServerSettings, mount: Mount | None = None) -> "FastAPI":
    """Open the detector, the bank and the keys, and build the app, which closes them when it shuts down.

    Raises:
        UserError: files that are missing, or that do not fit each other.
    """
    from ra_hmd.inference.detector import Detector
    from ra_hmd.inference.meme_lookup import open_meme_lookup
    from ra_hmd.serve.app import create_app
    from ra_hmd.serve.auth import KeyRing
    from ra_hmd.serve.bank_service import BankService
    from ra_hmd.serve.batching import BatchingService

    keys = None if settings.keys is None else KeyRing.open(settings.keys)
    detector = Detector.from_run(
        settings.run,
        settings.bank,
        backbone=settings.backbone,
        base_model=settings.base_model,
        head=settings.head,
        voting=settings.voting,
        thresholds=settings.thresholds,
        abstain=settings.abstain,
        dtype=settings.dtype,
    )
    lookup = open_meme_lookup(settings.memes, detector.model)
    for note in lookup.notes:
        _log.warning(note)
    explainer = _explainer(detector, settings, lookup)
    service = BatchingService(detector, settings.batching)
    try:
        changeable = settings.bank is not None and is_bank(settings.bank)
        if settings.reference is not None and not changeable:
            raise UserError("--reference shows what changes of an example bank would do; give one with --bank.")
        bank_service = BankService.open(service, settings.reference) if changeable else None
        hosts, root_path = settings.hosts, settings.root_path
        app = create_app(service, bank_service, explainer, keys, settings.limits, hosts, root_path)
        return app if mount is None else mount(app, lookup)
    except BaseException:
        service.close()
        raise


def _explainer(detector: "Detector", settings: ServerSettings, lookup: "MemeLookup") -> "Explainer | None":
    from ra_hmd.inference.explainer import Explainer, read_operator_text
    from ra_hmd.models.checkpoint import MemeModel

    requested = settings.policy is not None or settings.neighbours > 0
    if not requested and not isinstance(detector.model, MemeModel):
        return None
    return Explainer.of(
        detector,
        engine="transformers",  # runs the model that is loaded; vLLM would load it a second time
        lookup=lookup if settings.memes else None,
        neighbours=settings.neighbours,
        policy=read_operator_text(settings.policy),
        max_new_tokens=settings.max_new_tokens,
    )


def serve(settings: ServerSettings, mount: Mount | None = None, announce: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or SIGINT; accepted requests are finished, and the process ends with code 0.

    Args:
        settings: Settings of the server.
        mount: Adds pages to the app.
        announce: Called with the address as soon as requests are answered.

    Raises:
        UserError: see `build_app`; an address that cannot be listened on.
    """
    check_installed()
    import uvicorn

    from ra_hmd.serve.metrics import configure_logging

    with _listen(settings.host, settings.port) as listening:
        app = build_app(settings, mount)
        configure_logging(sys.stderr)
        scorer = app.state.context.service.detector.scorer
        for head in ("lrc", *(["rkc"] if scorer.reference_set is not None else [])):
            _log.info(scorer.describe_rule(head))
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(int(settings.limits.time_limit), 1),
        )

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                announce(_address(listening) + settings.root_path)

            def handle_exit(self, sig: int, frame: Any) -> None:
                app.state.ending = True  # ends the streams to open pages, which would go on while a page is open
                super().handle_exit(sig, frame)

        with _ignore_resent_signal():
            Server(config).run([listening])


@contextlib.contextmanager
def _ignore_resent_signal() -> Iterator[None]:
    """Ignore the signal that uvicorn, after a clean shutdown, sends again for the handlers installed before its own."""
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
        number = getattr(error, "errno", None) or 0  # negative where a host name is unknown
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--host {host} --port {port}: {reason}; choose another, `--port 0` takes a free one."
        ) from error


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_installed() -> None:
    """Raise `UserError` unless the packages of the extra `serve` are installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"Serving needs the extra `serve` ({', '.join(missing)} missing): pip install 'ra-hmd[serve]'.")
