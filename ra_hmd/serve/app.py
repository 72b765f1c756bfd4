"""The HTTP API: a FastAPI app around a batching service. See docs/api.md."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema
from starlette.middleware import Middleware

from ra_hmd import __version__
from ra_hmd.inference.types import Explain
from ra_hmd.serve import schemas
from ra_hmd.serve.auth import KeyRing
from ra_hmd.serve.bank_routes import bank_routes
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.context import AppContext
from ra_hmd.serve.errors import ErrorResponse, install_error_handlers
from ra_hmd.serve.follower import BankFollower
from ra_hmd.serve.jobs_metrics import JobCollector
from ra_hmd.serve.jobs_routes import job_routes
from ra_hmd.serve.jobs_runner import JobRunner
from ra_hmd.serve.limits import FollowSettings, RequestLimits
from ra_hmd.serve.metrics import Metrics
from ra_hmd.serve.middleware import (
    OPEN_PATHS,
    AuthMiddleware,
    BodyLimit,
    HostMiddleware,
    RequestMetrics,
    RootPathMiddleware,
)
from ra_hmd.serve.routes import meme_routes, system_routes

_BODIES = (
    schemas.ClassifyRequest,
    schemas.ExplainRequest,
    schemas.SearchRequest,
    schemas.EffectRequest,
    schemas.AddRequest,
    schemas.RemoveRequest,
    schemas.RelabelRequest,
    schemas.RollbackRequest,
)


def create_app(
    service: BatchingService,
    bank_service: BankService | None = None,
    explainer: Explain | None = None,
    keys: KeyRing | None = None,
    limits: RequestLimits | None = None,
    hosts: Sequence[str] = ("*",),
    root_path: str = "",
    follow: FollowSettings | None = None,
    jobs: JobRunner | None = None,
) -> FastAPI:
    """Create the API as an ASGI app. The app closes the service when it shuts down.

    Args:
        service: Batching service that scores memes.
        bank_service: Searches and changes the example bank; without it the bank routes answer 404.
        explainer: Generates rationales; without it `/v1/explain` answers 404.
        keys: API keys; None: read requests are anonymous, and changes are refused.
        limits: Limits of requests.
        hosts: Allowed host names in the form of `normalize_host`; `*` allows any.
        root_path: Path prefix of a reverse proxy, without a slash at its end.
        follow: How the app follows an example bank that other processes change.
        jobs: Takes and judges large batches; without it the routes of jobs answer 404.

    Returns:
        The app; `app.state.context` is its `AppContext`, `app.state.root_path` its root path.
    """
    limits = limits or RequestLimits()
    if bank_service is not None and bank_service.timeout is None:
        bank_service.timeout = limits.time_limit
    bank = service.detector.scorer.bank
    follower = None if bank is None else BankFollower(service, bank, follow or FollowSettings())
    context = AppContext(service, bank_service, explainer, keys, limits, follower)
    metrics = Metrics(service, follower)
    if jobs is not None:
        metrics.registry.register(JobCollector(jobs))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if follower is not None:
            follower.start()
        yield
        if jobs is not None:
            await run_sync(jobs.close)
        await run_sync(context.close, limits.time_limit)

    app = FastAPIOffline(
        redoc_url=None,
        title="ra-hmd",
        version=__version__,
        summary="Verdicts on memes, and the example bank that votes.",
        lifespan=lifespan,
        middleware=[
            Middleware(RootPathMiddleware, root_path=root_path),
            Middleware(RequestMetrics, metrics=metrics),
            Middleware(HostMiddleware, names=hosts),
            Middleware(AuthMiddleware, keys=keys),
            Middleware(BodyLimit, limits=limits, jobs=None if jobs is None else jobs.settings),
        ],
    )
    app.state.context, app.state.root_path = context, root_path
    scorer = service.detector.scorer
    places = {*scorer.origins, str(scorer.checkpoint), str(scorer.state["place"] or "")} - {""}
    install_error_handlers(app, sorted(places))
    routers = [meme_routes(context), job_routes(context, jobs), bank_routes(context), system_routes(context, metrics)]
    for router in [app.router, *routers]:
        _add_head_routes(router)
    for router in routers:
        app.include_router(router)
    app.openapi = lambda: _openapi(app, locked=keys is not None)  # type: ignore[method-assign]
    return app


def _add_head_routes(router: APIRouter) -> None:
    """Add a HEAD route for each GET route: FastAPI answers 405, and probes and proxies send HEAD requests."""
    for route in [one for one in router.routes if isinstance(one, APIRoute) and "GET" in (one.methods or ())]:
        router.add_api_route(
            route.path.removeprefix(router.prefix),
            route.endpoint,
            methods=["HEAD"],
            response_model=route.response_model,
            include_in_schema=False,
        )


def _openapi(app: FastAPI, *, locked: bool) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that routes parse themselves, and with security where keys are required."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        _, bodies = models_json_schema(
            [*((kind, "validation") for kind in _BODIES), (ErrorResponse, "serialization")],
            ref_template="#/components/schemas/{model}",
        )
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(bodies["$defs"])
        if locked:
            components["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            for path, item in document["paths"].items():
                for operation in item.values():
                    operation["security"] = [] if path in OPEN_PATHS else [{"bearer": []}, {"key": []}]
        app.openapi_schema = document
    return app.openapi_schema
