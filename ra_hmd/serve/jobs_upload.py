"""The memes of a job, as they are sent and as they are kept until it is done.

JSON Lines and CSV are written to disk while they arrive, so that a job may be much larger than the memory for requests;
then they are read row by row, and each picture becomes a file. A body that does not fit refuses the whole upload. A
picture or caption that cannot be used is the result of its meme alone, as in `/v1/classify`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync
from fastapi import Request
from pydantic import ValidationError

from ra_hmd.core.errors import UserError
from ra_hmd.core.extras import is_importable
from ra_hmd.data.meme import Meme
from ra_hmd.data.rows import csv_rows, jsonl_rows
from ra_hmd.inference.batch_reader import BatchRow
from ra_hmd.serve.errors import APIError
from ra_hmd.serve.jobs import Job
from ra_hmd.serve.jobs_settings import STREAMED, JobSettings
from ra_hmd.serve.limits import RequestLimits
from ra_hmd.serve.schemas import MemeIn, to_meme
from ra_hmd.serve.uploads import content_type, count_pixels, read_posted_memes
from ra_hmd.serve.validation import RequestProblem, validation_problems

_MEMES, PICTURES = "memes.jsonl", "pictures"
_PICTURES_PER_FOLDER = 1000


async def receive_job(request: Request, job: Job, settings: JobSettings, limits: RequestLimits) -> int:
    """Write the memes of a request into the folder of a job; returns their number.

    Raises:
        APIError: 413 for too many, 415 for another content type, 422 for a body that does not fit.
    """
    kind = content_type(request)
    if kind in STREAMED:
        body = job.folder / f"body{STREAMED[kind]}"
        with body.open("wb") as file:
            async for piece in request.stream():
                await run_sync(file.write, piece)
        sent: Iterable[tuple[str, MemeIn]] = _rows(body)
    else:
        accepted = limits.replace(max_images=settings.job_max_memes)
        memes = await read_posted_memes(request, accepted, others=STREAMED)
        sent, body = ((f"memes.{number}", meme) for number, meme in enumerate(memes)), None
    count = await run_sync(lambda: _write(sent, job.work, settings, limits))
    if body is not None:
        body.unlink()
    return count


def _rows(body: Path) -> Iterator[tuple[str, MemeIn]]:
    """Place and meme of each row. Raises `APIError` (422) for a row that does not fit."""
    try:
        for row in csv_rows(body, ",") if body.suffix == ".csv" else jsonl_rows(body, salvage=True):
            if row.problem:
                raise _misfit(RequestProblem(where=row.place, what=row.problem))
            try:
                yield row.place, MemeIn.model_validate(row.values)
            except ValidationError as error:
                found = validation_problems(error, row.values)
                raise _misfit(
                    *(RequestProblem(where=f"{row.place}: {one.where}", what=one.what) for one in found)
                ) from None
    except UserError as error:  # no CSV at all
        raise _misfit(RequestProblem(where="body", what=str(error).replace(str(body), body.name))) from None


def _misfit(*problems: RequestProblem) -> APIError:
    return APIError(422, "The body does not fit.", problems, code="invalid_request")


def _write(sent: Iterable[tuple[str, MemeIn]], work: Path, settings: JobSettings, limits: RequestLimits) -> int:
    """Write the memes: a line of JSON and a picture each."""
    count = -1
    work.mkdir()
    with (work / _MEMES).open("w", encoding="utf-8", newline="\n") as lines:
        for count, (_, one) in enumerate(sent):
            if count == settings.job_max_memes:
                raise APIError(413, f"A job may have {settings.job_max_memes} memes; send several jobs.")
            line = json.dumps(_keep(to_meme(one), count, work, limits))
            lines.write(f"{line}\n")
    if count < 0:
        raise _misfit(RequestProblem(where="body", what="has no memes"))
    return count + 1


def _keep(meme: Meme, number: int, work: Path, limits: RequestLimits) -> dict[str, Any]:
    """The line of a meme, whose picture is written if it can be used."""
    try:
        count_pixels(meme, limits)
        if meme.text is None and not is_importable("rapidocr"):
            raise UserError("it has no text, and reading one from its picture needs the extra `ocr` of the service")
    except UserError as error:
        return {"id": meme.id, "problem": str(error)}
    name = f"{PICTURES}/{number // _PICTURES_PER_FOLDER:04d}/{number:07d}"
    path = work / name
    path.parent.mkdir(parents=True, exist_ok=True)
    assert isinstance(meme.image, bytes)
    path.write_bytes(meme.image)
    return {"id": meme.id, "text": meme.text, "picture": name}


def kept_memes(job: Job) -> Iterator[BatchRow]:
    """The memes of a job, one at a time, in the order of the upload."""
    for row in jsonl_rows(job.work / _MEMES):
        kept = row.values
        meme = None if "problem" in kept else Meme(kept["id"], job.work / kept["picture"], kept["text"])
        yield BatchRow(row.place, kept["id"], meme, kept.get("problem", ""))
