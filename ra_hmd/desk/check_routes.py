"""Routes of the check of a single meme. The server keeps nothing between two requests: the page has the picture."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ra_hmd.cases.steps import CaseConflict
from ra_hmd.core.errors import UserError
from ra_hmd.data.image_files import PICTURE_FORMAT_NAMES
from ra_hmd.desk.checking import Upload, correct, judge, rationale
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.pictures import jpeg
from ra_hmd.desk.verdict_view import VerdictWords
from ra_hmd.desk.visits import Visit, visits
from ra_hmd.serve.batching import ServedVerdict
from ra_hmd.serve.limits import RequestLimits
from ra_hmd.serve.uploads import content_type


@dataclass(frozen=True)
class CheckForm:
    """What the page sends: a new picture, or one that was judged before, and what is to be done."""

    upload: Upload
    labels: list[str]
    reason: str


def add_check_routes(router: APIRouter, desk: Desk) -> None:
    """Add the check of a meme, the rationale of its verdict and its correction."""
    Visited = Annotated[Visit, Depends(visits(desk))]

    async def show(visit: Visit, problem: str = "", status: int = 200, **values: Any) -> Response:
        words = VerdictWords(desk.names, visit.viewer.text)
        values = {"served": None, "upload": None, "rationale": "", "in_bank": {}, **values}
        if values["served"] is not None:
            values |= await run_sync(partial(_shown, desk, words, values["served"], values["upload"]))
        return visit.page("check.html", status, words=words, formats=PICTURE_FORMAT_NAMES,
                          explains=desk.explain is not None, problem=visit.viewer.text(problem), **values)  # fmt: skip

    async def answer(visit: Visit, request: Request, call: Callable[[CheckForm], dict[str, Any]]) -> Response:
        """Judge what was sent, with what a call adds to the page, or say why that cannot be."""
        try:
            form = await read_check_form(request, desk.limits)
        except UserError as error:
            return await show(visit, str(error), 422)
        try:
            values = await run_sync(call, form)
        except UserError as error:
            served = await run_sync(_judged_or_none, desk, form.upload)
            status = 409 if isinstance(error, CaseConflict) else 422
            return await show(visit, str(error), status, served=served, upload=form.upload)
        if "case" in values:
            return visit.go(f"/cases/{values['case'].id}", {"done": "checked"})
        return await show(visit, upload=form.upload, **values)

    @router.get("/check")
    async def check(visit: Visited) -> Response:
        return await show(visit)

    @router.post("/check")
    async def judged(visit: Visited, request: Request) -> Response:
        return await answer(visit, request, lambda form: {"served": judge(desk, form.upload)})

    @router.post("/check/rationale")
    async def explained(visit: Visited, request: Request) -> Response:
        def call(form: CheckForm) -> dict[str, Any]:
            served = judge(desk, form.upload)
            return {"served": served, "rationale": rationale(desk, served)}

        return await answer(visit, request, call)

    @router.post("/check/correct")
    async def corrected(visit: Visited, request: Request) -> Response:
        def call(form: CheckForm) -> dict[str, Any]:
            return {"case": correct(desk, visit.user, form.upload, desk.label_of(form.labels), form.reason)}

        return await answer(visit, request, call)


def _judged_or_none(desk: Desk, upload: Upload) -> ServedVerdict | None:
    try:
        return judge(desk, upload)
    except UserError:
        return None


def _shown(desk: Desk, words: VerdictWords, served: ServedVerdict, upload: Upload) -> dict[str, Any]:
    """What the page shows of a verdict: the picture encoded again, and in hidden fields what was sent."""
    bank = desk.cases.bank_service
    return {
        "verdict": words.view(served.to_dict(), desk.thresholds),
        "picture": base64.b64encode(jpeg(upload.picture, "large") or b"").decode(),
        "sent": base64.b64encode(upload.picture).decode(),
        "text": served.verdict.text,
        "labels": words.choices(served.verdict.verdict),
        "in_bank": {} if bank is None else bank.labels_of(served.meme),
    }


async def read_check_form(request: Request, limits: RequestLimits) -> CheckForm:
    """Parse the form of the page. No part of it becomes a temporary file.

    Raises:
        UserError: It is none, or has no picture.
    """
    if content_type(request) != "multipart/form-data":
        raise UserError("Give a picture first: drop it, paste it, or choose it.")
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=1, max_fields=50, max_part_size=limits.max_bytes
    )
    parser.spool_max_size = limits.max_bytes + 1  # more than a body may have
    try:
        sent = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        raise UserError(f"The form cannot be read: {getattr(error, 'message', error)}") from error
    texts = {name: [one for one in sent.getlist(name) if isinstance(one, str)] for name in sent}
    file = sent.get("image")
    picture = await file.read() if isinstance(file, UploadFile) else b""
    await sent.close()
    before = _decoded(_text(texts, "picture"))
    caption = _text(texts, "caption")
    again = not picture and bool(before)  # then the caption is the one that was judged, even an empty one
    upload = Upload.of(picture or before, caption if again else caption.strip() or None,
                       _text(texts, "token") if again else "")  # fmt: skip
    reason = ": ".join(part for name in ("reason", "words") if (part := _text(texts, name).strip()))
    return CheckForm(upload, texts.get("label", []), reason)


def _text(texts: dict[str, list[str]], name: str) -> str:
    return texts[name][0] if texts.get(name) else ""


def _decoded(picture: str) -> bytes:
    try:
        return base64.b64decode(picture, validate=True)
    except (binascii.Error, ValueError):
        return b""
