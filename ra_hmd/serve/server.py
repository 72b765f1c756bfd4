"""From settings to a running server: the detector, its services, the app around them, and uvicorn."""

import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from ra_hmd.bank.backends.base import is_bank
from ra_hmd.core.errors import UserError
from ra_hmd.core.extras import check_extra
from ra_hmd.inference.options import RationaleOptions
from ra_hmd.serve.limits import KEEP_ALIVE_SECONDS
from ra_hmd.serve.listening import address_of, check_certificate, listen
from ra_hmd.serve.options import ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ra_hmd.inference.detector import Detector
    from ra_hmd.inference.explainer import Explainer
    from ra_hmd.inference.meme_lookup import MemeLookup

_log = logging.getLogger("ra_hmd.serve")
Mount = Callable[["FastAPI", "MemeLookup"], "FastAPI"]
"""Adds pages to an app of `create_app`, given the images and captions of the bank's memes."""


def build_app(settings: ServerSettings, mount: Mount | None = None) -> "FastAPI":
    """Open the detector, the bank and the keys, and build the app, which closes them when it shuts down.

    Raises:
        UserError: files that are missing, or that do not fit each other.
    """
    from ra_hmd.inference.meme_lookup import open_meme_lookup
    from ra_hmd.serve.app import create_app
    from ra_hmd.serve.auth import KeyRing
    from ra_hmd.serve.bank_service import BankService
    from ra_hmd.serve.batching import BatchingService
    from ra_hmd.serve.case_opening import open_cases
    from ra_hmd.serve.classes import ServedClasses
    from ra_hmd.serve.jobs_runner import open_jobs

    address, bank = settings.address, settings.detector.bank
    keys = None if address.keys is None else KeyRing.open(address.keys)
    detector = settings.detector.open(settings.run)
    lookup = open_meme_lookup(settings.rationale.memes, detector.model)
    for note in lookup.notes:
        _log.warning(note)
    explainer = _open_explainer(detector, settings.rationale, lookup)
    service = BatchingService(detector, settings.batching)
    try:
        changeable = bank is not None and is_bank(bank)
        if settings.reference is not None and not changeable:
            raise UserError("--reference shows what changes of an example bank would do; give one with --bank.")
        bank_service = BankService.open(service, settings.reference) if changeable else None
        limits, hosts = settings.limits, address.host_names
        classes = ServedClasses.of(detector, settings.classes.class_names, settings.classes.flag_classes)
        cases = open_cases(settings.cases, settings.policy, service, bank_service)
        jobs, follow = open_jobs(settings.jobs, service, cases), settings.follow
        app = create_app(service, bank_service, explainer, keys, limits, hosts, address.root_path, follow, jobs,
                         origins=address.allowed_origins, classes=classes, cases=cases)  # fmt: skip
        return app if mount is None else mount(app, lookup)
    except BaseException:
        service.close()
        raise


def _open_explainer(detector: "Detector", options: RationaleOptions, lookup: "MemeLookup") -> "Explainer | None":
    """Open the explainer; None for a head on an encoder, unless options of rationales are given, which is an error."""
    from ra_hmd.inference.explainer import Explainer
    from ra_hmd.models.meme_model import MemeModel

    requested = options.policy is not None or options.neighbours > 0
    if not requested and not isinstance(detector.model, MemeModel):
        return None
    return Explainer.of(
        detector,
        engine="transformers",  # runs the model that is loaded; vLLM would load it a second time
        lookup=lookup if options.memes else None,
        neighbours=options.neighbours,
        max_new_tokens=options.max_new_tokens,
        **options.texts(),
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
    check_extra("serve", "Serving")
    if settings.replicas.replicas > 1:
        _serve_replicas(settings, mount, announce)
        return
    import uvicorn

    from ra_hmd.serve.metrics import configure_logging

    check_certificate(settings.address)
    with listen(settings.address) as listening:
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
            ssl_certfile=settings.address.ssl_certfile,
            ssl_keyfile=settings.address.ssl_keyfile,
        )

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                announce(address_of(listening, settings.address))

        with _ignore_resent_signal():
            Server(config).run([listening])


def _serve_replicas(settings: ServerSettings, mount: Mount | None, announce: Callable[[str], None]) -> None:
    from ra_hmd.serve.replicas import serve_replicas

    if settings.address.uds is not None:
        raise UserError(f"--uds {settings.address.uds}: replicas listen on --host and --port; leave --uds out.")
    check_certificate(settings.address)
    with listen(settings.address) as listening:  # closed at once: Ray Serve opens the port itself
        port, address = listening.getsockname()[1], address_of(listening, settings.address)
    serve_replicas(settings, partial(build_app, mount=mount), port, lambda: announce(address))


@contextlib.contextmanager
def _ignore_resent_signal() -> Iterator[None]:
    """Ignore the signal that uvicorn, after a clean shutdown, sends again for the handlers installed before its own."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
