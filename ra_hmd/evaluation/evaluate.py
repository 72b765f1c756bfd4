"""`ra-hmd evaluate`: the three heads side by side on query sets, with intervals, evidence and bank updates."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ra_hmd.errors import UserError
from ra_hmd.evaluation.bootstrap import metric_estimates
from ra_hmd.evaluation.checks import (
    check_head_fits,
    check_output,
    check_same_origin,
    check_store,
    head_fingerprint,
    store_fingerprint,
)
from ra_hmd.evaluation.metrics import THRESHOLDS
from ra_hmd.evaluation.report import write_report
from ra_hmd.evaluation.results import Evaluation, find_evidence, predictions
from ra_hmd.evaluation.scores import ScoredSet, score_set
from ra_hmd.evaluation.update import check_update, update_curve
from ra_hmd.features.store import Features, read_features
from ra_hmd.manifest import MANIFEST_NAME, plain, run_manifest, sha256_file, write_json, write_jsonl
from ra_hmd.models.head import HEAD_WEIGHTS, MemeHead, has_head, load_head
from ra_hmd.retrieval.embedded import Embedded
from ra_hmd.retrieval.voting import VoteWeights, Voting

INITIAL_HEAD = "initial_head"
"""Folder in a Stage 2 output that holds the head it started from."""

UPDATE_KEY = "bank_update"
"""The one key of metrics.json that is not a query set."""


def evaluate(
    checkpoint: str | Path,
    bank: str | Path,
    queries: Sequence[str | Path],
    output: str | Path,
    topk: int = 20,
    weights: VoteWeights = "arithmetic",
    update: str | Path | None = None,
    update_sizes: Sequence[int] = (),
    bootstrap_samples: int = 1000,
    seed: int = 0,
    *,
    before: str | Path | None = None,
    device: str | torch.device | None = None,
    commands: Sequence[str] = (),
) -> dict[str, Any]:
    """Score query sets with the LM head, the logistic regression and the KNN vote; write metrics and report.

    A query whose id is in the bank does not vote for itself; how many there are is counted. Bank, queries and update
    are embedded anew by the checkpoint's head from the stores' hidden states.

    Args:
        checkpoint: Folder with a head: a Stage 1 run or a Stage 2 output.
        bank: Feature store of the labelled examples.
        queries: Feature stores of the labelled query sets; a set is called by its folder's name.
        output: Folder for metrics.json, evidence.json, predictions.jsonl, report.md, PNGs and the manifest.
        topk: K of the vote.
        weights: Rank weights of the vote.
        update: Feature store whose labelled rows are added to the bank, to show what an update does.
        update_sizes: How many rows, for example (8, 32, 128); each sample is class-balanced and holds the smaller ones.
        bootstrap_samples: Resamples behind each 95 % interval; 0 for none.
        seed: Of the resamples and of the update's sample.
        before: Folder with the head to compare the bank's projection with; by default the one that Stage 2 started
            from, where `checkpoint` is a Stage 2 output.
        device: Where the head runs; by default what accelerate finds.
        commands: What the report names as the commands that led to it; by default this one.

    Returns:
        `metrics` (set → head → metric → value, low, high), `updates` (set → list of sizes), `notes`, `rows`
        (set → memes), `output` and `report` (path of report.md).

    Raises:
        UserError: stores and head that do not belong together, unlabelled rows, a leak, clashing names.
    """
    checkpoint, bank, output = Path(checkpoint), Path(bank), Path(output)
    if bootstrap_samples < 0:
        raise UserError(f"bootstrap_samples is {bootstrap_samples}, it must not be negative.")
    voting = Voting(topk, weights)
    head = load_head(checkpoint).to(device if device is not None else Accelerator().device)
    check_output(output, "evaluation")
    named = _named(queries)
    stores = _read_stores([bank, *named.values(), *([Path(update)] if update else [])], head, checkpoint)
    examples = Embedded.of(stores[bank], head)
    added = Embedded.of(stores[Path(update)], head) if update else None
    if added is not None:
        check_update(update, added, update_sizes, {name: stores[path].ids for name, path in named.items()})

    sets = [score_set(name, path, stores[path], head, examples, voting) for name, path in named.items()]
    result = Evaluation(checkpoint, bank, examples, voting, sets, {}, bootstrap_samples, seed)
    result.update_place = Path(update) if update else None
    result.commands = list(commands) or [_command(result, list(named.values()), output, update_sizes, before)]
    _add_before(result, stores[bank], before, head)
    for scored in sets:
        result.metrics[scored.name] = _head_metrics(scored, bootstrap_samples, seed)
        result.evidence[scored.name] = find_evidence(scored, examples)
        if added is not None:
            result.updates[scored.name] = update_curve(
                scored.queries, examples, added, update_sizes, voting, samples=bootstrap_samples, seed=seed
            )
    result.notes = _notes(result, added)
    result.manifest = _manifest(result, stores, update_sizes)
    return _write(result, output)


def _named(queries: Sequence[str | Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    if not queries:
        raise UserError("No query set is given; name at least one feature store.")
    for folder in map(Path, queries):
        name = folder.absolute().name
        if name in named:
            raise UserError(f"Query sets {named[name]} and {folder} are both called {name!r}; rename one folder.")
        if name == UPDATE_KEY:
            raise UserError(f"A query set cannot be called {name!r}, metrics.json uses that name; rename {folder}.")
        named[name] = folder
    return named


def _read_stores(folders: Sequence[Path], head: MemeHead, checkpoint: Path) -> dict[Path, Features]:
    stores = {folder: read_features(folder) for folder in folders}
    for folder, features in stores.items():
        check_store(features, folder)
        check_head_fits(head.config, checkpoint, features, folder)
    fingerprints = {str(folder): store_fingerprint(features) for folder, features in stores.items()}
    check_same_origin(fingerprints)  # each with the bank
    check_same_origin({str(checkpoint): head_fingerprint(checkpoint), **fingerprints})
    return stores


def _head_metrics(scored: ScoredSet, samples: int, seed: int) -> dict[str, dict[str, dict[str, float | None]]]:
    return {
        head: {
            name: estimate.as_dict()
            for name, estimate in metric_estimates(
                scores, scored.labels, THRESHOLDS[head], samples=samples, seed=seed
            ).items()
        }
        for head, scores in scored.scores.items()
    }


def _add_before(result: Evaluation, bank: Features, before: str | Path | None, head: MemeHead) -> None:
    place = Path(before) if before is not None else result.checkpoint / INITIAL_HEAD
    if before is None and not has_head(place):
        return
    earlier = load_head(place).to(next(head.parameters()).device)
    check_head_fits(earlier.config, place, bank, result.bank_place)
    result.before, result.before_place = Embedded.of(bank, earlier).embedding, place


def _notes(result: Evaluation, added: Embedded | None) -> list[str]:
    notes = []
    for scored in result.sets:
        if "lmh" not in scored.scores:
            notes.append(f"{scored.name}: LMH is left out, the feature store has no LMH scores.")
        if scored.in_bank:
            notes.append(f"{scored.name}: {scored.in_bank} query ids are also in the bank; none votes for itself.")
        present = sorted(set(scored.labels.tolist()))
        if len(present) < 2:
            notes.append(f"{scored.name}: all memes are of class {present[0]}, so the AUROC is undefined.")
    if added is not None:
        shared = len(set(added.ids) & set(result.bank.ids))
        if shared:
            notes.append(f"{shared} rows of the update are already in the bank; they vote twice when drawn.")
    return notes


def _command(
    result: Evaluation, queries: Sequence[Path], output: Path, sizes: Sequence[int], before: str | Path | None
) -> str:
    """The command line of `ra-hmd evaluate` that does the same."""
    words = ["ra-hmd", "evaluate", "--checkpoint", result.checkpoint, "--bank", result.bank_place]
    for folder in queries:
        words += ["--queries", folder]
    words += ["--output", output, "--topk", result.voting.topk, "--weights", result.voting.weights]
    if result.update_place is not None:
        words += ["--update", result.update_place, "--update-sizes", ",".join(map(str, sizes))]
    if before is not None:
        words += ["--before", before]
    words += ["--bootstrap-samples", result.samples, "--seed", result.seed]
    return shlex.join(map(str, words))


def _manifest(result: Evaluation, stores: Mapping[Path, Features], sizes: Sequence[int]) -> dict[str, Any]:
    arguments = {
        "checkpoint": result.checkpoint,
        "bank": result.bank_place,
        "queries": {scored.name: len(scored.queries) for scored in result.sets},
        "topk": result.voting.topk,
        "weights": result.voting.weights,
        "update": result.update_place,
        "update_sizes": list(sizes),
        "bootstrap_samples": result.samples,
        "before": result.before_place,
    }
    return run_manifest(
        "evaluation",
        arguments=plain(arguments),
        seed=result.seed,
        head_sha256=sha256_file(result.checkpoint / HEAD_WEIGHTS),
        features={str(folder): plain(store_fingerprint(features)) for folder, features in stores.items()},
        commands=result.commands,
    )


def _write(result: Evaluation, output: Path) -> dict[str, Any]:
    update = {UPDATE_KEY: result.updates} if result.updates else {}
    write_json(output / "metrics.json", {**result.metrics, **update})
    write_json(output / "evidence.json", result.evidence)
    write_jsonl(output / "predictions.jsonl", [row for scored in result.sets for row in predictions(scored)])
    write_json(output / MANIFEST_NAME, result.manifest)
    report = write_report(result, output)
    return {
        "metrics": result.metrics,
        "updates": result.updates,
        "notes": result.notes,
        "rows": {scored.name: len(scored.queries) for scored in result.sets},
        "output": str(output),
        "report": str(report),
    }
