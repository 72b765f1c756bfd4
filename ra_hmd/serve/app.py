"""The HTTP API: a FastAPI app around a batching service. See docs/api.md."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.middleware import Middleware

from ra_hmd import __version__
from ra_hmd.inference.types import Explain
from ra_hmd.scoring.scorer import Scorer
from ra_hmd.serve.answers import GzipAnswers, Origins
from ra_hmd.serve.audit_routes import audit_routes
from ra_hmd.serve.auth import KeyRing
from ra_hmd.serve.bank_routes import bank_routes
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.case_metrics import CaseCollector
from ra_hmd.serve.case_routes import case_routes
from ra_hmd.serve.case_service import CaseService
from ra_hmd.serve.classes import ServedClasses
from ra_hmd.serve.context import AppContext
from ra_hmd.serve.errors import install_error_handlers
from ra_hmd.serve.follower import BankFollower
from ra_hmd.serve.info import info_routes
from ra_hmd.serve.jobs_metrics import JobCollector
from ra_hmd.serve.jobs_routes import job_routes
from ra_hmd.serve.jobs_runner import JobRunner
from ra_hmd.serve.limits import FollowSettings, RequestLimits
from ra_hmd.serve.metrics import Metrics
from ra_hmd.serve.middleware import (
    AuthMiddleware,
    BodyLimit,
    HostMiddleware,
    RequestMetrics,
    RootPathMiddleware,
)
from ra_hmd.serve.moderation import moderation_routes
from ra_hmd.serve.openapi import openapi_document, operation_id
from ra_hmd.serve.rate_limit import RateLimitMiddleware
from ra_hmd.serve.routes import meme_routes, system_routes


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
    *,
    origins: Sequence[str] = (),
    classes: ServedClasses | None = None,
    cases: CaseService | None = None,
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
        origins: Origins whose pages may read answers (CORS).
        classes: Names of the classes, and those that flag a meme; by default those of the detector.
        cases: Cases that wait for people; without it the routes of cases answer 404.

    Returns:
        The app; `app.state.context` is its `AppContext`, `app.state.root_path` its root path.
    """
    limits = limits or RequestLimits()
    bank = service.detector.scorer.bank
    follower = None if bank is None else BankFollower(service, bank, follow or FollowSettings())
    context = AppContext(service, bank_service, explainer, keys, limits, follower, cases)
    metrics = Metrics(service, follower)

    app = FastAPIOffline(
        redoc_url=None,
        title="ra-hmd",
        version=__version__,
        summary="Verdicts on memes, and the example bank that votes.",
        lifespan=_lifespan(context, jobs),
        generate_unique_id_function=operation_id,
        middleware=[
            Middleware(RootPathMiddleware, root_path=root_path),
            Middleware(RequestMetrics, metrics=metrics),
            *_inner_middleware(hosts, origins, keys, limits, jobs),
        ],
    )
    _add_routes(app, context, metrics, classes or ServedClasses.of(service.detector), jobs)
    app.state.context, app.state.root_path = context, root_path
    install_error_handlers(app, _places(service.detector.scorer))
    app.openapi = lambda: openapi_document(app, locked=keys is not None)  # type: ignore[method-assign]
    return app


def _lifespan(context: AppContext, jobs: JobRunner | None) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if context.follower is not None:
            context.follower.start()
        if context.cases is not None:
            context.cases.start()
        yield
        if jobs is not None:
            await run_sync(jobs.close)
        await run_sync(context.close, context.limits.time_limit)

    return lifespan


def _inner_middleware(
    hosts: Sequence[str],
    origins: Sequence[str],
    keys: KeyRing | None,
    limits: RequestLimits,
    jobs: JobRunner | None,
) -> list[Middleware]:
    return [
        Middleware(HostMiddleware, names=hosts),
        *([Middleware(Origins, origins=origins)] if origins else []),
        Middleware(GzipAnswers),
        Middleware(AuthMiddleware, keys=keys),
        Middleware(RateLimitMiddleware, limit=limits.rate_limit),
        Middleware(BodyLimit, limits=limits, jobs=None if jobs is None else jobs.settings),
    ]


def _places(scorer: Scorer) -> list[str]:
    """Folders and URIs that error messages may name."""
    return sorted({*scorer.origins, str(scorer.checkpoint), str(scorer.state["place"] or "")} - {""})


def _add_routes(
    app: FastAPI, context: AppContext, metrics: Metrics, classes: ServedClasses, jobs: JobRunner | None
) -> None:
    if jobs is not None:
        metrics.registry.register(JobCollector(jobs))
    if context.cases is not None:
        metrics.registry.register(CaseCollector(context.cases))
    routers = [
        meme_routes(context),
        moderation_routes(context, classes),
        job_routes(context, jobs),
        bank_routes(context),
        case_routes(context),
        audit_routes(context),
        info_routes(context, classes),
        system_routes(context, metrics),
    ]
    for router in [app.router, *routers]:
        _add_head_routes(router)
    for router in routers:
        app.include_router(router)


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
