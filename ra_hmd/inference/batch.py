"""Verdicts on the memes of a file or folder of any length, in one pass that can be resumed.

    read_batch ─► chunks ─► pictures decoded in threads ─► Detector ─► <output>.parts/chunk-….jsonl ─► <output>

A chunk is a fixed number of rows of the input, bad ones included. What is in it, and so each of its numbers, depends
neither on stops nor on the number of ranks. It keeps a digest of its pictures: where one was replaced since, the chunk
is made again.
"""

import fcntl
import hashlib
import importlib.util
import json
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from PIL import Image

from ra_hmd.core.artifacts import atomic_path, plain, read_json, run_manifest, sha256_bytes, sha256_file, write_json
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.progress import track
from ra_hmd.data.images import describe_fault, file_digest, load_image, open_image
from ra_hmd.data.meme_dataset import json_line
from ra_hmd.data.prompt import PromptTemplate
from ra_hmd.data.text import well_formed
from ra_hmd.inference.batch_reader import BatchRow, jsonl_rows, read_batch
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.writers import FileFormat, answer_of, check_format, choose_format, open_writer, verdict_names
from ra_hmd.scoring.operating_point import DECISION_NAME

if TYPE_CHECKING:
    from ra_hmd.inference.explainer import Explainer

_FORMAT = 2  # of the chunks; a number more when they would hold something else
_MARK = "fingerprint.json"
_CHUNK_BATCHES = 8


def predict_files(
    detector: Detector,
    source: str | Path,
    output: str | Path,
    *,
    style: FileFormat | None = None,
    media_dir: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    explainer: "Explainer | None" = None,
    chunk_size: int | None = None,
    workers: int = 4,
    show: bool = True,
    command: str = "",
) -> dict[str, Any]:
    """Judge every meme of a file or folder. Stopped and started again, it continues.

    Finished chunks lie in `<output>.parts` until all are there; then the output appears in one step, in the order of
    the input, with `<output>.rejected.jsonl` (`place`, `id`, `reason` of each row that could not be judged) and
    `<output>.manifest.json`. Under torchrun each rank takes every WORLD_SIZE-th chunk and the last one merges.

    Args:
        detector: Who judges.
        source: See `read_batch`.
        output: The file to write.
        style: Its format; by default what its suffix says.
        media_dir: See `read_batch`.
        options: How the detector was opened, for the manifest; a run with other ones does not continue this one.
        explainer: Who also puts each verdict into words; then lines have `rationale` and `explanation` (what it was
            made with), and a meme whose question does not fit the model is a rejected row. JSON Lines only.
        chunk_size: Rows per chunk, which is also what is in memory; default is eight batches, or one where
            transformers generates.
        workers: Threads that decode pictures beside the model.
        show: Whether to show a progress bar.
        command: The command line, for the manifest.

    Returns:
        The manifest; of a rank that left merging to another one, an empty dictionary.

    Raises:
        UserError: an input without any meme, a format that cannot hold the answers, unfinished work of another run.
    """
    source, output, state = Path(source), Path(output), PartialState()
    style = choose_format(output, style)
    check_format(style, detector)
    if source.is_file() and any(path.exists() and path.samefile(source) for path in _written(output)):
        raise UserError(f"--output {output} would overwrite the memes of --input {source}; give another --output.")
    if explainer is not None and style != "jsonl":
        raise UserError(f"Rationales are written as JSON Lines; {output} would be {style}: end its name in .jsonl.")
    slow = explainer is not None and explainer.engine.name == "transformers"
    size = chunk_size or detector.batch_size * (1 if slow else _CHUNK_BATCHES)
    rows, names, pictures = _survey(source, media_dir, detector.prompt, output, size)
    stated = _stated(detector, names if source.is_dir() else sha256_file(source), media_dir, options, size)
    if explainer is not None:
        shown = [gallery.digest for gallery in explainer.galleries] if explainer.neighbours else []
        stated["explainer"] = plain(explainer.describe() | {"shown": shown})
    work = output.with_name(f"{output.name}.parts")
    whole = stated | {"pictures": sha256_bytes(*map(str.encode, pictures))}
    written = _finished(output, whole, style)
    if written:
        if not (work / _MARK).is_file() or read_json(work / _MARK) == stated:
            shutil.rmtree(work, ignore_errors=True)  # stopped while it was removed
        return written
    with state.main_process_first():
        _prepare(work, stated)
    paths = [work / f"chunk-{number:07d}.jsonl" for number in range(len(pictures))]
    todo = {number for number in range(state.process_index, len(paths), state.num_processes)
            if not _is_of(paths[number], pictures[number])}  # fmt: skip
    state.wait_for_everyone()  # a rank with nothing to do must not merge and remove what another still looks for
    every = read_batch(source, media_dir, detector.prompt, output)
    parts = enumerate(iter(lambda: list(islice(every, size)), []))
    chunks = ((number, part) for number, part in parts if number in todo)
    total = sum(min(size, rows - number * size) for number in todo)
    judged = ((len(chunk[2]), chunk) for chunk in judge_chunks(detector, chunks, workers, explainer))
    shown = show and state.is_main_process
    for number, seconds, lines in (
        track(judged, "Explaining" if explainer else "Judging", total, "memes", show=shown) if todo else ()
    ):
        _write_chunk(paths[number], seconds, pictures[number], lines)
    if not all(map(_is_of, paths, pictures)):
        return {}
    return _finish(detector, output, style, work, paths, whole, source=source, command=command)


