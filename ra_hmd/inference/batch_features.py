"""Prediction on feature stores: the verdict of one head on each meme, written to a file."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ra_hmd.core.artifacts import atomic_path, plain, sha256_file
from ra_hmd.core.config import choose
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import BANK_HEADS, Head
from ra_hmd.core.manifests import PredictionsManifest, write_manifest
from ra_hmd.core.problem import Problem
from ra_hmd.core.progress import track
from ra_hmd.core.storage import as_path
from ra_hmd.features.compatibility import store_fingerprint
from ra_hmd.features.store import read_features
from ra_hmd.inference.options import FileFormat
from ra_hmd.inference.types import Verdict
from ra_hmd.inference.verdicts import verdicts_of
from ra_hmd.inference.writers import check_format, manifest_path, open_writer, verdict_names
from ra_hmd.models.head import HEAD_WEIGHTS
from ra_hmd.retrieval.kernel_ridge.settings import kernel_settings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.operating_point import OFFICIAL_NOTE
from ra_hmd.scoring.scorer import Scorer
from ra_hmd.scoring.scores import ScoredSet

_FORMATS: tuple[FileFormat, ...] = ("jsonl", "hateclipper-csv")


def predict_features(
    checkpoint: str | Path,
    queries: str | Path,
    output: str | Path,
    *,
    head: Head = "lrc",
    style: FileFormat = "jsonl",
    bank: str | Path | None = None,
    voting: Voting | None = None,
    views: Sequence[str] = (),
    thresholds: Literal["stored", "official"] = "stored",
    device: str | torch.device | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Write one head's verdict on each meme of a feature store. Labels are ignored and may be missing.

    Args:
        checkpoint: Folder with a head.
        queries: Feature store.
        output: File to write; its manifest is written beside it, as `<output>.manifest.json`.
        head: The head that decides.
        style: `jsonl`, or for a binary head `hateclipper-csv` (columns `id, prob_hate, pred_label`).
        bank: Labelled memes, for RKC and KRR.
        voting: Settings of the vote.
        views: Views that the KRR compares; default: the embedding.
        thresholds: See `Scorer.open`.
        device: Where the head runs.
        command: The command line, for the manifest.

    Returns:
        The manifest: `rows`, `verdicts` (count of each), `notes`, arguments, thresholds, fingerprints.

    Raises:
        UserError: head, bank and store that do not belong together; a format that cannot hold the verdicts.
    """
    output = as_path(output)
    _check_arguments(output, head, style, bank)
    balanced = voting is not None and voting.prior_correction
    kernel = kernel_settings(views, balanced=balanced) if head == "krr" else None  # the rows have no other head
    scorer = Scorer.open(checkpoint, bank, voting, thresholds=thresholds, device=device, kernel=kernel)
    problem = scorer.model.config.problem
    check_format(style, problem)
    features = read_features(queries)
    scored = scorer(queries, features)
    _check_scores(scored, head, style, queries)
    captions = [(text, "given") for text in features.texts or [""] * len(scored)]
    rows = track(((1, one) for one in verdicts_of(scored, scorer, head, captions)), "Writing", len(scored), "memes")
    counts = _write(output, style, rows, problem)
    rule = scored.rules[head]
    arguments = {"checkpoint": checkpoint, "queries": queries, "bank": bank, "head": head, "format": style}
    manifest = PredictionsManifest.new(
        command=command,
        arguments=plain({**arguments, "thresholds": thresholds, **asdict(scorer.voting)}),
        rows=len(scored),
        verdicts=counts,
        output_sha256=sha256_file(output),
        head_sha256=sha256_file(scorer.checkpoint / HEAD_WEIGHTS),
        bank=scorer.state,
        rule={"thresholds": rule.thresholds.tolist(), "calibration": rule.calibration.kind, "chosen": rule.chosen},
        features=plain(store_fingerprint(features)),
        notes=_notes(scorer, scored, head),
    )
    write_manifest(manifest_path(output), manifest)
    return manifest.to_json()


def _check_arguments(output: Path, head: Head, style: FileFormat, bank: str | Path | None) -> None:
    choose("head", head, get_args(Head))
    choose("format", style, _FORMATS)
    if output.is_dir():
        raise UserError(f"{output} is a folder; give a file to write, for example {output / 'predictions.csv'}.")
    if (head in BANK_HEADS) != (bank is not None):
        raise UserError(
            f"`--head {head}` needs `--bank`: the labelled memes that vote."
            if bank is None
            else f"`--bank` is for `--head rkc` and `--head krr` alone, {head!r} does not use it; leave it out."
        )


def _check_scores(scored: ScoredSet, head: Head, style: FileFormat, place: str | Path) -> None:
    if head not in scored.scores:
        reason = next((note for note in scored.notes if note.startswith(head.upper())), "")
        raise UserError(f"{place}: `--head {head}` has no scores. {reason} Choose another head.")
    abstained = scored.abstained.nonzero()[0]
    if style == "hateclipper-csv" and len(abstained):
        raise UserError(
            f"The vote abstains on {len(abstained)} memes, the first is {scored.queries.ids[abstained[0]]!r}, and "
            "`hateclipper-csv` cannot express that. Use `--format jsonl`, or lower --min-similarity."
        )


def _write(output: Path, style: FileFormat, verdicts: Iterable[Verdict], problem: Problem) -> dict[str, int]:
    """Write the file atomically, meme by meme; return the count of each verdict."""
    counts: Counter[str] = Counter()
    with atomic_path(output) as temporary, open_writer(temporary, style, problem) as write:
        for verdict in verdicts:
            counts.update(verdict_names(verdict.verdict))
            write(verdict.to_row(brief=True))
    return dict(sorted(counts.items()))


def _notes(scorer: Scorer, scored: ScoredSet, head: Head) -> list[str]:
    """Notes for the reader of this head's verdicts."""
    others = tuple(name.upper() for name in get_args(Head) if name != head)
    notes = [note for note in scored.notes if not note.startswith(others)]
    if scored.in_bank:
        notes.append(f"{scored.in_bank} memes are in the bank too; none votes for itself.")
    if scorer.decision is None:
        notes.append(OFFICIAL_NOTE)
    return notes
