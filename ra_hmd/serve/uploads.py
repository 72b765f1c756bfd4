"""Parsing of request bodies into memes. Nothing is written to disk, and nothing too large is decoded.

Names of uploaded files are ignored. Of an image only the header is read here, for its format and size; the preparation
threads of the batching service decode it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any, TypeVar

from anyio.to_thread import run_sync
from fastapi import Request
from PIL import Image
from pydantic import BaseModel, TypeAdapter, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ra_hmd.core.errors import UserError
from ra_hmd.data.image_files import PICTURE_FORMAT_NAMES
from ra_hmd.data.images import picture_formats
from ra_hmd.data.meme import Meme
from ra_hmd.serve.errors import APIError
from ra_hmd.serve.limits import RequestLimits
from ra_hmd.serve.schemas import ClassifyRequest, MemeId, MemeIn
from ra_hmd.serve.validation import RequestProblem, body_problem, validation_problems

Model = TypeVar("Model", bound=BaseModel)
_JSON, _FORM = "application/json", "multipart/form-data"
_FIELDS = ("images", "texts", "ids")
_ID = TypeAdapter(MemeId)
_MAX_HEADER_READS = 10_000
_SURROGATE = re.compile("[\ud800-\udfff]")


class _HeaderFile(BytesIO):
    """A file that fails after more reads than a header needs.

    Pillow joins the comments of a GIF one by one, which takes time quadratic in their number.
    """

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MAX_HEADER_READS:
            raise OSError("its header has too many parts")
        return super().read(size)


async def read_json_body(request: Request, kind: type[Model]) -> Model:
    """Parse a JSON body as a model, in a thread, because the body may be large.

    Raises:
        APIError: 415 for another content type, 422 for a body that does not fit.
    """
    if content_type(request) != _JSON:
        raise APIError(415, f"The body must be {_JSON}.")
    return await run_sync(_validated, kind, await request.body())


def _validated(kind: type[Model], body: bytes) -> Model:
    values = _parse(body)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = validation_problems(error, values)
        raise APIError(422, "The body does not fit.", problems, code="invalid_request") from None


def _parse(body: bytes) -> Any:
    """Parse JSON in UTF-8 (with or without a byte order mark), UTF-16 or UTF-32.

    Lone surrogates are kept, so that only the meme whose caption has one is refused.
    """
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, line {error.lineno}, column {error.colno}"
    except UnicodeDecodeError:
        reason = "its bytes are not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError:
        reason = "a number has too many digits"
    problem = body_problem("body", f"Invalid JSON: {reason}")
    raise APIError(422, "The body does not fit.", [problem], code="invalid_json")


async def read_posted_memes(request: Request, limits: RequestLimits, others: Iterable[str] = ()) -> list[MemeIn]:
    """Parse memes from JSON, or from a form with `images` (files) and optional `texts` and `ids`, one for each image.

    Args:
        request: The request.
        limits: Its limits.
        others: Further content types of the route, for the message.

    Raises:
        APIError: 413 for too many, 415 for another content type, 422 for a body that does not fit.
    """
    if content_type(request) == _FORM:
        memes = await _read_form(request, limits)
    elif content_type(request) == _JSON:
        memes = (await read_json_body(request, ClassifyRequest)).memes
    else:
        raise APIError(415, f"The body must be {' or '.join([_JSON, _FORM, *others])}.")
    check_meme_count(memes, limits)
    return memes


def check_meme_count(memes: Sequence[object], limits: RequestLimits) -> None:
    """Raise `APIError` (413) for more memes than a request may have."""
    if len(memes) > limits.max_images:
        raise APIError(413, f"{len(memes)} memes are sent, and a request may have {limits.max_images}; send fewer.")


def count_pixels(meme: Meme, limits: RequestLimits) -> int:
    """Return the number of pixels of a meme's image, from the header of its file, after a check of both its parts.

    Raises:
        UserError: the image is in no format that is decoded, or too large; the caption is too long, or not valid text.
    """
    if meme.text is not None and len(meme.text) > limits.max_text:
        raise UserError(f"its caption has {len(meme.text)} characters, and at most {limits.max_text} are let in")
    if meme.text is not None and (half := _SURROGATE.search(meme.text)):
        raise UserError(
            f"its caption has half of a character outside the basic plane, such as an emoji, at position {half.start()}"
            f" (U+{ord(half.group()):04X} alone); cut texts between characters"
        )
    try:
        with Image.open(_HeaderFile(meme.image), formats=picture_formats()) as image:  # type: ignore[arg-type]
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise UserError(f"its picture has more than the {limits.max_pixels} pixels that are let in") from error
    except Exception as error:  # a parser may raise anything on hostile bytes
        raise UserError(f"its picture cannot be opened as any of {PICTURE_FORMAT_NAMES}") from error
    if width * height > limits.max_pixels:
        raise UserError(f"its picture has {width} x {height} pixels; at most {limits.max_pixels} are let in")
    return width * height


async def _read_form(request: Request, limits: RequestLimits) -> list[MemeIn]:
    images, values = await read_form(request, limits, _FIELDS[1:])
    texts, ids = values["texts"], values["ids"]
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
        problem = body_problem("ids", validation_problems(error, None)[0].what)
        raise APIError(422, "The form does not fit.", [problem], code="invalid_request") from None


async def read_form(
    request: Request, limits: RequestLimits, of_each: Sequence[str], of_all: Sequence[str] = ()
) -> tuple[list[bytes], dict[str, list[str]]]:
    """Parse a form with files `images`, and return these and the values of its other fields.

    Args:
        request: The request.
        limits: Its limits.
        of_each: Fields with a value for each image, or none.
        of_all: Fields with at most one value.

    Raises:
        APIError: 413 for too many parts, 422 for a form that does not fit.
    """
    names = ("images", *of_each, *of_all)
    parser = MultiPartParser(
        request.headers,
        request.stream(),
        max_files=len(names) * limits.max_images,  # captions and ids may come as files too
        max_fields=len(names) * limits.max_images,
        max_part_size=8 * limits.max_text + 4096,
    )
    parser.spool_max_size = limits.max_bytes + 1  # more than a body may have: no image becomes a temporary file
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        reason = getattr(error, "message", str(error))
        status = 413 if reason.startswith(("Too many", "Part exceeded")) else 422
        raise APIError(status, f"The form: {reason}", code="invalid_request" if status == 422 else None) from error
    problems = [body_problem(name, "is no field of this form") for name in form if name not in names]
    files = form.getlist("images")
    images = [await item.read() for item in files if isinstance(item, UploadFile)]
    try:
        values = {name: [await _text(item) for item in form.getlist(name)] for name in names[1:]}
    except UnicodeDecodeError:
        fields = " or ".join(f"`{name}`" for name in names[1:])
        sentence = f"The form does not fit: a file among {fields} is not text in UTF-8."
        raise APIError(422, sentence, code="invalid_request") from None
    finally:
        await form.close()
    if problems := [*problems, *_form_problems(images, files, values, of_all)]:
        raise APIError(422, "The form does not fit.", problems, code="invalid_request")
    return images, values


def _form_problems(
    images: Sequence[bytes], files: Sequence[object], values: Mapping[str, Sequence[str]], of_all: Sequence[str]
) -> Iterator[RequestProblem]:
    if not images:
        yield body_problem("images", "at least one file is needed")
    elif len(images) < len(files):
        yield body_problem("images", "some are plain fields; send each picture as a file, with its name")
    for name, given in values.items():
        if name in of_all and len(given) > 1:
            yield body_problem(name, f"is given {len(given)} times; it holds for all images")
        if name not in of_all and given and len(given) != len(images):
            yield body_problem(name, f"{len(given)} are given for {len(images)} images: all, or none")


async def _text(item: UploadFile | str) -> str:
    """Text of a form field or of a file: clients such as `requests` send strings among `files` as files."""
    return item if isinstance(item, str) else (await item.read()).decode("utf-8-sig")


def content_type(request: Request) -> str:
    """Content type of a request's body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
