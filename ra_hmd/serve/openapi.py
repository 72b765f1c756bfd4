"""The OpenAPI document: the bodies that routes parse themselves, stable operation ids, tags, examples and security."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from ra_hmd.serve import case_schemas, schemas
from ra_hmd.serve.errors import ErrorResponse
from ra_hmd.serve.examples import ANSWERS, REQUESTS
from ra_hmd.serve.middleware import OPEN_PATHS
from ra_hmd.serve.moderation import ModerationRequest

BODIES = (
    schemas.ClassifyRequest,
    schemas.ExplainRequest,
    schemas.SearchRequest,
    schemas.EffectRequest,
    schemas.AddRequest,
    schemas.RemoveRequest,
    schemas.RelabelRequest,
    schemas.RollbackRequest,
    ModerationRequest,
    case_schemas.CasesRequest,
    case_schemas.AppealRequest,
    case_schemas.DecisionRequest,
    case_schemas.UndoRequest,
)
_TAGS = {
    "memes": "Verdicts on memes, and words about them.",
    "jobs": "Large batches, judged beside the requests.",
    "bank": "The example bank that votes: search, preview, change, history.",
    "cases": "Memes that people decide on: intake, decisions, appeals, the audit log.",
    "service": "What serves, and how it is.",
}


def operation_id(route: APIRoute) -> str:
    """Stable id of a route: its tag and the name of its function, such as `bank_add`. Generated clients have methods of
    these names.
    """
    return "_".join([*map(str, route.tags[:1]), route.name])


def openapi_document(app: FastAPI, *, locked: bool) -> dict[str, Any]:
    """Return the OpenAPI document of an app, made once.

    Args:
        app: The app.
        locked: Whether keys are required.
    """
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        _, bodies = models_json_schema(
            [*((kind, "validation") for kind in BODIES), (ErrorResponse, "serialization")],
            ref_template="#/components/schemas/{model}",
        )
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(bodies["$defs"])
        operations = [(path, one) for path, item in document["paths"].items() for one in item.values()]
        used = {tag for _, one in operations for tag in one.get("tags", ())}
        document["tags"] = [{"name": name, "description": _TAGS[name]} for name in _TAGS if name in used]
        for path, operation in operations:
            _add_examples(operation)
            if locked:
                operation["security"] = [] if path in OPEN_PATHS else [{"bearer": []}, {"key": []}]
        if locked:
            components["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
        app.openapi_schema = document
    return app.openapi_schema


def _add_examples(operation: dict[str, Any]) -> None:
    name = operation["operationId"]
    if name in REQUESTS:
        operation["requestBody"]["content"]["application/json"]["example"] = REQUESTS[name]
    if name in ANSWERS:
        for status, answer in operation["responses"].items():
            if status.startswith("2"):
                (content,) = answer["content"].values()
                content["example"] = ANSWERS[name]
