"""Several replicas of the API behind one address: Ray Serve starts them, shares out requests, replaces what dies."""

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra_hmd.core.errors import UserError, first_line
from ra_hmd.core.extras import check_extra
from ra_hmd.core.workers.ray_cluster import joined_cluster
from ra_hmd.core.workers.settings import WorkerSettings
from ra_hmd.serve.limits import KEEP_ALIVE_SECONDS
from ra_hmd.serve.options import AddressOptions, ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

Build = Callable[[ServerSettings], "FastAPI"]
_NAME = "ra-hmd"
_ASIDE = 64  # requests beside those for memes: of the bank, rationales, probes
_GRACE_SECONDS = 10
_QUIET = {"enable_access_log": False, "log_level": "WARNING"}  # the app logs each request by itself
_HOOK = "ra_hmd.serve.ray_setup.read_any_protobuf"


def serve_replicas(settings: ServerSettings, build: Build, port: int, announce: Callable[[], None]) -> None:
    """Serve with several replicas until SIGTERM or SIGINT; accepted requests are finished.

    Args:
        settings: Settings of the server; relative paths in them start at the present folder, on every node.
        build: Builds the app of a replica, in its process.
        port: A free port.
        announce: Called as soon as all replicas answer.

    Raises:
        UserError: Ray Serve is not installed or runs on the cluster already, no cluster answers, or a replica cannot
            start.
    """
    check_extra("ray", "--replicas")
    cluster = settings.replicas.ray_address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # equal lines of two replicas are two lines
    workers = WorkerSettings(engine="ray", ray_address=settings.replicas.ray_address)
    with joined_cluster(workers, logs=True, hook=_HOOK), _until_signal() as ended:
        from ray import serve

        from ra_hmd.serve.ray_setup import read_any_protobuf

        read_any_protobuf()
        logging.getLogger("ray.serve").setLevel(logging.ERROR)

        if serve.status().proxies:
            raise UserError(
                "Ray Serve runs on this cluster already; end it with `serve shutdown`, or leave --ray-address out."
            )
        serve.start(
            proxy_location="HeadOnly",
            http_options=_http_options(settings.address, port),
            logging_config=_QUIET,
        )
        try:
            _run(settings, build, private=cluster in (None, "", "local"))
            announce()
            ended.wait()
        finally:
            serve.shutdown()


def _http_options(address: AddressOptions, port: int) -> dict[str, Any]:
    options: dict[str, Any] = {"host": address.host, "port": port, "keep_alive_timeout_s": KEEP_ALIVE_SECONDS}
    if address.ssl_certfile is not None:
        key = address.ssl_keyfile or address.ssl_certfile
        options |= {"ssl_certfile": str(address.ssl_certfile), "ssl_keyfile": str(key)}
    return options


def _run(settings: ServerSettings, build: Build, *, private: bool) -> None:
    """Start the replicas, and wait until all of them answer."""
    import ray
    from ray import serve

    number, folder = settings.replicas.replicas, str(Path.cwd())
    gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / number)

    def build_here() -> "FastAPI":
        return _build_replica(settings, build, folder, private=private)

    class Replica:
        """A replica: the app that one process serves as well."""

        app: Any

        async def check_health(self) -> None:
            """Raise where the replica must be replaced. One that lags is kept: a new one would not be ahead of it."""
            if not self.app.state.context.service.ready:
                raise RuntimeError("memes are not judged")

    deployment: Any = serve.deployment(
        serve.ingress(build_here)(Replica),
        name=_NAME,
        num_replicas=number,
        # What a replica asks for shares out a cluster; a Ray of this command has nothing else to do.
        ray_actor_options={"num_cpus": 0 if private else 1, "num_gpus": gpus},
        max_ongoing_requests=settings.batching.max_queue + _ASIDE,
        max_constructor_retry_count=1,
        logging_config=_QUIET,
        graceful_shutdown_timeout_s=settings.limits.time_limit + _GRACE_SECONDS,
    )
    try:
        serve.run(deployment.bind(), name=_NAME, route_prefix="/")
    except RuntimeError as error:
        raise UserError(f"The replicas do not start: {_reason(error)}") from error


def _build_replica(settings: ServerSettings, build: Build, folder: str, *, private: bool) -> "FastAPI":
    """The app of a replica, in its process."""
    from starlette.middleware import Middleware

    from ra_hmd.serve.metrics import configure_logging
    from ra_hmd.serve.ray_setup import OneRequestID, keep_grpc_on_loopback

    if private:
        keep_grpc_on_loopback()
    os.chdir(folder)
    app = build(settings)
    app.user_middleware.insert(0, Middleware(OneRequestID))
    configure_logging(sys.stderr)
    return app


def _reason(error: Exception) -> str:
    """What a replica raised, from the status that Ray Serve has of it."""
    from ray import serve

    apps = serve.status().applications.values()
    text = "\n".join(deployment.message for app in apps for deployment in app.deployments.values())
    found = re.findall(r"UserError: (.+)", text)
    return found[-1] if found else first_line(error)


@contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
