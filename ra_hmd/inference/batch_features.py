"""Verdicts of a trained head on the memes of a feature store, labelled or not, as a file."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ra_hmd.core.artifacts import atomic_path, plain, run_manifest, sha256_file, write_json
from ra_hmd.core.config import choose
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.core.problem import Problem
from ra_hmd.core.progress import track
from ra_hmd.features.compatibility import store_fingerprint
from ra_hmd.features.store import read_features
from ra_hmd.inference.writers import open_writer, verdict_names
from ra_hmd.models.head import HEAD_WEIGHTS
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.evidence import plain_score, vote_evidence
from ra_hmd.scoring.operating_point import UNDECIDED
from ra_hmd.scoring.scorer import Scorer
from ra_hmd.scoring.scores import ScoredSet

PredictionFormat = Literal["hateclipper-csv", "jsonl"]


def predict(
    checkpoint: str | Path,
    queries: str | Path,
    output: str | Path,
    *,
    head: Head = "lrc",
    style: PredictionFormat = "jsonl",
    bank: str | Path | None = None,
    voting: Voting | None = None,
    thresholds: Literal["stored", "official"] = "stored",
    device: str | torch.device | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Write one head's verdict on each meme of a feature store; labels are not looked at, there may be none.

    Args:
        checkpoint: Folder with a head.
        queries: Feature store.
        output: File to write; its manifest lies beside it, as `<output>.manifest.json`.
        head: Who decides.
        style: `hateclipper-csv` has the columns `id, prob_hate, pred_label`, for a binary head; `jsonl` is for every
            problem, and has the neighbours behind a vote.
        bank: Labelled examples, for the RKC.
        voting: The vote of the RKC.
        thresholds: See `Scorer.open`.
        device: Where the head runs.
        command: The command line, for the manifest.

    Returns:
        The manifest: `rows`, `verdicts` (how many of each), `notes`, arguments, thresholds, fingerprints.

    Raises:
        UserError: head, bank and store that do not belong together; a format that cannot hold the answers.
    """
    output = Path(output)
    choose("head", head, get_args(Head))
    choose("format", style, get_args(PredictionFormat))
    if output.is_dir():
        raise UserError(f"{output} is a folder; give a file to write, for example {output / 'predictions.csv'}.")
    if (head == "rkc") != (bank is not None):
        raise UserError(
            "`--head rkc` needs `--bank`: the labelled memes that vote."
            if bank is None
            else f"`--bank` is for `--head rkc` alone, {head!r} does not look at it; leave it out."
        )
    scorer = Scorer.open(checkpoint, bank, voting, thresholds=thresholds, device=device)
    problem = scorer.model.config.problem
    if style == "hateclipper-csv" and problem.kind != "binary":
        raise UserError(
            f"`hateclipper-csv` has one probability and one class per meme; the head in {checkpoint} decides "
            f"`{problem.kind}` of {problem.outputs} classes. Use `--format jsonl`."
        )
    features = read_features(queries)
    scored = scorer(queries, features)
    _check_answers(scored, head, style, queries)
    rows = track(((1, row) for row in _answers(scored, head, scorer)), "Writing", len(scored), "memes")
    verdicts = _write(output, style, rows, problem)
    rule = scored.rules[head]
    arguments = {"checkpoint": checkpoint, "queries": queries, "bank": bank, "head": head, "format": style}
    manifest = run_manifest(
        "predictions",
        command=command,
        arguments=plain({**arguments, "thresholds": thresholds, **asdict(scorer.voting)}),
        rows=len(scored),
        verdicts=verdicts,
        output_sha256=sha256_file(output),
        head_sha256=sha256_file(scorer.checkpoint / HEAD_WEIGHTS),
        bank=scorer.state,
        rule={"thresholds": rule.thresholds.tolist(), "calibration": rule.calibration.kind, "chosen": rule.chosen},
        features=plain(store_fingerprint(features)),
        notes=_notes(scorer, scored, head),
    )
    write_json(output.with_name(f"{output.name}.manifest.json"), manifest)
    return manifest


def _check_answers(scored: ScoredSet, head: Head, style: PredictionFormat, place: str | Path) -> None:
    if head not in scored.scores:
        why = next((note for note in scored.notes if note.startswith(head.upper())), "")
        raise UserError(f"{place}: `--head {head}` has no answer. {why} Choose another head.")
    silent = scored.abstained.nonzero()[0]
    if style == "hateclipper-csv" and len(silent):
        raise UserError(
            f"The vote abstains on {len(silent)} memes, the first is {scored.queries.ids[silent[0]]!r}, and "
            "`hateclipper-csv` cannot say so. Use `--format jsonl`, or lower --min-similarity."
        )


def _answers(scored: ScoredSet, head: Head, scorer: Scorer) -> Iterator[dict[str, Any]]:
    """Per meme `id`, `head`, `score`, `probability`, `verdict` (None where the vote abstained), of a vote `neighbours`
    and `identical` (`Scorer.identical`), whose label is then the verdict.

    Score and probability are lists, one value per class, where there are several classes.
    """
    examples = scorer.examples
    scores, probabilities, verdicts = scored.scores[head], scored.probabilities(head), scored.verdicts(head)
    evidence = vote_evidence(scored, examples.rows) if examples is not None else repeat(None)
    rows = zip(scored.queries.ids, evidence, scorer.identical(scored), strict=False)
    for row, (name, neighbours, identical) in enumerate(rows):
        answer = {
            "id": name,
            "head": head,
            "score": plain_score(scores[row], scored.problem),
            "probability": plain_score(probabilities[row], scored.problem),
            "verdict": None if scored.abstained[row] else verdicts[row].tolist(),
        }
        if identical is not None:
            answer["verdict"] = identical["label"]
        yield answer if neighbours is None else answer | {"neighbours": neighbours, "identical": identical}


def _write(
    output: Path, style: PredictionFormat, answers: Iterable[dict[str, Any]], problem: Problem
) -> dict[str, int]:
    """Write the file, atomically and meme by meme; returns how often each verdict was given."""
    verdicts: Counter[str] = Counter()
    with atomic_path(output) as temporary, open_writer(temporary, style, problem) as write:
        for answer in answers:
            verdicts.update(verdict_names(answer["verdict"]))
            write(answer)
    return dict(sorted(verdicts.items()))


def _notes(scorer: Scorer, scored: ScoredSet, head: Head) -> list[str]:
    """What a reader of this head's verdicts must know."""
    others = tuple(name.upper() for name in get_args(Head) if name != head)
    notes = [note for note in scored.notes if not note.startswith(others)]
    if scored.in_bank:
        notes.append(f"{scored.in_bank} memes are in the bank too; none votes for itself.")
    if scorer.decision is None:
        notes.append(UNDECIDED)
    return notes