def judge_chunks(
    detector: Detector,
    chunks: Iterable[tuple[int, list[BatchRow]]],
    workers: int = 4,
    explainer: "Explainer | None" = None,
) -> Iterator[tuple[int, float, list[dict[str, Any]]]]:
    """Per chunk its number, the seconds that it took, and a line per row: `answer`, or `reject`.

    Of the chunks no more is asked for than is judged, and a few pictures that are decoded in the meantime.
    """
    flat = ((number, asked) for number, rows in chunks for asked in rows)
    with ThreadPoolExecutor(workers) as pool:
        began = time.perf_counter()
        for number, rows in groupby(_decoded(pool, flat, 4 * workers), key=lambda item: item[0]):
            lines = _judge(detector, explainer, ((asked, picture) for _, asked, picture in rows))
            yield number, time.perf_counter() - began, lines
            began = time.perf_counter()


def _decoded(
    pool: ThreadPoolExecutor, rows: Iterator[tuple[int, BatchRow]], ahead: int
) -> Iterator[tuple[int, BatchRow, Image.Image | str]]:
    """Rows with their pictures, or what is wrong with these; at most `ahead` of them wait in memory."""
    waiting: deque[tuple[int, BatchRow, Future[Image.Image | str]]] = deque()
    for number, asked in rows:
        waiting.append((number, asked, pool.submit(_open, asked)))
        if len(waiting) > ahead:
            *row, future = waiting.popleft()
            yield *row, future.result()
    while waiting:
        *row, future = waiting.popleft()
        yield *row, future.result()


def _open(asked: BatchRow) -> Image.Image | str:
    if asked.meme is None or not isinstance(asked.meme.image, Path):
        return asked.problem
    try:
        return load_image(asked.meme.image)
    except UserError as error:
        return well_formed(str(error))


