"""Routes for memes, and for the health and the metrics of the service."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ra_hmd.core.errors import UserError
from ra_hmd.data.image_files import PICTURE_FORMAT_NAMES
from ra_hmd.data.meme import Meme
from ra_hmd.inference.types import Explain, Explanation
from ra_hmd.serve.batching import ServedVerdict
from ra_hmd.serve.context import AppContext
from ra_hmd.serve.errors import APIError, error_responses
from ra_hmd.serve.metrics import Metrics
from ra_hmd.serve.probe_schemas import Following, Health, Ready
from ra_hmd.serve.schemas import (
    ClassifyAnswer,
    ClassifyRequest,
    ExplainAnswer,
    ExplainRequest,
    JudgedMeme,
    NotJudged,
    Rationale,
    to_meme,
)
from ra_hmd.serve.uploads import read_json_body, read_posted_memes

FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "images": {
            "type": "array",
            "items": {"type": "string", "contentMediaType": "application/octet-stream", "minLength": 1},
            "minItems": 1,
            "description": f"Files: {PICTURE_FORMAT_NAMES}.",
        },
        "texts": {"type": "array", "items": {"type": "string"}, "description": "The caption of each image, or none."},
        "ids": {"type": "array", "items": {"type": "string"}, "description": "The name of each image, or none."},
    },
    "required": ["images"],
    "additionalProperties": False,
}
BODY_ERRORS = (400, 401, 408, 413, 415, 422, 429, 503, 504)


def body(kind: type[Any], **others: Any) -> dict[str, Any]:
    """OpenAPI description of a request body: JSON of a model, and other content types with their schemas."""
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    content = {"application/json": reference, **others}
    return {"requestBody": {"required": True, "content": {name: {"schema": value} for name, value in content.items()}}}


def meme_routes(context: AppContext) -> APIRouter:
    """`/v1/classify` and `/v1/explain`."""
    router = APIRouter(prefix="/v1", tags=["memes"])

    @router.post(
        "/classify",
        response_model=ClassifyAnswer,
        responses=error_responses(*BODY_ERRORS),
        openapi_extra=body(ClassifyRequest, **{"multipart/form-data": FORM}),
    )
    async def classify(request: Request) -> Any:
        """Judge one meme or several. In a batch a meme that cannot be judged has an `error` in its place; of a single
        one that is the answer's status, 422. Of an animated picture the first frame is judged, upright, with
        transparent parts white.
        """
        memes = [to_meme(meme) for meme in await read_posted_memes(request, context.limits)]
        results = await context.classify(request, memes)
        if len(results) == 1 and isinstance(results[0], UserError):
            raise APIError(422, named_error(memes[0], results[0]), code="unusable_meme")
        context.watch(request, results)
        answers = [_answer(meme, result) for meme, result in zip(memes, results, strict=True)]
        return JSONResponse({"results": [one.model_dump(exclude_unset=True) for one in answers]})

    @router.post(
        "/explain",
        response_model=ExplainAnswer,
        responses=error_responses(*BODY_ERRORS, 404),
        openapi_extra=body(ExplainRequest),
    )
    async def explain(request: Request) -> ExplainAnswer:
        """Judge one meme, and let the language model put the verdict into words, under the operator's policy."""
        meme = to_meme((await read_json_body(request, ExplainRequest)).meme)
        if context.explainer is None:
            sentence = "No rationales are available: the head is on an encoder, which generates no text."
            raise APIError(404, sentence, code="no_rationales")
        deadline = request.state.deadline
        call = partial(_explain, context, context.explainer, meme, deadline)
        async with context.reserve_pixels(request, [meme]):
            served, explanation = await context.explain_limit.run(call, deadline)
        return ExplainAnswer(result=JudgedMeme(**served.to_dict()), explanation=Rationale(**explanation.to_dict()))

    return router


def system_routes(context: AppContext, figures: Metrics) -> APIRouter:
    """`/health`, `/ready`, `/metrics`."""
    router = APIRouter(tags=["service"])

    @router.get("/health", response_model=Health)
    async def health() -> Health:
        """The process answers."""
        return Health()

    @router.get("/ready", response_model=Ready, responses=error_responses(503))
    async def ready() -> Ready:
        """Memes are accepted and judged, by a bank that is not too old."""
        if not context.service.ready:
            sentence = "Memes are not judged: the service is closing, or its worker has ended."
            raise APIError(503, sentence, code="not_ready")
        return Ready(waiting=context.service.pending, bank=_following(context))

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **error_responses(401)},
    )
    def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(figures.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _following(context: AppContext) -> Following | None:
    """Lag of the bank. Raises `APIError` (503) where it is too large."""
    if context.follower is None:
        return None
    lag = context.follower.lag
    if lag.too_large:
        sentence = (
            f"This replica was last known to be at the newest version of the bank {lag.seconds:.1f} s ago, and "
            f"{lag.limit:g} s are allowed (--max-lag). It votes with version {lag.version}, and {lag.newest} exists."
        )
        raise APIError(503, sentence, bank_version=lag.version, code="bank_too_old")
    seconds = round(lag.seconds, 3)
    return Following(version=lag.version, newest=lag.newest, versions_behind=lag.versions, seconds_behind=seconds)


def _answer(meme: Meme, result: ServedVerdict | UserError) -> JudgedMeme | NotJudged:
    if isinstance(result, UserError):
        return NotJudged(id=meme.id, error=named_error(meme, result))
    return JudgedMeme(**result.to_dict())


def named_error(meme: Meme, error: UserError) -> str:
    """Message of an error with the id of its meme; errors of the detector have it already."""
    message, prefix = str(error), f"meme {meme.id!r}: "
    return message if message.startswith(prefix) else prefix + message


def _explain(context: AppContext, explainer: Explain, meme: Meme, deadline: float) -> tuple[ServedVerdict, Explanation]:
    """Score a meme and explain its verdict; `deadline` is a time of the monotonic clock, as the event loop's is."""
    prepared = context.service.detector.prepare(meme)
    with context.service.exclusive(max(deadline - time.monotonic(), 0)) as detector:
        (verdict,) = detector.judge([prepared])
        (explanation,) = explainer([verdict], [detector.image_of(prepared)])
        return ServedVerdict(replace(meme, text=verdict.text), verdict, detector.version), explanation
