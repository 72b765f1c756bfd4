"""`ra-hmd in-context`: the LMM judges a split after seeing labelled memes; scored in parts, then measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ra_hmd.core.artifacts import MANIFEST_NAME, plain, read_json, sha256_bytes, write_json, write_jsonl
from ra_hmd.core.choices import DType
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.progress import track
from ra_hmd.data.images import image_size
from ra_hmd.data.meme import Meme
from ra_hmd.data.rows import jsonl_rows
from ra_hmd.experiments.in_context.candidates import DemonstrationFeatures, MemeSplit, open_candidates
from ra_hmd.experiments.in_context.demonstrations import Demonstrations, DemonstrationSettings, choose_demonstrations
from ra_hmd.experiments.in_context.prompting import InContextScorer, class_answers
from ra_hmd.experiments.in_context.report import InContextResult, write_in_context_result
from ra_hmd.experiments.in_context.thresholds import KEY, dev_threshold
from ra_hmd.features.compatibility import check_output
from ra_hmd.features.extraction import check_labels, features_of, fingerprint_memes, label_array
from ra_hmd.features.store import NO_STORE, Features
from ra_hmd.features.test_lock import open_labels
from ra_hmd.models.checkpoint import MemeModel, Run
from ra_hmd.models.generation.chat import ChatModel
from ra_hmd.scoring.thresholds import Criterion

_PART = 64  # memes; what a stop can lose
_MARK = "fingerprint.json"
_FORMAT = 1  # of the parts


def in_context(
    run: Run,
    queries: MemeSplit,
    examples: MemeSplit | None,
    output: str | Path,
    choice: DemonstrationSettings,
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

    Finished parts lie in `<output>/parts`. Stopped and started again, it continues; finished, it only measures anew.
    Under torchrun each rank takes every WORLD_SIZE-th part, and the last one measures.

    Args:
        run: The LMM; its head plays no part in the scores.
        queries: What is judged; all labelled.
        examples: What may be shown; not needed for 0 shots.
        output: Folder: predictions.jsonl, metrics.json, report.md, manifest.
        choice: Which examples are shown.
        stores: Features by which demonstrations are retrieved.
        answers: What is said of each class; see `class_answers`.
        final: Score a test split too; that is written down beside the head.
        dev: Output of this command on dev, with the same settings: its scores choose the threshold.
        criterion: What the threshold must be best at.
        bootstrap_samples: Resamples of each interval; 0 for none.
        batch_size: Chats per forward pass.
        dtype: Of the computation.
        device: Where the LMM runs; by default what accelerate finds.
        show: Whether to show a progress bar.
        command: The command line, for the records.

    Returns:
        The manifest; of a rank that left measuring to another one, an empty dictionary.

    Raises:
        UserError: unlabelled memes or missing pictures, features of other memes, too few examples, prompts past the
            model's context, a test split without `final`, parts of another run.
    """
    output, settings = Path(output), run.settings
    _check_output(output)
    said = class_answers(settings, answers)
    if choice.shots and examples is None:
        raise UserError(f"--shots {choice.shots} needs --examples: the labelled memes that are shown.")
    shown_from = examples.memes if examples is not None and choice.shots else []
    _check_memes(run, queries.memes, shown_from)
    mine, theirs = open_candidates(run, queries.memes, shown_from, choice, stores)
    chosen = choose_demonstrations(mine, theirs, choice, settings.problem.classes)
    by = stores.compared_by(run) if stores is not None and choice.shots and choice.kind == "retrieved" else None
    stated = _stated(run, queries.memes, shown_from, choice, by, said, chosen, dtype)
    threshold = dev_threshold(dev, criterion, stated, queries.memes, settings.problem) if dev is not None else None
    order = _longest_first(queries.memes, shown_from, chosen.rows, settings.image_max_pixels)
    parts = _Parts(output / "parts", stated, [order[start : start + _PART] for start in range(0, len(order), _PART)])
    state = PartialState()
    with state.main_process_first():
        parts.check()
        opened = _open(parts, run, queries, examples if choice.shots else None, output, final=final, command=command)
    todo = [number for number in parts.missing() if number % state.num_processes == state.process_index]
    if todo:
        where = torch.device(device) if device is not None else state.device
        scorer = InContextScorer(ChatModel(MemeModel(run, where, dtype)), settings, shown_from, said)
        longest = scorer.check_context([queries.memes[row] for row in order[:_PART]], chosen.rows[order[:_PART]])
        shown = show and state.is_main_process
        _score_parts(scorer, queries.memes, chosen, parts, todo, batch_size, longest, show=shown)
    if parts.missing():
        return {}
    scores, longest = parts.scores(queries.memes, settings.problem.outputs)
    outcome = InContextResult(
        run=run,
        queries=queries,
        examples=examples if choice.shots else None,
        choice=choice,
        stores=stores if choice.shots else None,
        chosen=chosen,
        shown_from=shown_from,
        said=said,
        scores=scores,
        longest=longest,
        threshold=threshold,
        opened=opened,
        stated=stated,
        samples=bootstrap_samples,
        command=command,
    )
    return write_in_context_result(outcome, output)


def _check_output(output: Path) -> None:
    """Raise `UserError` where another command's output would be spoiled."""
    check_output(output, "evaluation")
    path = output / MANIFEST_NAME
    if path.is_file() and KEY not in read_json(path):
        raise UserError(f"{output} holds an evaluation of another command; choose another output folder.")


