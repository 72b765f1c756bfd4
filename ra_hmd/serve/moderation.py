"""`POST /v1/moderations`: verdicts in the shape of the OpenAI moderation endpoint, for clients that speak it.

A picture is needed. The heads were trained on pictures with captions; of words alone, or on a blank picture, their
score would be that of a kind of input that they never saw, and "not flagged" would say nothing. Such requests are
refused.
"""

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, WrapValidator

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.serve.batching import ServedVerdict
from ra_hmd.serve.classes import ServedClasses
from ra_hmd.serve.context import AppContext
from ra_hmd.serve.errors import APIError, error_responses, public_name
from ra_hmd.serve.routes import BODY_ERRORS, body
from ra_hmd.serve.schemas import Strict, Version, decode_picture, keep_text
from ra_hmd.serve.uploads import read_json_body
from ra_hmd.serve.validation import RequestProblem

Applied = Literal["image", "text"]


def _decode_url(value: Any) -> bytes:
    if isinstance(value, str) and value[:5].lower() != "data:":
        raise ValueError(
            "must be a data: URL with the picture's file in base64; other addresses are not fetched, because they may "
            "lead into the network of the service"
        )
    return decode_picture(value)


class TextPart(Strict):
    """Words: the caption, or a part of it."""

    type: Literal["text"]
    text: Annotated[str, WrapValidator(keep_text)]


class ImageURL(Strict):
    """A picture as a `data:` URL. Other addresses are refused: a service that fetches what strangers name can be led
    into the network that it stands in.
    """

    url: Annotated[
        bytes,
        BeforeValidator(_decode_url),
        WithJsonSchema({"type": "string", "format": "uri", "description": "As data:image/png;base64,…"}),
    ]


class ImagePart(Strict):
    """The picture."""

    type: Literal["image_url"]
    image_url: ImageURL


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    return "texts" if isinstance(value, list) and value and isinstance(value[0], str) else "parts"


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Input = Annotated[
    Annotated[str, WrapValidator(keep_text), Tag("text")]
    | Annotated[list[Annotated[str, WrapValidator(keep_text)]], Tag("texts")]
    | Annotated[list[Part], Field(min_length=1), Tag("parts")],
    Discriminator(_kind),
]


class ModerationRequest(Strict):
    """One meme: a picture, and its caption. Words without a picture are refused (422, `picture_required`)."""

    input: Input = Field(description="A list of one picture and any number of texts, which together are the caption.")
    model: str | None = Field(None, description="Any; the served head judges, and the answer names it.")


class Moderation(BaseModel):
    """What is said of the meme."""

    flagged: bool = Field(description="Whether to hold it: flagged by its verdict, or left to a person.")
    categories: dict[str, bool] = Field(description="`hate`, and the classes of the task; others are not judged.")
    category_scores: dict[str, float] = Field(
        description="Probabilities by the head that decides; of a copy of a known meme 1 or 0, by its label."
    )
    category_applied_input_types: dict[str, list[Applied]]
    needs_review: bool = Field(description="Left to a person: no category is true then.")
    version: Version


class ModerationAnswer(BaseModel):
    """One result: that of the meme."""

    id: str
    model: str = Field(description="What judged: ra-hmd: and the name of the run.")
    results: list[Moderation]


def moderation_routes(context: AppContext, classes: ServedClasses) -> APIRouter:
    """`/v1/moderations`."""
    router = APIRouter(prefix="/v1", tags=["memes"])

    @router.post(
        "/moderations",
        response_model=ModerationAnswer,
        responses=error_responses(*BODY_ERRORS),
        openapi_extra=body(ModerationRequest),
    )
    async def moderate(request: Request) -> ModerationAnswer:
        """Judge one meme, in the shape of the OpenAI moderation endpoint: its clients work with another base URL."""
        meme = _to_meme(await read_json_body(request, ModerationRequest))
        (result,) = await context.classify(request, [meme])
        if isinstance(result, UserError):
            raise APIError(422, str(result), code="unusable_meme")
        context.watch(request, [result])
        model = f"ra-hmd:{public_name(result.version['run'])}"
        return ModerationAnswer(id=f"modr-{meme.id}", model=model, results=[to_moderation(result, classes)])

    return router


def _to_meme(sent: ModerationRequest) -> Meme:
    parts = [] if isinstance(sent.input, str) else [part for part in sent.input if not isinstance(part, str)]
    pictures = [number for number, part in enumerate(parts) if isinstance(part, ImagePart)]
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    if not pictures:
        what = "must have a part of the type image_url"
        raise APIError(
            422,
            "There is no picture. This service judges memes, a picture with its caption; of words alone its score "
            "would say nothing. Send a part of the type image_url with the picture as a data: URL.",
            [RequestProblem(where="input", what=what, pointer="/input")],
            code="picture_required",
        )
    if len(pictures) > 1:
        place = pictures[1]
        problem = RequestProblem(where=f"input.{place}", what="is a second picture", pointer=f"/input/{place}")
        raise APIError(422, "A meme has one picture; send a request for each.", [problem], code="one_picture")
    picture = parts[pictures[0]]
    assert isinstance(picture, ImagePart)
    return Meme(uuid.uuid4().hex, picture.image_url.url, " ".join(texts) if texts else None)


def to_moderation(served: ServedVerdict, classes: ServedClasses) -> Moderation:
    """Put a verdict into the shape of the endpoint."""
    verdict = served.verdict
    members = classes.members(verdict.verdict)
    stated = verdict.probabilities.get(verdict.head)
    scores = [float(member) for member in members] if stated is None else classes.probabilities(stated)
    categories = {name: bool(value) for name, value in classes.categories([float(one) for one in members]).items()}
    inputs: list[Applied] = ["image", "text"] if verdict.text.strip() else ["image"]
    left = verdict.verdict is None
    return Moderation(
        flagged=left or any(members[number] for number in classes.flagged),
        categories=categories,
        category_scores=classes.categories(scores),
        category_applied_input_types=dict.fromkeys(categories, inputs),
        needs_review=left,
        version=Version(**served.version),
    )
