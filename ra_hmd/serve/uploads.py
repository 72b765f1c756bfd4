"""From a request's body to memes, with nothing written to disk and nothing decoded that is too large.

Names of uploaded files are not looked at. Pictures are only looked into here, for format and size; they are decoded in
the service's threads.
"""

import json
import re
from collections.abc import Sequence
from io import BytesIO
from typing import Any, TypeVar

from anyio.to_thread import run_sync
from fastapi import Request
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, TypeAdapter, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.serve.errors import APIError, RequestProblem, validation_problems
from ra_hmd.serve.limits import FORMATS, RequestLimits
from ra_hmd.serve.schemas import ClassifyRequest, MemeId, MemeIn

Model = TypeVar("Model", bound=BaseModel)
_JSON, _FORM = "application/json", "multipart/form-data"
_FIELDS = ("images", "texts", "ids")
_ID = TypeAdapter(MemeId)
_MOST_READS = 10_000
_SURROGATE = re.compile("[\ud800-\udfff]")


class _ReadLimitedFile(BytesIO):
    """A file that is given up after more reads than a header needs: of a GIF of a million comments Pillow joins each to
    all before it, which takes the square of their number.
    """

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MOST_READS:
            raise OSError("its header has too many parts")
        return super().read(size)


async def read_json(request: Request, kind: type[Model]) -> Model:
    """The body as a model. Read in a thread: it may be large.

    Raises:
        Refusal: 415 for another content type, 422 for a body that does not fit.
    """
    if _content_type(request) != _JSON:
        raise APIError(415, f"The body must be {_JSON}.")
    body = await request.body()
    try:
        return await run_sync(lambda: kind.model_validate(_parsed(body)))
    except ValidationError as error:
        raise APIError(422, "The body does not fit.", validation_problems(error)) from None


def _parsed(body: bytes) -> Any:
    """The value of a JSON text, in UTF-8 with or without a byte order mark, UTF-16 or UTF-32. Halves of surrogate
    pairs are kept: only the meme whose caption has one is refused.
    """
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        words = f"{error.msg}, line {error.lineno}, column {error.colno}"
    except UnicodeDecodeError:
        words = "its bytes are not UTF-8"
    except RecursionError:
        words = "it is nested too deeply"
    except ValueError:
        words = "a number has too many digits"
    raise APIError(422, "The body does not fit.", [RequestProblem(where="body", what=f"Invalid JSON: {words}")])


async def read_memes(request: Request, settings: RequestLimits) -> list[MemeIn]:
    """Memes of JSON, or of a form with `images` (files) and perhaps `texts` and `ids`, one for each image.

    Raises:
        Refusal: 413 for too many, 415 for another content type, 422 for a body that does not fit.
    """
    if _content_type(request) == _FORM:
        memes = await _read_form(request, settings)
    elif _content_type(request) == _JSON:
        memes = (await read_json(request, ClassifyRequest)).memes
    else:
        raise APIError(415, f"The body must be {_JSON} or {_FORM}.")
    check_meme_count(memes, settings)
    return memes


def check_meme_count(memes: Sequence[object], settings: RequestLimits) -> None:
    """Raises `APIError` for more memes than a request may have."""
    if len(memes) > settings.max_images:
        raise APIError(413, f"{len(memes)} memes are sent, and a request may have {settings.max_images}; send fewer.")


def pixels(query: Meme, settings: RequestLimits) -> int:
    """How many pixels the picture of a meme has, by its header.

    Raises:
        UserError: no picture, one of a format that is not decoded, one with too many pixels, a caption that is too
            long or no text.
    """
    if query.text is not None and len(query.text) > settings.max_text:
        raise UserError(f"its caption has {len(query.text)} characters, and at most {settings.max_text} are let in")
    if query.text is not None and (half := _SURROGATE.search(query.text)):
        raise UserError(
            f"its caption has half of a character outside the basic plane, such as an emoji, at position {half.start()}"
            f" (U+{ord(half.group()):04X} alone); cut texts between characters"
        )
    try:
        with Image.open(_ReadLimitedFile(query.image), formats=FORMATS) as image:  # type: ignore[arg-type]
            width, height = image.size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, Image.DecompressionBombError):
            raise UserError(f"its picture has more than the {settings.max_pixels} pixels that are let in") from error
        raise UserError(f"its picture cannot be opened as any of {', '.join(FORMATS)}") from error
    if width * height > settings.max_pixels:
        raise UserError(f"its picture has {width} x {height} pixels; at most {settings.max_pixels} are let in")
    return width * height


async def _read_form(request: Request, settings: RequestLimits) -> list[MemeIn]:
    parser = MultiPartParser(
        request.headers,
        request.stream(),
        max_files=len(_FIELDS) * settings.max_images,  # captions and ids may come as files too
        max_fields=len(_FIELDS) * settings.max_images,
        max_part_size=8 * settings.max_text + 4096,
    )
    parser.spool_max_size = settings.max_bytes + 1  # more than can come: a picture never becomes a temporary file
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        words = getattr(error, "message", str(error))
        raise APIError(413 if words.startswith(("Too many", "Part exceeded")) else 422, f"The form: {words}") from error
    problems = [RequestProblem(where=name, what="is no field of this form") for name in form if name not in _FIELDS]
    pictures = form.getlist("images")
    images = [await item.read() for item in pictures if isinstance(item, UploadFile)]
    try:
        texts, ids = [[await _words(item) for item in form.getlist(name)] for name in ("texts", "ids")]
    except UnicodeDecodeError:
        raise APIError(422, "The form does not fit: a file among `texts` or `ids` is not text in UTF-8.") from None
    finally:
        await form.close()
    if not images:
        problems.append(RequestProblem(where="images", what="at least one file is needed"))
    elif len(images) < len(pictures):
        problems.append(
            RequestProblem(where="images", what="some are plain fields; send each picture as a file, with its name")
        )
    for name, values in (("texts", texts), ("ids", ids)):
        if values and len(values) != len(images):
            problems.append(
                RequestProblem(where=name, what=f"{len(values)} are given for {len(images)} images: all, or none")
            )
    if problems:
        raise APIError(422, "The form does not fit.", problems)
    try:
        return [
            MemeIn.model_construct(
                image=image,
                text=texts[place] if texts else None,
                id=_ID.validate_python(ids[place]) if ids else None,
            )
            for place, image in enumerate(images)
        ]
    except ValidationError as error:
        raise APIError(422, "The form does not fit.", validation_problems(error)) from None


async def _words(item: UploadFile | str) -> str:
    """The text of a field, or of a file: clients such as `requests` send strings among `files` as files."""
    return item if isinstance(item, str) else (await item.read()).decode("utf-8-sig")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