def _check_memes(run: Run, queries: Sequence[Meme], examples: Sequence[Meme]) -> None:
    for name, memes in (("judged", queries), ("shown", examples)):
        check_labels(list(memes), None)
        if memes:
            run.settings.problem.check(label_array(memes), f"The memes that are to be {name}")
    bad = [f"meme {m.id!r}: image {m.image} is missing or not an image" for m in [*queries, *examples]
           if image_size(m.path) == (0, 0)]  # fmt: skip
    raise_all(bad, "Images that cannot be opened; mend their paths or remove the records")


def _stated(
    run: Run,
    queries: list[Meme],
    examples: list[Meme],
    choice: DemonstrationSettings,
    compared_by: str | None,
    said: Sequence[str],
    chosen: Demonstrations,
    dtype: DType,
) -> dict[str, Any]:
    """What a score depends on; two runs that agree in it may continue each other."""
    return plain({
        "format": _FORMAT,
        "model": run.fingerprint() | {"head": None},
        "data": fingerprint_memes(queries),
        "examples": fingerprint_memes(examples),
        "choice": choice.model_dump(),
        "compared_by": compared_by,
        "answers": list(said),
        "shown": sha256_bytes(chosen.rows.astype("<i8").tobytes()),
        "dtype": dtype,
    })  # fmt: skip


def _longest_first(queries: Sequence[Meme], examples: Sequence[Meme], rows: np.ndarray, pixels: int) -> list[int]:
    """Queries in an order that shows at once whether prompts are too long for context or memory."""

    def length(meme: Meme) -> float:
        width, height = image_size(meme.path)
        return min(width * height, pixels) / 784 + len(meme.caption) / 4

    shown = np.array([length(meme) for meme in examples])
    total = np.array([length(meme) for meme in queries]) + (shown[rows].sum(axis=1) if rows.size else 0.0)
    return np.argsort(-total, kind="stable").tolist()


class _Parts:
    """The finished parts of a run, one JSON Lines file each."""

    def __init__(self, folder: Path, stated: dict[str, Any], plan: list[list[int]]) -> None:
        self.folder, self.stated, self.plan = folder, stated, plan

    def check(self) -> None:
        """Raise `UserError` where the folder holds the parts of another run."""
        old = self.mark().get("stated")
        if old is not None and old != self.stated:
            other = [name for name in self.stated if old.get(name) != self.stated[name]]
            raise UserError(
                f"{self.folder} holds scores of another run; what differs: {', '.join(other)}. Remove it, or give "
                "another --output."
            )

    def mark(self) -> dict[str, Any]:
        """What was written at the start; empty before."""
        path = self.folder / _MARK
        return read_json(path) if path.is_file() else {}

    def begin(self, opened: Mapping[str, Any]) -> None:
        """Write down what the parts are of, and that test data were opened for them."""
        write_json(self.folder / _MARK, {"stated": self.stated, "opened": dict(opened)})

    def path(self, number: int) -> Path:
        """File of a part."""
        return self.folder / f"part-{number:05d}.jsonl"

    def missing(self) -> list[int]:
        """Parts that are still to be scored."""
        return [number for number in range(len(self.plan)) if not self.path(number).is_file()]

    def scores(self, memes: Sequence[Meme], outputs: int) -> tuple[np.ndarray, int]:
        """All scores [Q, C] in the order of the memes, and the tokens of the longest prompt that was measured."""
        found, longest = np.full((len(memes), outputs), np.nan), 0
        for number, rows in enumerate(self.plan):
            lines = [row.values for row in jsonl_rows(self.path(number))]
            if [line.get("id") for line in lines] != [memes[row].id for row in rows]:
                raise UserError(f"{self.path(number)} is damaged; remove it, and run the same command again.")
            found[rows] = [line["score"] for line in lines]
            longest = max(longest, *(line["longest"] for line in lines))
        return found, longest


def _open(
    parts: _Parts, run: Run, queries: MemeSplit, examples: MemeSplit | None, output: Path, *, final: bool, command: str
) -> dict[str, Any]:
    """The lock of test data: once for a run, however often it is stopped."""

    def locked(source: MemeSplit) -> Features:
        manifest = NO_STORE.model_copy(
            update={"split": source.split, "fingerprint": {"data": fingerprint_memes(source.memes)}}
        )
        return replace(features_of(source.memes, {"hidden": np.zeros((len(source.memes), 0))}), manifest=manifest)

    begun = parts.mark().get("opened")
    if begun is not None and (final or not begun["test_sets"]):
        return dict(begun)
    stores = {str(queries.described["place"]): locked(queries)}
    banks = {f"examples {examples.described['place']}": locked(examples)} if examples is not None else {}
    # A bare model has no folder of ours: then its output keeps the record.
    head = run.head if run.head is not None else output
    if final:
        output.mkdir(parents=True, exist_ok=True)
    opened = open_labels(stores, [head], final=final, command=command, examples=banks)
    parts.begin(opened)
    return opened


def _score_parts(
    scorer: InContextScorer,
    memes: Sequence[Meme],
    chosen: Demonstrations,
    parts: _Parts,
    todo: Sequence[int],
    batch_size: int,
    longest: int,
    *,
    show: bool,
) -> None:
    def scored() -> Iterator[tuple[int, tuple[int, np.ndarray]]]:
        for number in todo:
            rows = parts.plan[number]
            yield len(rows), (number, scorer.scores([memes[row] for row in rows], chosen.rows[rows], batch_size))

    total = sum(len(parts.plan[number]) for number in todo)
    for number, scores in track(scored(), "Asking", total, "memes", show=show):
        write_jsonl(parts.path(number), [
            {"id": memes[row].id, "score": values, "longest": longest}
            for row, values in zip(parts.plan[number], scores.tolist(), strict=True)
        ])  # fmt: skip
