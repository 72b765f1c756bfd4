"""Batch prediction: verdicts on the memes of a file or folder of any length, in one pass that can be resumed.

    read_batch ─► chunks ─► images decoded in threads ─► Detector ─► <output>.parts/chunk-….jsonl ─► <output>

A chunk is a fixed number of rows of the input, bad ones included. Its content, and so each of its numbers, depends
neither on interruptions nor on the number of ranks. It keeps a digest of its image files: if one was replaced since,
the chunk is made again.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ra_hmd.core.artifacts import atomic_path, plain, sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import BANK_HEADS
from ra_hmd.core.manifests import PredictionsManifest, read_manifest, write_manifest
from ra_hmd.core.storage import as_path, is_url
from ra_hmd.core.workers import WorkerSettings, run_units
from ra_hmd.data.meme_dataset import json_line
from ra_hmd.data.readers.tree import absolute
from ra_hmd.inference.batch_chunks import ChunkFolder
from ra_hmd.inference.batch_judging import ChunkWorker, MemeChunk, answer_rows
from ra_hmd.inference.batch_reader import BatchInput, Survey
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.explainer import NOTE, Explainer
from ra_hmd.inference.writers import FileFormat, check_format, choose_format, manifest_path, open_writer, verdict_names
from ra_hmd.scoring.operating_point import DECISION_NAME

_FORMAT = 2  # of the chunks; increased when they hold something else
_CHUNK_BATCHES = 8
_EMBEDDED = ".pictures"  # of Parquet files, where workers are in other processes

OpenDetector = Callable[[], tuple[Detector, Explainer | None]]
"""Opens the detector, and an explainer if there is one, in the process of a worker."""


def predict_files(
    detector: Detector,
    source: str | Path,
    output: str | Path,
    *,
    style: FileFormat | None = None,
    media_dir: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    explainer: Explainer | None = None,
    chunk_size: int | None = None,
    workers: int = 4,
    engine: WorkerSettings | None = None,
    open_detector: OpenDetector | None = None,
    show: bool = True,
    command: str = "",
) -> dict[str, Any]:
    """Classify every meme of a file or folder. If it is interrupted and called again, it continues.

    Finished chunks are kept in `<output>.parts` until all are there; then the output appears in one step, in the order
    of the input, with `<output>.rejected.jsonl` (`place`, `id`, `reason` of each row without a verdict) and
    `<output>.manifest.json`. Under torchrun each rank takes every WORLD_SIZE-th chunk and the last one merges.

    Args:
        detector: Detector to run.
        source: File or folder, see `read_batch`.
        output: File to write.
        style: Format of the output; default is the one that its suffix stands for.
        media_dir: See `read_batch`.
        options: How the detector was opened, for the manifest; a run with other options does not continue this one.
        explainer: Adds `rationale` and `explanation` to each row; a meme whose question does not fit the model is
            rejected. JSON Lines only.
        chunk_size: Rows per chunk and in memory; default is eight batches, or one where transformers generates.
        workers: Threads that decode images.
        engine: Engine that chunks are judged on; default is this process. Runs with other engines continue this one.
        open_detector: Opens a detector like `detector` in each worker of Ray, once.
        show: Whether to show a progress bar.
        command: The command line, for the manifest.

    Returns:
        The manifest; of a rank that left merging to another one, an empty dictionary.

    Raises:
        UserError: an input without any meme, a format that cannot hold the verdicts, unfinished work of another run.
    """
    source, output, state = as_path(source), as_path(output), PartialState()
    style = _check_output(detector, source, output, style, explainer)
    if state.num_processes > 1 and is_url(output):
        raise UserError(
            f"--output {output}: under torchrun the ranks share a folder with locks, which object stores do not have; "
            "use --engine ray, or a path of this machine."
        )
    size = chunk_size or _chunk_size(detector, explainer)
    parts = absolute(output).with_name(f"{output.name}.parts")
    shared = None if engine is None or engine.engine == "local" else parts / _EMBEDDED
    survey = (memes := BatchInput(source, media_dir, detector.prompt, output, shared)).survey(size)
    settings = _settings(detector, memes, survey, options, size, explainer)
    folder = ChunkFolder(parts, settings, survey.images)
    if finished := _finished_manifest(output, folder, style):
        folder.remove_leftovers()
        return finished
    with state.main_process_first():
        folder.prepare()
    own = set(folder.missing()) & set(range(state.process_index, len(survey.images), state.num_processes))
    state.wait_for_everyone()  # a rank without chunks must not merge and remove the folder while another reads it
    if own:
        judging = run_units(
            partial(_open_worker, folder, workers, _opener(detector, explainer, engine, open_detector)),
            (MemeChunk(number, rows) for number, rows in enumerate(memes.chunks(size)) if number in own),
            engine or WorkerSettings(),
            description="Explaining" if explainer else "Classifying",
            total=sum(min(size, survey.rows - number * size) for number in own),
            noun="memes",
            show=show and state.is_main_process,
        )
        deque(judging, maxlen=0)
    return {} if folder.missing() else _finish(detector, output, style, folder, source=source, command=command)


def _opener(
    detector: Detector, explainer: Explainer | None, engine: WorkerSettings | None, open_detector: OpenDetector | None
) -> OpenDetector:
    """What opens the detector of a worker: in this process it is open already."""
    if engine is None or engine.engine == "local":
        return lambda: (detector, explainer)
    if open_detector is None:
        raise UserError(f"engine {engine.engine!r} needs `open_detector`, which opens the detector in each worker.")
    return open_detector


def _open_worker(folder: ChunkFolder, workers: int, open_detector: OpenDetector) -> ChunkWorker:
    """Open a worker.

    Raises:
        UserError: Its detector is not that of the run: the head or the bank has changed since.
    """
    detector, explainer = open_detector()
    changed = [name for name, value in plain(_judging(detector)).items() if folder.settings[name] != value]
    if changed:
        raise UserError(
            f"{folder.folder}: what differs since the run began: {', '.join(changed)}. Start it again with another "
            "--output, or from a copy of the bank."
        )
    return ChunkWorker(detector, folder, workers, partial(answer_rows, detector, explainer))


def _chunk_size(detector: Detector, explainer: Explainer | None) -> int:
    slow = explainer is not None and explainer.engine.name == "transformers"
    return detector.batch_size * (1 if slow else _CHUNK_BATCHES)


def _check_output(
    detector: Detector, source: Path, output: Path, style: FileFormat | None, explainer: Explainer | None
) -> FileFormat:
    """Return the format of the output. Raises `UserError`: see `predict_files`."""
    style = choose_format(output, style)
    voting = detector.scorer.voting
    abstains = bool(detector.abstain) or (detector.head in BANK_HEADS and voting.min_similarity is not None)
    abstains = abstains or detector.defences.check_captions == "abstain"
    check_format(style, detector.problem, abstains=abstains, known=detector.known is not None)
    written = (output, _rejected_path(output), manifest_path(output))
    if source.is_file() and any(path.exists() and path.samefile(source) for path in written):
        raise UserError(f"--output {output} would overwrite the memes of --input {source}; give another --output.")
    if explainer is not None and style != "jsonl":
        raise UserError(f"Rationales are written as JSON Lines; {output} would be {style}: end its name in .jsonl.")
    return style


def _rejected_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.rejected.jsonl")


def _settings(
    detector: Detector,
    memes: BatchInput,
    survey: Survey,
    options: Mapping[str, Any] | None,
    size: int,
    explainer: Explainer | None,
) -> dict[str, Any]:
    """Everything that a chunk depends on besides its images."""
    settings = {
        "input": survey.names if memes.source.is_dir() else sha256_file(memes.source),
        "media_dir": memes.media_dir,
        "chunk_size": size,
        "options": dict(options or {}),
        **_judging(detector),
    }
    if explainer is not None:
        shown = [lookup.digest for lookup in explainer.lookups] if explainer.neighbours else []
        settings["explainer"] = explainer.describe() | {"shown": shown}
    return dict(plain(settings))


def _judging(detector: Detector) -> dict[str, Any]:
    """What the rows of a chunk depend on besides the memes."""
    bank = {name: value for name, value in detector.version["bank"].items() if name != "place"}
    return {"bank": bank, **detector_settings(detector)}


def detector_settings(detector: Detector) -> dict[str, Any]:
    """What the rows of a chunk depend on besides the memes and the bank."""
    scorer = detector.scorer
    settings = {
        "format": _FORMAT,
        "head_sha256": detector.version["head_sha256"],
        "decision": sha256_file(scorer.checkpoint / DECISION_NAME) if scorer.decision is not None else None,
        "voting": asdict(scorer.voting),
        "kernel": None if scorer.kernel is None else scorer.kernel.settings.model_dump(),
        "head": detector.head,
        "abstain": detector.abstain,
        "batch_size": detector.batch_size,
    }
    settings |= {"defences": on} if (on := detector.defences.described()) else {}
    if detector.known is not None:
        settings["known"] = detector.known.describe()
    return settings


def _finished_manifest(output: Path, folder: ChunkFolder, style: FileFormat) -> dict[str, Any] | None:
    """The manifest of `output`, if that is already what this run would write."""
    if not (output.is_file() and manifest_path(output).is_file()):
        return None
    manifest = read_manifest(manifest_path(output), PredictionsManifest)
    same = manifest.fingerprint == folder.fingerprint and manifest.style == style
    return manifest.to_json() if same and manifest.output_sha256 == sha256_file(output) else None


def _finish(
    detector: Detector, output: Path, style: FileFormat, folder: ChunkFolder, *, source: Path, command: str
) -> dict[str, Any]:
    """Merge all chunks and write the manifest; returns an empty dictionary where another rank has done that."""
    with folder.merging() as merging:
        if not merging:
            return {}
        counts = _merge(detector, output, style, folder)
        judged, rejected = counts.texts.total(), counts.reasons.total()
        notes = [*detector.scorer.notes(detector.head), *_known_note(detector, counts)]
        manifest = PredictionsManifest.new(
            command=command,
            arguments={"input": str(source), **folder.settings["options"]},
            style=style,
            rows=judged + rejected,
            judged=judged,
            rejected=rejected,
            reasons=dict(counts.reasons.most_common(20)),
            verdicts=dict(sorted(counts.verdicts.items())),
            text_sources=dict(sorted(counts.texts.items())),
            seconds=round(counts.seconds, 3),
            memes_per_second=round(judged / counts.seconds, 3) if counts.seconds else None,
            output_sha256=sha256_file(output),
            **plain(detector.version),
            fingerprint=folder.fingerprint,
            notes=[*notes, NOTE] if "explainer" in folder.settings else notes,
        )
        write_manifest(manifest_path(output), manifest)
    return manifest.to_json()


@dataclass
class _Counts:
    """Counts over all chunks.

    Attributes:
        verdicts: Names of the verdicts.
        reasons: Reasons of rejected rows.
        texts: Sources of the captions.
        known: Number of known memes.
        seconds: Seconds that the chunks took, summed over ranks.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    texts: Counter[str] = field(default_factory=Counter)
    known: int = 0
    seconds: float = 0.0


