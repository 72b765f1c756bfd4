"""report.md and its figures."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import write_text
from ra_hmd.core.heads import HEAD_NAMES
from ra_hmd.core.manifests import EvaluationManifest
from ra_hmd.core.markdown import escape, fenced, markdown_table
from ra_hmd.core.plotting import save_figure
from ra_hmd.evaluation.metrics.classification import metric_names
from ra_hmd.evaluation.metrics.intervals import CONFIDENCE
from ra_hmd.evaluation.report.calibration_plots import (
    abstention_figure,
    class_roc_figure,
    classes_figure,
    confusion_figure,
    reliability_figure,
)
from ra_hmd.evaluation.report.embedding_plots import histogram_figure, projection_figure, roc_figure, update_figure
from ra_hmd.evaluation.report.sections import (
    METRIC_NAMES,
    abstention_section,
    calibration_section,
    classes_section,
    comparison_section,
    format_estimate,
    groups_section,
    kernel_section,
    kernel_text,
    vote_text,
)
from ra_hmd.evaluation.result import Evaluation

_SHOWN_NEIGHBOURS = 3


def write_report(result: Evaluation, output: Path) -> Path:
    """Write report.md and its figures into `output`, and return the path of the report."""
    figures = _write_figures(result, output)
    sections = [
        _setting(result),
        _results(result),
        classes_section(result),
        _update(result),
        comparison_section(result),
        calibration_section(result),
        abstention_section(result),
        kernel_section(result),
        groups_section(result),
        _figures(figures),
        _evidence(result),
        _origin(result.commands, result.manifest),
    ]
    path = output / "report.md"
    write_text(path, "# Evaluation\n\n" + "\n".join(section for section in sections if section))
    return path


def write_seeds_report(
    results: Mapping[str, Evaluation],
    metrics: Mapping[str, Any],
    notes: Sequence[str],
    manifest: EvaluationManifest,
    output: Path,
) -> Path:
    """Write report.md over several heads: means, deviations over seeds, intervals over memes; return its path.

    Args:
        results: Name of each head, and of its folder in `output` → its evaluation.
        metrics: Query set → head → metric → `value`, `low`, `high`, `std`, `runs`.
        notes: Sentences that a reader of the results must know.
        manifest: Manifest of the run.
        output: Output folder.
    """
    first = next(iter(results.values()))
    text = (
        "# Evaluation of several seeds\n\n"
        f"{len(results)} heads: mean ± standard deviation over heads, which measures the variation between seeds, and "
        f"in brackets the {CONFIDENCE:.0%} interval of the mean over memes (the same for all heads), which measures "
        "the variation between samples of memes. Neither includes the other.\n\n"
    )
    text += markdown_table(
        ["seed", "head", "its own report"],
        [[escape(name), escape(result.checkpoint), f"[report.md]({_link(name)}/report.md)"]
         for name, result in results.items()],
    )  # fmt: skip
    text += "".join(f"\n- {escape(note)}" for note in notes) + "\n"
    for name, heads in metrics.items():
        header = ["head", *(METRIC_NAMES[metric] for metric in metric_names(first.problem))]
        rows = [[HEAD_NAMES[head], *map(format_estimate, values.values())] for head, values in heads.items()]
        text += f"\n## {escape(name)}\n\n{markdown_table(header, rows)}"
        for head, values in heads.items():
            runs = [[escape(seed), *(f"{item['runs'][number]:.3f}" if item["runs"][number] is not None else "–"
                     for item in values.values())] for number, seed in enumerate(results)]  # fmt: skip
            text += f"\n{HEAD_NAMES[head]}, seed by seed:\n\n{markdown_table(['seed', *header[1:]], runs)}"
    path = output / "report.md"
    write_text(path, f"{text}\n{_origin(first.commands, manifest)}")
    return path


def _link(name: str) -> str:
    return re.sub(r"[^\w.-]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), name)


def _write_figures(result: Evaluation, output: Path) -> dict[str, str]:
    sets, binary = result.sets, result.problem.kind == "binary"
    figures = {"roc.png": ("ROC curves", roc_figure(sets, result.metrics) if binary else class_roc_figure(sets))}
    if binary:
        figures["scores.png"] = ("Scores by class", histogram_figure(sets))
    else:
        figures["classes.png"] = ("Each class against the rest", classes_figure(sets, result.analysis))
    if result.problem.kind == "single_label":
        figures["confusion.png"] = ("Confusion matrices", confusion_figure(sets))
    figures["reliability.png"] = (
        "Reliability: estimated and observed shares",
        reliability_figure(sets, result.analysis),
    )
    figures["abstention.png"] = ("Leaving the uncertain memes to people", abstention_figure(sets, result.analysis))
    if result.embedding is not None:
        stages = {"bank before Stage 2": result.before} if result.before is not None else {}
        stages["bank after Stage 2" if stages else "bank"] = result.embedding
        figure = projection_figure(stages, result.bank.labels, result.request.seed)
        figures["bank.png"] = ("The bank in two dimensions (PCA)", figure)
    if result.updates:
        figures["bank_update.png"] = ("Updating the bank without retraining", update_figure(result.updates))
    for name, (_, figure) in figures.items():
        save_figure(figure, output / name)
    return {name: title for name, (title, _) in figures.items()}


def _setting(result: Evaluation) -> str:
    rows = [
        ["head", escape(result.checkpoint)],
        ["bank", f"{escape(result.request.bank)}: {_counted(result.bank.labels, result)}"],
        ["KNN vote", escape(vote_text(result.request.voting))],
        ["kernel head", escape(kernel_text(result.kernel))],
        ["thresholds", escape(_thresholds(result))],
        ["test data", escape(_opened(result))],
        [
            "intervals",
            f"{CONFIDENCE:.0%}, over memes; {result.request.bootstrap_samples} draws, seed {result.request.seed}",
        ],
    ]
    rows += [[f"query set {escape(scored.name)}", _counted(scored.labels, result)] for scored in result.sets]
    notes = "".join(f"- {escape(note)}\n" for note in result.notes)
    return markdown_table(["setting", "value"], rows) + (f"\nNotes:\n\n{notes}" if notes else "")


def _counted(labels: Any, result: Evaluation) -> str:
    member = result.problem.membership(labels).sum(axis=0).tolist()
    if result.problem.kind == "binary":
        return f"{len(labels)} memes, {member[0]} of class 1"
    return f"{len(labels)} memes; per class {', '.join(map(str, member))}"


def _thresholds(result: Evaluation) -> str:
    point = result.operating_point
    if point is None:
        return (
            "official: 0.5 (LMH, LRC), 0 (RKC, KRR)"
            if result.problem.kind != "single_label"
            else "highest score decides"
        )
    where = f"chosen on {point.dev.place} ({point.dev.rows} memes)"
    if result.problem.kind == "single_label":
        return f"highest score decides; calibration {where}"
    shown = [f"{head.upper()} {', '.join(f'{value:.3f}' for value in rule.thresholds)}"
             for head, rule in point.rules.items()]  # fmt: skip
    return f"{where} for the best {METRIC_NAMES.get(point.criterion, point.criterion)}: {'; '.join(shown)}"


def _opened(result: Evaluation) -> str:
    tests = result.opened["test_sets"]
    if not tests:
        return "none was scored"
    before = result.opened["opened_before"].get(str(result.checkpoint), 0)
    return f"opened with --final: {', '.join(tests)}; earlier evaluations of this head that opened test data: {before}"


def _results(result: Evaluation) -> str:
    names = metric_names(result.problem)
    text = "## Results\n"
    for scored in result.sets:
        heads = result.metrics[scored.name]
        rows = [
            [HEAD_NAMES[head], *(format_estimate(metrics[name]) for name in names)] for head, metrics in heads.items()
        ]
        if "lmh" not in heads:
            rows.insert(0, [HEAD_NAMES["lmh"], "no scores in the store", *["–"] * (len(names) - 1)])
        header = ["head", *(METRIC_NAMES[name] for name in names)]
        text += f"\n### {escape(scored.name)}\n\n{markdown_table(header, rows)}"
    return text


def _update(result: Evaluation) -> str:
    if not result.updates:
        return ""
    how = "samples" if result.problem.kind == "multi_label" else "class-balanced samples"
    count, seed = result.request.update_draws, result.request.seed
    draws = f"seed {seed}" if count == 1 else f"means over {count} draws, seeds {seed} to {seed + count - 1}"
    spread = "" if count == 1 else "; that is the standard deviation after ±"
    text = (
        "## Updating the bank without retraining\n\n"
        f"Nested {how} of {escape(result.request.update)} ({draws}) are added to the bank; head and "
        "thresholds stay the same. The gain is paired over the query memes. The intervals cover the variation between "
        f"query memes, not between samples of the update{spread}.\n"
    )
    for name, curve in result.updates.items():
        rows = [
            [str(entry["added"]), head, *(format_estimate(values[metric]) for metric in ("accuracy", "auroc")),
             *(format_estimate(values[gain], signed=True) if values[gain] else "–" for gain in ("gain", "auroc_gain"))]
            for entry in curve
            for head, values in (("RKC", entry), ("KRR", entry["krr"]))
        ]  # fmt: skip
        header = ["memes added", "head", "accuracy", "AUROC", "accuracy gained", "AUROC gained"]
        text += f"\n### {escape(name)}\n\n{markdown_table(header, rows)}"
    return text


def _figures(figures: Mapping[str, str]) -> str:
    return "## Figures\n" + "".join(f"\n### {title}\n\n![{title}]({name})\n" for name, title in figures.items())


def _evidence(result: Evaluation) -> str:
    text = (
        "## Evidence\n\nThe first memes of each set with their nearest examples: id (class, cosine similarity, vote). "
        "The votes of all K examples, which evidence.json lists, sum to the score.\n"
    )
    for name, memes in result.evidence.items():
        rows = []
        for meme in memes:
            near = [
                f"{escape(item['id'])} ({_short(item['label'])}, {item['similarity']:.3f}, {_short(item['vote'])})"
                for item in meme["neighbours"][:_SHOWN_NEIGHBOURS]
            ]
            verdict = "abstains" if meme["rkc_class"] is None else _short(meme["rkc_class"])
            cells = [_short(meme["label"]), verdict, _short(meme["scores"]["rkc"])]
            rows.append([escape(meme["id"]), *cells, "<br>".join(near)])
        header = ["meme", "class", "RKC verdict", "score", "nearest examples"]
        text += f"\n### {escape(name)}\n\n{markdown_table(header, rows)}"
    return text


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_short, value))
    return str(value) if isinstance(value, int) else f"{value:+.3f}"


def _origin(commands: Sequence[str], manifest: EvaluationManifest) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    return (
        f"## How this was made\n\n{fenced(commands)}\n"
        f"Seed {manifest.seed}. {escape(versions)}. Made {manifest.created}.\n"
    )
