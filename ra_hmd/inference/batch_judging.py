"""The memes of a chunk to the lines of its file: images decoded ahead in threads, verdicts, rejected rows."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from PIL import Image

from ra_hmd.core.artifacts import plain
from ra_hmd.core.errors import UserError
from ra_hmd.core.extras import check_extra
from ra_hmd.data.text import well_formed
from ra_hmd.inference.batch_chunks import ChunkFolder
from ra_hmd.inference.batch_reader import BatchRow
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.explainer import Explainer, explain_rows
from ra_hmd.inference.types import PreparedMeme

Answers = Callable[[Sequence[PreparedMeme]], list[dict[str, Any] | str]]
"""Answers to prepared memes, in their order: an object for the output, or the reason why there is none."""


class MemeChunk(NamedTuple):
    """A unit of work: the number of a chunk, and its rows of the input."""

    number: int
    rows: list[BatchRow]

    def __str__(self) -> str:
        return f"chunk {self.number}, from {self.rows[0].place} to {self.rows[-1].place}"


class ChunkWorker:
    """Judges chunks and writes their files, on any engine.

    Args:
        detector: Prepares the memes.
        folder: Where the chunks are written.
        workers: Threads that decode images.
        answers: See `judge_chunks`.
    """

    def __init__(
        self, detector: Detector, folder: ChunkFolder, workers: int = 4, answers: Answers | None = None
    ) -> None:
        self.detector, self.folder, self.workers, self.answers = detector, folder, workers, answers

    def __call__(self, units: Iterator[MemeChunk]) -> Iterator[tuple[int, int]]:
        """Write the chunks; yields the number of rows and the number of each chunk."""
        for number, seconds, lines in judge_chunks(self.detector, units, self.workers, self.answers):
            self.folder.write(number, seconds, lines)
            yield len(lines), number


def answer_rows(
    detector: Detector, explainer: Explainer | None, memes: Sequence[PreparedMeme]
) -> list[dict[str, Any] | str]:
    """Rows of a prediction file, with rationales if there is an explainer."""
    verdicts = detector.judge(memes)
    if explainer is None:
        return [verdict.to_row() for verdict in verdicts]
    rationales = explain_rows(explainer, verdicts, [detector.image_of(meme) for meme in memes])
    return [one if isinstance(one, str) else verdict.to_row() | one
            for verdict, one in zip(verdicts, rationales, strict=True)]  # fmt: skip


def judge_chunks(
    detector: Detector,
    chunks: Iterable[tuple[int, list[BatchRow]]],
    workers: int = 4,
    answers: Answers | None = None,
) -> Iterator[tuple[int, float, list[dict[str, Any]]]]:
    """Yield for each chunk its number, the seconds that it took, and a line per row: `answer` or `reject`.

    Chunks are read as they are classified, with a few images decoded ahead.

    Args:
        detector: Prepares the memes.
        chunks: Number and rows of each chunk.
        workers: Threads that decode images.
        answers: Makes the answers; default are the verdicts of `detector`.
    """
    answers = answers or partial(answer_rows, detector, None)
    flat = ((number, row) for number, rows in chunks for row in rows)
    with ThreadPoolExecutor(workers) as pool:
        began = time.perf_counter()
        for number, rows in groupby(_decoded(pool, flat, 4 * workers), key=lambda item: item[0]):
            lines = _judge(detector, answers, ((row, image) for _, row, image in rows))
            yield number, time.perf_counter() - began, lines
            began = time.perf_counter()


def _decoded(
    pool: ThreadPoolExecutor, rows: Iterator[tuple[int, BatchRow]], ahead: int
) -> Iterator[tuple[int, BatchRow, Image.Image | str]]:
    """Rows with their images, or the reason why there is none; at most `ahead` of them wait in memory."""
    waiting: deque[tuple[int, BatchRow, Future[Image.Image | str]]] = deque()
    for number, row in rows:
        waiting.append((number, row, pool.submit(_load, row)))
        if len(waiting) > ahead:
            first, ready, future = waiting.popleft()
            yield first, ready, future.result()
    while waiting:
        first, ready, future = waiting.popleft()
        yield first, ready, future.result()


def _load(row: BatchRow) -> Image.Image | str:
    if row.meme is None:
        return row.problem
    try:
        return row.meme.load_image()
    except UserError as error:
        return well_formed(str(error))


def _judge(
    detector: Detector, answers: Answers, rows: Iterable[tuple[BatchRow, Image.Image | str]]
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    prepared, places = [], []
    for row, image in rows:
        lines.append({})
        if row.meme is None or isinstance(image, str):
            lines[-1] = _reject(row, str(image))
            continue
        if row.meme.text is None or detector.defences.check_captions:
            _check_ocr(row.meme.text)
        try:
            prepared.append(detector.prepare(replace(row.meme, image=image)))
            places.append((len(lines) - 1, row))
        except UserError as error:
            lines[-1] = _reject(row, well_formed(str(error)))
    for (line, row), answer in zip(places, answers(prepared), strict=True):
        if isinstance(answer, str):
            lines[line] = _reject(row, answer)
            continue
        finite = plain(answer) == answer  # in JSON there is no NaN
        lines[line] = {"answer": answer} if finite else _reject(row, "the model's score is not a number")
    return lines


def _check_ocr(text: str | None) -> None:
    """Raise `UserError` where captions cannot be read, which is no row's fault."""
    check_extra("ocr", "A meme has no `text`, and reading it" if text is None else "--check-captions")


def _reject(row: BatchRow, reason: str) -> dict[str, Any]:
    return {"reject": {"place": row.place, "id": row.id, "reason": reason}}