def _known_note(detector: Detector, counts: _Counts) -> list[str]:
    if detector.known is None:
        return []
    return [f"{counts.known} of {counts.texts.total()} memes are known: answered by their hash, without the model."]


def _merge(detector: Detector, output: Path, style: FileFormat, folder: ChunkFolder) -> _Counts:
    """Write the output and the rejected rows."""
    counts = _Counts()
    with ExitStack() as stack:
        # Contexts end in reverse order: the rejected rows are there before the output is.
        write = stack.enter_context(
            open_writer(
                stack.enter_context(atomic_path(output)),
                style,
                detector.problem,
                known=detector.known is not None,
                checked=detector.defences.check_captions is not None,
            )
        )
        rejects = stack.enter_context(
            stack.enter_context(atomic_path(_rejected_path(output))).open("w", encoding="utf-8")
        )
        for line in folder.lines():
            counts.seconds += line.get("seconds", 0.0)
            answer, reject = line.get("answer"), line.get("reject")
            if answer is not None and answer["verdict"] is None and style == "hateclipper-csv":
                reason = "the vote abstains, which hateclipper-csv cannot express"
                reject = {"place": None, "id": answer["id"], "reason": reason}
                answer = None
            if answer is not None:
                write(answer)
                counts.verdicts.update(verdict_names(answer["verdict"]))
                counts.texts[answer["text_source"]] += 1
                counts.known += (answer.get("known") or {}).get("decides", False)
            elif reject is not None:
                rejects.write(json_line(reject))
                counts.reasons[reject["reason"].split(":")[0][:60]] += 1
    return counts
