"""report.md and its figures."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from ra_hmd.evaluation.bootstrap import CONFIDENCE
from ra_hmd.evaluation.metrics import METRICS
from ra_hmd.evaluation.plots import histogram_figure, projection_figure, roc_figure, update_figure
from ra_hmd.evaluation.results import HEAD_NAMES, Evaluation
from ra_hmd.figures import save_figure
from ra_hmd.manifest import write_text
from ra_hmd.markdown import escape, markdown_table

_METRIC_NAMES = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "macro_f1": "macro-F1",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}
_SHOWN_NEIGHBOURS = 3


def format_estimate(estimate: Mapping[str, float | None], signed: bool = False) -> str:
    """`0.913 [0.890, 0.934]`, without brackets where there is no interval, `–` where there is no value."""
    if estimate["value"] is None:
        return "–"
    shape = "{:+.3f}" if signed else "{:.3f}"
    text = shape.format(estimate["value"])
    if estimate["low"] is None:
        return text
    return f"{text} [{shape.format(estimate['low'])}, {shape.format(estimate['high'])}]"


def console_table(result: Mapping[str, Any]) -> Table:
    """The results that `evaluate` returned, for the terminal."""
    table = Table(title=f"Three heads, with {CONFIDENCE:.0%} bootstrap intervals")
    for column in ("query set", "memes", "head", "accuracy", "AUROC", "macro-F1"):
        table.add_column(column, justify="right" if column == "memes" else "left")
    for name, heads in result["metrics"].items():
        for head, metrics in heads.items():
            cells = [format_estimate(metrics[metric]) for metric in ("accuracy", "auroc", "macro_f1")]
            table.add_row(name, str(result["rows"][name]), head.upper(), *cells)
    return table


def write_report(result: Evaluation, output: Path) -> Path:
    """Write report.md and its PNGs into `output`; return the report's path."""
    figures = _write_figures(result, output)
    sections = [
        _setting(result),
        _results(result),
        _update(result),
        _figures(figures),
        _evidence(result),
        _origin(result),
    ]
    path = output / "report.md"
    write_text(path, "# Evaluation\n\n" + "\n".join(section for section in sections if section))
    return path


def _write_figures(result: Evaluation, output: Path) -> dict[str, str]:
    stages = {"bank before Stage 2": result.before} if result.before is not None else {}
    stages["bank after Stage 2" if stages else "bank"] = result.bank.embedding
    drawn = {
        "roc.png": ("ROC curves", roc_figure(result.sets, result.metrics)),
        "scores.png": ("Scores by class", histogram_figure(result.sets)),
        "bank.png": ("The bank in two dimensions (PCA)", projection_figure(stages, result.bank.labels, result.seed)),
    }
    if result.updates:
        drawn["bank_update.png"] = ("Updating the bank without retraining", update_figure(result.updates))
    for name, (_, figure) in drawn.items():
        save_figure(figure, output / name)
    return {name: title for name, (title, _) in drawn.items()}


def _setting(result: Evaluation) -> str:
    positives = int(result.bank.labels.sum())
    rows = [
        ["head", escape(result.checkpoint)],
        ["bank", f"{escape(result.bank_place)}: {len(result.bank)} memes, {positives} of class 1"],
        ["KNN vote", f"K = {result.voting.topk}, {result.voting.weights} weights, cosine, class 1 from score 0"],
        ["intervals", f"{CONFIDENCE:.0%} percentile bootstrap, {result.samples} resamples, seed {result.seed}"],
    ]
    rows += [[f"query set {escape(scored.name)}", f"{len(scored.queries)} memes, {int(scored.labels.sum())} of class 1"]
             for scored in result.sets]  # fmt: skip
    notes = "".join(f"- {escape(note)}\n" for note in result.notes)
    return markdown_table(["setting", "value"], rows) + (f"\nNotes:\n\n{notes}" if notes else "")


def _results(result: Evaluation) -> str:
    text = "## Results\n"
    for scored in result.sets:
        heads = result.metrics[scored.name]
        rows = [
            [HEAD_NAMES[head], *(format_estimate(metrics[name]) for name in METRICS)] for head, metrics in heads.items()
        ]
        if "lmh" not in heads:
            rows.insert(0, [HEAD_NAMES["lmh"], "no scores in the store", *["–"] * (len(METRICS) - 1)])
        header = ["head", *(_METRIC_NAMES[name] for name in METRICS)]
        text += f"\n### {escape(scored.name)}\n\n{markdown_table(header, rows)}"
    return text


def _update(result: Evaluation) -> str:
    if not result.updates:
        return ""
    text = (
        "## Updating the bank without retraining\n\n"
        f"Class-balanced samples of {escape(result.update_place)} (seed {result.seed}) join the bank, each holding the "
        "smaller ones; the head stays as it is. The gain is paired: the same memes before and after. The intervals "
        "tell what other query memes would give, not what other samples would.\n"
    )
    for name, curve in result.updates.items():
        rows = [
            [
                str(entry["added"]),
                format_estimate(entry["accuracy"]),
                format_estimate(entry["auroc"]),
                format_estimate(entry["gain"], signed=True) if entry["gain"] else "–",
            ]
            for entry in curve
        ]
        header = ["memes added", "RKC accuracy", "RKC AUROC", "accuracy gained"]
        text += f"\n### {escape(name)}\n\n{markdown_table(header, rows)}"
    return text


def _figures(figures: Mapping[str, str]) -> str:
    return "## Figures\n" + "".join(f"\n### {title}\n\n![{title}]({name})\n" for name, title in figures.items())


def _evidence(result: Evaluation) -> str:
    text = (
        "## Evidence\n\nThe first memes of each set with their nearest examples: id (class, cosine similarity, vote). "
        "The votes of all K examples add up to the score; evidence.json has them all.\n"
    )
    for name, memes in result.evidence.items():
        rows = []
        for meme in memes:
            near = [
                f"{escape(item['id'])} ({item['label']}, {item['similarity']:.3f}, {item['vote']:+.3f})"
                for item in meme["neighbours"][:_SHOWN_NEIGHBOURS]
            ]
            score = f"{meme['scores']['rkc']:+.3f}"
            rows.append([escape(meme["id"]), str(meme["label"]), str(meme["rkc_class"]), score, "<br>".join(near)])
        header = ["meme", "class", "RKC says", "score", "nearest examples"]
        text += f"\n### {escape(name)}\n\n{markdown_table(header, rows)}"
    return text


def _origin(result: Evaluation) -> str:
    longest = max((len(run) for command in result.commands for run in re.findall(r"`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    commands = "\n".join(result.commands)
    versions = ", ".join(f"{name} {version}" for name, version in result.manifest["versions"].items())
    return (
        f"## How this was made\n\n{fence}sh\n{commands}\n{fence}\n\n"
        f"Seed {result.seed}. {escape(versions)}. Made {result.manifest['created']}.\n"
    )
