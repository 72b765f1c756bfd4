"""Output files of an evaluation."""

from collections.abc import Mapping
from pathlib import Path

from ra_hmd.core.artifacts import MANIFEST_NAME, write_json, write_jsonl
from ra_hmd.core.manifests import EvaluationManifest, write_manifest
from ra_hmd.evaluation.metrics.seeds import over_seeds
from ra_hmd.evaluation.metrics.significance import PREDICTIONS_NAME
from ra_hmd.evaluation.report.report import write_report, write_seeds_report
from ra_hmd.evaluation.request import UPDATE_KEY
from ra_hmd.evaluation.result import Evaluation, EvaluationSummary, predictions

ANALYSIS_NAME = "analysis.json"
METRICS_NAME = "metrics.json"


def write_evaluation(result: Evaluation, output: Path) -> EvaluationSummary:
    """Write the files of one head's evaluation, and return its summary."""
    update = {UPDATE_KEY: result.updates} if result.updates else {}
    write_json(output / METRICS_NAME, {**result.metrics, **update})
    write_json(output / ANALYSIS_NAME, result.analysis)
    write_json(output / "evidence.json", result.evidence)
    write_jsonl(output / PREDICTIONS_NAME, [row for scored in result.sets for row in predictions(scored)])
    write_manifest(output / MANIFEST_NAME, result.manifest)
    report = write_report(result, output)
    return {
        "metrics": result.metrics,
        "updates": result.updates,
        "notes": result.notes,
        "rows": {scored.name: len(scored) for scored in result.sets},
        "output": str(output),
        "report": str(report),
    }


def write_seeds(results: Mapping[str, Evaluation], output: Path) -> EvaluationSummary:
    """Write each head's evaluation into a subfolder of its name, and the metrics over all of them.

    Returns:
        The summary over all heads: metrics are means, with `std` and `runs`.
    """
    for name, result in results.items():
        write_evaluation(result, output / name)
    first = next(iter(results.values()))
    settings = {"samples": first.request.bootstrap_samples, "seed": first.request.seed}
    metrics = {
        scored.name: over_seeds([result.sets[number] for result in results.values()], **settings)
        for number, scored in enumerate(first.sets)
    }
    notes = list(dict.fromkeys(note for result in results.values() for note in result.notes))
    stated = {name: result.manifest.to_json() for name, result in results.items()}
    manifest = EvaluationManifest.new(
        runs={name: one["arguments"] for name, one in stated.items()},
        seed=first.request.seed,
        **first.opened,
        systems={name: one["system"] for name, one in stated.items()},
        sets=first.manifest.sets,
        bank=first.manifest.bank,
        decisions={name: one["decisions"] for name, one in stated.items()},
        kernel={name: one["kernel"] for name, one in stated.items()},
        commands=first.commands,
    )
    write_json(output / METRICS_NAME, metrics)
    write_manifest(output / MANIFEST_NAME, manifest)
    report = write_seeds_report(results, metrics, notes, manifest, output)
    return {
        "metrics": metrics,
        "updates": {},
        "notes": notes,
        "rows": {scored.name: len(scored) for scored in first.sets},
        "output": str(output),
        "report": str(report),
    }
