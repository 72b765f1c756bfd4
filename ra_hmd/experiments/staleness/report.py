"""Report of a staleness study: Markdown tables and a figure."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ra_hmd.core.artifacts import write_text
from ra_hmd.core.heads import BANK_HEADS, Head
from ra_hmd.core.markdown import escape, markdown_table
from ra_hmd.core.plotting import BLUE, GREEN, ORANGE, VERMILION, panels, plain_text, save_figure
from ra_hmd.evaluation.metrics.intervals import CONFIDENCE
from ra_hmd.evaluation.metrics.runs import METRIC_TITLES, STUDY_METRICS, error_bars
from ra_hmd.evaluation.report.sections import format_estimate
from ra_hmd.experiments.staleness.config import StalenessSettings


def write_staleness_report(result: Mapping[str, Any], settings: StalenessSettings, command: str, output: Path) -> None:
    """Write staleness.md and staleness.png."""
    save_figure(_figure(result), output / "staleness.png")
    write_text(output / "staleness.md", _markdown(result, settings, command))


def _markdown(result: Mapping[str, Any], settings: StalenessSettings, command: str) -> str:
    window = "all earlier periods" if settings.window is None else f"the last {settings.window} periods of its time"
    size = "" if settings.bank_size is None else f", {settings.bank_size} of them, half of each class"
    text = (
        "# Staleness of the bank\n\nRows are periods of the query memes, columns are ages of the bank in periods; the "
        f"bank of age 1 is updated in every period. A bank holds memes of {window}{size}. K = {settings.topk}, "
        f"{settings.weights} weights; the KRR compares {' + '.join(settings.views)}. In "
        f"brackets: the {CONFIDENCE:.0%} interval over memes (seed {settings.seed}).\n"
    )
    cells = {(cell["period"], cell["age"]): cell for cell in result["cells"]}
    ages = range(1, max((cell["age"] for cell in result["cells"]), default=0) + 1)
    evaluated = [period["name"] for period in result["periods"] if (period["name"], 1) in cells]
    for metric in STUDY_METRICS:
        for head in BANK_HEADS:
            rows = [
                [escape(name), *(_shown(cells.get((name, age)), head, metric) for age in ages)] for name in evaluated
            ]
            header = ["period", *(f"age {age}" for age in ages)]
            text += f"\n## {head.upper()}: {METRIC_TITLES[metric]} by age\n\n{markdown_table(header, rows)}"
    if result["updated_gain"]:
        rows = [
            [escape(name), format_estimate(gain, signed=True), format_estimate(krr, signed=True)]
            for (name, gain), krr in zip(
                result["updated_gain"].items(), result["updated_gain_krr"].values(), strict=True
            )
        ]
        header = ["period", "accuracy gained by the RKC", "by the KRR"]
        text += f"\n## Updated bank against the bank of the first period, paired\n\n{markdown_table(header, rows)}"
    rows = [
        [escape(one["name"]), str(one["queries"]), str(one["positives"]), str(one["bank_rows"]), escape(one["note"])]
        for one in result["periods"]
    ]
    header = ["period", "query memes", "of class 1", "bank memes", "note"]
    text += f"\n## Periods\n\n{markdown_table(header, rows)}\n![Frozen against updated](staleness.png)\n"
    gaps = [f"- {escape(c['period'])}, age {c['age']}: {escape(c['why'])}.\n" for c in result["cells"] if "why" in c]
    text += f"\nCells without a value:\n\n{''.join(gaps)}" if gaps else ""
    return text + (f"\n## How this was made\n\n```sh\n{command}\n```\n" if command else "")


def _metrics(cell: Mapping[str, Any], head: Head) -> Mapping[str, Any]:
    """Metrics of a head in a cell; those of the RKC are the cell's own."""
    return cell if head == "rkc" else cell[head]


def _shown(cell: Mapping[str, Any] | None, head: Head, metric: str) -> str:
    if cell is None:
        return ""
    return "–" if "why" in cell else format_estimate(_metrics(cell, head)[metric])


def _figure(result: Mapping[str, Any]) -> Figure:
    """One panel per metric: the bank frozen at the first period and the updated bank, over the periods,
    for both heads."""
    names = [period["name"] for period in result["periods"]]
    figure, axes = panels(len(STUDY_METRICS), width=max(4.6, 0.7 * len(names)))
    first = names[0]
    for axis, metric in zip(axes[0], STUDY_METRICS, strict=True):
        lines: tuple[tuple[Head, str, Callable[[Mapping[str, Any]], bool], str, str, str, float], ...] = (
            ("rkc", f"frozen at {first}", lambda cell: cell["frozen_at"] == first, VERMILION, "s", "--", 0.05),
            ("rkc", "updated every period", lambda cell: cell["age"] == 1, BLUE, "o", "-", -0.05),
            ("krr", f"frozen at {first}", lambda cell: cell["frozen_at"] == first, ORANGE, "D", "--", 0.1),
            ("krr", "updated every period", lambda cell: cell["age"] == 1, GREEN, "^", "-", -0.1),
        )
        for head, label, chosen, colour, marker, style, shift in lines:
            known = [
                (names.index(cell["period"]) + shift, _metrics(cell, head)[metric])
                for cell in result["cells"]
                if chosen(cell) and "why" not in cell and _metrics(cell, head)[metric]["value"] is not None
            ]
            items = [item for _, item in known]
            axis.errorbar(
                [x for x, _ in known],
                [item["value"] for item in items],
                yerr=error_bars(items),
                color=colour,
                marker=marker,
                linestyle=style,
                capsize=3,
                label=plain_text(f"{head.upper()}, {label}"),
            )
        axis.set_xticks(range(1, len(names)), [plain_text(name) for name in names[1:]], rotation=30, ha="right")
        axis.set(xlabel="period of the query memes", ylabel=METRIC_TITLES[metric])
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.27), ncols=2, frameon=False)
    return figure
