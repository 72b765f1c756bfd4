"""Retention of an earlier policy (`ra-hmd retention policy`): a model tuned on A, and then on B, judged on A.

It compares two evaluations of the same memes of A: of the run on A, and of the run that was then tuned on B.

Shapes: Q memes, C outputs of the problem.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ra_hmd.core.artifacts import MANIFEST_NAME, plain, sha256_file, write_json
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.heads import Head, official_thresholds
from ra_hmd.core.manifests import RetentionManifest, write_manifest
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.evaluation.metrics.significance import Contender, OtherRun, compare_pairs, read_run
from ra_hmd.experiments.retention.config import PolicySettings
from ra_hmd.experiments.retention.gate import GateResult, Margins, PairedDifferences, non_inferiority
from ra_hmd.experiments.retention.report import write_policy_report
from ra_hmd.features.compatibility import check_output

UNIT = "share of memes"
SIDES = ("before", "after")


@dataclass(frozen=True)
class PairedScores:
    """Predictions of two runs on the same memes.

    Attributes:
        ids: Memes [Q].
        labels: int64 [Q], or [Q, C].
        problem: What labels and scores mean.
        heads: Head to its scores and thresholds before and after.
        notes: What was left out.
    """

    ids: list[str]
    labels: np.ndarray
    problem: Problem
    heads: dict[Head, tuple[Contender, Contender]]
    notes: list[str]


def policy_retention(
    before: str | Path,
    after: str | Path,
    output: str | Path,
    settings: PolicySettings | None = None,
    *,
    query_set: str | None = None,
    heads: Sequence[Head] = (),
    command: str = "",
) -> dict[str, Any]:
    """Compare two evaluations of the same memes; write policy.json, policy.md, policy.png and a manifest.

    Args:
        before: Output folder of `ra-hmd evaluate` for the run on A, or its predictions.jsonl.
        after: The same for the run that was then tuned on B.
        output: Output folder.
        settings: Margin and resamples.
        query_set: Query set of both; not needed where each has one.
        heads: Heads that are judged; default: all that both have.
        command: Command line for the records.

    Returns:
        Content of policy.json: `gate`, `comparisons` (see `compare_pairs`), `memes`, `notes`.

    Raises:
        UserError: no meme or head in common, other labels, an output folder of another command.
    """
    settings, output = settings or PolicySettings(), Path(output)
    check_output(output, "policy_retention")
    runs = read_run(before), read_run(after)
    paired = pair_predictions(*runs, query_set=query_set, heads=heads)
    result = {
        "gate": gate(paired, settings).as_dict(),
        "comparisons": compare_pairs(
            list(paired.heads.values()),
            paired.labels,
            paired.problem,
            samples=settings.bootstrap_samples,
            seed=settings.seed,
        ),
        "memes": len(paired.ids),
        "notes": paired.notes,
    }
    manifest = RetentionManifest.new(
        "policy_retention",
        command=command,
        arguments=plain(
            settings.model_dump() | {"before": before, "after": after, "set": query_set, "heads": list(paired.heads)}
        ),
        seed=settings.seed,
        fingerprint={side: sha256_file(run.place) for side, run in zip(SIDES, runs, strict=True)},
        items=len(paired.ids),
        gate=result["gate"],
        notes=paired.notes,
    )
    write_json(output / "policy.json", result)
    write_policy_report(result, settings.seed, command, output)
    write_manifest(output / MANIFEST_NAME, manifest)
    return result


def gate(paired: PairedScores, settings: PolicySettings) -> GateResult:
    """Decide for each head whether its accuracy fell by less than the margin."""
    tasks = {
        head.upper(): PairedDifferences(_right(paired, after) - _right(paired, before), unit=UNIT)
        for head, (before, after) in paired.heads.items()
    }
    margins = Margins(each=settings.margin, pooled=None)
    return non_inferiority(tasks, margins, samples=settings.bootstrap_samples, seed=settings.seed)


def pair_predictions(
    before: OtherRun, after: OtherRun, *, query_set: str | None = None, heads: Sequence[Head] = ()
) -> PairedScores:
    """Match the predictions of two evaluations by the ids of the memes.

    Raises:
        UserError: see `policy_retention`.
    """
    names = [_set_of(run, query_set) for run in (before, after)]
    lines = [
        {meme: row for (name, meme), row in run.rows.items() if name == chosen}
        for run, chosen in zip((before, after), names, strict=True)
    ]
    ids = [meme for meme in lines[0] if meme in lines[1]]
    if not ids:
        raise UserError(f"{before.place} and {after.place} have no meme in common; evaluate both on the same memes.")
    raise_all(
        [f"{meme!r}: {lines[0][meme]['label']} and {lines[1][meme]['label']}" for meme in ids
         if lines[0][meme]["label"] != lines[1][meme]["label"]],
        f"{before.place} and {after.place} have other labels; retention is judged by the labels of the earlier policy",
    )  # fmt: skip
    shared = [[side[meme] for meme in ids] for side in lines]
    labels = np.array([line["label"] for line in shared[0]], dtype=np.int64)
    notes = [
        f"{run.place}: {len(side) - len(ids)} memes that the other evaluation lacks are left out."
        for run, side in zip((before, after), lines, strict=True)
        if len(side) > len(ids)
    ]
    common = [
        head
        for head in get_args(Head)
        if all(line.get(f"{head}_score") is not None for side in shared for line in side)
    ]
    missing = [head for head in heads if head not in common]
    if missing or not common:
        known = ", ".join(common) or "none"
        raise UserError(f"{', '.join(missing) or 'Heads'}: not in both evaluations, which share {known}.")
    chosen = [head for head in common if not heads or head in heads]
    problem = _problem(labels, shared[0][0][f"{chosen[0]}_score"])
    found: dict[Head, tuple[Contender, Contender]] = {}
    for head in chosen:
        first, second = (
            _contender(run, name, head, side, rows, problem, notes)
            for run, name, side, rows in zip((before, after), names, SIDES, shared, strict=True)
        )
        found[head] = first, second
    return PairedScores(ids, labels, problem, found, notes)


def _right(paired: PairedScores, contender: Contender) -> np.ndarray:
    return contender.right(paired.labels, paired.problem).astype(np.float64)


def _set_of(run: OtherRun, asked: str | None) -> str:
    known = sorted({name for name, _ in run.rows})
    if asked is None and len(known) == 1:
        return known[0]
    if asked not in known:
        raise UserError(
            f"{run.place} has the query sets {', '.join(known) or 'of nobody'}; name with --set the memes of the "
            f"earlier policy{'' if asked is None else f' ({asked!r} is none of them)'}."
        )
    return asked


def _problem(labels: np.ndarray, score: Any) -> Problem:
    if labels.ndim == 2:
        return Problem("multi_label", labels.shape[1])
    return Problem("single_label", len(score)) if isinstance(score, list) else BINARY


def _contender(
    run: OtherRun,
    name: str,
    head: Head,
    side: str,
    rows: Sequence[Mapping[str, Any]],
    problem: Problem,
    notes: list[str],
) -> Contender:
    scores = np.array([row[f"{head}_score"] for row in rows], dtype=np.float64).reshape(len(rows), -1)
    if scores.shape[1] != problem.outputs:
        raise UserError(
            f"{run.place} has {scores.shape[1]} {head.upper()} scores per meme, the other evaluation has "
            f"{problem.outputs}: the two runs are not of the same task."
        )
    stated = run.thresholds.get(name, {}).get(head)
    if stated is None:
        notes.append(f"{head.upper()} of {run.place} is taken with its official threshold, it states none.")
        return Contender(f"{head.upper()} {side}", scores, official_thresholds(head, problem))
    return Contender(f"{head.upper()} {side}", scores, np.array(stated, dtype=np.float64))
