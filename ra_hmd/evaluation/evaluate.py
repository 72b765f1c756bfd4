"""Evaluation of the heads on query sets, with intervals, evidence and bank updates (`ra-hmd evaluate`)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ra_hmd.core.artifacts import plain, sha256_file
from ra_hmd.core.heads import Head
from ra_hmd.core.manifests import EvaluationManifest
from ra_hmd.core.problem import Problem
from ra_hmd.core.progress import track
from ra_hmd.core.storage import as_path
from ra_hmd.evaluation.bank_update import check_update, update_curves
from ra_hmd.evaluation.metrics.analysis import analyse
from ra_hmd.evaluation.metrics.estimates import estimates
from ra_hmd.evaluation.metrics.groups import find_groups
from ra_hmd.evaluation.metrics.seeds import expand_checkpoints
from ra_hmd.evaluation.metrics.significance import OtherRun, read_run
from ra_hmd.evaluation.provenance import describe_bank, describe_head, describe_queries
from ra_hmd.evaluation.report.outputs import write_evaluation, write_seeds
from ra_hmd.evaluation.request import EvaluationRequest, OperatingPointSettings, name_queries
from ra_hmd.evaluation.result import Evaluation, EvaluationSummary, find_evidence
from ra_hmd.evaluation.views import compare_views
from ra_hmd.features.compatibility import (
    check_head_fits,
    check_output,
    check_same_origin,
    check_store,
    head_fingerprint,
    store_fingerprint,
)
from ra_hmd.features.store import Features, read_features
from ra_hmd.features.test_lock import open_labels
from ra_hmd.models.head import HEAD_WEIGHTS, INITIAL_HEAD, MemeHead, has_head, load_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import kernel_settings
from ra_hmd.retrieval.voting import VoteWeights, Voting
from ra_hmd.scoring.bank_kernel import kernel_classifier_of
from ra_hmd.scoring.kernel_classifier import KernelClassifier
from ra_hmd.scoring.operating_point import (
    OperatingPoint,
    apply_operating_point,
    check_dev,
    check_judged,
    choose_operating_point,
    dev_rows,
    read_operating_point,
)
from ra_hmd.scoring.reference_set import ReferenceSet, match_reference_set, open_reference_set
from ra_hmd.scoring.scores import ScoredSet, score_set
from ra_hmd.scoring.threshold_basis import bank_content


def evaluate(
    checkpoint: str | Path | Sequence[str | Path],
    bank: str | Path,
    queries: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    topk: int = 20,
    weights: VoteWeights = "arithmetic",
    min_similarity: float | None = None,
    prior_correction: bool = False,
    views: Sequence[str] = (),
    operating_point: OperatingPointSettings | None = None,
    final: bool = False,
    compare: Sequence[str | Path] = (),
    groups: Sequence[str] = (),
    update: str | Path | None = None,
    update_sizes: Sequence[int] = (),
    update_draws: int = 1,
    before: str | Path | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    device: str | torch.device | None = None,
    commands: Sequence[str] = (),
) -> EvaluationSummary:
    """Score query sets with the LM head, the logistic head, the vote and the kernel head; write metrics and a report.

    A query whose id is in the bank does not vote for itself. The head embeds all stores from their hidden states.

    Args:
        checkpoint: Folder with a head: a Stage 1 run or a Stage 2 output. Several, or a Stage 2 run of several seeds,
            are evaluated each in a subfolder of `output`, and together.
        bank: Feature store of the labelled examples, or an example bank.
        queries: Feature stores of the labelled query sets, each named after its folder.
        output: Folder for metrics, report, figures and manifest.
        topk: K of the vote.
        weights: Weights of the vote.
        min_similarity: The vote abstains where no neighbour is at least this similar.
        prior_correction: Weight the classes of the bank equally.
        views: Views of the memes that the kernel head compares; default: the head's embedding.
        operating_point: Source of thresholds and calibration; by default those stored beside the head.
        final: Score test splits too; each time is recorded beside the head.
        compare: Earlier evaluations (folders or predictions.jsonl) to compare with, meme by meme.
        groups: Fields of the memes to break results down by, `FIELD` or `DATASET:FIELD`.
        update: Feature store whose labelled rows are added to the bank, to measure the effect.
        update_sizes: Numbers of rows to add, for example (8, 32, 128): nested, class-balanced samples.
        update_draws: Number of samples of each size; results are means over them.
        before: Folder with the head of the "before" panel of the bank's projection; default: Stage 2's initial head.
        bootstrap_samples: Resamples behind each 95 % interval; 0 for no intervals.
        seed: Seed of the resamples and of the update's samples.
        device: Device of the head; default: the one that accelerate selects.
        commands: Commands that the report lists; default: the equivalent `ra-hmd evaluate`.

    Raises:
        UserError: incompatible stores and head, unlabelled rows, a leak, clashing names, test data without `final`.
    """
    voting = Voting(topk, weights, min_similarity, prior_correction)
    request = EvaluationRequest(
        expand_checkpoints(checkpoint), bank, name_queries(queries), Path(output), voting,
        kernel_settings(views, balanced=prior_correction),
        operating_point or OperatingPointSettings(), _path(update), update_sizes, update_draws, bootstrap_samples,
        seed, final,
        tuple(map(Path, compare)), tuple(groups), _path(before), tuple(commands),
    )  # fmt: skip
    return run_evaluation(request, device if device is not None else Accelerator().device)


def _path(place: str | Path | None) -> Path | None:
    return None if place is None else as_path(place)


def run_evaluation(request: EvaluationRequest, device: str | torch.device) -> EvaluationSummary:
    """Check and run an evaluation, and write its files; see `evaluate`."""
    heads = {name: load_head(folder).to(device) for name, folder in request.checkpoints.items()}
    check_output(request.output, "evaluation")
    others = [read_run(place) for place in request.compare]
    stores = {folder: read_features(folder) for folder in request.stores()}
    for name, head in heads.items():
        _check_stores(request, stores, head, request.checkpoints[name])
    dev = _select_dev(request, stores, next(iter(heads.values())).config.problem)
    if request.update is not None:
        ids = {name: stores[path].ids for name, path in request.queries.items()}
        check_update(request.update, stores[request.update], request.update_sizes, ids)
    opened = open_labels(
        {folder: stores[folder] for folder in request.queries.values()},
        list(request.checkpoints.values()),
        final=request.final,
        command=" && ".join(request.commands or (request.command(),)),
        examples={folder: stores[folder] for folder in request.example_stores()},
    )
    results = {name: _evaluate_head(request, name, head, stores, dev, others, opened) for name, head in heads.items()}
    if len(results) == 1:
        return write_evaluation(next(iter(results.values())), request.output)
    return write_seeds(results, request.output)


def _check_stores(
    request: EvaluationRequest, stores: Mapping[Path, Features], head: MemeHead, checkpoint: Path
) -> None:
    problem = head.config.problem
    for folder, features in stores.items():
        check_store(features, folder, problem)
        check_head_fits(head.config, checkpoint, features, folder)
    fingerprints = {str(folder): store_fingerprint(features) for folder, features in stores.items()}
    check_same_origin(fingerprints)  # compares each with the first: the bank, if it is a store
    check_same_origin({str(checkpoint): head_fingerprint(checkpoint), **fingerprints})
    for name, folder in request.queries.items():
        for text in request.groups:
            find_groups(name, stores[folder].extras, text)


def _select_dev(
    request: EvaluationRequest, stores: Mapping[Path, Features], problem: Problem
) -> tuple[Features, list[str]] | None:
    """Dev rows to choose an operating point on, and the ids of those that are left out; None without `dev`.

    Raises:
        UserError: without `dev`, a stored operating point that was chosen on some of the queries.
    """
    queries: dict[str | Path, Sequence[str]] = {path: stores[path].ids for path in request.queries.values()}
    chosen = request.operating_point
    if chosen.dev is not None:
        rows, left_out = dev_rows(chosen.dev, stores[chosen.dev], queries)
        check_dev(chosen.dev, rows, problem)
        return rows, left_out
    if chosen.thresholds == "stored":
        for checkpoint in request.checkpoints.values():
            stored = read_operating_point(checkpoint)
            if stored is not None:
                for path, ids in queries.items():
                    check_judged(stored, path, ids)
    return None


def _evaluate_head(
    request: EvaluationRequest,
    name: str,
    head: MemeHead,
    stores: Mapping[Path, Features],
    dev: tuple[Features, list[str]] | None,
    others: Sequence[OtherRun],
    opened: Mapping[str, Any],
) -> Evaluation:
    """Evaluate one head on all query sets."""
    checkpoint, voting = request.checkpoints[name], request.voting
    examples = open_reference_set(request.bank, stores, head, checkpoint, in_memory=request.update is not None)
    labelled = examples.in_memory() if examples.bank is None else examples.bank
    kernel = kernel_classifier_of(labelled, head.config.problem, request.kernel)
    point = _operating_point(request, checkpoint, head, dev, examples, kernel)
    bank_match = match_reference_set(examples, None if point is None else point.bank)
    result = Evaluation(request, checkpoint, head.config.problem, examples.rows, point, dict(opened))
    result.sets = [
        score_set(name, path, stores[path], head, examples.rows, voting, kernel)
        for name, path in request.queries.items()
    ]
    views = compare_views(kernel, examples, result.sets)
    result.kernel = {**kernel.describe(), "choices": views}
    _add_before(result, stores, head)
    added = Embeddings.of(stores[request.update], head) if request.update is not None else None
    settings = {"samples": request.bootstrap_samples, "seed": request.seed}
    sizes = list(map(len, result.sets))
    for scored in track(zip(sizes, result.sets, strict=True), "Evaluating", sum(sizes), "memes"):
        if point is not None:
            apply_operating_point(point, scored, bank_match, voting, request.kernel)
        result.metrics[scored.name] = _head_metrics(scored, **settings)
        result.evidence[scored.name] = find_evidence(scored, examples.rows)
        result.analysis[scored.name] = analyse(scored, others=others, groups=request.groups, **settings)
    if added is not None:
        result.updates = update_curves(
            result.sets, examples.in_memory(), added, request.update_sizes, voting, request.kernel,
            draws=request.update_draws, **settings,
        )  # fmt: skip
    result.notes = _notes(result, added)
    result.manifest = _manifest(result, examples, stores)
    return result


def _operating_point(
    request: EvaluationRequest,
    checkpoint: Path,
    head: MemeHead,
    dev: tuple[Features, list[str]] | None,
    examples: ReferenceSet,
    kernel: KernelClassifier,
) -> OperatingPoint | None:
    """Choose an operating point on dev and store it beside the head, or read the stored one."""
    settings = request.operating_point
    if settings.dev is None or dev is None:
        return read_operating_point(checkpoint) if settings.thresholds == "stored" else None
    rows, left_out = dev
    scored = score_set("dev", settings.dev, rows, head, examples.rows, request.voting, kernel)
    point = choose_operating_point(
        scored, settings.dev, rows, left_out=left_out, head=checkpoint,
        bank={**examples.state, "content": bank_content(examples.in_memory())}, voting=request.voting,
        criterion=settings.criterion, calibration=settings.calibration, kernel=request.kernel,
    )  # fmt: skip
    point.write(checkpoint)
    return point


def _head_metrics(scored: ScoredSet, *, samples: int, seed: int) -> dict[Head, dict[str, dict[str, Any]]]:
    """Head → metric → estimate."""
    found: dict[Head, dict[str, dict[str, Any]]] = {}
    for head, scores in scored.scores.items():
        thresholds = scored.rules[head].thresholds
        values = estimates(scores, scored.labels, thresholds, scored.problem, samples=samples, seed=seed)
        found[head] = {name: estimate.as_dict() for name, estimate in values.items()}
    return found


def _add_before(result: Evaluation, stores: Mapping[Path, Features], head: MemeHead) -> None:
    """Embed the bank with the head that Stage 2 started from; an example bank has no hidden states for that."""
    request = result.request
    place = request.before if request.before is not None else result.checkpoint / INITIAL_HEAD
    if (request.before is None and not has_head(place)) or as_path(request.bank) not in stores:
        return
    bank = stores[as_path(request.bank)]
    earlier = load_head(place).to(next(head.parameters()).device)
    check_head_fits(earlier.config, place, bank, request.bank)
    result.before, result.before_place = Embeddings.of(bank, earlier).embedding, place


def _notes(result: Evaluation, added: Embeddings | None) -> list[str]:
    """Sentences that a reader of the results must know."""
    notes = []
    point = result.operating_point
    left_out = [] if point is None else point.dev.left_out
    if point is not None and left_out:
        notes.append(
            f"dev: {len(left_out)} memes are among the queries, for example {left_out[:3]}; thresholds and calibration "
            f"were chosen on the {point.dev.rows} others."
        )
    for scored in result.sets:
        notes += [f"{scored.name}: {note}" for note in scored.notes]
        if scored.in_bank:
            notes.append(f"{scored.name}: {scored.in_bank} query ids are also in the bank; none votes for itself.")
        if scored.abstained.any():
            notes.append(
                f"{scored.name}: RKC abstains on {int(scored.abstained.sum())} memes, whose score is 0; its metrics "
                "count them with the verdict of that score, the section on abstention leaves them out."
            )
        constant = [str(c) for c in scored.problem.constant_classes(scored.labels)]
        if constant and scored.problem.kind == "binary":
            notes.append(f"{scored.name}: all memes are of class {scored.labels[0]}, so the AUROC is undefined.")
        elif constant:
            notes.append(f"{scored.name}: AUROC leaves out classes that all or no memes have: {', '.join(constant)}.")
    if added is not None:
        shared = len(set(added.ids) & set(result.bank.ids))
        if shared:
            notes.append(f"{shared} rows of the update are already in the bank; they vote twice when they are sampled.")
    if point is None:
        notes.append(
            "The thresholds are the official ones, and scores are taken for probabilities as they are: `--dev` chooses "
            "thresholds and a calibration, and stores them beside the head."
        )
    return notes


def _manifest(result: Evaluation, examples: ReferenceSet, stores: Mapping[Path, Features]) -> EvaluationManifest:
    request = result.request
    arguments = {
        "checkpoint": result.checkpoint,
        "bank": request.bank,
        "queries": {scored.name: len(scored) for scored in result.sets},
        **asdict(request.voting),
        "update": request.update,
        "update_sizes": list(request.update_sizes),
        "update_draws": request.update_draws,
        "views": request.kernel.views,
        "bootstrap_samples": request.bootstrap_samples,
        "before": result.before_place,
        **request.operating_point.model_dump(),
        "compare": request.compare,
        "groups": request.groups,
    }
    decisions = {
        scored.name: {
            head: {"thresholds": rule.thresholds.tolist(), "chosen": rule.chosen} for head, rule in scored.rules.items()
        }
        for scored in result.sets
    }
    return EvaluationManifest.new(
        arguments=plain(arguments),
        seed=request.seed,
        **result.opened,
        system=describe_head(result.checkpoint),
        sets=describe_queries(request.queries, stores, result.problem.outputs),
        head_sha256=sha256_file(result.checkpoint / HEAD_WEIGHTS),
        bank={**examples.state, "data": describe_bank(request.bank, stores)},
        decisions=decisions,
        kernel=plain(result.kernel),
        features={str(folder): plain(store_fingerprint(features)) for folder, features in stores.items()},
        commands=result.commands,
    )
