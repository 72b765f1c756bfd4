"""Results of finished evaluations for a head's card, each with split, bank and threshold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ra_hmd.cards.render import NOT_MEASURED, Markdown, short, table
from ra_hmd.core.artifacts import MANIFEST_NAME, read_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import HEAD_NAMES, Head
from ra_hmd.core.manifests import BankReference, EvaluationManifest, RuleDescription, read_manifest
from ra_hmd.core.problem import Problem
from ra_hmd.evaluation.report.outputs import ANALYSIS_NAME, METRICS_NAME
from ra_hmd.evaluation.report.sections import METRIC_NAMES, format_estimate, vote_text
from ra_hmd.evaluation.request import UPDATE_KEY
from ra_hmd.retrieval.voting import Voting


def read_report(folder: str | Path, head_sha256: str, problem: Problem) -> list[dict[str, Any]]:
    """Read the results of an evaluation, one entry per query set.

    Args:
        folder: Output folder of `ra-hmd evaluate`.
        head_sha256: Digest of the weights of the card's head.
        problem: Labels of the head.

    Raises:
        UserError: no evaluation, one of several heads, or one of another head.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    manifest = read_manifest(path, EvaluationManifest)
    if manifest.runs is not None:
        names = ", ".join(str(folder / name) for name in manifest.runs)
        raise UserError(f"--report {folder} is about several heads; give the one of this head: {names}.")
    if manifest.in_context is not None:
        raise UserError(
            f"--report {folder} is of `ra-hmd in-context`, where no head takes part; give one of `evaluate`."
        )
    if manifest.head_sha256 != head_sha256:
        raise UserError(
            f"--report {folder} is about other weights (sha256 {str(manifest.head_sha256)[:12]}…) than the "
            f"card's head ({head_sha256[:12]}…); evaluate this head."
        )
    if manifest.bank is None or not manifest.sets:
        raise UserError(
            f"--report {folder} was written by an earlier version, without its sets and bank; evaluate again."
        )
    metrics = read_json(folder / METRICS_NAME)
    analysis = read_json(folder / ANALYSIS_NAME) if (folder / ANALYSIS_NAME).is_file() else {}
    return [
        _entry(name, scores, manifest, manifest.bank, analysis.get(name) or {}, problem)
        for name, scores in metrics.items()
        if name != UPDATE_KEY
    ]


def _entry(
    name: str,
    scores: Mapping[str, Any],
    manifest: EvaluationManifest,
    bank: BankReference,
    analysis: Mapping[str, Any],
    problem: Problem,
) -> dict[str, Any]:
    queries, arguments = manifest.sets[name], manifest.arguments
    voting = Voting(**{key: arguments[key] for key in Voting.__dataclass_fields__ if key in arguments})
    measured = list(next(iter(scores.values())))
    header = ["head", *(METRIC_NAMES.get(key, key) for key in measured), "ECE", "threshold from"]
    rows = []
    for head, values in scores.items():
        calibration = (analysis.get("calibration") or {}).get(head) or {}
        stage = calibration.get("after") or calibration.get("before")
        estimates = [Markdown(format_estimate(values[key])) if key in values else NOT_MEASURED for key in measured]
        rows.append([HEAD_NAMES[cast(Head, head)], *estimates, NOT_MEASURED if not stage else f"{stage['ece']:.3f}",
                     _threshold(next(manifest.rules(name, head)), arguments, problem)])  # fmt: skip
    task = f", task {queries.task}" if queries.task else ""
    return {
        "title": f"{short(queries.dataset)}{task}, split {queries.split}",
        "dataset": short(queries.dataset),
        "task": queries.task,
        "split": queries.split,
        "scores": scores,
        "rows": queries.rows,
        "created": manifest.created,
        "bank": short(_bank(bank)),
        "bank_state": bank,
        "vote": vote_text(voting),
        "samples": arguments["bootstrap_samples"],
        "final": manifest.final,
        "opened_before": max(manifest.opened_before.values(), default=0),
        "table": table(header, rows),
    }


def _bank(bank: BankReference) -> str:
    if bank.data is not None and bank.data.stated:
        return f"{bank.data.dataset}, split {bank.data.split}"
    version = "" if bank.version is None else f", version {bank.version}"
    return f"{bank.place}{version}"


def _threshold(rule: RuleDescription, arguments: Mapping[str, Any], problem: Problem) -> str:
    values = limits(rule.thresholds, problem)
    if problem.kind == "single_label":
        return values
    if not rule.chosen:
        return f"official ({values})"
    place = f"on {short(arguments['dev'])} for {arguments['criterion']}" if arguments.get("dev") else "earlier, on dev"
    return f"chosen {place} ({values})"


def limits(thresholds: Sequence[float], problem: Problem) -> str:
    """Thresholds [C] as text."""
    if problem.kind == "single_label":
        return "none: the highest score decides"
    values = [f"{value:.4g}" for value in thresholds]
    return f"{values[0]} for each class" if len(values) > 1 and len(set(values)) == 1 else ", ".join(values)
