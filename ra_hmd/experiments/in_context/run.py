"""In-context classification of a split by the LMM with labelled demonstrations (`ra-hmd in-context`)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ra_hmd.core.artifacts import plain, sha256_bytes
from ra_hmd.core.choices import DType
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import EvaluationManifest, read_folder_manifest
from ra_hmd.data.images import image_size
from ra_hmd.data.meme import Meme
from ra_hmd.experiments.in_context.candidates import DemonstrationFeatures, MemeSplit, open_candidates
from ra_hmd.experiments.in_context.demonstrations import DemonstrationSettings, choose_demonstrations
from ra_hmd.experiments.in_context.prompting import InContextScorer, class_answers
from ra_hmd.experiments.in_context.report import InContextPlan, InContextResult, write_in_context_result
from ra_hmd.experiments.in_context.thresholds import dev_threshold
from ra_hmd.experiments.parts import Parts
from ra_hmd.features.columns import features_of_memes, label_array
from ra_hmd.features.compatibility import check_output
from ra_hmd.features.extraction import check_labels, fingerprint_memes
from ra_hmd.features.store import NO_STORE, Features
from ra_hmd.features.test_lock import open_labels
from ra_hmd.models.checkpoint import Run
from ra_hmd.models.generation.chat import ChatModel
from ra_hmd.models.meme_model import MemeModel
from ra_hmd.scoring.thresholds import Criterion

_PART = 64  # memes per part; an interruption loses one part at most
_FORMAT = 1  # format of the parts


def in_context(
    run: Run,
    queries: MemeSplit,
    examples: MemeSplit | None,
    output: str | Path,
    selection: DemonstrationSettings,
    *,
    stores: DemonstrationFeatures | None = None,
    answers: Sequence[str] = (),
    final: bool = False,
    dev: str | Path | None = None,
    criterion: Criterion = "macro_f1",
    bootstrap_samples: int = 1000,
    batch_size: int = 4,
    dtype: DType = "auto",
    device: str | torch.device | None = None,
    show: bool = True,
    command: str = "",
) -> dict[str, Any]:
    """Score a split in context, and write an evaluation that `ra-hmd evaluate --compare` and `ra-hmd results` read.

    Finished parts are kept in `<output>/parts`: an interrupted run continues, and ranks of torchrun share the parts.

    Args:
        run: The LMM; its head is not used for the scores.
        queries: Labelled memes to classify.
        examples: Labelled memes that may be shown; not needed for 0 shots.
        output: Folder for predictions.jsonl, metrics.json, report.md and the manifest.
        selection: Number and kind of the demonstrations.
        stores: Features by which demonstrations are retrieved.
        answers: Answer of each class; see `class_answers`.
        final: Score a test split too; that is recorded beside the head.
        dev: Output of this command on dev with the same settings, to choose the threshold on.
        criterion: Metric that the threshold maximises.
        bootstrap_samples: Resamples of each interval; 0 for none.
        batch_size: Prompts per forward pass.
        dtype: Data type of the computation.
        device: Device of the LMM; default: the one that accelerate selects.
        show: Whether to show a progress bar.
        command: Command line for the records.

    Returns:
        The manifest; on ranks that do not measure, an empty dictionary.

    Raises:
        UserError: memes, images, features or examples do not fit; a test split without `final`; parts of another run.
    """
    output = _check_output(Path(output))
    plan = _plan(run, queries, examples, selection, stores, answers, dtype)
    threshold = dev_threshold(dev, criterion, plan.stated, queries.memes, run.settings.problem) if dev else None
    parts, state = Parts(output / "parts", plan.stated, _longest_first(plan)), PartialState()
    with state.main_process_first():
        parts.check()
        opened = _open(parts, plan, output, final=final, command=command)
    _score_missing(plan, parts, state, batch_size, dtype, device, show=show)
    if parts.missing():  # other ranks still score
        return {}
    scored = _scores(parts, queries.memes, run.settings.problem.outputs)
    result = InContextResult(plan, *scored, threshold, opened, bootstrap_samples, command)
    return write_in_context_result(result, output)


def _plan(
    run: Run,
    queries: MemeSplit,
    examples: MemeSplit | None,
    selection: DemonstrationSettings,
    stores: DemonstrationFeatures | None,
    answers: Sequence[str],
    dtype: DType,
) -> InContextPlan:
    """Check the memes and select the demonstrations of each query."""
    class_texts = class_answers(run.settings, answers)
    if selection.shots and examples is None:
        raise UserError(f"--shots {selection.shots} needs --examples: the labelled memes that are shown.")
    examples, stores = (examples, stores) if selection.shots else (None, None)
    shown = examples.memes if examples is not None else []
    _check_memes(run, queries.memes, shown)
    chosen = choose_demonstrations(
        *open_candidates(run, queries.memes, shown, selection, stores), selection, run.settings.problem.classes
    )
    compared_by = stores.compared_by(run) if stores is not None and selection.kind == "retrieved" else None
    stated = plain({
        "format": _FORMAT,
        "model": run.fingerprint() | {"head": None},
        "data": fingerprint_memes(queries.memes),
        "examples": fingerprint_memes(shown),
        "choice": selection.model_dump(),
        "compared_by": compared_by,
        "answers": list(class_texts),
        "shown": sha256_bytes(chosen.rows.astype("<i8").tobytes()),
        "dtype": dtype,
    })  # fmt: skip
    return InContextPlan(run, queries, examples, selection, stores, chosen, shown, class_texts, stated)


def _check_output(output: Path) -> Path:
    """Return the folder; raise `UserError` if it holds the output of another command."""
    check_output(output, "evaluation")
    manifest = read_folder_manifest(output)
    if isinstance(manifest, EvaluationManifest) and manifest.in_context is None:
        raise UserError(f"{output} holds an evaluation of another command; choose another output folder.")
    return output


def _check_memes(run: Run, queries: Sequence[Meme], examples: Sequence[Meme]) -> None:
    for name, memes in (("classified", queries), ("shown", examples)):
        check_labels(list(memes), None)
        if memes:
            run.settings.problem.check(label_array(memes), f"The memes that are to be {name}")
    bad = [f"meme {m.id!r}: image {m.path} is missing or not an image" for m in [*queries, *examples]
           if image_size(m.path) == (0, 0)]  # fmt: skip
    raise_all(bad, "Images that cannot be opened; mend their paths or remove the records")


def _longest_first(plan: InContextPlan) -> list[list[int]]:
    """Query rows in parts, by falling length of their prompts, so that too long prompts fail first."""

    def length(meme: Meme) -> float:
        width, height = image_size(meme.path)
        return min(width * height, plan.run.settings.image_max_pixels) / 784 + len(meme.caption) / 4

    rows, shown = plan.chosen.rows, np.array([length(meme) for meme in plan.shown])
    total = np.array([length(meme) for meme in plan.queries.memes]) + (shown[rows].sum(axis=1) if rows.size else 0.0)
    order = np.argsort(-total, kind="stable").tolist()
    return [order[start : start + _PART] for start in range(0, len(order), _PART)]


def _scores(parts: Parts, memes: Sequence[Meme], outputs: int) -> tuple[np.ndarray, int]:
    """All scores [Q, C] in the order of the memes, and the length of the longest prompt in tokens."""
    rows = parts.rows([meme.id for meme in memes])
    found = np.array([row["score"] for row in rows], dtype=np.float64).reshape(len(memes), outputs)
    return found, max(row["longest"] for row in rows)


def _open(parts: Parts, plan: InContextPlan, output: Path, *, final: bool, command: str) -> dict[str, Any]:
    """Open the labels once per run, however often it is interrupted."""

    def locked(source: MemeSplit) -> Features:
        manifest = NO_STORE.model_copy(
            update={"split": source.split, "fingerprint": {"data": fingerprint_memes(source.memes)}}
        )
        return replace(features_of_memes(source.memes, {"hidden": np.zeros((len(source.memes), 0))}), manifest=manifest)

    begun = parts.mark().get("opened")
    if begun is not None and (final or not begun["test_sets"]):
        return dict(begun)
    scored: dict[str | Path, Features] = {str(plan.queries.described["place"]): locked(plan.queries)}
    shown: dict[str | Path, Features] = {}
    if plan.examples is not None:
        shown[f"examples {plan.examples.described['place']}"] = locked(plan.examples)
    # A bare model has no folder with a head, so the output folder keeps the record.
    head = plan.run.head if plan.run.head is not None else output
    if final:
        output.mkdir(parents=True, exist_ok=True)
    opened = open_labels(scored, [head], final=final, command=command, examples=shown)
    parts.begin(opened=opened)
    return opened


def _score_missing(
    plan: InContextPlan,
    parts: Parts,
    state: PartialState,
    batch_size: int,
    dtype: DType,
    device: str | torch.device | None,
    *,
    show: bool,
) -> None:
    """Score this rank's missing parts; the longest prompts come first, which shows at once whether they fit."""
    todo = parts.missing_of(state)
    if not todo:
        return
    memes, rows = plan.queries.memes, plan.chosen.rows
    model = MemeModel(plan.run, torch.device(device) if device is not None else state.device, dtype)
    scorer = InContextScorer(ChatModel(model), plan.run.settings, plan.shown, plan.answers)
    first = parts.plan[0]
    longest = scorer.check_context([memes[row] for row in first], rows[first])

    def scored(part: Sequence[int]) -> list[dict[str, Any]]:
        scores = scorer.scores([memes[row] for row in part], rows[part], batch_size)
        return [
            {"id": memes[row].id, "score": values, "longest": longest}
            for row, values in zip(part, scores.tolist(), strict=True)
        ]

    parts.complete(todo, scored, "Scoring", "memes", show=show and state.is_main_process)
