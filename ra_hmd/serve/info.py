"""`GET /v1/info`: what serves, which model and bank, and what it accepts."""

from contextlib import suppress
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ra_hmd import __version__
from ra_hmd.core.artifacts import MANIFEST_NAME
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import BANK_HEADS
from ra_hmd.core.manifests import HeadRunManifest, read_manifest
from ra_hmd.core.problem import ProblemType
from ra_hmd.data.image_files import PICTURE_FORMATS
from ra_hmd.serve.build import build_name
from ra_hmd.serve.classes import ServedClasses
from ra_hmd.serve.context import AppContext
from ra_hmd.serve.errors import error_responses, public_name
from ra_hmd.serve.schemas import BankVersion


class TaskInfo(BaseModel):
    """What is decided of a meme."""

    kind: ProblemType
    classes: list[str] = Field(description="Name of each class, in the order of the labels.")
    flagged: list[str] = Field(description="The classes that flag a meme in `/v1/moderations`.")


class BankState(BankVersion):
    """The bank that votes."""

    rows: int | None = Field(None, description="Memes in an example bank.")
    changeable: bool = Field(description="Whether the routes below /v1/bank answer.")


class Limits(BaseModel):
    """What a request may be; see `ra-hmd serve --help`."""

    max_bytes: int
    max_images: int
    max_pixels: int
    max_text: int
    max_queue: int
    time_limit: float
    rate_limit: int | None = Field(description="Requests a minute of a key without a limit of its own; null: none.")


class Info(BaseModel):
    """What serves, and what it accepts."""

    name: Literal["ra-hmd"] = "ra-hmd"
    version: str
    build: str | None = Field(description="Commit or other name of the build; null: not known.")
    run: str = Field(description="Name of the folder of the model.")
    model: str = Field(description="Name of the language model or encoder that the head is on.")
    head: Literal["lmh", "lrc", "rkc", "krr"] = Field(description="The head that decides.")
    heads: list[str] = Field(description="All that score.")
    task: TaskInfo
    bank: BankState | None
    rationales: bool = Field(description="Whether /v1/explain answers.")
    cases: bool = Field(description="Whether the routes below /v1/cases answer.")
    formats: list[str] = Field(description="Formats of pictures.")
    limits: Limits


def info_routes(context: AppContext, classes: ServedClasses) -> APIRouter:
    """`/v1/info`."""
    router = APIRouter(prefix="/v1", tags=["service"])
    detector, build = context.service.detector, build_name()
    model = _model_name(context)
    limits = {name: getattr(context.limits, name) for name in Limits.model_fields if name != "max_queue"}
    task = TaskInfo(
        kind=classes.problem.kind,
        classes=list(classes.names),
        flagged=[classes.names[number] for number in classes.flagged],
    )

    @router.get("/info", response_model=Info, responses=error_responses(400, 401, 429))
    async def info() -> Info:
        """What serves: version, model, task, bank, formats and limits."""
        return Info(
            version=__version__,
            build=build,
            run=public_name(str(detector.scorer.checkpoint)),
            model=model,
            head=detector.head,
            heads=_heads(context),
            task=task,
            bank=_bank(context),
            rationales=context.explainer is not None,
            cases=context.cases is not None,
            formats=list(PICTURE_FORMATS.values()),
            limits=Limits(**limits, max_queue=context.service.settings.max_queue),
        )

    return router


def _model_name(context: AppContext) -> str:
    with suppress(UserError):
        manifest = read_manifest(context.service.detector.scorer.checkpoint / MANIFEST_NAME, HeadRunManifest)
        return manifest.model_name
    return ""


def _heads(context: AppContext) -> list[str]:
    scorer = context.service.detector.scorer
    words = ["lmh"] if hasattr(context.service.detector.model, "run") else []
    bank = [] if scorer.reference_set is None else [one for one in BANK_HEADS if one == "rkc" or scorer.kernel]
    return [*words, "lrc", *bank]


def _bank(context: AppContext) -> BankState | None:
    scorer = context.service.detector.scorer
    if scorer.reference_set is None:
        return None
    state: dict[str, Any] = scorer.state
    rows = None if scorer.bank is None else len(scorer.bank)
    return BankState(**state, rows=rows, changeable=context.bank_service is not None)