def _judge(
    detector: Detector, explainer: "Explainer | None", rows: Iterable[tuple[BatchRow, Image.Image | str]]
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    prepared, places = [], []
    for asked, picture in rows:
        lines.append({})
        reason = picture if isinstance(picture, str) else ""
        if not reason and asked.meme is not None:
            if asked.meme.text is None:
                _check_ocr()
            try:
                prepared.append(detector.prepare(replace(asked.meme, image=picture)))
                places.append((len(lines) - 1, asked))
                continue
            except UserError as error:
                reason = well_formed(str(error))
        lines[-1] = _reject(asked, reason)
    judged = detector.judge(prepared)
    told: list[dict[str, Any] | str] = [{}] * len(judged)
    if explainer:
        from ra_hmd.inference.explainer import explain_rows

        told = explain_rows(explainer, judged, [meme.picture for meme in prepared])
    for (row, asked), found, words in zip(places, judged, told, strict=True):
        if isinstance(words, str):
            lines[row] = _reject(asked, words)
            continue
        answer = answer_of(found) | words
        finite = plain(answer) == answer  # in JSON there is no NaN
        lines[row] = {"answer": answer} if finite else _reject(asked, "the model's score is not a number")
    return lines


def _check_ocr() -> None:
    """Raise `UserError` where captions cannot be read: this is no row's fault."""
    if importlib.util.find_spec("rapidocr") is None:
        raise UserError("A meme has no `text`, and reading it needs the extra `ocr`: pip install 'ra-hmd[ocr]'.")


def _reject(asked: BatchRow, reason: str) -> dict[str, Any]:
    return {"reject": {"place": asked.place, "id": asked.id, "reason": reason}}


def _write_chunk(path: Path, seconds: float, pictures: str, lines: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(json_line({"pictures": pictures, "seconds": seconds}))
        file.writelines(map(json_line, lines))


def _is_of(path: Path, pictures: str) -> bool:
    """Whether a chunk is there and of pictures as they are now."""
    try:
        with path.open(encoding="utf-8") as file:
            return bool(json.loads(file.readline())["pictures"] == pictures)
    except FileNotFoundError:
        return False


def _survey(
    source: Path, media_dir: str | Path | None, prompt: PromptTemplate, output: Path, size: int
) -> tuple[int, str, list[str]]:
    """Rows of the input, a digest of their names, and one of each chunk's pictures. Reading it once to its end finds,
    before any work, what cannot be read at all.
    """
    rows, good, names = 0, False, hashlib.sha256()
    problems: list[str] = []
    pictures: list[str] = []
    every = read_batch(source, media_dir, prompt, output)
    for chunk in iter(lambda: list(islice(every, size)), []):
        rows += len(chunk)
        for asked in chunk:
            names.update(f"{asked.place}\n".encode())
            # A folder has files of any kind; that one of them is a picture is seen by its header.
            problem = asked.problem or ("" if good or not source.is_dir() else _header_problem(asked))
            good = good or not problem
            if problem and len(problems) < 3:
                problems.append(f"{asked.place}: {problem}")
        stamps = (file_digest(asked.meme.image) for asked in chunk
                  if asked.meme is not None and isinstance(asked.meme.image, Path))  # fmt: skip
        pictures.append(sha256_bytes(*map(str.encode, stamps)))
    if good:
        return rows, names.hexdigest(), pictures
    raise_all(problems, f"{source}: no row can be used, of {rows}; the first of them")
    raise UserError(f"{source} has no {'pictures' if source.is_dir() else 'rows'}.")


def _header_problem(asked: BatchRow) -> str:
    try:
        with open_image(asked.meme.image):
            return ""
    except Exception as error:  # a parser may raise anything on hostile bytes
        return well_formed(describe_fault(error))


def _stated(
    detector: Detector, digest: str, media_dir: str | Path | None, options: Mapping[str, Any] | None, size: int
) -> dict[str, Any]:
    """What a chunk depends on besides its pictures; two runs that agree in it may continue each other. `digest` is that
    of the input.
    """
    scorer, version = detector.scorer, detector.version
    decided = sha256_file(scorer.checkpoint / DECISION_NAME) if scorer.decision is not None else None
    return plain({
        "format": _FORMAT,
        "input": digest,
        "media_dir": media_dir,
        "head_sha256": version["head_sha256"],
        "bank": {name: value for name, value in version["bank"].items() if name != "place"},
        "decision": decided,
        "voting": asdict(scorer.voting),
        "head": detector.head,
        "abstain": detector.abstain,
        "batch_size": detector.batch_size,
        "chunk_size": size,
        "options": dict(options or {}),
    })  # fmt: skip


def _manifest_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.manifest.json")


def _rejected_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.rejected.jsonl")


def _written(output: Path) -> tuple[Path, Path, Path]:
    """All files that a run leaves."""
    return output, _rejected_path(output), _manifest_path(output)


def _finished(output: Path, stated: dict[str, Any], style: FileFormat) -> dict[str, Any] | None:
    """The manifest of `output` if it is already what this run would write."""
    if not (output.is_file() and _manifest_path(output).is_file()):
        return None
    manifest = read_json(_manifest_path(output))
    same = manifest.get("fingerprint") == stated and manifest.get("format") == style
    return dict(manifest) if same and manifest.get("output_sha256") == sha256_file(output) else None


def _prepare(work: Path, stated: dict[str, Any]) -> None:
    """Make the folder of finished chunks.

    Raises:
        UserError: it holds those of another run.
    """
    mark = work / _MARK
    if mark.is_file():
        old = read_json(mark)
        other = [name for name in sorted({*old, *stated}) if old.get(name) != stated.get(name)]
        if other:
            raise UserError(
                f"{work} holds unfinished work of another run; what differs: {', '.join(other)}. "
                "Remove the folder, or give another --output."
            )
    elif work.exists() and not (work.is_dir() and all(path.name.startswith(".") for path in work.iterdir())):
        raise UserError(f"{work} is in the way: finished parts would be kept there. Remove it, or rename --output.")
    else:
        write_json(mark, stated)


def _finish(
    detector: Detector,
    output: Path,
    style: FileFormat,
    work: Path,
    paths: Sequence[Path],
    stated: dict[str, Any],
    *,
    source: Path,
    command: str,
) -> dict[str, Any]:
    """Merge all chunks, unless another rank does or did; then what it wrote is returned."""
    with ExitStack() as stack:
        try:
            lock = stack.enter_context((work / ".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the process ends, however that be
        except FileNotFoundError:
            return {}
        if not work.is_dir():
            return {}
        counts, seconds = _merge(detector, output, style, paths)
        judged = counts["texts"].total()
        notes = detector.scorer.notes(detector.head)
        if "explainer" in stated:
            from ra_hmd.inference.explainer import NOTE

            notes = [*notes, NOTE]
        manifest = run_manifest(
            "predictions",
            command=command,
            arguments={"input": str(source), **stated["options"]},
            format=style,
            rows=judged + counts["reasons"].total(),
            judged=judged,
            rejected=counts["reasons"].total(),
            reasons=dict(counts["reasons"].most_common(20)),
            verdicts=dict(sorted(counts["verdicts"].items())),
            text_sources=dict(sorted(counts["texts"].items())),
            seconds=round(seconds, 3),
            memes_per_second=round(judged / seconds, 3) if seconds else None,
            output_sha256=sha256_file(output),
            **plain(detector.version),
            fingerprint=stated,
            notes=notes,
        )
        write_json(_manifest_path(output), manifest)
        shutil.rmtree(work)
    return manifest


def _merge(
    detector: Detector, output: Path, style: FileFormat, paths: Sequence[Path]
) -> tuple[dict[str, Counter[str]], float]:
    """Write output and rejects. Returns counts (`verdicts`; `reasons`; `texts`: where captions are from) and
    the seconds that the chunks took, added over ranks.
    """
    counts: dict[str, Counter[str]] = {"verdicts": Counter(), "reasons": Counter(), "texts": Counter()}
    seconds = 0.0
    with ExitStack() as stack:
        # Left in the reverse order: the rejects are there before the output is.
        write = stack.enter_context(open_writer(stack.enter_context(atomic_path(output)), style, detector.problem))
        rejects = stack.enter_context(
            stack.enter_context(atomic_path(_rejected_path(output))).open("w", encoding="utf-8")
        )
        for path in paths:
            for row in jsonl_rows(path):
                line = row.values
                seconds += line.get("seconds", 0.0)
                answer, reject = line.get("answer"), line.get("reject")
                if answer and answer["verdict"] is None and style == "hateclipper-csv":
                    reason = "the vote abstains, which hateclipper-csv cannot say"
                    answer, reject = None, {"place": None, "id": answer["id"], "reason": reason}
                if answer:
                    write(answer)
                    counts["verdicts"].update(verdict_names(answer["verdict"]))
                    counts["texts"][answer["text_source"]] += 1
                elif reject:
                    rejects.write(json_line(reject))
                    counts["reasons"][reject["reason"].split(":")[0][:60]] += 1
    return counts, seconds
