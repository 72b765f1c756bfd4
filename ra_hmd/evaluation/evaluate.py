"""`ra-hmd evaluate`: the three heads side by side on query sets, with intervals, evidence and bank updates."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ra_hmd.core.artifacts import plain, run_manifest, sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem
from ra_hmd.core.progress import track
from ra_hmd.evaluation.bank_update import check_update, update_curve
from ra_hmd.evaluation.metrics.analysis import analyse
from ra_hmd.evaluation.metrics.estimates import estimates
from ra_hmd.evaluation.metrics.groups import find_groups
from ra_hmd.evaluation.metrics.seeds import expand_checkpoints
from ra_hmd.evaluation.metrics.significance import OtherRun, read_run
from ra_hmd.evaluation.provenance import describe_bank, describe_head, describe_queries
from ra_hmd.evaluation.report.outputs import UPDATE_KEY, write_evaluation, write_seeds
from ra_hmd.evaluation.request import Choice, Plan
from ra_hmd.evaluation.result import Evaluation, find_evidence
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
from ra_hmd.retrieval.voting import VoteWeights, Voting
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
    queries: Sequence[str | Path],
    output: str | Path,
    topk: int = 20,
    weights: VoteWeights = "arithmetic",
    update: str | Path | None = None,
    update_sizes: Sequence[int] = (),
    bootstrap_samples: int = 1000,
    seed: int = 0,
    *,
    final: bool = False,
    choice: Choice | None = None,
    compare: Sequence[str | Path] = (),
    groups: Sequence[str] = (),
    min_similarity: float | None = None,
    prior_correction: bool = False,
    before: str | Path | None = None,
    device: str | torch.device | None = None,
    commands: Sequence[str] = (),
) -> dict[str, Any]:
    """Score query sets with the LM head, the logistic regression and the KNN vote; write metrics and report.

    A query whose id is in the bank does not vote for itself; how many there are is counted. Stores are embedded anew
    by the checkpoint's head from their hidden states.

    Args:
        checkpoint: Folder with a head: a Stage 1 run or a Stage 2 output. Several, or a Stage 2 run of several seeds,
            are evaluated each in a folder of its own, and together.
        bank: Feature store of the labelled examples, or an example bank.
        queries: Feature stores of the labelled query sets; a set is called by its folder's name.
        output: Folder for metrics, report, figures and manifest.
        topk: K of the vote.
        weights: Weights of the vote.
        update: Feature store whose labelled rows are added to the bank, to show what an update does.
        update_sizes: How many rows, for example (8, 32, 128); each sample is class-balanced and holds the smaller ones.
        bootstrap_samples: Resamples behind each 95 % interval; 0 for none.
        seed: Of the resamples and of the update's sample.
        final: Score test splits too; each time is written down beside the head.
        choice: Where thresholds and calibration come from.
        compare: Earlier evaluations (folders or predictions.jsonl) to compare with, meme by meme.
        groups: Fields of the memes to break results down by, `FIELD` or `DATASET:FIELD`.
        min_similarity: The vote abstains where no neighbour is as similar as this.
        prior_correction: Let every class of the bank weigh the same.
        before: Folder with the head to compare the bank's projection with; by default the one that Stage 2 started
            from, where `checkpoint` is a Stage 2 output.
        device: Where the head runs; by default what accelerate finds.
        commands: What the report names as the commands that led to it; by default this one.

    Returns:
        `metrics` (set → head → metric → value, low, high; of several checkpoints also std and runs), `updates` (set →
        list of sizes), `notes`, `rows` (set → memes), `output` and `report` (path of report.md).

    Raises:
        UserError: stores and head that do not belong together, unlabelled rows, a leak, clashing names, test data
            without `final`.
    """
    if bootstrap_samples < 0:
        raise UserError(f"bootstrap_samples is {bootstrap_samples}, it must not be negative.")
    plan = Plan(
        checkpoints=expand_checkpoints(checkpoint),
        bank=bank,
        queries=_named(queries),
        output=Path(output),
        voting=Voting(topk, weights, min_similarity, prior_correction),
        update=Path(update) if update is not None else None,
        update_sizes=update_sizes,
        samples=bootstrap_samples,
        seed=seed,
        final=final,
        choice=choice or Choice(),
        compare=tuple(map(Path, compare)),
        groups=tuple(groups),
        before=Path(before) if before is not None else None,
        commands=tuple(commands),
    )
    device = device if device is not None else Accelerator().device
    heads = {name: load_head(folder).to(device) for name, folder in plan.checkpoints.items()}
    check_output(plan.output, "evaluation")
    others = [read_run(place) for place in plan.compare]
    stores = {folder: read_features(folder) for folder in plan.stores()}
    for name, head in heads.items():
        _check_stores(plan, stores, head, plan.checkpoints[name])
    dev = _dev(plan, stores, next(iter(heads.values())).config.problem)
    if plan.update is not None:
        ids = {name: stores[path].ids for name, path in plan.queries.items()}
        check_update(plan.update, stores[plan.update], plan.update_sizes, ids)
    opened = open_labels(
        {folder: stores[folder] for folder in plan.queries.values()},
        list(plan.checkpoints.values()),
        final=final,
        command=" && ".join(plan.commands or (plan.command(),)),
        examples={folder: stores[folder] for folder in plan.labelled()},
    )
    results = {name: _evaluate_one(plan, name, head, stores, dev, others, opened) for name, head in heads.items()}
    if len(results) == 1:
        return write_evaluation(next(iter(results.values())), plan.output)
    return write_seeds(results, plan.output)


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


def _check_stores(plan: Plan, stores: Mapping[Path, Features], head: MemeHead, checkpoint: Path) -> None:
    problem = head.config.problem
    for folder, features in stores.items():
        check_store(features, folder, problem)
        check_head_fits(head.config, checkpoint, features, folder)
    fingerprints = {str(folder): store_fingerprint(features) for folder, features in stores.items()}
    check_same_origin(fingerprints)  # each with the first: the bank, where it is a store
    check_same_origin({str(checkpoint): head_fingerprint(checkpoint), **fingerprints})
    for name, folder in plan.queries.items():
        for text in plan.groups:
            find_groups(name, stores[folder].extras, text)


def _dev(plan: Plan, stores: Mapping[Path, Features], problem: Problem) -> tuple[Features, list[str]] | None:
    """The rows to choose on now, and the ids of dev that were left out; or refuse stored rules for these queries."""
    queries = {path: stores[path].ids for path in plan.queries.values()}
    if plan.choice.dev is not None:
        rows, left_out = dev_rows(plan.choice.dev, stores[Path(plan.choice.dev)], queries)
        check_dev(plan.choice.dev, rows, problem)
        return rows, left_out
    if plan.choice.thresholds == "stored":
        for checkpoint in plan.checkpoints.values():
            decision = read_operating_point(checkpoint)
            for path, ids in queries.items() if decision is not None else ():
                check_judged(decision, path, ids)
    return None


def _evaluate_one(
    plan: Plan,
    name: str,
    head: MemeHead,
    stores: Mapping[Path, Features],
    dev: tuple[Features, list[str]] | None,
    others: Sequence[OtherRun],
    opened: Mapping[str, Any],
) -> Evaluation:
    """Everything about one head."""
    checkpoint, problem = plan.checkpoints[name], head.config.problem
    examples = open_reference_set(plan.bank, stores, head, checkpoint, in_memory=plan.update is not None)
    added = Embeddings.of(stores[plan.update], head) if plan.update is not None else None
    decision = _decision(plan, checkpoint, head, dev, examples)
    bank_match = match_reference_set(examples, None if decision is None else decision.bank)
    sets = [
        score_set(name, path, stores[path], head, examples.rows, plan.voting) for name, path in plan.queries.items()
    ]
    result = Evaluation(checkpoint, problem, plan.bank, examples.rows, plan.voting, dict(opened), decision, sets, {},
                        plan.samples, plan.seed, update_place=plan.update)  # fmt: skip
    result.commands = list(plan.commands) or [plan.command()]
    _add_before(result, plan, stores, head)
    for scored in track([(len(scored), scored) for scored in sets], "Evaluating", sum(map(len, sets)), "memes"):
        if decision is not None:
            apply_operating_point(decision, scored, bank_match, plan.voting)
        result.metrics[scored.name] = _head_metrics(scored, plan.samples, plan.seed)
        result.evidence[scored.name] = find_evidence(scored, examples.rows)
        result.analysis[scored.name] = analyse(
            scored, others=others, groups=plan.groups, samples=plan.samples, seed=plan.seed
        )
        if added is not None:
            result.updates[scored.name] = update_curve(
                scored.queries, examples.rows, added, plan.update_sizes, plan.voting, problem=problem,
                thresholds=scored.rules["rkc"].thresholds, samples=plan.samples, seed=plan.seed,
            )  # fmt: skip
    result.notes = _notes(result, added)
    result.manifest = _manifest(result, plan, examples, stores)
    return result


def _decision(
    plan: Plan, checkpoint: Path, head: MemeHead, dev: tuple[Features, list[str]] | None, examples: ReferenceSet
) -> OperatingPoint | None:
    """What dev decides now, stored beside the head, or what is stored there."""
    choice = plan.choice
    if choice.dev is None or dev is None:
        return read_operating_point(checkpoint) if choice.thresholds == "stored" else None
    place, (rows, left_out) = Path(choice.dev), dev
    scored = score_set("dev", place, rows, head, examples.rows, plan.voting)
    decision = choose_operating_point(
        scored, place, rows, left_out=left_out, head=checkpoint,
        bank={**examples.state, "content": bank_content(examples.in_memory())}, voting=plan.voting,
        criterion=choice.criterion, calibration=choice.calibration,
    )  # fmt: skip
    decision.write(checkpoint)
    return decision


def _head_metrics(scored: ScoredSet, samples: int, seed: int) -> dict[str, dict[str, dict[str, float | None]]]:
    return {
        head: {
            name: estimate.as_dict()
            for name, estimate in estimates(
                scores, scored.labels, scored.rules[head].thresholds, scored.problem, samples=samples, seed=seed
            ).items()
        }
        for head, scores in scored.scores.items()
    }


def _add_before(result: Evaluation, plan: Plan, stores: Mapping[Path, Features], head: MemeHead) -> None:
    """The bank as seen by the head that Stage 2 started from; an example bank holds embeddings of one head only."""
    place = plan.before if plan.before is not None else result.checkpoint / INITIAL_HEAD
    if (plan.before is None and not has_head(place)) or Path(plan.bank) not in stores:
        return
    bank = stores[Path(plan.bank)]
    earlier = load_head(place).to(next(head.parameters()).device)
    check_head_fits(earlier.config, place, bank, plan.bank)
    result.before, result.before_place = Embeddings.of(bank, earlier).embedding, place


def _notes(result: Evaluation, added: Embeddings | None) -> list[str]:
    notes = []
    left_out = [] if result.decision is None else result.decision.dev.get("left_out", [])
    if left_out:
        notes.append(
            f"dev: {len(left_out)} memes are among those that are judged, for example {left_out[:3]}; thresholds and "
            f"calibration were chosen on the {result.decision.dev['rows']} others."
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
        member = scored.problem.membership(scored.labels)
        constant = [str(c) for c in range(member.shape[1]) if member[:, c].all() or not member[:, c].any()]
        if constant and scored.problem.kind == "binary":
            notes.append(f"{scored.name}: all memes are of class {scored.labels[0]}, so the AUROC is undefined.")
        elif constant:
            notes.append(f"{scored.name}: AUROC leaves out classes that all or no memes have: {', '.join(constant)}.")
    if added is not None:
        shared = len(set(added.ids) & set(result.bank.ids))
        if shared:
            notes.append(f"{shared} rows of the update are already in the bank; they vote twice when drawn.")
    if result.decision is None:
        notes.append(
            "The thresholds are the official ones, and scores are taken for probabilities as they are: `--dev` chooses "
            "thresholds and a calibration, and stores them beside the head."
        )
    return notes


def _manifest(
    result: Evaluation, plan: Plan, examples: ReferenceSet, stores: Mapping[Path, Features]
) -> dict[str, Any]:
    arguments = {
        "checkpoint": result.checkpoint,
        "bank": plan.bank,
        "queries": {scored.name: len(scored) for scored in result.sets},
        **asdict(plan.voting),
        "update": plan.update,
        "update_sizes": list(plan.update_sizes),
        "bootstrap_samples": plan.samples,
        "before": result.before_place,
        **asdict(plan.choice),
        "compare": plan.compare,
        "groups": plan.groups,
    }
    decisions = {
        scored.name: {
            head: {"thresholds": rule.thresholds.tolist(), "chosen": rule.chosen} for head, rule in scored.rules.items()
        }
        for scored in result.sets
    }
    return run_manifest(
        "evaluation",
        arguments=plain(arguments),
        seed=result.seed,
        **result.opened,
        system=describe_head(result.checkpoint),
        sets=describe_queries(plan.queries, stores, result.problem.outputs),
        head_sha256=sha256_file(result.checkpoint / HEAD_WEIGHTS),
        bank={**examples.state, "data": describe_bank(plan.bank, stores)},
        decisions=decisions,
        features={str(folder): plain(store_fingerprint(features)) for folder, features in stores.items()},
        commands=result.commands,
    )
