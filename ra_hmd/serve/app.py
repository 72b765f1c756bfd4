"""The API: a FastAPI app around a service. See docs/api.md."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema
from starlette.middleware import Middleware

from ra_hmd import __version__
from ra_hmd.serve import schemas
from ra_hmd.serve.auth import KeyRing
from ra_hmd.serve.bank_routes import bank_routes
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.context import AppContext
from ra_hmd.serve.errors import install_error_handlers
from ra_hmd.serve.limits import RequestLimits
from ra_hmd.serve.metrics import Metrics
from ra_hmd.serve.middleware import OPEN, AuthMiddleware, BodyLimit, HostMiddleware, RequestMetrics, RootPathMiddleware
from ra_hmd.serve.routes import meme_routes, system_routes

if TYPE_CHECKING:
    from ra_hmd.inference.explainer import Explainer

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
    explainer: "Explainer | None" = None,
    keys: KeyRing | None = None,
    settings: RequestLimits | None = None,
    hosts: Sequence[str] = ("*",),
    root_path: str = "",
) -> FastAPI:
    """The API as an ASGI app. When it ends, it closes the service.

    Args:
        service: Judges.
        desk: Where its bank is changed; None: no routes to a bank.
        explainer: Puts verdicts into words.
        keys: Who may ask; None: everyone may ask, and nobody may change the bank.
        settings: Limits.
        hosts: Names by which it may be called, as `normalize_host` gives them; `*` is any.
        root_path: Path under which a proxy shows it, without a slash at its end.

    Returns:
        The app; `app.state.asking` has its parts, `app.state.root_path` its path.
    """
    settings = settings or RequestLimits()
    context, metrics = AppContext(service, bank_service, explainer, keys, settings), Metrics(service)
    if bank_service is not None and bank_service.patience is None:
        bank_service.patience = settings.time_limit

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_sync(context.close, settings.time_limit)

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
            Middleware(BodyLimit, settings=settings),
        ],
    )
    app.state.context, app.state.root_path = context, root_path
    scorer = service.detector.scorer
    places = {*scorer.origins, str(scorer.checkpoint), str(scorer.state["place"] or "")} - {""}
    install_error_handlers(app, sorted(places))
    routers = [meme_routes(context), bank_routes(context), system_routes(context, metrics)]
    for router in [app.router, *routers]:
        _answer_head(router)
    for router in routers:
        app.include_router(router)
    app.openapi = lambda: _openapi(app, locked=keys is not None)  # type: ignore[method-assign]
    return app


def _answer_head(router: APIRouter) -> None:
    """Let HEAD be asked wherever GET may be: FastAPI answers 405, and probes and proxies ask it."""
    for route in [one for one in router.routes if isinstance(one, APIRoute) and "GET" in one.methods]:
        router.add_api_route(
            route.path.removeprefix(router.prefix),
            route.endpoint,
            methods=["HEAD"],
            response_model=route.response_model,
            include_in_schema=False,
        )


def _openapi(app: FastAPI, *, locked: bool) -> dict[str, Any]:
    """The description of the API, with the bodies that routes read themselves, and keys where they are needed."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        _, bodies = models_json_schema(
            [(kind, "validation") for kind in _BODIES], ref_template="#/components/schemas/{model}"
        )
        components = described.setdefault("components", {})
        components.setdefault("schemas", {}).update(bodies["$defs"])
        if locked:
            components["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            for path, item in described["paths"].items():
                for operation in item.values():
                    operation["security"] = [] if path in OPEN else [{"bearer": []}, {"key": []}]
        app.openapi_schema = described
    return app.openapi_schema
