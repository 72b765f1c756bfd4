"""The routes about memes, and about the service itself."""

import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.inference.types import PreparedMeme
from ra_hmd.serve.batching import ServedVerdict
from ra_hmd.serve.context import AppContext
from ra_hmd.serve.errors import APIError, error_responses
from ra_hmd.serve.metrics import Metrics
from ra_hmd.serve.schemas import (
    ClassifyAnswer,
    ClassifyRequest,
    ExplainAnswer,
    ExplainRequest,
    Health,
    Judged,
    NotJudged,
    Rationale,
    Ready,
)
from ra_hmd.serve.uploads import read_json, read_memes

_FORM = {
    "type": "object",
    "properties": {
        "images": {
            "type": "array",
            "items": {"type": "string", "contentMediaType": "application/octet-stream", "minLength": 1},
            "minItems": 1,
            "description": "Files: PNG, JPEG, WebP, GIF or BMP.",
        },
        "texts": {"type": "array", "items": {"type": "string"}, "description": "The caption of each image, or none."},
        "ids": {"type": "array", "items": {"type": "string"}, "description": "The name of each image, or none."},
    },
    "required": ["images"],
    "additionalProperties": False,
}
ASKING = (400, 401, 408, 413, 415, 422, 429, 503, 504)


def body(kind: type[Any], **others: Any) -> dict[str, Any]:
    """For a route: what it takes, as JSON of a model and as other content types with their schemas."""
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    content = {"application/json": reference, **others}
    return {"requestBody": {"required": True, "content": {name: {"schema": value} for name, value in content.items()}}}


def meme_routes(context: AppContext) -> APIRouter:
    """`/v1/classify` and `/v1/explain`."""
    router = APIRouter(prefix="/v1", tags=["memes"])

    @router.post(
        "/classify",
        response_model=ClassifyAnswer,
        responses=error_responses(*ASKING),
        openapi_extra=body(ClassifyRequest, **{"multipart/form-data": _FORM}),
    )
    async def classify(request: Request) -> Any:
        """Judge one meme or several. In a batch a meme that cannot be judged has an `error` in its place; of a single
        one that is the answer's status, 422. Of an animated picture the first frame is judged, upright, with
        transparent parts white.
        """
        memes = await read_memes(request, context.settings)
        queries = [meme.query() for meme in memes]
        found = await context.judge(request, queries)
        if len(found) == 1 and isinstance(found[0], UserError):
            raise APIError(422, _sentence(queries[0], found[0]))
        results = [_result(query, one) for query, one in zip(queries, found, strict=True)]
        return JSONResponse({"results": [one.model_dump(exclude_unset=True) for one in results]})

    @router.post(
        "/explain",
        response_model=ExplainAnswer,
        responses=error_responses(*ASKING, 404),
        openapi_extra=body(ExplainRequest),
    )
    async def explain(request: Request) -> ExplainAnswer:
        """Judge one meme, and let the language model put the verdict into words, under the operator's policy."""
        query = (await read_json(request, ExplainRequest)).meme.query()
        if context.explainer is None:
            raise APIError(404, "There are no rationales here: the head stands on an encoder, which has no words.")
        async with context.weighed(request, [query]):
            answer, words = await context.explain_limit.run(
                partial(_explain, context, query, request.state.deadline), request.state.deadline
            )
        return ExplainAnswer(result=Judged(**answer.to_dict()), explanation=Rationale(**words.to_dict()))

    return router


def system_routes(context: AppContext, metrics: Metrics) -> APIRouter:
    """`/health`, `/ready`, `/metrics`."""
    router = APIRouter(tags=["service"])

    @router.get("/health", response_model=Health)
    async def health() -> Health:
        """The process answers."""
        return Health()

    @router.get("/ready", response_model=Ready, responses=error_responses(503))
    async def ready() -> Ready:
        """Memes are accepted and judged."""
        if not context.service.ready:
            raise APIError(503, "Memes are not judged: the service is closing, or its worker has ended.")
        return Ready(waiting=context.service.waiting)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **error_responses(401)},
    )
    def figures() -> Response:
        """For Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _result(query: Meme, found: ServedVerdict | UserError) -> Judged | NotJudged:
    if isinstance(found, UserError):
        return NotJudged(id=query.id, error=_sentence(query, found))
    return Judged(**found.to_dict())


def _sentence(query: Meme, error: UserError) -> str:
    """What is wrong with a meme; those that the detector says name it already."""
    words, name = str(error), f"meme {query.id!r}: "
    return words if words.startswith(name) else name + words


def _explain(context: AppContext, query: Meme, deadline: float) -> tuple[ServedVerdict, Any]:
    """`deadline` is of the monotonic clock, as the event loop's is; past it nobody waits for the words."""
    prepared: PreparedMeme = context.service.detector.prepare(query)
    with context.service.exclusive(max(deadline - time.monotonic(), 0)) as detector:
        (found,) = detector.judge([prepared])
        (words,) = context.explainer([found], [prepared.image])  # type: ignore[misc]
        return ServedVerdict(found, detector.version), words
